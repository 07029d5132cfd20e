"""Speaks the engine's line protocol without an engine: one mode for each way in which a worker can go wrong.

usage: fake_worker.py MODE INPUT --output DIR ...
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk

LABELS = [
    {"value": 1, "name": "bright", "rgb": [10, 20, 30], "code": "", "terminology": ""},
    {"value": 2, "name": "absent", "rgb": [40, 50, 60], "code": "", "terminology": ""},
]


def say(**event: object) -> None:
    """One line of the protocol."""
    print(json.dumps(event), flush=True)


def segment(
    source: Path, output: Path, *, reconstructs: bool, ratio: dict[str, object] | None = None
) -> None:
    """What is brighter than 0 is label 1; every third slice is doubtful. ratio: the cardiothoracic one."""
    image = sitk.ReadImage(str(source))
    labels = sitk.Cast(image > 0, sitk.sitkUInt8)
    output.mkdir(parents=True)
    sitk.WriteImage(labels, str(output / "input_seg.nii.gz"), True)
    reconstruction = str(output / "input_recon.nrrd") if reconstructs else None
    if reconstruction:
        sitk.WriteImage(image + 7, reconstruction, True)
    count = image.GetDepth()
    centre = [(size - 1) / 2 for size in image.GetSize()]
    places = [image.TransformContinuousIndexToPhysicalPoint((*centre[:2], float(k))) for k in range(count)]
    voxel_ml = float(np.prod(image.GetSpacing())) / 1000
    bright = int(sitk.GetArrayViewFromImage(labels).sum())
    case = {
        "input": str(source),
        "case": "input",
        "output": str(output / "input_seg.nii.gz"),
        "status": "done",
        "seconds": 1.25,
        "labels": [
            {"name": "bright", "value": 1, "voxels": bright, "volume_ml": bright * voxel_ml},
            {"name": "absent", "value": 2, "voxels": 0, "volume_ml": 0.0},
        ],
        "reconstruction_output": reconstruction,
        "slice_centres_mm": [[-x, -y, z] for x, y, z in places],
        "first_slice": 1,
        "trust": {
            "status": "review",
            "score": 0.5,
            "reason": "made up <by a test>",
            "slices": list(range(1, count, 3)),
        },
        "cardiothoracic_ratio": ratio,
        "warnings": ["a warning"],
    }
    (output / "run.json").write_text(
        json.dumps({"bundle": {"name": "fake"}, "cases": [case]}), encoding="utf-8"
    )
    (output / "report.html").write_text("<h1>Segmentation</h1><h2>input</h2>", encoding="utf-8")
    say(event="case", **case)
    say(event="done", output=str(output), failed=0)


def rank(folder: Path, output: Path) -> None:
    """Segment a folder: what is brighter than 0, trusted by how many voxels that are."""
    output.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.glob("*.nii.gz")):
        image = sitk.ReadImage(str(path))
        labels = sitk.Cast(image > 0, sitk.sitkUInt8)
        name = path.name.removesuffix(".nii.gz")
        file = output / f"{name}_seg.nii.gz"
        sitk.WriteImage(labels, str(file), True)
        say(
            event="case",
            input=str(path),
            case=name,
            output=str(file),
            status="done",
            labels=[],
            trust={"status": "review", "score": None, "reason": "a student alone", "slices": []},
            soft_dice_confidence=int(sitk.GetArrayViewFromImage(labels).sum()) / 210,
        )
    say(event="done", output=str(output), failed=0)


def main(mode: str, source: Path, output: Path) -> int:
    """Play the part of the worker."""
    if mode == "silent":
        return 0
    say(event="hello", pid=os.getpid(), tool_version="0")
    if mode == "deaf":  # with a child that is deaf too
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        say(event="start", model="fake", device="none", labels=LABELS, child=child.pid)
        time.sleep(600)
    terms = {"restriction": "research only <by a test>"} if mode == "restricted" else {}
    say(event="start", model="fake", device="none", labels=LABELS, **terms)
    say(event="progress", done=1, total=4, message="slice 1 to 2 of 12, step 3 of 30", eta_s=75.0)
    if mode == "garbage":
        sys.stdout.buffer.write(
            b'\xff\xfe not json\n{"event": 3}\n{"half": \n[1, 2]\n' + b"x" * 3_000_000 + b"\n"
        )
        return 0
    if mode == "garbage-then-done":
        sys.stdout.buffer.write(b"\xff a library's word\n{broken\n")
        sys.stdout.flush()
    if mode == "error":
        say(event="error", message="scan.nii: broken. Mend it.", code=2, details="line one")
        print("a warning on the way", file=sys.stderr)
        return 2
    if mode == "names-its-file":
        say(event="error", message=f"{source}: too dark.", code=2)
        return 2
    if mode == "internal":
        print("Traceback: ValueError: our fault", file=sys.stderr)
        return 70
    if mode == "killed":
        os.kill(os.getpid(), 9)
    if mode == "listens":
        while os.read(sys.stdin.fileno(), 4096):
            pass
        say(event="error", message="cancelled", code=3)
        return 3
    if mode == "ranks":
        rank(source, output)
        return 0
    if mode == "wrong-size":
        small = source.parent / "small.nrrd"
        sitk.WriteImage(sitk.ReadImage(str(source))[1:, :, :], str(small))
        source = small
    ratio = {"ratio": 0.4567, "trust": "review"} if mode == "chest" else None
    segment(source, output, reconstructs=mode != "student-alone", ratio=ratio)
    return 0


if __name__ == "__main__":
    arguments = sys.argv[1:]
    raise SystemExit(main(arguments[0], Path(arguments[1]), Path(arguments[arguments.index("--output") + 1])))
