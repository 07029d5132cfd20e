"""Carries out the steps of docs/slicer.md on the panel and takes the pictures that are in it.

    .venv-slicer/bin/python benchmarks/slicer_tutorial.py --output docs
    .venv-slicer/bin/python benchmarks/slicer_tutorial.py --output /tmp/chaos --volume DICOM-folder    (your own scan)

The panel is drawn over stand-in widgets (tests/slicer/standin), so its look is Qt's, not Slicer's; the slice views are
rendered by Slicer's own code from the real scene (slicer_views.py). Every step is checked: the script fails where the
tutorial would. Prints what was seen.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "slicer"), str(ROOT / "benchmarks")]

import slicer  # noqa: E402
import slicer_panel  # noqa: E402
import slicer_views  # noqa: E402

import standin  # noqa: E402

_PANEL_WIDTH = 430
_VIEW = (430, 380)


class Tutorial:
    """The panel, the folder of pictures, and what the person does."""

    def __init__(self, output: Path) -> None:
        standin.new_scene()
        self.output = output
        output.mkdir(parents=True, exist_ok=True)
        self.panel = standin.load_module(ROOT / "SemanticGANSlicer" / "SemanticGANSlicer.py")[1]
        self.panel.parent.resize(_PANEL_WIDTH, 620)
        self.panel.parent.show()
        self.ui = self.panel.ui

    def wait(self, seconds: float = 1200) -> None:
        """Until nothing runs any more."""
        standin.pump(lambda: not self.panel.logic.isRunning() and self.panel._maker is None, seconds)
        if slicer.app.messages:
            raise SystemExit(f"a dialog came up: {slicer.app.messages}")

    def picture(self) -> np.ndarray:
        """The panel, (H, W, 3), as high as it needs to be."""
        widget = self.panel.parent
        for _ in range(3):
            slicer.app.processEvents()
            widget.resize(_PANEL_WIDTH, max(420, widget.layout().sizeHint().height()))
        slicer.app.processEvents()
        return _pixels(widget)

    def save(self, name: str, picture: np.ndarray) -> None:
        """Write a picture."""
        Image.fromarray(picture).save(self.output / f"slicer-{name}.png", optimize=True)

    def views(self) -> np.ndarray:
        """Axial, coronal, sagittal and 3D view, as in Slicer's Four-Up layout."""
        red, yellow, green = (slicer_views.slice_view(name, _VIEW) for name in ("Red", "Yellow", "Green"))
        return np.vstack([np.hstack([red, slicer_views.view_3d(_VIEW)]), np.hstack([green, yellow])])


def _pixels(widget: Any) -> np.ndarray:
    picture = widget.grab().toImage().convertToFormat(_rgb888())
    rows = np.frombuffer(picture.constBits(), np.uint8).reshape(picture.height(), picture.bytesPerLine())
    return rows[:, : 3 * picture.width()].reshape(picture.height(), picture.width(), 3).copy()


def _rgb888() -> Any:
    from PySide6.QtGui import QImage

    return QImage.Format.Format_RGB888


