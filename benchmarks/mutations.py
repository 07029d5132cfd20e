"""Do the tests notice? Plants one fault at a time in a copy of the program and runs the tests that should fail.

    python benchmarks/mutations.py --list
    python benchmarks/mutations.py --only "r1" "undo"
    python benchmarks/mutations.py --output benchmarks/results/mutations.json

The faults stand in mutations.yaml beside this file. To add one, write

    - name: EMA without its ramp
      file: sgan_core/training/gan.py
      old: 'half_life = min(self.gan.ema_half_life_images, max(1.0, 0.05 * self.images))'
      new: 'half_life = self.gan.ema_half_life_images'
      tests: tests/training/test_gan.py -k half_life

old: text of the file, there exactly once; new: what takes its place; tests: what pytest is given, as few as need
be. A fault that no test can see, as the program does the same with it, says so in a line ``why``.

The tracked files are copied as they are now, tests below tests/slicer run by --slicer-python. All tests named must
pass without a fault first. A fault is caught when one of its tests fails, or runs five times as long and a minute.
Exit code 0: every fault could be tried, and those missed say why and are at most one in twenty. Linux and macOS.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import dacite
import yaml

from sgan_core.cli import app
from sgan_core.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_suffix(".yaml")
LEAST_CAUGHT = 0.95
# How much longer than without a fault tests may take: so many times, and seconds
PATIENCE, PATIENCE_S = 5.0, 60.0
CAUGHT, MISSED, ERROR = "caught", "missed", "error"


@dataclass(frozen=True)
class Mutation:
    """A fault to plant, see the top of this file."""

    name: str
    file: str
    old: str
    new: str
    tests: str
    why: str = ""


@dataclass(frozen=True)
class Verdict:
    """What became of a fault: caught, missed or error; by: the test that failed, or what went wrong."""

    name: str
    file: str
    outcome: str
    by: str
    seconds: float
    why: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit code."""
    p = app.Parser("mutations", description=__doc__ or "")
    p.add_argument("--only", nargs="+", metavar="NAME", help="faults whose name holds one of these texts")
    p.add_argument("--list", action="store_true", help="show the faults with their tests, and end")
    p.add_argument("--output", type=Path, metavar="FILE.json", help="also write what was found")
    python = Path(".venv-slicer/bin/python")
    p.add_argument(
        "--slicer-python",
        type=Path,
        default=python,
        metavar="PYTHON",
        help=f"of the environment that `make test-slicer` sets up (default {python})",
    )
    return app.run(run, p, argv)


def run(args: argparse.Namespace) -> int:
    """Try the faults, print, write."""
    mutations = chosen(read_table(TABLE), args.only)
    if args.list:
        for one in mutations:
            print(f"{one.name}\n    {one.file}\n    {one.tests}")
        return app.DONE
    commit = _git("describe", "--always", "--dirty", "--exclude=*").strip()
    # Not resolved: a link is how an environment's Python knows its environment.
    pythons = Path(sys.executable), ROOT / args.slicer_python
    with tempfile.TemporaryDirectory(prefix="sgan-mutations-") as folder:
        copy_tracked(Path(folder))
        bench = Bench(Path(folder), *pythons)
        try:
            verdicts = [told(bench.tried(one)) for one in mutations]
        finally:
            bench.close()
    counts = Counter(verdict.outcome for verdict in verdicts)
    print(
        f"{counts[CAUGHT]} of {len(verdicts)} caught" + (f", {counts[ERROR]} errors" if counts[ERROR] else "")
    )
    if args.output:
        record = {
            "commit": commit,
            "caught": counts[CAUGHT],
            "of": len(verdicts),
            "seconds": round(sum(verdict.seconds for verdict in verdicts)),
            "mutations": [asdict(verdict) for verdict in verdicts],
        }
        args.output.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return app.DONE if sufficient(verdicts) else app.PARTLY_FAILED


