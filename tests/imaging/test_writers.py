"""Writers read back with nibabel, SimpleITK and PIL; a failed write leaves nothing."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from scipy.spatial.transform import Rotation

from sgan_core.cohort import Label
from sgan_core.errors import InputError
from sgan_core.imaging.grid import Grid
from sgan_core.imaging.readers import read_labels, read_picture, read_volume
from sgan_core.imaging.terminology import header_text, label_codes
from sgan_core.imaging.writers import (
    write_labels,
    write_mask_png,
    write_picture,
    write_volume,
)

LIVER = Label(1, "liver", (221, 130, 101), "10200004")
SPLEEN = Label(3, "spleen", (157, 108, 162))


def label_array() -> np.ndarray:
    return np.random.default_rng(0).choice([0, 1, 3], (5, 4, 3)).astype(np.uint8)


def oblique_grid() -> Grid:
    affine = np.eye(4)
    rotation = Rotation.from_euler("xyz", (10, -20, 15), degrees=True).as_matrix()
    affine[:3, :3] = rotation[:, [2, 0, 1]] @ np.diag([-0.7, 0.8, 2.5])
    affine[:3, 3] = (100.0, -120.0, 30.0)
    return Grid((5, 4, 3), affine)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".seg.nrrd", ".mha"])
def test_labels_come_back_on_their_grid(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"case_seg{ending}"
    write_labels(path, label_array(), oblique_grid(), (LIVER, SPLEEN))

    labels = read_labels(path, values={1, 3})
    np.testing.assert_array_equal(labels.array, label_array())
    np.testing.assert_allclose(labels.grid.affine, oblique_grid().affine, atol=1e-4)

    by_itk = sitk.ReadImage(str(path))
    assert by_itk.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(sitk.GetArrayFromImage(by_itk).transpose(), label_array())
    x_lps, y_lps, z = by_itk.TransformIndexToPhysicalPoint((4, 3, 2))
    world = oblique_grid().affine @ (4, 3, 2, 1)
    np.testing.assert_allclose((-x_lps, -y_lps, z), world[:3], atol=1e-3)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_nifti_labels_carry_both_forms_intent_and_names(tmp_path: Path) -> None:
    write_labels(tmp_path / "seg.nii.gz", label_array(), oblique_grid(), (LIVER, SPLEEN))
    image = nib.load(tmp_path / "seg.nii.gz")
    assert image.get_data_dtype() == np.uint8
    assert image.header["sform_code"] == image.header["qform_code"] == 1
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)
    assert image.header.get_intent()[0] == "label"
    assert image.header.get_xyzt_units()[0] == "mm"
    (comment,) = image.header.extensions
    table = json.loads(comment.get_content())["labels"]
    assert [(entry["value"], entry["name"]) for entry in table] == [(1, "liver"), (3, "spleen")]


def test_rewritten_nifti_keeps_shape_and_affine_exactly(tmp_path: Path) -> None:
    array = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
    nib.save(nib.Nifti1Image(array, oblique_grid().affine), tmp_path / "scan.nii.gz")
    grid = read_volume(tmp_path / "scan.nii.gz").grid
    write_labels(tmp_path / "seg.nii.gz", label_array(), grid)
    scan, seg = nib.load(tmp_path / "scan.nii.gz"), nib.load(tmp_path / "seg.nii.gz")
    assert scan.shape == seg.shape
    np.testing.assert_array_equal(scan.affine, seg.affine)


def test_slicer_segment_table_names_and_colours(tmp_path: Path) -> None:
    write_labels(tmp_path / "case.seg.nrrd", label_array(), oblique_grid(), (LIVER, SPLEEN))
    image = sitk.ReadImage(str(tmp_path / "case.seg.nrrd"))
    assert image.GetMetaData("Segment0_Name") == "liver"
    assert image.GetMetaData("Segment1_LabelValue") == "3"
    colour = [float(channel) for channel in image.GetMetaData("Segment0_Color").split()]
    np.testing.assert_allclose(np.multiply(colour, 255), LIVER.rgb, atol=1e-3)


def read_by_slicerio(path: Path) -> dict[str, Any]:
    slicerio = pytest.importorskip("slicerio", reason="the reference for .seg.nrrd")
    return slicerio.read_segmentation(str(path))


def test_slicerio_reads_voxels_geometry_and_segments(tmp_path: Path) -> None:
    write_labels(tmp_path / "case.seg.nrrd", label_array(), oblique_grid(), (LIVER, SPLEEN))
    segmentation = read_by_slicerio(tmp_path / "case.seg.nrrd")
    np.testing.assert_array_equal(segmentation["voxels"], label_array())
    affine_ras = np.diag([-1, -1, 1, 1]) @ segmentation["ijkToLPS"]
    np.testing.assert_allclose(affine_ras, oblique_grid().affine, atol=1e-9)
    assert segmentation["encoding"] == "gzip"
    assert segmentation["masterRepresentation"] == "Binary labelmap"
    assert segmentation["containedRepresentationNames"] == ["Binary labelmap"]
    assert segmentation["referenceImageExtentOffset"] == [0, 0, 0]

    anatomy = {
        "contextName": "Segmentation category and type - 3D Slicer General Anatomy list",
        "category": ["SCT", "123037004", "Anatomical Structure"],
        "type": ["SCT", "10200004", "liver"],
        "anatomicContextName": "Anatomic codes - DICOM master list",
    }
    liver, spleen = segmentation["segments"]
    assert liver["terminology"] == anatomy
    assert spleen["terminology"]["type"][0] == "99SGAN"
    for segment, label in ((liver, LIVER), (spleen, SPLEEN)):
        assert segment["name"] == label.name
        assert segment["labelValue"] == label.value
        assert (segment["layer"], segment["extent"]) == (0, [0, 4, 0, 3, 0, 2])
        assert not segment["nameAutoGenerated"]
        assert not segment["colorAutoGenerated"]
        np.testing.assert_allclose(np.multiply(segment["color"], 255), label.rgb, atol=1e-3)
    assert len({segment["id"] for segment in (liver, spleen)}) == 2


def test_slicer_gets_the_reference_geometry(tmp_path: Path) -> None:
    write_labels(tmp_path / "case.seg.nrrd", label_array(), oblique_grid(), (LIVER,))
    (parameter,) = read_by_slicerio(tmp_path / "case.seg.nrrd")["conversionParameters"]
    assert parameter["name"] == "Reference image geometry"
    *numbers, end = parameter["value"].split(";")
    np.testing.assert_array_equal(np.array(numbers[:16], float).reshape(4, 4), oblique_grid().affine)
    assert [int(number) for number in numbers[16:]] == [0, 4, 0, 3, 0, 2]
    assert end == ""


def test_absent_label_stays_in_the_segment_table(tmp_path: Path) -> None:
    write_labels(tmp_path / "case.seg.nrrd", 0 * label_array(), oblique_grid(), (LIVER, SPLEEN))
    assert [s["name"] for s in read_by_slicerio(tmp_path / "case.seg.nrrd")["segments"]] == [
        "liver",
        "spleen",
    ]


def test_any_name_fits_into_the_segment_table(tmp_path: Path) -> None:
    names = ("größe ½ 肝臓", "a|b~c^d&e:=f", "two\nlines", "~^|", "long " * 30)
    labels = [Label(value, name, (1, 2, 3), "10200004") for value, name in enumerate(names, start=1)]
    write_labels(tmp_path / "case.seg.nrrd", label_array(), oblique_grid(), labels)
    image = sitk.ReadImage(str(tmp_path / "case.seg.nrrd"))
    found = [image.GetMetaData(f"Segment{index}_Name") for index in range(len(names))]
    assert found[:3] == [names[0], names[1], "two lines"]
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(), label_array())
    segments = read_by_slicerio(tmp_path / "case.seg.nrrd")["segments"]
    assert [segment["labelValue"] for segment in segments] == [1, 2, 3, 4, 5]
    meanings = [segment["terminology"]["type"][2] for segment in segments]
    assert meanings[1:4] == ["a b c d e:=f", "two lines", "label 4"]
    assert max(map(len, meanings)) <= 64


@pytest.mark.parametrize(
    ("name", "code", "category", "scheme"),
    [
        ("liver", "10200004", "123037004", "SCT"),
        ("gallbladder", "", "123037004", "99SGAN"),
        ("cystic duct", "", "123037004", "99SGAN"),
        ("liver_tumours", "4147007", "49755003", "SCT"),
        ("Skin lesion", "95324001", "49755003", "SCT"),
        ("liver", "T-62000", "123037004", "99SGAN"),  # no SNOMED CT identifier
    ],
)
def test_codes_of_a_label(name: str, code: str, category: str, scheme: str) -> None:
    found_category, kind = label_codes(Label(1, name, (1, 2, 3), code))
    assert (found_category.scheme, found_category.value) == ("SCT", category)
    assert kind.scheme == scheme
    assert kind.meaning == name
    assert kind.value == code or scheme == "99SGAN"
    assert len(kind.value) <= 16  # SH, as DICOM has it


def test_private_code_depends_on_the_name_alone() -> None:
    first, again, other = (
        label_codes(Label(value, name, (value, 0, 0)))[1].value
        for value, name in ((1, "mesh"), (5, "Mesh"), (1, "net"))
    )
    assert first == again != other


def test_header_text_is_one_short_line() -> None:
    assert header_text(" a\\b\tc\x00 ~ d ") == "a b c d"
    assert len(header_text("x" * 100)) == 64


def test_sheared_grid_survives(tmp_path: Path) -> None:
    sheared = oblique_grid().affine.copy()
    sheared[:3, 2] += 0.4 * sheared[:3, 1]  # gantry tilt
    for ending in (".nii.gz", ".nrrd", ".mha"):
        write_labels(tmp_path / f"seg{ending}", label_array(), Grid((5, 4, 3), sheared))
        affine = read_labels(tmp_path / f"seg{ending}", values=None).grid.affine
        np.testing.assert_allclose(affine, sheared, atol=1e-4)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
@pytest.mark.parametrize(
    ("dtype", "stored"),
    [(np.int16, np.int16), (np.float32, np.float32), (np.float64, np.float32), (np.int64, np.int32)],
)
def test_volume_comes_back_in_its_type(tmp_path: Path, ending: str, dtype: type, stored: type) -> None:
    array = np.random.default_rng(0).normal(0, 500, (5, 4, 3)).astype(dtype)
    write_volume(tmp_path / f"scan{ending}", array, oblique_grid())
    volume = read_volume(tmp_path / f"scan{ending}")
    assert volume.array.dtype == stored
    np.testing.assert_allclose(volume.array, array, rtol=1e-6)
    np.testing.assert_allclose(volume.grid.affine, oblique_grid().affine, atol=1e-4)


@pytest.mark.parametrize(("labels", "mode"), [((), "L"), ((LIVER, SPLEEN), "P")])
def test_mask_png_holds_values_and_colours(tmp_path: Path, labels: tuple[Label, ...], mode: str) -> None:
    mask = label_array()[..., 0]
    write_mask_png(tmp_path / "mask.png", mask, labels)
    with Image.open(tmp_path / "mask.png") as picture:
        assert picture.mode == mode
        np.testing.assert_array_equal(np.asarray(picture), mask)
        if labels:
            assert picture.convert("RGB").getpixel(tuple(np.argwhere(mask.T == 1)[0])) == LIVER.rgb
    np.testing.assert_array_equal(read_labels(tmp_path / "mask.png", values={1, 3}), mask)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((1, 5, 4), np.uint8), ((1, 5, 4), np.uint16), ((3, 5, 4), np.uint8)]
)
def test_picture_comes_back_value_by_value(tmp_path: Path, shape: tuple[int, ...], dtype: type) -> None:
    top = np.iinfo(dtype).max
    pixels = np.random.default_rng(0).integers(0, top, shape, dtype, endpoint=True)
    pixels[:, 0, 0] = top
    write_picture(tmp_path / "scan.png", pixels)
    found = read_picture(tmp_path / "scan.png").array
    np.testing.assert_array_equal(found, pixels)
    assert found.dtype == dtype
    assert [entry.name for entry in tmp_path.iterdir()] == ["scan.png"]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((3, 5, 4), np.uint16),
        ((1, 5, 4), np.float32),
        ((1, 5, 4), np.int16),
        ((2, 5, 4), np.uint8),
        ((5, 4), np.uint8),
    ],
)
def test_picture_that_png_cannot_hold_is_our_mistake(
    tmp_path: Path, shape: tuple[int, ...], dtype: type
) -> None:
    with pytest.raises(ValueError, match="does not fit into a PNG"):
        write_picture(tmp_path / "scan.png", np.zeros(shape, dtype))
    assert list(tmp_path.iterdir()) == []


def test_values_beyond_a_byte_are_our_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 to 255"):
        write_labels(tmp_path / "seg.nii.gz", np.full((5, 4, 3), 256), oblique_grid())


# --- failures -------------------------------------------------------------------------------------


def test_missing_folder_is_named(tmp_path: Path) -> None:
    for name in ("seg.nii.gz", "seg.nrrd"):
        with pytest.raises(InputError, match="gone: cannot write seg"):
            write_labels(tmp_path / "gone" / name, label_array(), oblique_grid())
    with pytest.raises(InputError, match="gone: cannot write mask.png"):
        write_mask_png(tmp_path / "gone" / "mask.png", label_array()[0])
    with pytest.raises(InputError, match="gone: cannot write scan.png"):
        write_picture(tmp_path / "gone" / "scan.png", label_array()[None, 0])


def test_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match="out: cannot write"):
        write_labels(tmp_path / "out" / "seg.nii.gz", label_array(), oblique_grid())


def test_unknown_ending_is_refused(tmp_path: Path) -> None:
    for name in ("seg.png", "seg", "seg.nhdr"):
        with pytest.raises(InputError, match="use"):
            write_labels(tmp_path / name, label_array(), oblique_grid())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_full_disk_keeps_the_old_file_and_leaves_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = tmp_path / "seg.nii.gz"
    write_labels(path, label_array(), oblique_grid())
    before = path.read_bytes()

    def write_half(image: object, partial: Path) -> None:
        partial.write_bytes(b"half")
        raise OSError(code, "No space left on device")

    monkeypatch.setattr(nib, "save", write_half)
    with pytest.raises(InputError, match=f"{tmp_path.name}: cannot write seg.nii.gz .*No space left"):
        write_labels(path, label_array(), oblique_grid())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_half(image: object, partial: str, **_: object) -> None:
        Path(partial).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(sitk, "WriteImage", write_half)
    with pytest.raises(KeyboardInterrupt):
        write_labels(tmp_path / "seg.nrrd", label_array(), oblique_grid())
    assert list(tmp_path.iterdir()) == []


def test_truly_full_disk_is_reported_for_every_format(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="file size limits are a POSIX matter")
    signal = pytest.importorskip("signal")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 64)).astype(np.uint8)
    grid = Grid(noise.shape, np.eye(4))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        for ending in (".nii", ".nii.gz", ".nrrd", ".mha"):
            with pytest.raises(InputError, match="cannot write"):
                write_labels(tmp_path / f"seg{ending}", noise, grid)
        with pytest.raises(InputError, match="cannot write"):
            write_mask_png(tmp_path / "mask.png", noise.reshape(512, 512))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []
