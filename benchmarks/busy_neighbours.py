"""How long a command takes beside processes that keep the cores busy, by how its threads wait for each other.

    python benchmarks/busy_neighbours.py --output benchmarks/results/busy_neighbours.json \
        --wait 'as it is' --wait 'passive OMP_WAIT_POLICY=PASSIVE' --wait 'one thread OMP_NUM_THREADS=1' \
        -- sgan-segment ct.nii.gz --model phantom-ct-liver --quality fast --output {output}

Each --wait is a name and environment variables; they take turns in each repeat. {output} is a fresh folder. Busy
processes run Python in sessions of their own, as a browser does. Medians, and the ratio to the first --wait.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sgan_core.cli import app
from sgan_core.errors import InputError
from sgan_core.evaluation.tables import Table, json_text, print_table, write_text

BUSY = [sys.executable, "-c", "while True: pass"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit code."""
    p = app.Parser("busy_neighbours", description=__doc__ or "")
    p.add_argument("--output", required=True, type=Path, metavar="JSON", help="file to write")
    p.add_argument("--wait", action="append", required=True, metavar="'NAME A=1 B=2'", help="an environment")
    p.add_argument("--busy", nargs="+", type=int, default=[0, 1, 2], help="busy processes (default 0 1 2)")
    p.add_argument("--repeats", type=int, default=1, help="default 1")
    p.add_argument("command", nargs="+", help="after --; {output} becomes a folder")
    return app.run(measure, p, argv)


def measure(args: argparse.Namespace) -> None:
    """Time the command in every environment beside every number of busy processes."""
    waits = dict(_wait(text) for text in args.wait)
    rows: list[dict[str, Any]] = []
    for busy in args.busy:
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in waits}
        with ExitStack() as neighbours:
            for _ in range(busy):
                process = subprocess.Popen(BUSY, start_new_session=True)
                neighbours.callback(process.kill)
            for _ in range(args.repeats):
                for name, variables in waits.items():
                    times[name].append(_timed(args.command, variables))
                    print(f"{busy} busy, {name}: {times[name][-1][0]:.1f} s", file=sys.stderr, flush=True)
        first = statistics.median(wall for wall, _ in times[next(iter(waits))])
        for name, found in times.items():
            wall, cpu = (statistics.median(column) for column in zip(*found, strict=True))
            rows.append(
                {
                    "busy": busy,
                    "wait": name,
                    "wall_s": round(wall, 1),
                    "cpu_s": round(cpu, 1),
                    "ratio": round(wall / first, 2),
                }
            )
    print_table(
        Table("beside busy processes", tuple(rows[0]), tuple(tuple(map(str, r.values())) for r in rows))
    )
    facts = {"command": args.command, "waits": waits, "cores": os.cpu_count(), "repeats": args.repeats}
    write_text(args.output, json_text(facts | {"rows": rows}))


def _wait(text: str) -> tuple[str, dict[str, str]]:
    variables = dict(re.findall(r"([A-Z_]+)=(\S+)", text))
    name = re.sub(r"\s*[A-Z_]+=\S+", "", text)
    if not name:
        raise InputError(f"--wait {text!r}: begin with a name")
    return name, variables


def _timed(command: Sequence[str], variables: dict[str, str]) -> tuple[float, float]:
    """Seconds of the clock and of the processors. Raises InputError when the command fails."""
    with tempfile.TemporaryDirectory() as folder:
        real = [part.replace("{output}", str(Path(folder, "output"))) for part in command]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(real, env=os.environ | variables, capture_output=True, check=False)
        wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise InputError(f"{' '.join(real)}: exit code {done.returncode}: {done.stderr.decode()[-300:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    raise SystemExit(main())
