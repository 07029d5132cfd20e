"""Volumes to files and results to nodes, on a real scene: geometry, segments, terminology, what is left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import vtk
from helpers import ROOT, label, make_volume, run_steps, voxels
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import standin
from SemanticGANSlicerLib import importer, volumes
from sgan_core.imaging.readers import read_image
from sgan_core.imaging.writers import write_labels, write_mask_png

LIVER, SPLEEN = label(1, "liver", (200, 90, 60)), label(2, "spleen", (9, 9, 9), "78961009")


def write_result(folder: Path, volume: Any, labelmap: np.ndarray, **case: Any) -> dict[str, Any]:
    """A label map (K, J, I) of a volume as the engine writes it, with the record of its case."""
    source = run_steps(volumes.writeInput(volume, str(folder)))
    grid = read_image(source).grid
    path = folder / "out.nii.gz"
    write_labels(path, labelmap.transpose(), grid)  # (K, J, I) -> (I, J, K)
    return {"output": str(path), "trust": {"slices": []}, "labels": [], **case}


# --- out of the scene ------------------------------------------------------------------------------

_ANGLES = st.tuples(*[st.floats(-3.1, 3.1)] * 3)
_NO_FIXTURE_CHECK = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def rotation(angles: tuple[float, float, float]) -> np.ndarray:
    matrix = vtk.vtkTransform()
    for angle, turn in zip(angles, (matrix.RotateX, matrix.RotateY, matrix.RotateZ), strict=True):
        turn(np.degrees(angle))
    return slicer.util.arrayFromVTKMatrix(matrix.GetMatrix())[:3, :3]


@_NO_FIXTURE_CHECK
@given(angles=_ANGLES, mirrored=st.booleans(), spacing=st.tuples(*[st.floats(0.2, 9)] * 3))
def test_written_geometry_is_that_of_the_node(
    tmp_path_factory: pytest.TempPathFactory,
    angles: tuple[float, float, float],
    mirrored: bool,
    spacing: tuple[float, float, float],
) -> None:
    directions = rotation(angles) @ np.diag([-1 if mirrored else 1, 1, 1])
    array = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4) - 9
    node = make_volume(array, turned=False)
    node.SetSpacing(*spacing)
    node.SetOrigin(-7.5, 3.25, 1000.125)
    node.SetIJKToRASDirections(*directions.ravel())
    path = run_steps(volumes.writeInput(node, str(tmp_path_factory.mktemp("input"))))
    image = sitk.ReadImage(path)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), array)
    for index in ((0, 0, 0), (3, 2, 1)):
        x, y, z = image.TransformIndexToPhysicalPoint(index)
        expected = volumes.ijkToRas(node) @ [*index, 1.0]
        np.testing.assert_allclose((-x, -y, z), expected[:3], atol=1e-4)  # LPS -> RAS
    # Our own reader, which the worker uses.
    np.testing.assert_allclose(read_image(path).grid.affine, volumes.ijkToRas(node), atol=1e-4)
    slicer.mrmlScene.RemoveNode(node)


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"]
)
def test_every_scalar_type_arrives(dtype: str, tmp_path: Path) -> None:
    array = (np.arange(24).reshape(2, 3, 4) * 3).astype(dtype)
    image = sitk.ReadImage(run_steps(volumes.writeInput(make_volume(array), str(tmp_path))))
    written = sitk.GetArrayFromImage(image)
    np.testing.assert_array_equal(written, array)
    assert written.dtype == dtype


def test_colour_picture_is_written_as_stored(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (1, 5, 7, 3), dtype=np.uint8)
    node = make_volume(pixels, "photo", "vtkMRMLVectorVolumeNode")
    path = run_steps(volumes.writeInput(node, str(tmp_path)))
    np.testing.assert_array_equal(np.asarray(Image.open(path)), pixels[0])
    assert read_image(path).array.shape == (3, 5, 7)


def test_large_volumes_are_written_in_pieces(tmp_path: Path) -> None:
    node = make_volume(np.zeros((20, 512, 1024), np.int16))  # 20 MiB
    assert sum(1 for _ in volumes.writeInput(node, str(tmp_path))) == 5


def test_large_inputs_are_removed_in_pieces(tmp_path: Path) -> None:
    path = run_steps(volumes.writeInput(make_volume(np.zeros((20, 512, 1024), np.int16)), str(tmp_path)))
    sizes = []
    for _ in volumes.removeInput(path):
        sizes.append(Path(path).stat().st_size)
    assert len(sizes) == 5
    assert sizes == sorted(sizes, reverse=True)
    assert not Path(path).exists()


def test_what_cannot_be_segmented_is_explained(ct: Any) -> None:
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "nothing")
    labels = make_volume(np.zeros((2, 3, 4), np.uint8), "mask", "vtkMRMLLabelMapVolumeNode")
    vectors = make_volume(np.zeros((2, 3, 4, 3), np.float32), "stack", "vtkMRMLVectorVolumeNode")
    pair = make_volume(np.zeros((1, 3, 4, 2), np.uint8), "pair", "vtkMRMLVectorVolumeNode")
    for node, words in (
        (None, "Select a volume"),
        (empty, "nothing holds no image"),
        (labels, "mask is a label map"),
        (vectors, "stack is a colour volume of 2 slices"),
        (pair, "pair holds 2 values a voxel"),
    ):
        with pytest.raises(ValueError, match=words):
            volumes.checkVolume(node)
    volumes.checkVolume(ct)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("sign", [1, -1])
def test_slice_positions_are_those_of_the_model(order: tuple[int, ...], sign: int, tmp_path: Path) -> None:
    """Also for sagittal and coronal scans, whose slices a model cuts across."""
    from sgan_core.cohort import Intensity
    from sgan_core.imaging.slices import slice_centres_mm, to_model

    node = make_volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5) - 1000)
    directions = np.eye(3)[list(order)] * sign
    node.SetIJKToRASDirections(*(rotation((0.1, -0.2, 0.05)) @ directions).ravel())
    stack = to_model(
        read_image(run_steps(volumes.writeInput(node, str(tmp_path)))),
        size=16,
        intensity=Intensity(-160.0, 240.0, "HU"),
    )
    np.testing.assert_allclose(volumes.slicePositions(node), slice_centres_mm(stack)[:, 2], atol=1e-3)


def test_hardened_copy_stands_where_the_transform_puts_it(ct: Any) -> None:
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "registration")
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation((0.3, 0.0, -0.2)), (11.0, -5.0, 3.0)
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    ct.SetAndObserveTransformNodeID(transform.GetID())
    copy = volumes.hardenedCopy(ct)
    assert copy.GetParentTransformNode() is None
    np.testing.assert_allclose(volumes.ijkToRas(copy), matrix @ volumes.ijkToRas(ct), atol=1e-6)
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(copy), slicer.util.arrayFromVolume(ct))
    assert ct.GetParentTransformNode() is transform


# --- into the scene --------------------------------------------------------------------------------


def test_result_lies_on_an_oblique_volume(ct: Any, tmp_path: Path) -> None:
    labelmap = (slicer.util.arrayFromVolume(ct) > 0).astype(np.uint8)
    labelmap[4, 10, 12] = 2
    result = run_steps(importer.importResult(write_result(tmp_path, ct, labelmap), [LIVER, SPLEEN], ct))
    for index, value in enumerate((1, 2)):
        np.testing.assert_array_equal(voxels(result.segmentation, index, ct), labelmap == value)
    # In the world, not only on the voxels: the same by a volume that is not turned.
    plain = make_volume(np.zeros((120, 120, 120), np.int16), "plain", turned=False)
    plain.SetOrigin(-70.0, -40.0, 0.0)
    plain.SetSpacing(1.0, 1.0, 1.0)
    inside = np.argwhere(voxels(result.segmentation, 0, plain))[:, ::-1]  # (n, 3) I, J, K
    places = (volumes.ijkToRas(plain) @ np.c_[inside, np.ones(len(inside))].T).T
    indices = np.linalg.inv(volumes.ijkToRas(ct)) @ places.T
    i, j, k = np.rint(indices[:3]).astype(int)
    assert labelmap[k, j, i].mean() > 0.95
    assert len(inside) == pytest.approx((labelmap == 1).sum() * 0.8 * 0.9 * 2.5, rel=0.1)


def test_segments_carry_names_codes_and_recommended_colours(ct: Any, tmp_path: Path) -> None:
    labelmap = np.zeros((12, 32, 40), np.uint8)
    labelmap[2, 3, 4] = 1
    private = label(3, "mystery", (11, 22, 33), "")
    case = write_result(tmp_path, ct, labelmap)
    result = run_steps(importer.importResult(case, [LIVER, SPLEEN, private], ct))
    segmentation = result.segmentation.GetSegmentation()
    segments = [segmentation.GetSegment(one) for one in result.segmentIds]
    assert [one.GetName() for one in segments] == ["liver", "spleen", "mystery"]
    # Liver and spleen: of Slicer's General Anatomy list (in the stand-in's excerpt of it), not the model's own.
    expected = [(221, 130, 101), (157, 108, 162), (11, 22, 33)]
    for one, rgb in zip(segments, expected, strict=True):
        np.testing.assert_allclose(np.multiply(one.GetColor(), 255), rgb, atol=0.5)
    entry = slicer.vtkSlicerTerminologyEntry()
    tag = vtk.reference("")
    assert segments[0].GetTag(segments[0].GetTerminologyEntryTagName(), tag)
    assert slicer.modules.terminologies.logic().DeserializeTerminologyEntry(str(tag), entry)
    kind, category = entry.GetTypeObject(), entry.GetCategoryObject()
    assert (kind.GetCodingSchemeDesignator(), kind.GetCodeValue()) == ("SCT", "10200004")
    assert (category.GetCodeValue(), category.GetCodeMeaning()) == ("123037004", "Anatomical Structure")


def test_terminology_of_the_module_is_that_of_the_data_sets() -> None:
    """The file holds what ``sgan_datasets.anatomy`` knows, and Slicer can read it."""
    from sgan_core.imaging.terminology import label_codes
    from sgan_datasets.anatomy import _STRUCTURES, named_label

    content = json.loads((ROOT / "SemanticGANSlicer" / "Resources" / "SemanticGAN.term.json").read_text())
    listed = {
        (
            kind["CodeMeaning"],
            category["CodeValue"],
            kind["CodeValue"],
            tuple(kind["recommendedDisplayRGBValue"]),
        )
        for category in content["SegmentationCodes"]["Category"]
        for kind in category["Type"]
    }
    labels = [named_label(1, name) for name in _STRUCTURES]
    codes = [(label_codes(one)[0].value, one.code) for one in labels]
    assert listed == {(one.name, *code, one.rgb) for one, code in zip(labels, codes, strict=True)}
    logic = slicer.modules.terminologies.logic()
    assert not logic.IsTerminologyContextLoaded("SemanticGAN")
    importer.loadTerminology()
    importer.loadTerminology()  # twice is no harm
    assert logic.IsTerminologyContextLoaded("SemanticGAN")
    lung = label(1, "right lung", (1, 1, 1), "3341006")  # not in the stand-in's excerpt of Slicer's list
    assert importer.recommendedColour(lung) == pytest.approx([197 / 255, 165 / 255, 145 / 255])


def test_absent_label_is_an_empty_segment(ct: Any, tmp_path: Path) -> None:
    case = write_result(tmp_path, ct, np.zeros((12, 32, 40), np.uint8))
    result = run_steps(importer.importResult(case, [LIVER], ct))
    assert result.segmentation.GetSegmentation().GetNumberOfSegments() == 1
    assert not voxels(result.segmentation, 0, ct).any()


def test_segmentation_refers_to_its_volume(ct: Any, tmp_path: Path) -> None:
    case = write_result(tmp_path, ct, np.ones((12, 32, 40), np.uint8))
    node = run_steps(importer.importResult(case, [LIVER], ct)).segmentation
    assert node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()) is ct
    assert node.GetSegmentation().GetSourceRepresentationName() == "Binary labelmap"
    text = node.GetSegmentation().GetConversionParameter("Reference image geometry")
    assert text.count(";") >= 21  # 16 numbers of the matrix, 6 of the extent


def test_segmentation_is_beside_its_volume(ct: Any, tmp_path: Path) -> None:
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "study")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(ct), study)
    case = write_result(tmp_path, ct, np.ones((12, 32, 40), np.uint8))
    node = run_steps(importer.importResult(case, [LIVER], ct)).segmentation
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == study


def test_updated_segmentation_stays_where_a_person_put_it(ct: Any, tmp_path: Path) -> None:
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    case = write_result(tmp_path, ct, np.ones((12, 32, 40), np.uint8))
    node = run_steps(importer.importResult(case, [LIVER], ct)).segmentation
    folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), "mine")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(node), folder)
    run_steps(importer.importResult(case, [LIVER], ct, node))
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == folder


def test_import_adds_one_node_and_its_display(ct: Any, tmp_path: Path) -> None:
    before = standin.leaves(slicer.mrmlScene)
    case = write_result(tmp_path, ct, np.ones((12, 32, 40), np.uint8))
    run_steps(importer.importResult(case, [LIVER], ct))
    added = sorted(kind for kind, _name in set(standin.leaves(slicer.mrmlScene)) - set(before))
    assert added == ["vtkMRMLSegmentationDisplayNode", "vtkMRMLSegmentationNode"]


def test_abandoned_import_changes_nothing(ct: Any, tmp_path: Path) -> None:
    before = standin.leaves(slicer.mrmlScene)
    case = write_result(tmp_path, ct, np.ones((12, 32, 40), np.uint8))
    steps = importer.importResult(case, [LIVER], ct)
    next(steps)
    next(steps)
    steps.close()
    assert standin.leaves(slicer.mrmlScene) == before


def test_result_of_another_size_is_refused(ct: Any, tmp_path: Path) -> None:
    case = write_result(tmp_path, ct, np.ones((12, 32, 40), np.uint8))
    other = make_volume(np.zeros((12, 32, 41), np.int16), "other")
    before = standin.leaves(slicer.mrmlScene)
    with pytest.raises(ValueError, match=r"\(40, 32, 12\) voxels, the volume \(41, 32, 12\)"):
        run_steps(importer.importResult(case, [LIVER], other))
    assert standin.leaves(slicer.mrmlScene) == before


def test_incomplete_result_is_refused(ct: Any, tmp_path: Path) -> None:
    import gzip

    case = write_result(tmp_path, ct, np.ones((12, 32, 40), np.uint8))
    content = gzip.decompress(Path(case["output"]).read_bytes())
    for kept in (len(content) - 7, len(content) // 2):
        Path(case["output"]).write_bytes(gzip.compress(content[:kept]))
        with pytest.raises(ValueError, match="incomplete") as told:
            run_steps(importer.importResult(case, [LIVER], ct))
        assert f"The result of CT in {tmp_path} is incomplete" in str(told.value)
        assert "Free some space there" in str(told.value)


def test_result_that_the_disk_cut_off_is_refused(ct: Any, tmp_path: Path) -> None:
    """The file itself ends, wherever gzip or the header of NIfTI happens to be."""
    case = write_result(tmp_path, ct, np.ones((12, 32, 40), np.uint8))
    content, before = Path(case["output"]).read_bytes(), standin.leaves(slicer.mrmlScene)
    for kept in (0, 5, 60, len(content) // 2, len(content) - 9):
        Path(case["output"]).write_bytes(content[:kept])
        with pytest.raises(ValueError, match="incomplete"):
            run_steps(importer.importResult(case, [LIVER], ct))
    Path(case["output"]).unlink()
    with pytest.raises(ValueError, match=r"incomplete \(No such file"):
        run_steps(importer.importResult(case, [LIVER], ct))
    assert standin.leaves(slicer.mrmlScene) == before


def test_picture_result_keeps_the_mask_upright(tmp_path: Path) -> None:
    mask = np.zeros((5, 7), np.uint8)
    mask[0, 6] = mask[4, :2] = 1
    pixels = np.zeros((1, 5, 7, 3), np.uint8)
    node = make_volume(pixels, "photo", "vtkMRMLVectorVolumeNode")
    from sgan_core.cohort import Label

    write_mask_png(tmp_path / "input_seg.png", mask, [Label(1, "lesion", (255, 0, 0))])
    case = {"output": str(tmp_path / "input_seg.png"), "trust": {"slices": []}}
    result = run_steps(importer.importResult(case, [label(1, "lesion")], node))
    np.testing.assert_array_equal(voxels(result.segmentation, 0, node)[0], mask)


# --- again, and back -------------------------------------------------------------------------------


def imported(ct: Any, folder: Path, labelmap: np.ndarray, target: Any = None) -> importer.Result:
    folder.mkdir(exist_ok=True)
    return run_steps(importer.importResult(write_result(folder, ct, labelmap), [LIVER], ct, target))


def test_a_target_that_is_taken_away_while_the_result_is_read_is_left_alone(ct: Any, tmp_path: Path) -> None:
    first, second = np.zeros((2, 12, 32, 40), np.uint8)
    first[2:5], second[6:9] = 1, 1
    target = imported(ct, tmp_path / "a", first).segmentation
    other = make_volume(np.zeros((12, 32, 40), np.int16), "another patient")
    (tmp_path / "b").mkdir()
    steps = importer.importResult(write_result(tmp_path / "b", ct, second), [LIVER], ct, target)
    next(steps)
    target.SetReferenceImageGeometryParameterFromVolumeNode(other)
    result = run_steps(steps)
    assert result.segmentation is not target
    assert volumes.drawnOn(result.segmentation) is ct
    np.testing.assert_array_equal(voxels(target, 0, ct), first)


def test_update_replaces_our_segments_and_keeps_others(ct: Any, tmp_path: Path) -> None:
    first, second = np.zeros((2, 12, 32, 40), np.uint8)
    first[2:5], second[6:9] = 1, 1
    node = imported(ct, tmp_path / "a", first).segmentation
    node.GetSegmentation().AddEmptySegment("mine", "drawn by hand")
    drawn = np.zeros((12, 32, 40), np.uint8)
    drawn[0, :4] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(drawn, node, "mine", ct)
    again = imported(ct, tmp_path / "b", second, node)
    assert again.segmentation is node
    names = [
        node.GetSegmentation().GetNthSegment(n).GetName()
        for n in range(node.GetSegmentation().GetNumberOfSegments())
    ]
    assert sorted(names) == ["drawn by hand", "liver"]
    np.testing.assert_array_equal(slicer.util.arrayFromSegmentBinaryLabelmap(node, "mine", ct), drawn)
    np.testing.assert_array_equal(
        slicer.util.arrayFromSegmentBinaryLabelmap(node, again.segmentIds[0], ct), second
    )


def surface_bounds_mm(node: Any, segment_id: str) -> tuple[float, ...]:
    """From and to along R, A and S of a segment's surface in the 3D view."""
    return node.GetSegmentation().GetSegment(segment_id).GetRepresentation("Closed surface").GetBounds()


@pytest.mark.parametrize("drawn", [False, True], ids=["ours alone", "beside a drawn segment"])
def test_surface_in_3d_follows_an_update(ct: Any, tmp_path: Path, drawn: bool) -> None:
    first, second = np.zeros((2, 12, 32, 40), np.uint8)
    first[2:5, 4:10, 4:10], second[6:10, 12:30, 12:30] = 1, 1
    node = imported(ct, tmp_path / "a", first).segmentation
    node.CreateClosedSurfaceRepresentation()
    if drawn:
        node.GetSegmentation().AddEmptySegment("mine", "drawn by hand")
    again = imported(ct, tmp_path / "b", second, node)
    fresh = imported(ct, tmp_path / "c", second)
    fresh.segmentation.CreateClosedSurfaceRepresentation()
    bounds = surface_bounds_mm(node, again.segmentIds[0])
    assert bounds[0] < bounds[1]  # not empty
    assert bounds == pytest.approx(surface_bounds_mm(fresh.segmentation, fresh.segmentIds[0]))


def test_update_of_a_segmentation_that_is_not_shown_in_3d_makes_no_surface(ct: Any, tmp_path: Path) -> None:
    node = imported(ct, tmp_path / "a", np.ones((12, 32, 40), np.uint8)).segmentation
    imported(ct, tmp_path / "b", np.ones((12, 32, 40), np.uint8), node)
    assert not node.GetSegmentation().ContainsRepresentation("Closed surface")


