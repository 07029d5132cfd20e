"""The tab Train: from segmentations of the scene to a model in the chooser, with a fake trainer and the real engine."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qt
import SimpleITK as sitk
import slicer
from helpers import FAKE_WORKER, HERE, MODULE, make_volume, run_steps, voxels

import standin
from SemanticGANSlicerLib import curve, labelled, models, nextscan, review, trainrun, volumes

FAKE_TRAINER = HERE / "fake_trainer.py"


def errors() -> list[str]:
    return [message.text for message in slicer.app.messages if message.kind == "error"]


def shown(widget: Any) -> bool:
    """Whether a widget would be seen if the panel were."""
    return not widget.isHidden()


def segment(volume: Any, *masks: tuple[str, np.ndarray], name: str = "") -> Any:
    """A segmentation of a volume with segments of these names."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name or f"{volume.GetName()} seg")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    for title, mask in masks:
        segment_id = node.GetSegmentation().AddEmptySegment(title, title)
        if mask.any():
            slicer.util.updateSegmentBinaryLabelmapFromArray(mask.astype(np.uint8), node, segment_id, volume)
    return node


def patient(number: int) -> tuple[Any, Any]:
    """(volume, segmentation) of a made-up patient with a liver."""
    array = np.full((12, 32, 40), -1000, np.int16)
    array[3:9, 8:24, 10 : 20 + number] = 60
    volume = make_volume(array, f"Müller {number}")
    return volume, segment(volume, ("liver", array > 0))


def select(panel: Any, *segmentations: Any) -> None:
    """Tick segmentations in the table, as a person does."""
    table = panel._train.ui.trainSegmentationsTable
    panel._train.refresh()
    for row in range(table.rowCount):
        wanted = table.item(row, 0).text() in [node.GetName() for node in segmentations]
        table.item(row, 0).setCheckState(qt.Qt.Checked if wanted else qt.Qt.Unchecked)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The folder of a run, with an umlaut; the training in it is ended at the end."""
    run = tmp_path / "Läufe" / "liver"
    yield run
    end_training(run)


def end_training(run: Path) -> None:
    """End the training of a folder, if it goes on."""
    with suppress(OSError):
        lines = (run / "events.jsonl").read_bytes().splitlines()
        for line in lines:
            if line.startswith(b'{"event": "hello"'):
                with suppress(ProcessLookupError):
                    os.kill(json.loads(line)["pid"], signal.SIGKILL)


@pytest.fixture
def tab(panel: Any, folder: Path) -> Any:
    """The tab with a fake trainer, its run in ``folder``."""
    prepare(panel, folder)
    return panel._train


def prepare(panel: Any, folder: Path, data: str = "good", train: str = "good") -> None:
    """Put the fake trainer in place of the engine."""
    panel._train.dataArguments = [str(FAKE_TRAINER), "data", data]
    panel._train.trainArguments = [str(FAKE_TRAINER), "train", train]
    panel._train.ui.trainFolderPathLineEdit.setCurrentPath(str(folder))


def check(tab: Any) -> None:
    tab.ui.trainCheckButton.click()
    standin.pump(lambda: not tab.isChecking(), 30)


def train(tab: Any, until: str, mode: str = "good") -> None:
    """Train on what was checked until the run has come to a state."""
    tab.trainArguments = [str(FAKE_TRAINER), "train", mode]
    tab.ui.trainButton.click()
    standin.pump(lambda: tab._run.isFound and tab._run.status == until, 30)


def cells(table: Any) -> list[list[str]]:
    return [
        [table.item(row, column).text() for column in range(table.columnCount)]
        for row in range(table.rowCount)
    ]


def commands(folder: Path, output: str = "model") -> list[list[str]]:
    """What training was started with, each time."""
    lines = (folder / output / "commands.txt").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_the_tab_says_when_the_engine_is_at_work(panel: Any, tab: Any) -> None:
    """The engine must not be removed then."""
    assert not tab.isBusy()
    select(panel, *(patient(number)[1] for number in range(3)))
    tab.ui.trainCheckButton.click()
    assert tab.isBusy()
    tab.ui.trainCheckCancelButton.click()
    standin.pump(lambda: not tab.isChecking(), 30)
    assert not tab.isBusy()


# --- what is written -------------------------------------------------------------------------------


def request(*segmentations: Any, labels: str = "liver", **more: Any) -> labelled.Request:
    return labelled.Request("ct", labelled.parseLabels(labels), segmentations, **more)


def write(asked: labelled.Request, folder: Path) -> labelled.Written:
    return run_steps(labelled.writeSource(asked, str(folder)))


def test_labels_are_written_on_the_voxels_of_the_volume(tmp_path: Path) -> None:
    array = np.arange(12 * 32 * 40, dtype=np.int16).reshape(12, 32, 40)
    volume = make_volume(array)
    liver, tumour = (array % 7 == 3), (array % 5 == 1)
    node = segment(volume, ("tumour", tumour), ("liver", liver), ("unwanted", ~liver))
    write(request(node, labels="liver, tumour"), tmp_path / "source")
    image = sitk.ReadImage(tmp_path / "source" / "images" / "patient1.nrrd")
    labels = sitk.ReadImage(tmp_path / "source" / "labels" / "patient1.nrrd")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), array)
    expected = np.where(tumour, 2, np.where(liver, 1, 0))  # where two overlap, the later counts
    np.testing.assert_array_equal(sitk.GetArrayFromImage(labels), expected)
    for read in ("GetSpacing", "GetOrigin", "GetDirection", "GetSize"):
        assert getattr(image, read)() == getattr(labels, read)()
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volumes.ijkToRas(volume)
    np.testing.assert_allclose(image.TransformIndexToPhysicalPoint((3, 5, 7)), (lps @ [3, 5, 7, 1])[:3])


def test_segments_that_share_a_label_map_are_told_apart(tmp_path: Path) -> None:
    array = np.zeros((12, 32, 40), np.int16)
    volume = make_volume(array)
    liver, spleen = array == 1, array == 1
    liver[2:5, 3:9, 4:20], spleen[6:9, 3:9, 4:20] = True, True
    node = segment(volume, ("liver", liver), ("spleen", spleen))
    node.GetSegmentation().CollapseBinaryLabelmaps(False)
    assert node.GetSegmentation().GetNumberOfLayers("Binary labelmap") == 1
    write(request(node, labels="spleen"), tmp_path / "source")
    written = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "source" / "labels" / "patient1.nrrd"))
    np.testing.assert_array_equal(written, spleen)


def test_segments_drawn_on_another_grid_are_brought_onto_the_volume(tmp_path: Path) -> None:
    volume, _node = patient(1)
    fine = make_volume(np.zeros((24, 40, 50), np.int16), "fine", turned=False)
    mask = np.zeros((24, 40, 50), bool)
    mask[4:20, 5:30, 8:40] = True
    node = segment(fine, ("liver", mask))
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    write(request(node), tmp_path / "source")
    written = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "source" / "labels" / "patient1.nrrd"))
    expected = voxels(node, 0, volume)
    assert expected.any()
    np.testing.assert_array_equal(written, expected)


def test_no_file_is_called_after_a_patient(tmp_path: Path) -> None:
    unlabelled = tmp_path / "scans"
    unlabelled.mkdir()
    (unlabelled / "Schmidt.nii.gz").write_bytes(b"x")
    (unlabelled / "Schmidt.txt").write_bytes(b"x")
    nodes = [patient(number)[1] for number in (1, 2)]
    written = write(request(*nodes, unlabelled=str(unlabelled)), tmp_path / "source")
    found = sorted(
        path.relative_to(tmp_path / "source").as_posix() for path in (tmp_path / "source").rglob("*")
    )
    assert found == [
        "images",
        "images/patient1.nrrd",
        "images/patient2.nrrd",
        "images/patient3.nii.gz",
        "labels",
        "labels/patient1.nrrd",
        "labels/patient2.nrrd",
    ]
    assert written.names == {"patient1": "Müller 1", "patient2": "Müller 2", "patient3": "Schmidt.nii.gz"}
    assert written.leftOut == ("Schmidt.txt",)
    for path in (tmp_path / "source").rglob("*.nrrd"):
        assert "Müller".encode() not in path.read_bytes()


def test_scans_of_one_person_stay_together(tmp_path: Path) -> None:
    (first, one), (second, two), (_third, three) = (patient(number) for number in (1, 2, 3))
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    person = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "Müller")
    for volume in (first, second):
        hierarchy.SetItemParent(hierarchy.GetItemByDataNode(volume), person)
    written = write(request(one, two, three), tmp_path / "source")
    assert list(written.names) == ["patient1_1", "patient1_2", "patient2"]


def test_pairs_of_files_are_found_by_their_globs(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs"
    for name in ("a/P1_1/ct.png", "a/P1_1/seg.png", "a/P1_2/ct.png", "a/P1_2/seg.png", "b/P2_1/ct.png"):
        (pairs / name).parent.mkdir(parents=True, exist_ok=True)
        (pairs / name).write_text(name)
    asked = request(pairs=str(pairs), images="**/ct.png", labelFiles="**/seg.png", patient=r"/(P\d+)_")
    written = write(asked, tmp_path / "source")
    assert written.names == {
        "patient1_1": "a/P1_1/ct.png",
        "patient1_2": "a/P1_2/ct.png",
        "patient2": "b/P2_1/ct.png",
    }
    for name, text in (
        ("images/patient1_2.png", "a/P1_2/ct.png"),
        ("labels/patient1_2.png", "a/P1_2/seg.png"),
        ("images/patient2.png", "b/P2_1/ct.png"),
    ):
        assert (tmp_path / "source" / name).read_text() == text
    assert not (tmp_path / "source" / "labels" / "patient2.png").exists()


@pytest.mark.parametrize("forbidden", [(), ("link",), ("link", "symlink")])
def test_the_users_files_survive_a_second_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forbidden: tuple[str, ...]
) -> None:
    """Linked, by either kind of link, or copied where the system cannot link."""

    def refuse(*_arguments: Any) -> None:
        raise OSError("no link here")

    for name in forbidden:
        monkeypatch.setattr(os, name, refuse)
    scans = tmp_path / "scans"
    scans.mkdir()
    content = os.urandom(9 << 20)
    (scans / "x.mha").write_bytes(content)
    _volume, node = patient(1)
    for _ in range(2):
        write(request(node, unlabelled=str(scans)), tmp_path / "source")
        assert (tmp_path / "source" / "images" / "patient2.mha").read_bytes() == content
        assert (scans / "x.mha").read_bytes() == content
    assert (tmp_path / "source" / "images" / "patient2.mha").is_symlink() == (forbidden == ("link",))


def tree(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize(
    "name", ["source/images/scan.nii.gz", "log.txt", "stop", "cohort/cohort.json", "scan.mha"]
)
def test_a_folder_of_the_users_own_is_no_folder_of_a_run(
    panel: Any, tab: Any, folder: Path, name: str
) -> None:
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_bytes(b"years of work")
    select(panel, patient(1)[1])
    check(tab)
    assert "Choose a new or an empty folder" in errors()[0]
    assert tree(folder) == {name: b"years of work"}
    assert not tab.ui.trainButton.enabled


@pytest.mark.parametrize("name", ["images/scan.nii.gz", "patient1.nrrd", "images/old/patient1.nrrd"])
def test_a_file_that_was_put_among_ours_stays(panel: Any, tab: Any, folder: Path, name: str) -> None:
    select(panel, patient(1)[1])
    check(tab)
    (folder / "source" / name).parent.mkdir(exist_ok=True)
    (folder / "source" / name).write_bytes(b"mine")
    before = tree(folder)
    check(tab)
    assert "Move it elsewhere" in errors()[0]
    assert tree(folder) == before
    (folder / "source" / name).unlink()
    (folder / "source" / "images" / ".DS_Store").touch()
    check(tab)
    assert len(errors()) == 1
    assert tab.ui.trainButton.enabled


@pytest.mark.parametrize("where", ["", "images"])
def test_a_linked_folder_is_not_emptied(tmp_path: Path, where: str) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "patient1.nrrd").write_bytes(b"mine")
    (tmp_path / "run").mkdir()
    source = tmp_path / "run" / "source"
    if where:
        source.mkdir()
    (source / where if where else source).symlink_to(mine)
    with pytest.raises(ValueError, match="Move it elsewhere"):
        write(request(patient(1)[1]), source)
    assert tree(mine) == {"patient1.nrrd": b"mine"}


def test_folders_of_trainings_are_no_scans(panel: Any, tab: Any, folder: Path) -> None:
    select(panel, patient(1)[1])
    check(tab)
    (folder / "predictions").mkdir()
    (folder / "predictions" / "a.nii.gz").write_bytes(b"a mask")
    (folder.parent / "scan.nii.gz").write_bytes(b"a scan")
    tab.ui.trainUnlabelledPathLineEdit.setCurrentPath(str(folder.parent))
    check(tab)
    assert [row[1] for row in cells(tab.ui.trainCaseTable)] == ["Müller 1", "scan.nii.gz"]
    for inside in ("", "source", "predictions"):
        tab.ui.trainUnlabelledPathLineEdit.setCurrentPath(str(folder / inside))
        check(tab)
        assert "Choose a folder of your own scans" in errors()[-1]
    assert len(errors()) == 3
    assert (folder / "source" / "images" / "patient2.nii.gz").read_bytes() == b"a scan"


def test_label_files_and_links_to_what_is_known_are_no_unlabelled_scans(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    for name in ("images/a.nii.gz", "labels/a.nii.gz", "new.nrrd", "new.seg.nrrd"):
        (scans / name).parent.mkdir(parents=True, exist_ok=True)
        (scans / name).write_text(name)
    (scans / "again.nii.gz").symlink_to("images/a.nii.gz")
    (scans / "hard.nrrd").hardlink_to(scans / "new.nrrd")
    (scans / "nowhere.mha").symlink_to("gone.mha")
    os.mkfifo(scans / "pipe.mha")
    (tmp_path / "linked").symlink_to(scans)
    asked = request(pairs=str(scans), unlabelled=str(tmp_path / "linked"))
    written = write(asked, tmp_path / "source")
    assert written.names == {"patient1": "images/a.nii.gz", "patient2": "hard.nrrd"}
    assert written.leftOut == ("new.seg.nrrd", "nowhere.mha", "pipe.mha")


def test_a_file_behind_a_relative_link_is_found(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    (scans / "store").mkdir(parents=True)
    (scans / "store" / ".x").write_text("a scan")
    (scans / "x.mha").symlink_to("store/.x")
    write(request(patient(1)[1], unlabelled=str(scans)), tmp_path / "source")
    assert (tmp_path / "source" / "images" / "patient2.mha").read_text() == "a scan"


@pytest.mark.parametrize("second", ["images/a.nii", "labels/a.nrrd"])
def test_two_files_that_are_called_alike_are_not_paired(tmp_path: Path, second: str) -> None:
    for name in ("images/a.nii.gz", "labels/a.nii.gz", second):
        (tmp_path / "pairs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pairs" / name).write_text(name)
    with pytest.raises(ValueError, match="called alike"):
        write(request(pairs=str(tmp_path / "pairs")), tmp_path / "source")


def test_an_empty_patient_is_none(tmp_path: Path) -> None:
    for name in ("images/a.mha", "labels/a.mha"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    for expression in ("(P[0-9])?", "x*"):
        with pytest.raises(ValueError, match="finds no patient"):
            write(request(pairs=str(tmp_path), patient=expression), tmp_path / "source")


def test_a_segmentation_of_another_patient_is_refused(tmp_path: Path) -> None:
    (first, one), (second, two), (third, three) = (patient(number) for number in (1, 2, 3))
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    for node, name in ((first, "A"), (one, "B")):
        person = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), name)
        hierarchy.SetItemParent(hierarchy.GetItemByDataNode(node), person)
    review.store(two, third, {}, [], [], [])
    for node in (one, two):
        with pytest.raises(ValueError, match="of another patient than"):
            write(request(node), tmp_path / "source")
    review.store(two, second, {}, [], [], [])
    write(request(two, three), tmp_path / "source")


def test_a_segment_that_misses_the_volume_is_refused(tmp_path: Path) -> None:
    volume, _node = patient(1)
    far = make_volume(np.zeros((12, 32, 40), np.int16), "far")
    matrix = volumes.ijkToRas(far)
    matrix[2, 3] += 500.0
    far.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(matrix))
    node = segment(far, ("liver", np.ones((12, 32, 40), bool)), ("none", np.zeros((12, 32, 40), bool)))
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    with pytest.raises(ValueError, match="liver lies outside of Müller 1"):
        write(request(node), tmp_path / "source")
    assert not list((tmp_path / "source" / "labels").iterdir())
    write(request(node, labels="none"), tmp_path / "source")


def test_labels_are_read_as_they_are_written() -> None:
    assert labelled.parseLabels("liver, tumour ,") == ((1, "liver"), (2, "tumour"))
    assert labelled.parseLabels("255=liver") == ((255, "liver"),)
    assert labelled.parseLabels("2=a, b, 7=background, 8=background") == (
        (2, "a"),
        (3, "b"),
        (7, "background"),
        (8, "background"),
    )
    for text, words in (
        ("", "Name the segments"),
        ("1=background", "Name the segments"),
        ("x=liver", "is not a label"),
        ("300=liver", "1 to 255"),
        ("liver, liver", "same name"),
        ("1=liver, 1=spleen", "same value"),
    ):
        with pytest.raises(ValueError, match=words):
            labelled.parseLabels(text)


def test_what_cannot_be_learned_from_is_explained(tmp_path: Path) -> None:
    volume, node = patient(1)
    other = segment(volume, ("liver", np.ones((12, 32, 40), bool)), name="second")
    gone = segment(make_volume(np.zeros((2, 4, 5), np.int16), "gone"), ("liver", np.ones((2, 4, 5), bool)))
    slicer.mrmlScene.RemoveNode(labelled.sourceVolume(gone))
    moved = patient(2)[1]
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "T")
    moved.SetAndObserveTransformNodeID(transform.GetID())
    for asked, words in (
        (request(), "Tick a segmentation"),
        (request(node, labels="spleen"), "no segments called spleen"),
        (request(node, other), "Two of the ticked"),
        (request(gone), "does not know its volume"),
        (request(moved), "under a transform"),
        (request(node, unlabelled=str(tmp_path / "none")), "is no folder"),
        (request(pairs=str(tmp_path)), "no image images"),
    ):
        with pytest.raises(ValueError, match=words):
            write(asked, tmp_path / "source")


def longest_piece(generator: Any) -> float:
    """Seconds of processor time between two events; the clock would count what else the machine does."""
    longest = 0.0
    while True:
        began = time.process_time()
        try:
            next(generator)
        except StopIteration:
            return max(longest, time.process_time() - began)
        longest = max(longest, time.process_time() - began)


def test_large_volumes_are_written_in_short_pieces(tmp_path: Path) -> None:
    volume = make_volume(np.zeros((120, 512, 512), np.int16), "large")
    mask = np.zeros((120, 512, 512), bool)
    mask[40:90, 100:300, 100:300] = True
    asked = request(segment(volume, ("liver", mask)))
    assert longest_piece(labelled.writeSource(asked, str(tmp_path / "source"))) < 0.1
    assert (
        longest_piece(labelled.writeSource(asked, str(tmp_path / "source"))) < 0.1
    )  # what was there goes first
    written = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "source" / "labels" / "patient1.nrrd"))
    np.testing.assert_array_equal(written, mask)


# --- check -----------------------------------------------------------------------------------------


def test_tab_is_the_third_and_offers_nothing_yet(panel: Any, tab: Any) -> None:
    tabs = panel.ui.tabWidget
    assert [tabs.tabText(index) for index in range(tabs.count)] == ["Segment", "Batch", "Train"]
    ui = tab.ui
    assert ui.trainCheckButton.enabled
    for widget in (ui.trainButton, ui.trainPauseButton, ui.trainNextButton, ui.trainEditButton):
        assert not widget.enabled
    ui.trainCheckButton.click()
    assert "Name the segments" in errors()[0]
    assert not tab.isChecking()


def test_segmentations_of_the_scene_are_listed_as_they_come_and_go(panel: Any, tab: Any) -> None:
    table = tab.ui.trainSegmentationsTable
    _volume, node = patient(1)
    standin.pump(lambda: table.rowCount == 1)
    assert cells(table) == [["Müller 1 seg", "Müller 1", "liver"]]
    select(panel, node)
    assert tab.ui.trainLabelsLineEdit.text == "liver"
    assert labelled.isTicked(node)
    select(panel)
    assert not labelled.isTicked(node)
    slicer.mrmlScene.RemoveNode(node)
    standin.pump(lambda: table.rowCount == 0)


def test_namesakes_are_told_apart(panel: Any, tab: Any) -> None:
    both = [make_volume(np.zeros((2, 4, 5), np.int16), "CT") for _ in range(2)]
    for volume in both:
        segment(volume, ("liver", np.ones((2, 4, 5), bool)))
    tab.refresh()
    assert [row[1] for row in cells(tab.ui.trainSegmentationsTable)] == [
        f"CT ({one.GetID()})" for one in both
    ]
    both[1].SetAndObserveImageData(None)
    with pytest.raises(ValueError, match=rf"CT \({both[1].GetID()}\) holds no image"):
        volumes.checkVolume(both[1])


def test_check_shows_what_was_found(panel: Any, tab: Any, folder: Path, tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "one.nii.gz").write_bytes(b"x")
    (scans / "notes.txt").write_bytes(b"x")
    tab.dataArguments[2] = "warning"
    select(panel, *(patient(number)[1] for number in (1, 2)))
    tab.ui.trainUnlabelledPathLineEdit.setCurrentPath(str(scans))
    before = standin.leaves(slicer.mrmlScene)
    tab.ui.trainCheckButton.click()
    assert not tab.ui.trainCheckButton.enabled
    assert tab.ui.trainCheckCancelButton.enabled
    standin.pump(lambda: not tab.isChecking(), 30)
    table = cells(tab.ui.trainCaseTable)
    light, where = "-1000 ... 60", "LPS (0.8 x 0.9 x 2.5 mm)"
    assert table == [
        ["patient1", "Müller 1", "train", "", where, light, "liver 1,920"],
        ["patient2", "Müller 2", "train", "lies RAI, others LPS", where, light, "liver 1,920"],
        ["patient3", "one.nii.gz", "train, unlabelled", "", where, light, ""],
    ]
    assert tab.ui.trainCheckLabel.text.splitlines() == [
        "To learn from: 2 labelled, 1 unlabelled",
        "few patients",
        "1 files that are no image on their own are left out, e.g. notes.txt",
    ]
    assert tab.ui.trainButton.enabled
    assert not errors()
    assert standin.leaves(slicer.mrmlScene) == before
    said = json.loads((folder / "cohort" / "cohort.json").read_text())
    assert said[2:] == [
        "prepare",
        "custom",
        str(folder / "source"),
        *("--images", "images/*", "--labels", "labels/*", "--patient", r"images/(patient\d+)"),
        *("--modality", "ct", "--name=liver", "--output", str(folder / "cohort"), "--json"),
        *("--label", "1=liver"),
    ]


def test_errors_of_the_data_forbid_training(panel: Any, tab: Any) -> None:
    tab.dataArguments[2] = "error"
    select(panel, patient(1)[1])
    check(tab)
    assert cells(tab.ui.trainCaseTable)[0][3] == "not in HU: 0 to 4095"
    assert tab.ui.trainCaseTable.item(0, 0).toolTip() == "not in HU: 0 to 4095"
    assert "Mend the errors" in tab.ui.trainCheckLabel.text
    assert not tab.ui.trainButton.enabled


def test_what_cannot_be_read_is_listed_without_figures(panel: Any, tab: Any) -> None:
    tab.dataArguments[2] = "unreadable"
    select(panel, patient(1)[1])
    check(tab)
    assert cells(tab.ui.trainCaseTable)[0][3:] == ["cannot be read", "", "", "liver 1,920"]
    assert not tab.ui.trainButton.enabled


def test_training_is_told_the_labelled_patients_not_their_images(panel: Any, tab: Any, folder: Path) -> None:
    (first, one), (second, two), (_third, three) = (patient(number) for number in (1, 2, 3))
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    person = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "Müller")
    for volume in (first, second):
        hierarchy.SetItemParent(hierarchy.GetItemByDataNode(volume), person)
    select(panel, one, two, three)
    check(tab)
    train(tab, trainrun.DONE)
    (command,) = commands(folder)
    assert command[command.index("--labelled") + 1] == "2"


def test_data_that_are_refused_are_explained(panel: Any, tab: Any) -> None:
    tab.dataArguments[2] = "refuses"
    select(panel, patient(1)[1])
    check(tab)
    assert "no labelled case. Training needs at least one." in errors()[0]
    assert not tab.ui.trainButton.enabled
    assert tab.ui.trainCheckButton.enabled


def test_check_can_be_cancelled(panel: Any, tab: Any) -> None:
    tab.dataArguments[2] = "waits"
    select(panel, patient(1)[1])
    for written in (False, True):  # while the scans are written, while they are looked at
        tab.ui.trainCheckButton.click()
        standin.pump(lambda written=written: tab._worker is not None or not written, 30)
        tab.ui.trainCheckCancelButton.click()
        standin.pump(lambda: not tab.isChecking(), 10)
        assert tab.ui.trainCheckLabel.text == "Cancelled."
        assert not tab.ui.trainButton.enabled
    assert not errors()


def test_closing_the_scene_ends_the_writing(panel: Any, tab: Any) -> None:
    select(panel, patient(1)[1])
    tab.ui.trainCheckButton.click()
    slicer.mrmlScene.Clear()
    assert not tab.isChecking()
    assert "scene was closed" in tab.ui.trainCheckLabel.text
    assert tab.ui.trainCheckButton.enabled
    standin.pump(lambda: tab.ui.trainSegmentationsTable.rowCount == 0)


# --- training --------------------------------------------------------------------------------------


@pytest.fixture
def checked(panel: Any, tab: Any) -> Any:
    """The tab after a check of three patients."""
    select(panel, *(patient(number)[1] for number in (1, 2, 3)))
    check(tab)
    return tab


def test_trained_model_is_in_the_chooser(panel: Any, checked: Any, folder: Path) -> None:
    tab, ui = checked, checked.ui
    assert panel._options().model == "phantom-ct-liver"
    train(tab, trainrun.DONE)
    bundle = str(folder / "model" / "bundle")
    assert panel._options().model == bundle
    assert panel.ui.modelComboBox.currentText.endswith(f"({bundle})")
    assert ui.trainStatusLabel.text.endswith(bundle)
    assert not shown(ui.trainProgressBar)
    assert shown(ui.trainCurveLabel)  # the loss: nothing validated
    assert not shown(ui.trainSamplesLabel)
    assert not ui.trainButton.enabled
    assert not ui.trainPauseButton.enabled
    assert ui.trainCheckButton.enabled
    (command,) = commands(folder)
    assert command[2:] == [
        *("--modality", "ct", "--data", str(folder / "cohort"), "--output", str(folder / "model")),
        *("--labelled", "3", "--stage", "student", "--max-minutes", "10"),
        *("--json-progress", "--low-priority"),
        *("--stop-file", str(folder / "stop")),
    ]
    assert not errors()


def test_gan_and_encoder_follow_when_asked(panel: Any, checked: Any, folder: Path) -> None:
    train(checked, trainrun.DONE)
    panel.ui.modelComboBox.setCurrentIndex(panel.ui.modelComboBox.findText("phantom-ct-liver"))
    checked.ui.trainAllCheckBox.setChecked(True)
    assert checked.ui.trainButton.enabled
    checked.ui.trainButton.click()
    standin.pump(lambda: len(commands(folder)) == 2 and checked._run.status == trainrun.DONE, 30)
    second = commands(folder)[1]
    assert second[second.index("--stage") + 1] == "all"
    assert "--max-minutes" not in second  # a limit of the student
    assert second[-1] == "--resume"
    assert panel._options().model == str(folder / "model" / "bundle")  # chosen again: it is another
    assert not checked.ui.trainButton.enabled


def test_progress_curve_and_pictures_are_shown(checked: Any) -> None:
    ui = checked.ui
    train(checked, trainrun.RUNNING, "validates")
    standin.pump(lambda: ui.trainProgressBar.value == 400, 30)
    assert ui.trainProgressBar.maximum == 1000
    assert ui.trainStatusLabel.text == "Student: 400 images, about 2.0 h left"
    assert checked._run.curve() == ("dice", [(images, images / 1000) for images in range(0, 500, 100)])
    assert shown(ui.trainCurveLabel)
    for label, grey in ((ui.trainSamplesLabel, 30), (ui.trainValidationLabel, 200)):
        picture = label.pixmap.toImage()
        assert (picture.width(), picture.height()) == (440, 147)
        assert picture.pixelColor(200, 70).red() == grey
    assert not ui.trainCheckButton.enabled
    assert not ui.trainButton.enabled
    assert ui.trainPauseButton.text == "Pause"


def test_curve_rises_with_its_values() -> None:
    image = curve.curvePixmap("DICE", [(0, 0.0), (100, 1.0)], 0.0, 1.0).toImage()
    blue = [
        (x, y)
        for x in range(image.width())
        for y in range(image.height())
        if image.pixelColor(x, y).name() == "#1565c0"
    ]
    left, right = min(blue), max(blue)
    assert left[0] < 50
    assert right[0] > 420
    assert left[1] > 120
    assert right[1] < 40
    curve.curvePixmap("one point", [(5, 0.5)])  # nothing to divide by


def test_pause_and_resume(checked: Any, folder: Path, panel: Any) -> None:
    ui = checked.ui
    train(checked, trainrun.RUNNING, "goes-on")
    ui.trainPauseButton.click()
    assert not ui.trainPauseButton.enabled
    assert "Saving" in ui.trainStatusLabel.text
    standin.pump(lambda: checked._run.status == trainrun.PAUSED, 10)
    assert ui.trainStatusLabel.text.startswith("Paused")
    assert ui.trainPauseButton.text == "Resume"
    assert ui.trainPauseButton.enabled
    assert not errors()
    ui.trainPauseButton.click()
    assert ui.trainPauseButton.text == "Pause"
    standin.pump(lambda: checked._run.status == trainrun.DONE, 30)
    first, second = commands(folder)
    assert second == [*first, "--resume"]
    assert panel._options().model == str(folder / "model" / "bundle")
    assert checked._run.curve()[1][-1] == (900, pytest.approx(1 / 901))  # goes on where it was


def test_training_that_dies_is_noticed_and_can_be_resumed(checked: Any, folder: Path) -> None:
    train(checked, trainrun.FAILED, "dies")
    (message,) = [one for one in slicer.app.messages if one.kind == "error"]
    assert "memory" in message.text
    assert "killed soon" in message.detailedText
    assert checked.ui.trainPauseButton.text == "Resume"
    checked.trainArguments[2] = "good"
    checked.ui.trainPauseButton.click()
    standin.pump(lambda: checked._run.status == trainrun.DONE, 30)
    assert commands(folder)[1][-1] == "--resume"


def test_training_that_refuses_tells_why(checked: Any) -> None:
    train(checked, trainrun.FAILED, "refused")
    (message,) = [one for one in slicer.app.messages if one.kind == "error"]
    assert "the data are not good. Mend them." in message.text
    assert message.detailedText == "line one\n\na library's word"
    assert "Mend them" in checked.ui.trainStatusLabel.text


def test_changed_data_are_trained_into_a_folder_of_their_own(
    panel: Any, checked: Any, folder: Path, tmp_path: Path
) -> None:
    train(checked, trainrun.DONE)
    (tmp_path / "more").mkdir()
    checked.ui.trainUnlabelledPathLineEdit.setCurrentPath(str(tmp_path / "more"))
    check(checked)
    assert checked.ui.trainNextButton.enabled  # by the model that there is
    train(checked, trainrun.DONE)
    assert panel._options().model == str(folder / "model2" / "bundle")
    assert len(commands(folder)) == len(commands(folder, "model2")) == 1
    assert commands(folder, "model2")[0][-1] != "--resume"


def test_check_asks_before_a_paused_training_is_lost(checked: Any, folder: Path) -> None:
    train(checked, trainrun.RUNNING, "goes-on")
    checked.ui.trainPauseButton.click()
    standin.pump(lambda: checked._run.status == trainrun.PAUSED, 10)
    slicer.app.answers = [False]
    check(checked)
    assert checked.ui.trainPauseButton.text == "Resume"
    assert (folder / "train.json").exists()
    check(checked)
    assert not checked.ui.trainPauseButton.enabled
    assert checked.ui.trainButton.enabled
    assert not (folder / "train.json").exists()


# --- Slicer is closed ------------------------------------------------------------------------------


def start_slicer() -> Any:
    """The module after a new start of Slicer, which knows its settings and nothing else."""
    trainrun._children.clear()
    standin.new_scene()
    return standin.load_module(MODULE)[1]


def started(folder: Path, mode: str) -> Any:
    """A panel with a training under way."""
    panel = standin.load_module(MODULE)[1]
    prepare(panel, folder)
    select(panel, patient(1)[1])
    check(panel._train)
    train(panel._train, trainrun.RUNNING, mode)
    return panel


def test_training_survives_slicer_and_is_found_again(folder: Path) -> None:
    panel = started(folder, "validates")
    pid = panel._train._run._pid
    assert os.getsid(pid) == pid  # a signal to Slicer's group, such as Ctrl-C, does not reach it
    standin.unload(panel)
    again = start_slicer()
    tab = again._train
    assert tab.ui.trainFolderPathLineEdit.currentPath == str(folder)
    standin.pump(lambda: tab._run.isFound, 10)
    assert tab._run.status == trainrun.RUNNING
    standin.pump(lambda: tab.ui.trainStatusLabel.text.startswith("Student: 400 images"), 10)
    assert shown(tab.ui.trainValidationLabel)
    assert not tab.ui.trainCheckButton.enabled
    tab.ui.trainPauseButton.click()
    standin.pump(lambda: tab._run.status == trainrun.PAUSED, 10)
    tab.trainArguments = [str(FAKE_TRAINER), "train", "good"]
    tab.ui.trainPauseButton.click()
    standin.pump(lambda: tab._run.status == trainrun.DONE, 30)
    assert again._options().model == str(folder / "model" / "bundle")
    standin.unload(again)


def test_training_that_ended_meanwhile_hands_its_model_over_once(folder: Path) -> None:
    panel = started(folder, "goes-on")
    standin.unload(panel)
    end_training(folder)
    bundle = folder / "model" / "bundle"
    bundle.mkdir()
    (bundle / "configs").symlink_to(HERE.parents[1] / "sgan_core/models/phantom-ct-liver/configs")
    with (folder / "events.jsonl").open("a") as file:
        file.write(
            json.dumps({"event": "done", "output": str(folder / "model"), "bundle": str(bundle)}) + "\n"
        )
    for expected in (str(bundle), "phantom-ct-liver"):
        panel = start_slicer()
        standin.pump(lambda panel=panel: panel._train._run.isFound, 10)
        assert panel._options().model == expected  # the second time the user's choice counts
        assert panel.ui.modelComboBox.count == len(models.knownModels()) + 1
        standin.unload(panel)


def test_training_that_died_with_the_computer_is_told_without_a_dialog(folder: Path) -> None:
    panel = started(folder, "goes-on")
    standin.unload(panel)
    end_training(folder)
    (child,) = trainrun._children[-1:]
    child.wait(10)
    again = start_slicer()
    tab = again._train
    standin.pump(lambda: tab._run.isFound, 10)
    assert tab._run.status == trainrun.FAILED
    assert "switched off" in tab.ui.trainStatusLabel.text
    assert tab.ui.trainPauseButton.text == "Resume"
    assert tab.ui.trainPauseButton.enabled
    assert not errors()
    standin.unload(again)


def test_another_process_with_its_number_is_not_taken_for_training(tmp_path: Path) -> None:
    """After a restart the number of the process may be anybody's: silence decides."""
    folder = tmp_path / "run"  # not the fixture, which ends the process that the events name: this one
    folder.mkdir()
    record = {
        "modality": "ct",
        "labelled": 3,
        "stage": "student",
        "minutes": 5,
        "output": "model",
        "taken": False,
    }
    (folder / "train.json").write_text(json.dumps(record))
    file = folder / "events.jsonl"
    file.write_text(json.dumps({"event": "hello", "pid": os.getpid(), "tool_version": "0"}) + "\n")
    for age, status in ((10, trainrun.STARTING), (100, trainrun.FAILED)):
        os.utime(file, (time.time() - age,) * 2)
        run = trainrun.TrainRun(str(folder), lambda: sys.executable, list, lambda: None)
        standin.pump(lambda run=run: run.isFound, 10)
        assert run.status == status
        run.close()