def read_table(file: Path) -> list[Mutation]:
    """The faults in a table. Raises InputError when an entry is not one, or two have the same name."""
    found = []
    for number, entry in enumerate(yaml.safe_load(file.read_text(encoding="utf-8")), start=1):
        try:
            found.append(dacite.from_dict(Mutation, entry, dacite.Config(strict=True)))
        except (dacite.DaciteError, AttributeError, TypeError) as error:
            raise InputError(f"{file}: entry {number}: {error}.") from None
    names = Counter(one.name for one in found)
    if repeated := [name for name, times in names.items() if times > 1]:
        raise InputError(f"{file}: two entries are named {repeated[0]!r}; give each its own name.")
    return found


def chosen(mutations: list[Mutation], only: Iterable[str] | None) -> list[Mutation]:
    """Those whose name holds one of the texts, upper and lower case alike. Raises InputError for a text in none."""
    if only is None:
        return mutations
    for text in only:
        if not any(text.casefold() in one.name.casefold() for one in mutations):
            raise InputError(f"no fault is called {text!r}; --list shows their names.")
    return [one for one in mutations if any(text.casefold() in one.name.casefold() for text in only)]


def sufficient(verdicts: Sequence[Verdict]) -> bool:
    """Whether every fault could be tried, and those missed are few and explained."""
    missed = [verdict for verdict in verdicts if verdict.outcome == MISSED]
    few = len(missed) <= math.floor((1.0 - LEAST_CAUGHT) * len(verdicts) + 1e-9)
    return few and all(verdict.why for verdict in missed) and all(v.outcome != ERROR for v in verdicts)


def told(verdict: Verdict) -> Verdict:
    """Print a verdict as soon as it is there."""
    why = f" ({verdict.why})" if verdict.why else ""
    print(f"{verdict.outcome:6} {verdict.seconds:6.1f} s  {verdict.name}: {verdict.by}{why}", flush=True)
    return verdict


# --- a copy to break ---


def _git(*arguments: str) -> str:
    try:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(f"{ROOT}: git does not list its files ({error}). Work in a clone.") from error


def copy_tracked(folder: Path) -> None:
    """Copy the tracked files of the repository as they are in the work tree."""
    for name in _git("ls-files", "-z").split("\0")[:-1]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    if (folder / "datasets").is_dir():  # as setup.py maps it
        (folder / "sgan_datasets").symlink_to("datasets")