def test_surface_is_made_when_asked_for(ct: Any, tmp_path: Path) -> None:
    labelmap = np.zeros((12, 32, 40), np.uint8)
    labelmap[2:8, 4:20, 4:20] = 1
    case = write_result(tmp_path, ct, labelmap)
    node = run_steps(importer.importResult(case, [LIVER, SPLEEN], ct, show3D=True)).segmentation
    assert node.GetSegmentation().ContainsRepresentation("Closed surface")
    assert node.GetDisplayNode().GetPreferredDisplayRepresentationName3D() == "Closed surface"
    surface = node.GetSegmentation().GetNthSegment(0).GetRepresentation("Closed surface")
    assert surface.GetNumberOfPoints() > 100


def test_surface_is_the_former_one_after_undo(ct: Any, tmp_path: Path) -> None:
    first, second = np.zeros((2, 12, 32, 40), np.uint8)
    first[2:5, 4:10, 4:10], second[6:10, 12:30, 12:30] = 1, 1
    node = imported(ct, tmp_path / "a", first).segmentation
    node.CreateClosedSurfaceRepresentation()
    segment_id = node.GetSegmentation().GetNthSegmentID(0)
    bounds = surface_bounds_mm(node, segment_id)
    again = imported(ct, tmp_path / "b", second, node)
    assert surface_bounds_mm(node, again.segmentIds[0]) != pytest.approx(bounds)
    again.undo.restore()
    assert surface_bounds_mm(node, segment_id) == pytest.approx(bounds)