def test_last_words_that_are_written_while_it_ends_count(tmp_path: Path) -> None:
    record = {
        "modality": "ct",
        "labelled": 3,
        "stage": "student",
        "minutes": 5,
        "output": "model",
        "taken": True,
    }
    (tmp_path / "train.json").write_text(json.dumps(record))
    (tmp_path / "events.jsonl").write_text("")
    run = trainrun.TrainRun(str(tmp_path), lambda: sys.executable, list, lambda: None)

    def ends() -> bool:
        with (tmp_path / "events.jsonl").open("a") as file:
            file.write('{"event": "done", "output": "", "bundle": "b"}\n')
        return False

    run._isAlive = ends
    standin.pump(lambda: run.isFound, 10)
    assert run.status == trainrun.DONE


def test_curve_of_a_resumed_training_goes_on_from_what_was_saved(tmp_path: Path) -> None:
    record = {"modality": "ct", "labelled": 3, "stage": "all", "minutes": 5, "output": "model", "taken": True}
    (tmp_path / "train.json").write_text(json.dumps(record))
    points = [("student", 0), ("student", 100), ("student", 200), ("student", 100), ("student", 150)]
    for more, expected in (([], [0, 100, 150]), ([("gan", 10)], [10])):
        with (tmp_path / "events.jsonl").open("w") as file:
            for stage, images in [*points, *more]:
                progress = {"event": "progress", "stage": stage, "done": images, "total": 1000, "message": ""}
                file.write(json.dumps(progress) + "\n")
                log = {
                    "event": "log",
                    "stage": stage,
                    "images": images,
                    "loss" if stage == "student" else "image_g": 0.5,
                }
                file.write(json.dumps(log) + "\n")
            file.write('{"event": "validation", "stage": "student", "images": 1, "dice": null}\n')
        run = trainrun.TrainRun(str(tmp_path), lambda: sys.executable, list, lambda: None)
        standin.pump(lambda run=run: run.isFound, 10)
        run.close()
        assert run.curve() == ("loss", [(images, 0.5) for images in expected])


