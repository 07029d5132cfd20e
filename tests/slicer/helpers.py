"""What the tests of the Slicer module share: a scene, the panel over stand-ins, volumes, results, a fake worker."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "SemanticGANSlicer"))

import slicer  # noqa: E402

import standin  # noqa: E402  (makes slicer, qt and ctk what they are in Slicer)

MODULE = ROOT / "SemanticGANSlicer" / "SemanticGANSlicer.py"
FAKE_WORKER = HERE / "fake_worker.py"
TERMINOLOGY = (
    "Segmentation category and type - 3D Slicer General Anatomy list~SCT^123037004^Anatomical Structure"
    "~SCT^{code}^{name}~^^~Anatomic codes - DICOM master list~^^~^^"
)


@pytest.fixture(autouse=True)
def scene() -> Iterator[Any]:
    """A new, empty scene; settings, dialogs and answers are forgotten. Errors in slots and observers fail the test."""
    standin.reset()
    yield standin.new_scene()
    uncaught, slicer.app.uncaught = slicer.app.uncaught, []
    assert not uncaught


@pytest.fixture
def panel() -> Iterator[Any]:
    """The module's panel, as in Slicer after it was opened."""
    _module, widget, _meta = standin.load_module(MODULE)
    yield widget
    standin.unload(widget)


@pytest.fixture
def logic() -> Iterator[Any]:
    """The module's logic without a panel."""
    from SemanticGANSlicerLib.logic import SemanticGANSlicerLogic

    logic = SemanticGANSlicerLogic()
    yield logic
    logic.close()


@pytest.fixture
def fake_worker() -> Callable[..., None]:
    """Let a logic or panel run ``fake_worker.py MODE`` in place of the engine."""

    def use(owner: Any, mode: str) -> None:
        logic = getattr(owner, "logic", owner)
        logic.workerArguments = [str(FAKE_WORKER), mode]

    return use


def make_volume(
    array: np.ndarray, name: str = "CT", kind: str = "vtkMRMLScalarVolumeNode", *, turned: bool = True
) -> Any:
    """A volume node of an array (K, J, I[, 3]): 0.8 x 0.9 x 2.5 mm, turned about z by 0.2 rad and tilted."""
    node = slicer.mrmlScene.AddNewNodeByClass(kind, name)
    node.SetSpacing(0.8, 0.9, 2.5)
    node.SetOrigin(-20.0, 15.0, 40.0)
    if turned:
        c, s = np.cos(0.2), np.sin(0.2)
        turn, tilt = (
            np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]),
            np.array([[1, 0, 0], [0, c, -s], [0, s, c]]),
        )
        node.SetIJKToRASDirections(*(turn @ tilt).ravel())
    slicer.util.updateVolumeFromArray(node, array)
    node.CreateDefaultDisplayNodes()
    return node


@pytest.fixture
def ct() -> Any:
    """A small oblique CT: a bright box in air, (K, J, I) = (12, 32, 40)."""
    array = np.full((12, 32, 40), -1000, np.int16)
    array[3:9, 8:24, 10:30] = 60
    return make_volume(array)


def run_steps(generator: Any) -> Any:
    """The result of a generator of pieces, at once."""
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return end.value


def label(
    value: int, name: str, rgb: tuple[int, int, int] = (1, 2, 3), code: str = "10200004"
) -> dict[str, Any]:
    """A label of the engine's "start" event."""
    entry = TERMINOLOGY.format(code=code, name=name) if code else ""
    return {"value": value, "name": name, "rgb": list(rgb), "code": code, "terminology": entry}


def voxels(node: Any, index: int, volume: Any) -> np.ndarray:
    """(K, J, I) uint8 of a segment on the voxels of a volume."""
    segment_id = node.GetSegmentation().GetNthSegmentID(index)
    return slicer.util.arrayFromSegmentBinaryLabelmap(node, segment_id, volume)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for is dead."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # the latter: it ended between opening and reading
        return False
    return state != "Z"