def test_segments_are_called_as_their_codes_when_asked_for(ct: Any, tmp_path: Path) -> None:
    """By the terminologies that are loaded; a private code, or one that two labels have, keeps the model's name."""
    labels = [
        label(1, "hepar", code="10200004"),
        label(2, "upper lien", code="78961009"),
        label(3, "lower lien", code="78961009"),
        label(4, "thing", code=""),
        label(5, "ren", code="99999999"),
    ]
    case = write_result(tmp_path, ct, np.zeros((12, 32, 40), np.uint8))
    case["labels"] = [{"value": n, "voxels": 0, "volume_ml": 0.0} for n in range(1, 6)]
    own = run_steps(importer.importResult(case, labels, ct))
    assert [row[0] for row in importer.volumeRows(own)] == [
        "hepar",
        "upper lien",
        "lower lien",
        "thing",
        "ren",
    ]
    standard = run_steps(importer.importResult(case, labels, ct, standardNames=True))
    names = ["Liver", "upper lien", "lower lien", "thing", "ren"]
    assert [row[0] for row in importer.volumeRows(standard)] == names
    segmentation = standard.segmentation.GetSegmentation()
    assert [segmentation.GetSegment(one).GetName() for one in standard.segmentIds] == names


def test_undo_of_a_new_segmentation_removes_it(ct: Any, tmp_path: Path) -> None:
    before = standin.leaves(slicer.mrmlScene)
    result = imported(ct, tmp_path / "a", np.ones((12, 32, 40), np.uint8))
    assert not result.undo.edited
    result.undo.restore()
    assert not slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
    assert standin.leaves(slicer.mrmlScene) == before


