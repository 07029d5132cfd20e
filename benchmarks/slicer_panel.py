"""How long the panel of the Slicer module does not answer during a run, and how long Cancel takes.

    .venv-slicer/bin/python benchmarks/slicer_panel.py --output benchmarks/results/slicer_panel.json
    .venv-slicer/bin/python benchmarks/slicer_panel.py --volume DICOM-folder --quality standard

The panel runs over stand-in widgets (tests/slicer/standin), the scene, Qt's event loop, the worker process and the
model are real. Stalls: the longest time between two ticks of a 5 ms timer, against the same event loop when nothing
runs, in the same process; the medians over the runs count. Cancel: from the click to the end of the worker's
process, at random moments of a run.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "slicer"))

import slicer  # noqa: E402

import standin  # noqa: E402


def load_volume(path: Path | None) -> Any:
    """A scan as a volume node: a DICOM folder, a file, or without a path a phantom of 512 x 512 x 300 voxels."""
    import SimpleITK as sitk

    if path is None:
        rows, columns = np.mgrid[-1:1:512j, -1:1:512j]
        body = np.where(rows**2 / 0.5 + columns**2 < 0.8, 50, -1000).astype(np.int16)
        image = sitk.GetImageFromArray(np.broadcast_to(body, (300, 512, 512)).copy())
        image.SetSpacing((0.8, 0.8, 1.5))
    elif path.is_dir():
        image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)))
    else:
        image = sitk.ReadImage(str(path))
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", path.name if path else "large")
    to_ras = np.eye(4)
    to_ras[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) @ np.diag(image.GetSpacing())
    to_ras[:3, 3] = image.GetOrigin()
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(np.diag([-1.0, -1.0, 1.0, 1.0]) @ to_ras))
    slicer.util.updateVolumeFromArray(node, sitk.GetArrayFromImage(image))
    node.CreateDefaultDisplayNodes()
    return node


def stalls_of_a_run(panel: Any) -> dict[str, float]:
    """Longest stall (ms) in each part of a run, from Apply to the result."""
    parts: dict[str, float] = {}
    say, part = panel._progress.show, ["writing"]
    names = {"Starting": "starting", "Segmenting": "running", "Loading the result": "importing"}

    def follow(done: int, total: int, message: str, left: float | None = None) -> None:
        part[0] = next((name for begin, name in names.items() if message.startswith(begin)), part[0])
        say(done, total, message, left)

    panel._progress.show = follow
    began = time.monotonic()
    panel.ui.outputSelector.setCurrentNode(None)
    panel.ui.applyButton.click()
    parts["click"] = 1000 * (time.monotonic() - began)
    while panel.logic.isRunning():
        now = part[0]
        with standin.EventLoopProbe() as probe:
            standin.pump(lambda now=now: part[0] != now or not panel.logic.isRunning(), 600)
        parts[now] = max(parts.get(now, 0.0), probe.max_gap_ms)
    panel._progress.show = say
    if panel._result.result is None:
        raise SystemExit(f"the run failed: {slicer.app.messages}")
    return parts


def idle_stall(seconds: float) -> float:
    """Longest stall (ms) of the same event loop with nothing to do."""
    end = time.monotonic() + seconds
    with standin.EventLoopProbe() as probe:
        standin.pump(lambda: time.monotonic() > end, seconds + 10)
    return probe.max_gap_ms


def cancel_seconds(panel: Any, after: float) -> float:
    """From the click on Cancel, ``after`` seconds into a run, to its end."""
    panel.ui.applyButton.click()
    end = time.monotonic() + after
    standin.pump(lambda: time.monotonic() > end or not panel.logic.isRunning(), after + 10)
    began = time.monotonic()
    panel.ui.cancelButton.click()
    standin.pump(lambda: not panel.logic.isRunning(), 60)
    return time.monotonic() - began


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--volume", type=Path, help="a DICOM folder or a file (default: a made-up 512 x 512 x 300)"
    )
    parser.add_argument("--quality", default="fast", choices=("fast", "standard", "careful"))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--cancels", type=int, default=7)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    options = parser.parse_args()

    standin.new_scene()
    volume = load_volume(options.volume)
    panel = standin.load_module(ROOT / "SemanticGANSlicer" / "SemanticGANSlicer.py")[1]
    panel.ui.inputSelector.setCurrentNode(volume)
    panel.ui.qualityComboBox.setCurrentText(options.quality)
    runs, idle = [], []
    for _ in range(options.runs):
        began = time.monotonic()
        runs.append(stalls_of_a_run(panel))
        idle.append(idle_stall(min(20.0, time.monotonic() - began)))
    panel.ui.qualityComboBox.setCurrentText("careful")
    draw = random.Random(0)
    cancels = [cancel_seconds(panel, draw.uniform(0.0, 12.0)) for _ in range(options.cancels)]
    standin.unload(panel)

    stalls = {part: statistics.median(run.get(part, 0.0) for run in runs) for part in runs[0]}
    worst = max(max(run.values()) for run in runs)
    reference = statistics.median(idle)
    record = {
        "volume": list(volume.GetImageData().GetDimensions()),
        "quality": options.quality,
        "runs": options.runs,
        "stall_ms": {part: round(value, 1) for part, value in stalls.items()},
        "longest_stall_ms": round(worst, 1),
        "idle_stall_ms": round(reference, 1),
        "ratio": round(statistics.median(max(run.values()) for run in runs) / reference, 1),
        "cancel_s": {"median": round(statistics.median(cancels), 2), "longest": round(max(cancels), 2)},
    }
    text = json.dumps(record, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