def test_a_program_that_cannot_be_started_is_explained(checked: Any) -> None:
    checked.logic.python = lambda: "/nowhere/PythonSlicer"
    checked.ui.trainButton.click()
    assert "/nowhere/PythonSlicer" in errors()[0]
    assert not checked._run.isActive()
    assert checked.ui.trainPauseButton.text == "Resume"


def test_a_long_history_is_read_in_pieces_and_its_nonsense_skipped(folder: Path) -> None:
    folder.mkdir(parents=True)
    record = {
        "modality": "ct",
        "labelled": 3,
        "stage": "student",
        "minutes": 5,
        "output": "model",
        "taken": True,
    }
    (folder / "train.json").write_text(json.dumps(record))
    with (folder / "events.jsonl").open("wb") as file:
        for images in range(20000):
            line = {"event": "progress", "stage": "student", "done": images, "total": 20000, "message": "m"}
            file.write(json.dumps(line | {"eta_s": None}).encode() + b"\n")
            file.write(b'\xff\xfe {"event": 3}\n[1]\n{"event": "progress", "done": null}\n')
        file.write(b'{"event": "error", "message": "stopped", "code": 3}\n{"event": "half')
    seen: list[int] = []
    run = trainrun.TrainRun(str(folder), lambda: sys.executable, list, lambda: seen.append(1))
    longest, look = [0.0], run._look

    def timed() -> None:
        began = time.process_time()
        look()
        longest[0] = max(longest[0], time.process_time() - began)

    run._timer.timeout.disconnect(run._look)
    run._timer.timeout.connect(timed)
    standin.pump(lambda: run.isFound, 60)
    assert run.status == trainrun.PAUSED
    assert run.progress[:2] == (19999, 20000)
    assert seen == [1]  # shown once, when all is read
    assert longest[0] < 0.1
    run.close()