@dataclass(frozen=True)
class _Ran:
    """One run of pytest. code: its exit code, None after the time limit."""

    code: int | None
    output: str
    seconds: float

    @property
    def passed(self) -> bool:
        return self.code == 0 and re.search(r"\d passed", self.output) is not None

    @property
    def failed(self) -> bool:
        """5 is pytest's for no test found, 0 may be all tests skipped: neither has noticed anything."""
        return self.code not in (0, 5)

    @property
    def first_failure(self) -> str:
        if self.code is None:
            return "time-out"
        named = re.search(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", self.output, re.MULTILINE)
        return named[1] if named else f"pytest's exit code {self.code}"

    @property
    def tail(self) -> str:
        return "\n".join(self.output.splitlines()[-15:])


# What a run of pytest would spend nine tenths of its time on; imported once, where they are installed.
HEAVY = (
    "torch",
    "torchvision",
    "monai.networks.nets",
    "highdicom",
    "SimpleITK",
    "nibabel",
    "skimage.exposure",
)
# Its arguments: HEAVY. A line of its input: [file for the output, arguments of pytest]; answers: process id, exit code.
WARM = """
import importlib, json, os, sys
from contextlib import suppress
import pytest
for name in sys.argv[1:]:
    with suppress(ImportError):
        importlib.import_module(name)
print("ready", flush=True)
for line in sys.stdin:
    output, arguments = json.loads(line)
    child = os.fork()
    if not child:
        os.setsid()
        file = os.open(output, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(file, stream)
        os._exit(pytest.main(arguments))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class WarmPytest:
    """Runs pytest in forks of a process that has imported the heavy libraries, and nothing of ours.

    In ``folder``, whose packages come before installed ones.
    """

    def __init__(self, python: Path, folder: Path) -> None:
        # Files change within a second and keep their size: byte code on the disk would hide that.
        paths = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        self._process = subprocess.Popen(
            [str(python), "-c", WARM, *HEAVY],
            cwd=folder,
            env=os.environ | paths,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        if self._heard() != "ready":
            self._process.communicate()
            raise InputError(f"{python}: cannot run pytest; `make test` and `make test-slicer` install it.")

    def run(self, tests: str, limit_s: float) -> _Ran:
        """Run tests, written as for a shell, for at most ``limit_s`` seconds, and end all that they started."""
        options = ["-x", "-q", "-rfE", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
        with tempfile.NamedTemporaryFile() as output:
            self._say(json.dumps([output.name, [*options, *shlex.split(tests)]]))
            child = int(self._heard())
            began = time.monotonic()
            try:
                in_time = bool(select.select([self._process.stdout], [], [], limit_s)[0])
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(child, signal.SIGKILL)
            code = int(self._heard())
            said = Path(output.name).read_text(encoding="utf-8", errors="replace")
        return _Ran(code if in_time else None, said, time.monotonic() - began)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()  # it ends with its input

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    def _heard(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()


@dataclass
class Bench:
    """A copy of the repository, in which a fault at a time is planted."""

    folder: Path
    python: Path
    slicer_python: Path
    _usual: dict[str, _Ran] = field(default_factory=dict)  # by tests: without a fault
    _warm: dict[Path, WarmPytest] = field(default_factory=dict)

    def tried(self, mutation: Mutation) -> Verdict:
        """Plant a fault, run its tests, take it out again."""
        began = time.monotonic()
        outcome, by = self._outcome(mutation)
        seconds = round(time.monotonic() - began, 1)
        return Verdict(mutation.name, mutation.file, outcome, by, seconds, mutation.why)

    def _outcome(self, mutation: Mutation) -> tuple[str, str]:
        file, python = self.folder / mutation.file, self._python(mutation.tests)
        if not python.is_file():
            return ERROR, f"no {python}; `make test-slicer` makes it, --slicer-python names another"
        if not file.is_file():
            return ERROR, f"no file {mutation.file}"
        sound = file.read_bytes()
        old, new = mutation.old.encode(), mutation.new.encode()
        if (times := sound.count(old)) != 1 or old == new:
            return ERROR, f"old text found {times} times in {mutation.file}; once is needed, and a new text"
        usual = self._usual_run(mutation.tests)
        if not usual.passed:
            return ERROR, f"its tests do not pass without it: {mutation.tests}\n{usual.tail}"
        limit_s = PATIENCE * usual.seconds + PATIENCE_S
        try:
            file.write_bytes(sound.replace(old, new))
            with_fault = self._pytest(mutation.tests, limit_s)
            if with_fault.failed:
                return CAUGHT, with_fault.first_failure
            # A test that never sees the copy, or this file of it, proves nothing.
            file.write_bytes(sound + b'\nraise ImportError("planted")\n')
            if not self._pytest(mutation.tests, limit_s).failed:
                return ERROR, f"its tests do not use {mutation.file}: {mutation.tests}"
        finally:
            file.write_bytes(sound)
        return MISSED, mutation.tests

    def _python(self, tests: str) -> Path:
        return self.slicer_python if tests.startswith("tests/slicer") else self.python

    def _usual_run(self, tests: str) -> _Ran:
        if tests not in self._usual:
            self._usual[tests] = self._pytest(tests, 3600.0)
        return self._usual[tests]

    def _pytest(self, tests: str, limit_s: float) -> _Ran:
        """Run tests in the copy."""
        python = self._python(tests)
        if python not in self._warm:
            self._warm[python] = WarmPytest(python, self.folder)
        return self._warm[python].run(tests, limit_s)

    def close(self) -> None:
        """End what runs tests."""
        for warm in self._warm.values():
            warm.close()


if __name__ == "__main__":
    raise SystemExit(main())
