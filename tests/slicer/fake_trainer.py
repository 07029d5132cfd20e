"""Speaks as ``sgan-data prepare custom --json`` and ``sgan-train --json-progress`` do, without an engine.

usage: fake_trainer.py data MODE prepare custom SOURCE --output DIR ...
       fake_trainer.py train MODE --output DIR --stop-file FILE ...
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIVER = ROOT / "sgan_core" / "models" / "phantom-ct-liver"


def option(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


def say(event: str, **more: Any) -> None:
    print(json.dumps({"event": event, **more}), flush=True)


def data(mode: str) -> int:
    """Look at the files of the folder that was written; MODE is what is wrong with them."""
    source, output = Path(sys.argv[sys.argv.index("custom") + 1]), Path(option("--output"))
    if mode == "refuses":
        print("ERROR: no labelled case. Training needs at least one.", file=sys.stderr)
        return 2
    if mode == "waits":
        time.sleep(600)
    cases = []
    for image in sorted((source / "images").iterdir()):
        name = re.sub(r"\.(nii\.gz|[a-z]+)$", "", image.name)
        labelled = any(path.name.startswith(name + ".") for path in (source / "labels").iterdir())
        problems = []
        if mode == "error" and name == "patient1":
            problems.append({"severity": "error", "text": "not in HU: 0 to 4095"})
        if mode == "warning" and name == "patient2":
            problems.append({"severity": "warning", "text": "lies RAI, others LPS"})
        cases.append(
            {
                "name": name,
                "file": str(image),
                "labelled": labelled,
                "split": "train",
                "orientation": "LPS",
                "spacing_mm": [0.8, 0.9, 2.5],
                "size": [40, 32, 12],
                "intensity": {"min": -1000.0, "p1": -1000.0, "p50": -1000.0, "p99": 60.0, "max": 60.0},
                "label_voxels": {"liver": 1920} if labelled else None,
                "problems": problems,
            }
        )
    counted = sum(case["labelled"] for case in cases)
    if mode == "unreadable":
        nothing = dict.fromkeys(("min", "p1", "p50", "p99", "max"))
        cases[0] |= {"orientation": None, "spacing_mm": None, "size": None, "intensity": nothing}
        cases[0]["problems"] = [{"severity": "error", "text": "cannot be read"}]
    patients = {case["name"].partition("_")[0] for case in cases if case["labelled"]}
    splits = {
        "train": {
            "labelled": counted,
            "unlabelled": len(cases) - counted,
            "labelled_patients": len(patients),
        },
        "validation": {"labelled": 0, "unlabelled": 0, "labelled_patients": 0},
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "cohort.json").write_text(json.dumps(sys.argv[1:]))
    problems = [{"severity": "warning", "text": "few patients"}] if mode == "warning" else []
    print(
        json.dumps(
            {"cohort": str(output / "cohort.json"), "splits": splits, "cases": cases, "problems": problems}
        )
    )
    return 0


def picture(path: Path, grey: int) -> str:
    from PIL import Image

    Image.new("L", (900, 300), grey).save(path)
    return str(path)


def train(mode: str) -> int:
    """MODE is how training goes."""
    output, stop = Path(option("--output")), Path(option("--stop-file"))
    assert not stop.exists(), "the caller removes it"
    stage, resumed = option("--stage"), "--resume" in sys.argv
    print("a library's word", file=sys.stderr)
    say("hello", pid=os.getpid(), tool_version="0")
    say("progress", stage="prepare", done=0, total=0, message="starting", eta_s=None)
    if mode == "refused":
        say("error", message="the data are not good. Mend them.", code=2, details="line one")
        return 2
    output.mkdir(exist_ok=True)
    (output / "config.yaml").touch()
    (output / "commands.txt").open("a").write(json.dumps(sys.argv[1:]) + "\n")
    start = 500 if resumed else 0
    say(
        "start",
        output=str(output),
        stages=[stage],
        device="none",
        size=64,
        labelled=3,
        images=100,
        resumed=resumed,
    )
    for images in range(start, start + 500, 100):
        say("progress", stage="student", done=images, total=1000, message=f"{images} images", eta_s=7200.0)
        say("log", stage="student", images=images, seconds=1.0, loss=1 / (1 + images), dice=None)
        if mode == "validates":
            say("validation", stage="student", images=images, dice=images / 1000)
            for kind, grey in (("samples", 30), ("validation", 200)):
                say(
                    "picture",
                    stage="student",
                    kind=kind,
                    images=images,
                    path=picture(output / f"{kind}.png", grey),
                )
    if mode == "dies":
        print("killed soon", file=sys.stderr, flush=True)
        os.kill(os.getpid(), 9)
    while mode in ("goes-on", "validates") and not resumed:
        if stop.exists():
            say("error", message="stopped on request", code=3, details="")
            return 3
        time.sleep(0.02)
    bundle = output / "bundle"
    if not bundle.exists():
        shutil.copytree(LIVER / "configs", bundle / "configs")
    say("bundle", path=str(bundle), student_alone=stage == "student")
    say("done", output=str(output), bundle=str(bundle))
    return 0


if __name__ == "__main__":
    raise SystemExit({"data": data, "train": train}[sys.argv[1]](sys.argv[2]))