def test_undo_of_an_update_brings_the_former_segments_back(ct: Any, tmp_path: Path) -> None:
    first = np.zeros((12, 32, 40), np.uint8)
    first[2:5, 3, 4:8] = 1
    node = imported(ct, tmp_path / "a", first).segmentation
    node.GetSegmentation().GetNthSegment(0).SetName("liver, corrected")
    result = imported(ct, tmp_path / "b", np.ones((12, 32, 40), np.uint8), node)
    result.undo.restore()
    assert node.GetSegmentation().GetNumberOfSegments() == 1
    assert node.GetSegmentation().GetNthSegment(0).GetName() == "liver, corrected"
    np.testing.assert_array_equal(voxels(node, 0, ct), first)


def test_edits_after_a_run_are_noticed(ct: Any, tmp_path: Path) -> None:
    result = imported(ct, tmp_path / "a", np.ones((12, 32, 40), np.uint8))
    empty = np.zeros((12, 32, 40), np.uint8)
    slicer.util.updateSegmentBinaryLabelmapFromArray(empty, result.segmentation, result.segmentIds[0], ct)
    assert result.undo.edited


def test_undo_after_the_node_was_deleted_does_nothing(ct: Any, tmp_path: Path) -> None:
    result = imported(ct, tmp_path / "a", np.ones((12, 32, 40), np.uint8))
    slicer.mrmlScene.RemoveNode(result.segmentation)
    before = standin.leaves(slicer.mrmlScene)
    result.undo.restore()
    assert standin.leaves(slicer.mrmlScene) == before