def beside(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Two pictures next to each other, on white."""
    height = max(len(left), len(right))
    padded = [
        np.pad(one, ((0, height - len(one)), (0, 0), (0, 0)), constant_values=255) for one in (left, right)
    ]
    return np.hstack(padded)


def main() -> None:
    """All steps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--volume", type=Path, help="a DICOM folder or a file, in place of the sample")
    parser.add_argument(
        "--train-minutes", type=int, default=3, metavar="M", help="of the student (default 3)"
    )
    options = parser.parse_args()
    tutorial = Tutorial(options.output)
    ui = tutorial.ui

    # 1. Load a volume.
    if options.volume:
        volume = slicer_panel.load_volume(options.volume)
        volume.GetDisplayNode().SetAutoWindowLevel(False)
        volume.GetDisplayNode().SetWindowLevel(400, 40)
        slicer.util.setSliceViewerLayers(background=volume)
        ui.inputSelector.setCurrentNode(volume)
    else:
        ui.sampleCtButton.click()
        tutorial.wait()
        volume = ui.inputSelector.currentNode()
    slicer_views.fit(volume)
    tutorial.save("start", tutorial.picture())

    # 2. Options, then Apply; in the middle of the run.
    ui.optionsCollapsibleButton.collapsed = False
    standin.pump(lambda: "looking" not in ui.deviceFoundLabel.text, 60)
    tutorial.save("options", tutorial.picture())
    ui.optionsCollapsibleButton.collapsed = True
    ui.applyButton.click()
    standin.pump(
        lambda: (
            ui.progressBar.maximum
            and ui.progressBar.value > 0.3 * ui.progressBar.maximum
            or not tutorial.panel.logic.isRunning()
        ),
        1200,
    )
    tutorial.save("running", tutorial.picture())
    print(ui.statusLabel.text)
    tutorial.wait()

    # 3. The result.
    result = tutorial.panel._result.result
    print(ui.statusLabel.text, ui.trustLabel.text, sep="\n")
    for row in range(ui.volumeTable.rowCount):
        print([ui.volumeTable.item(row, column).text() for column in range(4)])
    result.segmentation.CreateClosedSurfaceRepresentation()  # the button "Show 3D"
    _show_middle(result)
    tutorial.save("result", beside(tutorial.picture(), tutorial.views()))

    # 4. A doubtful slice, and what the generator made of it.
    if ui.doubtfulList.count:
        last = ui.doubtfulList.count - 1
        ui.doubtfulList.setCurrentRow(last)
        ui.doubtfulList.itemClicked.emit(ui.doubtfulList.item(last))
    pictures = []
    ui.reconstructionCheckBox.setChecked(True)
    for fade in (0, 50, 100):
        ui.fadeSlider.setValue(fade)
        pictures.append(slicer_views.slice_view("Red", _VIEW))
    tutorial.save("reconstruction", np.hstack(pictures))
    ui.reconstructionCheckBox.setChecked(False)

    # 5. Another modality, then a folder.
    if not options.volume:
        _other_modality(tutorial)
        _batch(tutorial)
        _train(tutorial, options.train_minutes)
    standin.unload(tutorial.panel)


def _show_middle(result: Any) -> None:
    """All views through the middle of the first segment."""
    bounds = [0.0] * 6
    result.segmentation.GetSegmentation().GetSegment(result.segmentIds[0]).GetBounds(bounds)
    if bounds[0] < bounds[1]:
        slicer_views.jump(tuple((bounds[axis] + bounds[axis + 1]) / 2 for axis in (0, 2, 4)))


def _other_modality(tutorial: Tutorial) -> None:
    """The MR sample: it gets a segmentation of its own."""
    ui, before = tutorial.ui, tutorial.ui.outputSelector.currentNode()
    ui.sampleMrButton.click()
    tutorial.wait()
    ui.applyButton.click()
    tutorial.wait()
    if ui.outputSelector.currentNode() in (None, before):
        raise SystemExit("the MR volume got no segmentation of its own")
    print(ui.statusLabel.text, ui.trustLabel.text, ui.volumeTable.item(0, 1).text(), sep="\n")


def _batch(tutorial: Tutorial) -> None:
    """The tab Batch on three phantoms."""
    import tempfile

    import nibabel as nib

    from sgan_core.phantom import TEST_SEEDS, make_case

    ui = tutorial.ui
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "scans"
        source.mkdir()
        for number, domain in enumerate(("ct", "ct", "t1_out")):
            image = make_case(TEST_SEEDS + 1 + number, domain).image
            nib.save(
                nib.Nifti1Image(image.array, image.grid.affine),
                source / f"patient{number + 1}_{domain}.nii.gz",
            )
        ui.tabWidget.setCurrentIndex(1)
        ui.batchInputPathLineEdit.setCurrentPath(str(source))
        ui.batchOutputPathLineEdit.setCurrentPath(str(Path(folder) / "results"))
        ui.qualityComboBox.setCurrentText("fast")
        ui.batchRunButton.click()
        tutorial.wait()
        ui.batchInputPathLineEdit.setCurrentPath("scans")  # in the picture, not the temporary folder
        ui.batchOutputPathLineEdit.setCurrentPath("results")
        tutorial.save("batch", tutorial.picture())
        print(ui.batchStatusLabel.text)


def _train(tutorial: Tutorial, minutes: int) -> None:
    """The tab Train: a model from 3 labelled and 6 unlabelled phantoms, used on a seventh one of the labelled kind."""
    import tempfile

    import nibabel as nib

    from sgan_core.phantom import TEST_SEEDS, make_case

    ui, tab = tutorial.ui, tutorial.panel._train
    slicer.mrmlScene.Clear(0)
    tutorial.panel.initializeParameterNode()
    with tempfile.TemporaryDirectory() as folder:
        scans = Path(folder) / "scans"
        scans.mkdir()
        for seed in range(4, 10):
            image = make_case(seed, "ct").image
            nib.save(nib.Nifti1Image(image.array, image.grid.affine), scans / f"scan{seed}.nii.gz")
        for seed in (1, 2, 3):
            _segmented(f"patient {seed}", seed)
        ui.tabWidget.setCurrentIndex(2)
        tab.ui.trainFolderPathLineEdit.setCurrentPath(str(Path(folder) / "run"))
        tab.ui.trainUnlabelledPathLineEdit.setCurrentPath(str(scans))
        tab.refresh()
        for row in range(3):
            tab.ui.trainSegmentationsTable.item(row, 0).setCheckState(_checked())
        tab.ui.trainMinutesSpinBox.setValue(minutes)
        times = [time.monotonic()]
        tab.ui.trainCheckButton.click()
        standin.pump(lambda: not tab.isChecking(), 300)
        times.append(time.monotonic())
        print(tab.ui.trainCheckLabel.text)
        tab.ui.trainButton.click()
        with standin.EventLoopProbe() as probe:
            standin.pump(lambda: not tab._run.isActive(), 3600)
        times.append(time.monotonic())
        tutorial.wait()
        if not tab._run.bundle:
            raise SystemExit(f"no model came of the training: {tab._run.message} {tab._run.details}")
        tab.ui.trainFolderPathLineEdit.setCurrentPath(str(Path(folder) / "run"))
        for edit, shown in (
            (tab.ui.trainFolderPathLineEdit, "run"),
            (tab.ui.trainUnlabelledPathLineEdit, "scans"),
        ):
            blocked = edit.blockSignals(True)
            edit.setCurrentPath(shown)  # in the picture, not the temporary folder
            edit.blockSignals(blocked)
        said = tab.ui.trainStatusLabel.text
        tab.ui.trainStatusLabel.setText(said.replace(folder + "/", ""))
        tutorial.save("train", tutorial.picture())
        ui.tabWidget.setCurrentIndex(0)
        seventh, liver = _phantom("seventh patient", TEST_SEEDS)
        ui.inputSelector.setCurrentNode(seventh)
        ui.applyButton.click()
        tutorial.wait()
        node = ui.outputSelector.currentNode()
        segment = node.GetSegmentation().GetNthSegmentID(0)
        found = slicer.util.arrayFromSegmentBinaryLabelmap(node, segment, seventh) > 0
        dice = 2.0 * (found & liver).sum() / (found.sum() + liver.sum())
        print(
            f"check {times[1] - times[0]:.0f} s, training (at most {minutes} min) {times[2] - times[1]:.0f} s, "
            f"longest stall {probe.max_gap_ms:.0f} ms; DICE on a seventh patient {dice:.3f}"
        )


def _phantom(name: str, seed: int) -> tuple[Any, np.ndarray]:
    """A phantom as a volume of the scene, and its liver (K, J, I)."""
    from sgan_core.phantom import make_case

    case = make_case(seed, "ct")
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    to_ras = case.image.grid.affine  # RAS, as NIfTI's
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(to_ras))
    slicer.util.updateVolumeFromArray(node, case.image.array.transpose(2, 1, 0).copy())
    node.CreateDefaultDisplayNodes()
    return node, case.labels.transpose(2, 1, 0) == 1


def _segmented(name: str, seed: int) -> None:
    """A phantom with its true liver as a segmentation of the scene."""
    volume, liver = _phantom(name, seed)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"{name} liver")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    segment = node.GetSegmentation().AddEmptySegment("", "liver")
    slicer.util.updateSegmentBinaryLabelmapFromArray(liver.astype(np.uint8), node, segment, volume)


def _checked() -> Any:
    from PySide6.QtCore import Qt

    return Qt.CheckState.Checked


if __name__ == "__main__":
    main()