RECORD = {"modality": "ct", "labelled": 3, "stage": "student", "minutes": 5, "output": "model", "taken": True}


def found(folder: Path, lines: list[str], **record: Any) -> Any:
    """The run of a folder with these events, when it has been read."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.json").write_text(json.dumps(RECORD | record))
    (folder / "events.jsonl").write_text("\n".join(lines))
    run = trainrun.TrainRun(str(folder), lambda: sys.executable, list, lambda: None)
    standin.pump(lambda: run.isFound, 10)
    return run


STOPPED = '{"event": "error", "message": "stopped", "code": 3}\n'


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "progress", "stage": "student", "done": Infinity, "total": 9, "message": "", "eta_s": null}',
        '{"event": "progress", "stage": "student", "done": 1, "total": 1e30, "message": "", "eta_s": null}',
        '{"event": "progress", "stage": "student", "done": -1, "total": 9, "message": "", "eta_s": null}',
        '{"event": "hello", "pid": ' + "9" * 40 + "}",
        '{"event": "hello", "pid": -1}',
        '{"event": "log", "stage": "student", "images": 1, "loss": ' + "9" * 400 + "}",
        '{"event": "bundle", "path": 5}',
        "[" * 100_000,
        "x" * (3 << 20),
    ],
)
def test_hostile_events_are_skipped(tmp_path: Path, line: str) -> None:
    run = found(tmp_path, [line, STOPPED])
    assert run.status == trainrun.PAUSED
    assert run._pid is None
    assert run.progress[0] == 0
    assert run.bundle == ""
    run.close()


def test_time_left_that_is_no_number_is_not_known(tmp_path: Path) -> None:
    line = '{"event": "progress", "stage": "gan", "done": 1, "total": 9, "message": "m", "eta_s": NaN}'
    run = found(tmp_path, [line, STOPPED])
    assert run.progress == (1, 9, "GAN: m", None)
    run.close()


def test_an_endless_line_is_not_kept(tmp_path: Path) -> None:
    run = found(tmp_path, ["x" * (5 << 20)])
    assert len(run._line) <= 1 << 20
    run.close()


@pytest.mark.parametrize("gone", ["/home/other/runs/liver", "C:\\Users\\other\\liver"])
def test_a_run_that_was_moved_shows_its_own_files(tmp_path: Path, gone: str) -> None:
    def told(event: str, path: str) -> str:
        slash = "/" if gone.startswith("/") else "\\"
        return json.dumps({"event": event, "kind": "samples", "path": slash.join((gone, *path.split("/")))})

    run = found(
        tmp_path,
        [told("picture", "model/samples/gan.png"), told("bundle", "model/bundle"), STOPPED],
    )
    assert run.bundle == str(tmp_path / "model" / "bundle")
    assert run.pictures == {"samples": str(tmp_path / "model" / "samples" / "gan.png")}
    run.close()


def test_nothing_outside_of_the_folder_is_shown_or_handed_over(tmp_path: Path) -> None:
    for path in ("/etc", "/x/model/../../y", "../bundle", "/x/other", "model"):
        lines = [
            json.dumps({"event": name, "kind": "samples", "path": path}) for name in ("picture", "bundle")
        ]
        run = found(tmp_path, [*lines, json.dumps({"event": "done", "bundle": path}) + "\n"])
        assert (run.status, run.bundle, run.pictures) == (trainrun.DONE, "", {})
        run.close()


def test_a_clock_that_jumps_ends_no_training(folder: Path, tmp_path: Path) -> None:
    """As of a computer that slept: silence is what we listened to."""
    run = found(tmp_path, [json.dumps({"event": "hello", "pid": os.getpid()}) + "\n"])
    for jump in (-3600, 3600):
        os.utime(tmp_path / "events.jsonl", (time.time() + jump,) * 2)
        for _ in range(3):
            run._look()
        assert run.status == trainrun.STARTING
    for _ in range(round(trainrun._SILENCE_S / trainrun._EVERY_MSEC * 1000) + 2):
        run._look()
    assert run.status == trainrun.FAILED
    ahead = time.time() + 3600
    os.utime(tmp_path / "events.jsonl", (ahead, ahead))
    late = trainrun.TrainRun(str(tmp_path), lambda: sys.executable, list, lambda: None)
    standin.pump(lambda: late.isFound, 10)
    assert late.status == trainrun.FAILED


@pytest.mark.parametrize("button", ["trainPauseButton", "trainCheckButton"])
def test_a_second_slicer_does_not_mix_its_training_in(checked: Any, folder: Path, button: str) -> None:
    train(checked, trainrun.RUNNING, "goes-on")
    checked.ui.trainPauseButton.click()
    standin.pump(lambda: checked._run.status == trainrun.PAUSED, 10)
    other = trainrun.TrainRun(
        str(folder), lambda: sys.executable, lambda: checked.trainArguments, lambda: None
    )
    standin.pump(lambda: other.isFound, 10)
    other.resume("student", 0)
    standin.pump(lambda: other.status == trainrun.DONE, 10)
    before = tree(folder / "source")
    getattr(checked.ui, button).click()
    assert "Another Slicer" in errors()[-1]
    standin.pump(lambda: checked._run.status == trainrun.DONE, 10)
    assert len(errors()) == 1
    assert len(commands(folder)) == 2
    assert (folder / "train.json").exists()
    assert tree(folder / "source") == before
    check(checked)  # once it is known, it goes on
    assert len(errors()) == 1


def test_a_check_that_another_overtakes_ends(tmp_path: Path) -> None:
    source = tmp_path / "source"
    asked = [request(patient(number)[1]) for number in (1, 2)]
    begun: list[str] = []
    first, second = (
        labelled.writeSource(one, str(source), lambda done, total, name: begun.append(name)) for one in asked
    )
    for number, steps in enumerate((first, second), 1):  # the second begins anew before the first has ended
        while len(begun) < number:
            next(steps)
    with pytest.raises((OSError, ValueError)):
        for _ in first:
            pass
    assert run_steps(second).names == {"patient1": "Müller 2"}
    image, label = (source / name / "patient1.nrrd" for name in ("images", "labels"))
    array = sitk.GetArrayFromImage(sitk.ReadImage(image))
    np.testing.assert_array_equal(array > 0, sitk.GetArrayFromImage(sitk.ReadImage(label)))
    assert (array > 0).sum() == 6 * 16 * 12


def test_a_damaged_record_is_no_run(folder: Path) -> None:
    folder.mkdir(parents=True)
    hostile = [
        {"output": "../../mine"},
        {"output": "/etc"},
        {"output": "--x"},
        {"modality": "--config=/x"},
        {"stage": "x"},
        {"labelled": 0},
        {"labelled": True},
        {"minutes": 10**400},
        {"minutes": -1},
    ]
    for text in (
        *("", "[]", "{}", '{"modality": 3}', "\0", "[" * 100_000),
        *(json.dumps(RECORD | one) for one in hostile),
    ):
        (folder / "train.json").write_text(text)
        run = trainrun.TrainRun(str(folder), lambda: sys.executable, list, lambda: None)
        assert (run.status, run.record) == (trainrun.NONE, None)


# --- which scan to label next ----------------------------------------------------------------------


def case(name: str, score: float | None, confidence: float | None, status: str = "done") -> dict[str, Any]:
    return {
        "case": name,
        "status": status,
        "trust": {"score": score, "reason": ""},
        "soft_dice_confidence": confidence,
    }


def test_the_least_trusted_scan_comes_first() -> None:
    def order(*cases: dict[str, Any]) -> list[tuple[str, float | None]]:
        return [(one["case"], figure) for one, figure in nextscan.ranked(cases)]

    judged = [case("a", 0.9, 0.1), case("b", 0.2, 0.9), case("c", 0.5, 0.5)]
    assert order(*judged) == [("b", 0.2), ("c", 0.5), ("a", 0.9)]
    # One is not judged: figures of two kinds cannot be compared, so the confidence counts for all.
    assert order(*judged, case("d", None, 0.3)) == [("a", 0.1), ("d", 0.3), ("c", 0.5), ("b", 0.9)]
    assert order(case("a", None, None), case("b", None, 0.5)) == [("b", 0.5), ("a", None)]
    failed = {"case": "x", "status": "failed", "error": "broken"}
    assert order(failed, case("a", 0.1, 0.1)) == [("a", 0.1)]
    assert order() == []


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A folder of unlabelled scans."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for name, bright in (("sure", 6), ("unsure", 3), ("labelled", 1)):
        image = np.full((6, 16, 20), -1000, np.int16)
        image[1:4, 4 : 4 + bright, 5:12] = 60
        written = sitk.GetImageFromArray(image)
        written.SetSpacing((0.8, 0.9, 2.5))
        sitk.WriteImage(written, folder / f"{name}.nii.gz")
    return folder


def look(panel: Any, mode: str = "ranks") -> None:
    panel.logic.workerArguments = [str(FAKE_WORKER), mode]
    panel._train.ui.trainNextButton.click()
    standin.pump(lambda: not panel._train.next.isRunning(), 60)


def test_next_scan_is_opened_in_the_segment_editor(
    panel: Any, checked: Any, scans: Path, folder: Path
) -> None:
    tab, ui = checked, checked.ui
    train(tab, trainrun.DONE)
    assert not ui.trainNextButton.enabled  # no folder of scans
    ui.trainUnlabelledPathLineEdit.setCurrentPath(str(scans))
    known = slicer.util.loadVolume(str(scans / "labelled.nii.gz"))
    labelled.tick(segment(known, ("liver", np.ones((6, 16, 20), bool))))
    look(panel)
    table = cells(ui.trainNextTable)
    assert [row[:2] for row in table] == [["unsure", "0.30"], ["sure", "0.60"]]
    assert ui.trainNextStatusLabel.text == "2 scans; the first is the one to label next."
    ui.trainEditButton.click()
    standin.pump(lambda: slicer.app.selected_modules, 30)
    assert slicer.app.selected_modules == ["SegmentEditor"]
    editor = slicer.mrmlScene.GetSingletonNode("SegmentEditor", "vtkMRMLSegmentEditorNode")
    volume, node = editor.GetSourceVolumeNode(), editor.GetSegmentationNode()
    assert volume.GetName().startswith("unsure")
    np.testing.assert_array_equal(voxels(node, 0, volume), slicer.util.arrayFromVolume(volume) > 0)
    assert labelled.sourceVolume(node) is volume
    assert not labelled.isTicked(node)  # nobody has looked at it yet: the person ticks what is right
    assert (
        not node.GetSegmentation().GetNthSegment(0).HasTag("SemanticGAN")
    )  # no run replaces a person's work
    assert volume.GetName() in [row[1] for row in cells(ui.trainSegmentationsTable)]
    before = standin.leaves(slicer.mrmlScene)
    ui.trainEditButton.click()
    standin.pump(lambda: not tab.next.isRunning(), 30)
    assert standin.leaves(slicer.mrmlScene) == before  # opened once
    assert len(slicer.app.selected_modules) == 2
    labelled.tick(node)
    look(panel)
    assert [row[0] for row in cells(ui.trainNextTable)] == ["sure"]  # the other one is labelled
    assert not errors()
    assert not list(folder.glob("predictions/.*"))


def test_a_labelled_scan_is_not_also_unlabelled(scans: Path, tmp_path: Path) -> None:
    known = slicer.util.loadVolume(str(scans / "labelled.nii.gz"))
    node = segment(known, ("liver", np.ones((6, 16, 20), bool)))
    written = write(request(node, unlabelled=str(scans)), tmp_path / "source")
    assert list(written.names.values()) == [known.GetName(), "sure.nii.gz", "unsure.nii.gz"]


def test_looking_through_the_scans_can_be_cancelled_and_fail(panel: Any, checked: Any, scans: Path) -> None:
    ui = checked.ui
    train(checked, trainrun.DONE)
    ui.trainUnlabelledPathLineEdit.setCurrentPath(str(scans))
    panel.logic.workerArguments = [str(FAKE_WORKER), "listens"]
    ui.trainNextButton.click()
    assert not ui.trainNextButton.enabled
    standin.pump(lambda: ui.trainNextProgressBar.maximum == 4, 30)
    ui.trainNextCancelButton.click()
    standin.pump(lambda: not checked.next.isRunning(), 10)
    assert ui.trainNextStatusLabel.text == "Cancelled; 0 scans are finished."
    look(panel, "error")
    assert "Mend it" in errors()[0]
    assert ui.trainNextButton.enabled
    assert not ui.trainEditButton.enabled


# --- the real engine -------------------------------------------------------------------------------


def phantom(seed: int, name: str) -> tuple[Any, np.ndarray]:
    """(volume in the scene, its true liver (K, J, I)) of a phantom patient."""
    from sgan_core.phantom.cohort import make_case

    made = make_case(seed, "ct")
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(made.image.grid.affine))
    slicer.util.updateVolumeFromArray(node, np.ascontiguousarray(made.image.array.transpose(2, 1, 0)))
    node.CreateDefaultDisplayNodes()
    return node, made.labels.transpose(2, 1, 0) == 1


def test_a_model_from_three_labelled_and_six_unlabelled_scans(
    panel: Any, folder: Path, tmp_path: Path
) -> None:
    """The whole way: check, train, the model in the chooser, Apply on a seventh patient, which scan to label next."""
    import nibabel as nib

    from sgan_core.phantom.cohort import make_case

    scans = tmp_path / "scans"
    scans.mkdir()
    for seed in range(4, 10):
        image = make_case(seed, "ct").image
        nib.save(nib.Nifti1Image(image.array, image.grid.affine), scans / f"scan{seed}.nii.gz")
    # A small student, few images, hardly any augmentation: it must know one scanner only, after a minute or two.
    quick = tmp_path / "quick.yaml"
    quick.write_text(
        "student_train: {channels: [12, 24, 48, 96], max_images: 10000, batch: 8, lr: 0.002, appearance: false, "
        "strength: 0.5, ema_half_life_images: 500.0}\n"
    )
    tab, ui = panel._train, panel._train.ui
    tab.trainArguments = ["-m", "sgan_core.cli.train", "--config", str(quick), "--size", "64"]
    ui.trainFolderPathLineEdit.setCurrentPath(str(folder))
    ui.trainMinutesSpinBox.setValue(0)
    ui.trainUnlabelledPathLineEdit.setCurrentPath(str(scans))
    select(panel, *(segment(volume, ("liver", liver)) for volume, liver in map(phantom, (1, 2, 3), "abc")))
    ui.trainCheckButton.click()
    standin.pump(lambda: not tab.isChecking(), 120)
    assert not errors()
    rows = cells(ui.trainCaseTable)
    assert [row[1] for row in rows] == ["a", "b", "c", *(f"scan{seed}.nii.gz" for seed in range(4, 10))]
    assert ui.trainCheckLabel.text.splitlines()[0] == "To learn from: 3 labelled, 6 unlabelled"

    ui.trainButton.click()
    with standin.EventLoopProbe() as probe:
        standin.pump(lambda: not tab._run.isActive(), 900)
    assert tab._run.status == trainrun.DONE, tab._run.details
    assert probe.max_gap_ms < 1000  # what else the machine does counts, too
    assert shown(ui.trainCurveLabel)
    assert shown(ui.trainValidationLabel)
    assert tab._run.curve()[1][0][1] > 2 * tab._run.curve()[1][-1][1]  # the loss has fallen
    assert panel._options().model == str(folder / "model" / "bundle")

    seventh, liver = phantom(10, "seventh")
    panel.ui.inputSelector.setCurrentNode(seventh)
    panel.ui.applyButton.click()
    standin.pump(lambda: not panel.logic.isRunning(), 300)
    assert not errors()
    found = voxels(panel._parameterNode.outputSegmentation, 0, seventh) > 0
    dice = 2 * (found & liver).sum() / (found.sum() + liver.sum())
    print(f"DICE {dice:.3f}")
    assert dice >= 0.85

    ui.trainNextButton.click()
    standin.pump(lambda: not tab.next.isRunning(), 300)
    assert not errors()
    figures = [float(row[1]) for row in cells(ui.trainNextTable)]
    assert len(figures) == 6
    assert figures == sorted(figures)
    ui.trainEditButton.click()
    standin.pump(lambda: slicer.app.selected_modules and not tab.next.isRunning(), 60)
    editor = slicer.mrmlScene.GetSingletonNode("SegmentEditor", "vtkMRMLSegmentEditorNode")
    drawn, scan = editor.GetSegmentationNode(), editor.GetSourceVolumeNode()
    assert scan.GetName().startswith(Path(cells(ui.trainNextTable)[0][0]).name[:5])
    truth = make_case(int(scan.GetName()[4]), "ct").labels.transpose(2, 1, 0) == 1
    mask = voxels(drawn, 0, scan) > 0
    assert (
        2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.6
    )  # the least trusted one, on its own voxels
    standin.pump(lambda: len(cells(ui.trainSegmentationsTable)) == 5, 10)
    row = [cell[1] for cell in cells(ui.trainSegmentationsTable)].index(scan.GetName())
    ui.trainSegmentationsTable.item(row, 0).setCheckState(qt.Qt.Checked)
    ui.trainCheckButton.click()
    standin.pump(lambda: not tab.isChecking(), 120)
    assert ui.trainCheckLabel.text.splitlines()[0] == "To learn from: 4 labelled, 5 unlabelled"