# --- what DICOM export says of the segments ---------------------------------------------------------


def algorithm(node: Any, segment_id: str) -> tuple[str, str]:
    """Type and name as the export of Slicer's module DICOM reads them (DICOMSegmentationPlugin._createSegmentData)."""
    segment = node.GetSegmentation().GetSegment(segment_id)
    found = []
    for tag in ("DICOM.SegmentAlgorithmType", "DICOM.SegmentAlgorithmName"):
        value = vtk.mutable("")
        found.append(str(value) if segment.GetTag(tag, value) else "")
    return found[0], found[1]


def settle() -> None:
    """Let the check of what was edited come to its end."""
    standin.pump(lambda: not importer._checks)


def two_organs(ct: Any, folder: Path, target: Any = None, model: str = "phantom-ct-liver") -> importer.Result:
    folder.mkdir(exist_ok=True)
    labelmap = np.zeros((12, 32, 40), np.uint8)
    labelmap[2:5, 4:20, 4:20], labelmap[6:10, 8:14, 30:38] = 1, 2
    case = write_result(folder, ct, labelmap, model=model)
    result = run_steps(importer.importResult(case, [LIVER, SPLEEN], ct, target))
    settle()
    return result


def test_segments_say_that_a_model_drew_them(ct: Any, tmp_path: Path) -> None:
    result = two_organs(ct, tmp_path)
    for segment_id in result.segmentIds:
        assert algorithm(result.segmentation, segment_id) == ("AUTOMATIC", "SemanticGAN phantom-ct-liver")


@pytest.mark.parametrize(
    ("model", "name"),
    [("", "SemanticGAN"), ("a\\b\n", "SemanticGAN a b"), ("x" * 80, "SemanticGAN " + "x" * 52)],
)
def test_name_of_the_algorithm_fits_into_dicom(ct: Any, tmp_path: Path, model: str, name: str) -> None:
    result = two_organs(ct, tmp_path, model=model)
    assert algorithm(result.segmentation, result.segmentIds[0]) == ("AUTOMATIC", name)


def test_an_edited_segment_is_semiautomatic_and_the_others_are_not(ct: Any, tmp_path: Path) -> None:
    result = two_organs(ct, tmp_path)
    node, (liver, spleen) = result.segmentation, result.segmentIds
    node.GetSegmentation().GetSegment(liver).SetName("liver, seen")
    node.GetSegmentation().GetSegment(spleen).SetColor(0.1, 0.2, 0.3)
    node.GetSegmentation().CollapseBinaryLabelmaps()  # as saving does
    node.GetSegmentation().GetSegment(liver).GetRepresentation("Binary labelmap").Modified()
    settle()
    assert [algorithm(node, one)[0] for one in (liver, spleen)] == ["AUTOMATIC", "AUTOMATIC"]
    drawn = slicer.util.arrayFromSegmentBinaryLabelmap(node, liver, ct).copy()
    drawn[3, 5, 5] = 0
    slicer.util.updateSegmentBinaryLabelmapFromArray(drawn, node, liver, ct)
    settle()
    assert algorithm(node, liver) == ("SEMIAUTOMATIC", "SemanticGAN phantom-ct-liver")
    assert algorithm(node, spleen)[0] == "AUTOMATIC"


def test_a_moved_mask_of_the_same_shape_is_edited(ct: Any, tmp_path: Path) -> None:
    result = two_organs(ct, tmp_path)
    node, (liver, _spleen) = result.segmentation, result.segmentIds
    drawn = np.roll(slicer.util.arrayFromSegmentBinaryLabelmap(node, liver, ct), 1, axis=2)
    slicer.util.updateSegmentBinaryLabelmapFromArray(drawn, node, liver, ct)
    settle()
    assert algorithm(node, liver)[0] == "SEMIAUTOMATIC"


def test_drawing_into_an_absent_label_makes_it_semiautomatic(ct: Any, tmp_path: Path) -> None:
    result = imported(ct, tmp_path, np.zeros((12, 32, 40), np.uint8))
    settle()
    assert algorithm(result.segmentation, result.segmentIds[0])[0] == "AUTOMATIC"
    drawn = np.zeros((12, 32, 40), np.uint8)
    drawn[3, 5:9, 5:9] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(drawn, result.segmentation, result.segmentIds[0], ct)
    settle()
    assert algorithm(result.segmentation, result.segmentIds[0])[0] == "SEMIAUTOMATIC"


def test_undo_of_an_update_brings_back_who_drew_the_former_segments(ct: Any, tmp_path: Path) -> None:
    first = two_organs(ct, tmp_path / "a")
    node, (liver, spleen) = first.segmentation, first.segmentIds
    slicer.util.updateSegmentBinaryLabelmapFromArray(np.ones((12, 32, 40), np.uint8), node, liver, ct)
    settle()
    again = two_organs(ct, tmp_path / "b", node, model="other")
    assert [algorithm(node, one) for one in again.segmentIds] == [("AUTOMATIC", "SemanticGAN other")] * 2
    again.undo.restore()
    settle()
    assert [algorithm(node, one)[0] for one in (liver, spleen)] == ["SEMIAUTOMATIC", "AUTOMATIC"]


def test_edits_of_another_sitting_are_known_by_the_voxels(ct: Any, tmp_path: Path) -> None:
    """Saved, read in a Slicer where nobody watches, edited, then watched."""
    result = two_organs(ct, tmp_path)
    path = tmp_path / "saved.seg.nrrd"
    storage = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(path))
    assert storage.WriteData(result.segmentation)
    array = slicer.util.arrayFromVolume(ct).copy()
    standin.new_scene()
    volume = make_volume(array)
    node = slicer.modules.segmentations.logic().LoadSegmentationFromFile(str(path), True)
    liver, spleen = [node.GetSegmentation().GetNthSegmentID(index) for index in range(2)]
    importer.watchEdits(node)
    settle()
    assert [algorithm(node, one)[0] for one in (liver, spleen)] == ["AUTOMATIC", "AUTOMATIC"]
    again = slicer.modules.segmentations.logic().LoadSegmentationFromFile(str(path), True)
    drawn = slicer.util.arrayFromSegmentBinaryLabelmap(again, spleen, volume).copy()
    drawn[7, 9] = 0
    slicer.util.updateSegmentBinaryLabelmapFromArray(drawn, again, spleen, volume)
    importer.watchEdits(again)
    settle()
    assert [algorithm(again, one)[0] for one in (liver, spleen)] == ["AUTOMATIC", "SEMIAUTOMATIC"]


# --- files of Slicer -------------------------------------------------------------------------------


def test_seg_nrrd_round_trip(ct: Any, tmp_path: Path) -> None:
    """Written by Slicer's storage node; read by it in a new scene, and by slicerio."""
    import slicerio

    labelmap = np.zeros((12, 32, 40), np.uint8)
    labelmap[3:7, 5:20, 8:30] = 1
    node = imported(ct, tmp_path / "a", labelmap).segmentation
    path = tmp_path / "saved.seg.nrrd"
    storage = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(path))
    assert storage.WriteData(node)
    description = slicerio.read_segmentation(str(path), skip_voxels=True)
    (segment,) = description["segments"]
    assert segment["name"] == "liver"
    assert segment["terminology"]["type"][:2] == ["SCT", "10200004"]
    array = slicer.util.arrayFromVolume(ct).copy()
    standin.new_scene()
    again = slicer.modules.segmentations.logic().LoadSegmentationFromFile(str(path), True)
    np.testing.assert_array_equal(voxels(again, 0, make_volume(array)), labelmap)


def test_scene_bundle_round_trip(ct: Any, tmp_path: Path) -> None:
    """The scene as an .mrb: segmentation, its reference to the volume and the panel's parameters come back."""
    from SemanticGANSlicerLib.logic import SemanticGANSlicerLogic

    labelmap = np.zeros((12, 32, 40), np.uint8)
    labelmap[3:7, 5:20, 8:30] = 1
    imported(ct, tmp_path / "a", labelmap)
    parameters = SemanticGANSlicerLogic().getParameterNode()
    parameters.inputVolume, parameters.quality, parameters.regionFrom = ct, "careful", -12.5
    parameters.model, parameters.regionEnabled = "/models/Größe", True
    assert slicer.mrmlScene.WriteToMRB(str(tmp_path / "scene.mrb"))
    standin.new_scene()
    standin.read_mrb(tmp_path / "scene.mrb")
    (node,) = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    volume = node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole())
    assert volume.GetName() == "CT"
    np.testing.assert_array_equal(voxels(node, 0, volume), labelmap)
    again = SemanticGANSlicerLogic().getParameterNode()
    assert again.inputVolume is volume
    assert (again.quality, again.regionFrom, again.regionEnabled) == ("careful", -12.5, True)
    assert again.model == "/models/Größe"


# --- reconstruction --------------------------------------------------------------------------------


def test_reconstruction_lies_on_its_volume(ct: Any, tmp_path: Path) -> None:
    array = slicer.util.arrayFromVolume(ct)
    image = sitk.GetImageFromArray(array + 3)
    sitk.WriteImage(image, str(tmp_path / "recon.nrrd"))
    case = write_result(tmp_path, ct, np.ones((12, 32, 40), np.uint8))
    case["reconstruction_output"] = str(tmp_path / "recon.nrrd")
    ct.GetDisplayNode().SetAutoWindowLevel(False)
    ct.GetDisplayNode().SetWindowLevel(321, 12)
    result = run_steps(importer.importResult(case, [LIVER], ct))
    node = importer.addReconstruction(result)
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(node), array + 3)
    np.testing.assert_allclose(volumes.ijkToRas(node), volumes.ijkToRas(ct))
    assert (node.GetDisplayNode().GetWindow(), node.GetDisplayNode().GetLevel()) == (321, 12)


def test_missing_reconstruction_is_explained(ct: Any, tmp_path: Path) -> None:
    case = write_result(tmp_path, ct, np.ones((12, 32, 40), np.uint8))
    case["reconstruction_output"] = str(tmp_path / "gone.nrrd")
    result = run_steps(importer.importResult(case, [LIVER], ct))
    with pytest.raises(ValueError, match="not there any more"):
        importer.addReconstruction(result)


def test_doubtful_slices_are_where_the_engine_saw_them() -> None:
    case = {
        "trust": {"slices": [11, 13]},
        "first_slice": 11,
        "slice_centres_mm": [[1.0, 2.0, 3.0], [1.0, 2.0, 5.5], [1.0, 2.0, 8.0]],
    }
    result = importer.Result(None, None, case, [], [], None)
    assert result.doubtfulSlices() == [(11, (1.0, 2.0, 3.0)), (13, (1.0, 2.0, 8.0))]
    assert importer.Result(None, None, {"slice_centres_mm": None}, [], [], None).doubtfulSlices() == []


# --- sequences -------------------------------------------------------------------------------------


def test_frame_of_a_sequence_is_named(ct: Any, tmp_path: Path) -> None:
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "cine")
    sequence.SetIndexName("time")
    sequence.SetIndexUnit("s")
    for number, value in enumerate((100, -900)):
        frame = slicer.vtkMRMLScalarVolumeNode()
        frame.CopyContent(ct)
        slicer.util.updateVolumeFromArray(frame, np.full((3, 4, 5), value, np.int16))
        sequence.SetDataNodeAtValue(frame, str(number * 2))
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "browser")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    slicer.modules.sequences.logic().UpdateAllProxyNodes()
    proxy = browser.GetProxyNode(sequence)
    browser.SetSelectedItemNumber(1)
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    assert volumes.frameName(proxy) == " (time 2 s)"
    assert volumes.frameName(ct) == ""
    image = sitk.ReadImage(run_steps(volumes.writeInput(proxy, str(tmp_path))))
    assert set(np.unique(sitk.GetArrayFromImage(image))) == {-900}  # the frame that is shown
