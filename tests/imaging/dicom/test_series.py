"""The DICOM reader against SimpleITK (GDCM) and files written by pydicom, and every series that is no volume."""

from __future__ import annotations

import io
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pydicom.config
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    MediaStorageDirectoryStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
)
from scipy.spatial.transform import Rotation

from sgan_core.errors import InputError
from sgan_core.imaging.dicom import Series, choose_series, find_series, is_dicom, read_series, series_table
from sgan_core.imaging.image import Picture, Volume
from sgan_core.imaging.readers import image_suffix, read_image, read_labels

Files = Any  # tests/imaging/conftest.py


def hu(shape: tuple[int, ...] = (7, 6, 5), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1400, shape).astype(np.int16)


def only(path: Path) -> Series:
    (series,) = find_series(path)
    return series


def read(path: Path, **options: Any) -> Volume | Picture:
    return read_series(only(path), **options)


def rotation(*degrees: float) -> np.ndarray:
    return Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()


def by_itk(files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """(I, J, K) and the RAS affine as SimpleITK has them, for files in slice order."""
    image = sitk.ReadImage([str(file) for file in files])
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(), np.diag([-1, -1, 1, 1]) @ affine


def itk_order(folder: Path) -> list[Path]:
    return [Path(name) for name in sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))]


# --- geometry --------------------------------------------------------------------------------------


def test_chaos_ct_is_what_simpleitk_reads(shared: Path) -> None:
    folder = shared / "data/CHAOS/Train_Sets/CT/3/DICOM_anon"
    volume = read_image(folder)
    array, affine = by_itk(itk_order(folder))

    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, array)
    assert (int(volume.array.min()), int(volume.array.max())) == (-1000, 1434)
    np.testing.assert_allclose(volume.grid.spacing_mm, (0.7265625, 0.7265625, 2.0), rtol=1e-9)
    corners = np.indices((2, 2, 2)).reshape(3, -1) * np.array([[511], [511], [77]])
    corners = np.vstack([corners, np.ones(8)])
    np.testing.assert_allclose(volume.grid.affine @ corners, affine @ corners, atol=1e-3)
    assert volume.warnings == ()


def test_chaos_series_are_ordered_by_position_not_by_name(shared: Path) -> None:
    series = only(shared / "data/CHAOS/Train_Sets/CT/3/DICOM_anon")
    names = [file.name for file in series.files]
    assert names == sorted(names, reverse=True)
    assert (series.number, series.modality, series.slices) == (4, "CT", 78)
    assert series.spacing_mm == pytest.approx((0.7265625, 0.7265625, 2.0))


def test_chaos_mr_slice_alone_is_a_volume_with_a_warning(shared: Path) -> None:
    path = shared / "data/CHAOS/Train_Sets/MR/1/T1DUAL/DICOM_anon/InPhase/IMG-0004-00040.dcm"
    volume = read_image(path)
    assert volume.array.shape == (256, 256, 1)
    assert (int(volume.array.min()), int(volume.array.max())) == (0, 1035)
    np.testing.assert_allclose(volume.grid.spacing_mm, (1.89453125, 1.89453125, 5.5))
    np.testing.assert_allclose(volume.grid.affine[:3, 3], (232.99694347, 238.76329637, 65.26079559))
    assert "single slice" in volume.warnings[0]


def test_shuffled_oblique_series_reads_back_as_written(dicom_files: Files, tmp_path: Path) -> None:
    array, directions = hu((9, 8, 20)), rotation(20, -35, 50)
    images = dicom_files.stack(
        array, directions=directions[:, :2], spacing=(0.7, 0.9, 1.25), SliceThickness=5
    )
    for number, image in enumerate(reversed(images)):
        image.InstanceNumber = number
    dicom_files.save_all(tmp_path, images)

    volume = read(tmp_path)

    np.testing.assert_array_equal(volume.array, array)
    expected = np.eye(4)
    expected[:3, :3] = directions * (0.7, 0.9, 1.25)
    expected[:3, 3] = (-10, -20, 30)
    np.testing.assert_allclose(volume.grid.affine, np.diag([-1, -1, 1, 1]) @ expected, atol=1e-6)
    np.testing.assert_allclose(volume.grid.affine, by_itk(itk_order(tmp_path))[1], atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(
    degrees=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 8)] * 3),
    flipped=st.booleans(),
)
def test_any_orientation_and_spacing_is_simpleitks(
    dicom_files: Files, degrees: tuple[float, ...], spacing: tuple[float, float, float], flipped: bool
) -> None:
    directions = rotation(*degrees)[:, [1, 0] if flipped else [0, 1]]
    images = dicom_files.stack(hu((3, 4, 3)), directions=directions, spacing=spacing)
    with tempfile.TemporaryDirectory() as folder:
        dicom_files.save_all(Path(folder), images)
        series = only(Path(folder))
        volume = read_series(series)
        array, affine = by_itk(list(series.files))
        assert list(series.files) == itk_order(Path(folder))
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.grid.affine, affine, atol=1e-3)


def test_positions_rounded_by_the_scanner_are_regular(dicom_files: Files, tmp_path: Path) -> None:
    z = np.round(np.arange(40) * 0.625, 2)
    images = dicom_files.stack(hu((4, 4, 40)), positions=np.column_stack([z * 0, z * 0, z]))
    volume = read(dicom_files.save_all(tmp_path, images))
    assert volume.warnings == ()
    assert volume.grid.spacing_mm[2] == pytest.approx(0.625, abs=1e-3)


def test_orientation_must_be_orthonormal(dicom_files: Files, tmp_path: Path) -> None:
    images = dicom_files.stack(hu())
    for image in images:
        image.ImageOrientationPatient = [1, 0, 0, 0.5, 0.8, 0]
    with pytest.raises(InputError, match=r"Image Orientation .* right angles"):
        read(dicom_files.save_all(tmp_path, images))


def test_missing_pixel_spacing_is_refused(dicom_files: Files, tmp_path: Path) -> None:
    images = dicom_files.stack(hu())
    for image in images:
        del image.PixelSpacing
    assert only(dicom_files.save_all(tmp_path, images)).spacing_mm is None
    with pytest.raises(InputError, match="Pixel Spacing"):
        read(tmp_path)


def test_ct_slices_without_position_are_no_volume(dicom_files: Files, tmp_path: Path) -> None:
    images = dicom_files.stack(hu())
    for image in images:
        del image.ImagePositionPatient
    series = only(dicom_files.save_all(tmp_path, images))
    assert series.slices == 5
    with pytest.raises(InputError, match="no Image Position"):
        read_series(series)


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "PixelSpacing", "RescaleSlope"])
def test_attribute_that_holds_no_numbers_is_named_but_not_quoted(
    dicom_files: Files, tmp_path: Path, keyword: str
) -> None:
    (image,) = dicom_files.stack(hu((5, 6, 1)), RescaleSlope="1.5")
    value = image[keyword].value
    written = str(value if keyword == "RescaleSlope" else value[0]).encode()
    path = dicom_files.save(tmp_path / "slice", image)
    assert path.read_bytes().count(written) >= 1
    path.write_bytes(path.read_bytes().replace(written, b"SECRET"[: len(written)].ljust(len(written))))
    with pytest.raises(InputError, match=rf"slice: .*{keyword}") as raised:
        find_series(tmp_path)
    assert "SEC" not in str(raised.value)


# --- gaps, copies, tilt ----------------------------------------------------------------------------


def ramp(z: np.ndarray, shape: tuple[int, int] = (5, 4)) -> np.ndarray:
    """(I, J, K), linear along z, so that interpolation gives it exactly."""
    i, j = np.indices(shape)
    return (10 * z + 100 * i[..., None] + 7 * j[..., None]).astype(np.int16)


def along_z(z: np.ndarray, drift: float = 0.0) -> np.ndarray:
    return np.column_stack([0 * z - 10.0, drift * z - 20.0, z])


def test_missing_slices_are_reported_with_position(dicom_files: Files, tmp_path: Path) -> None:
    z = np.delete(-129.5 + 2.0 * np.arange(25), slice(14, 19))
    dicom_files.save_all(tmp_path, dicom_files.stack(ramp(z), positions=along_z(z)))
    with pytest.raises(InputError) as raised:
        read(tmp_path)
    assert str(raised.value) == (
        f"{tmp_path}: 12.0 mm between slices 14 and 15 (z = -103.5 mm), elsewhere 2.0 mm; slices look missing. "
        "Export the whole series again, or pass --resample-gaps."
    )


def test_of_three_slices_a_missing_one_is_seen(dicom_files: Files, tmp_path: Path) -> None:
    z = np.array([0.0, 2.0, 6.0])
    dicom_files.save_all(tmp_path, dicom_files.stack(ramp(z), positions=along_z(z)))
    with pytest.raises(
        InputError, match=r"4\.0 mm between slices 2 and 3 .* elsewhere 2\.0 mm; slices look missing"
    ):
        read(tmp_path)


def test_resampling_fills_missing_slices_linearly(dicom_files: Files, tmp_path: Path) -> None:
    whole = -20.0 + 2.0 * np.arange(12)
    z = np.delete(whole, [4, 5])
    dicom_files.save_all(tmp_path, dicom_files.stack(ramp(z), positions=along_z(z)))
    volume = read(tmp_path, resample_gaps=True)
    np.testing.assert_allclose(volume.array, ramp(whole), atol=1e-3)
    assert volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.grid.spacing_mm, (0.7, 0.8, 2.0))
    np.testing.assert_allclose(volume.grid.affine[:3, 3], (10, 20, -20))
    assert volume.warnings == (f"{tmp_path.name}: 2 of 12 slices are interpolated (gaps up to 6.0 mm).",)


def test_uneven_gaps_are_resampled_onto_the_usual_distance(dicom_files: Files, tmp_path: Path) -> None:
    z = np.array([0.0, 2.0, 4.0, 6.5, 8.5, 10.5, 12.5])
    dicom_files.save_all(tmp_path, dicom_files.stack(ramp(z), positions=along_z(z)))
    with pytest.raises(
        InputError, match=r"2\.5 mm between slices 3 and 4 \(z = 4\.0 mm\).*the slices are uneven"
    ):
        read(tmp_path)
    volume = read(tmp_path, resample_gaps=True)
    inside = volume.array[:, :, :7]
    np.testing.assert_allclose(inside, ramp(2.0 * np.arange(7)), atol=1e-3)
    assert "interpolated" in volume.warnings[0]


def test_slices_that_creep_out_of_step_are_uneven(dicom_files: Files, tmp_path: Path) -> None:
    z = np.cumsum(np.concatenate([[0], np.full(50, 2.0), np.full(50, 2.018)]))
    dicom_files.save_all(tmp_path, dicom_files.stack(ramp(z), positions=along_z(z)))
    with pytest.raises(InputError, match="uneven"):
        read(tmp_path)


def test_gaps_that_would_be_mostly_invented_are_refused(dicom_files: Files, tmp_path: Path) -> None:
    z = np.array([0.0, 1.0, 2.0, 1e7])
    dicom_files.save_all(tmp_path, dicom_files.stack(ramp(np.arange(4.0)), positions=along_z(z)))
    with pytest.raises(InputError, match="too large to interpolate"):
        read(tmp_path, resample_gaps=True)


def test_resampling_leaves_a_regular_series_as_it_is(dicom_files: Files, tmp_path: Path) -> None:
    dicom_files.save_all(tmp_path, dicom_files.stack(hu()))
    volume = read(tmp_path, resample_gaps=True)
    np.testing.assert_array_equal(volume.array, hu())
    assert volume.array.dtype == np.int16
    assert volume.warnings == ()


def test_gantry_tilt_is_refused_and_can_be_straightened(dicom_files: Files, tmp_path: Path) -> None:
    z = 2.0 * np.arange(10)
    # Half a pixel row a slice: the same anatomy, seen from frames that slide along y.
    positions = along_z(z, drift=0.4 / 2.0)
    i, j, k = np.indices((6, 12, 10))
    array = (100 * i + 50 * (j + 0.5 * k) + 3 * z[k]).astype(np.int16)
    dicom_files.save_all(tmp_path, dicom_files.stack(array, positions=positions))

    with pytest.raises(InputError, match=r"3\.6 mm beside the line .* 18\.0 mm \(gantry tilt\?\)"):
        read(tmp_path)

    volume = read(tmp_path, resample_gaps=True)
    assert volume.array.shape == (6, 17, 10)
    affine = volume.grid.affine
    np.testing.assert_allclose(affine[:3, :3], np.diag([-0.7, -0.8, 2.0]), atol=1e-12)
    np.testing.assert_allclose(affine[:3, 3], (10, 20, 0))
    i, j, k = np.indices(volume.array.shape)
    straight = 100 * i + 50 * j + 3 * z[k]
    inside = (j >= 0.5 * k) & (j <= 11 + 0.5 * k)
    np.testing.assert_allclose(volume.array[inside], straight[inside], atol=1)
    assert volume.warnings == (
        f"{tmp_path.name}: slices up to 3.6 mm out of line are shifted (gantry tilt).",
    )


def test_exact_copies_are_left_out_with_a_warning(dicom_files: Files, tmp_path: Path) -> None:
    dicom_files.save_all(tmp_path / "first", dicom_files.stack(hu()))
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    volume = read(tmp_path)
    np.testing.assert_array_equal(volume.array, hu())
    assert volume.warnings == (f"{tmp_path.name}: 5 of 10 images are exact copies; left out.",)


@pytest.mark.parametrize("moved", [0.0, 3.0])
def test_two_images_at_one_position_are_refused(dicom_files: Files, tmp_path: Path, moved: float) -> None:
    images = dicom_files.stack(hu()) + dicom_files.stack(hu(), origin=(-10 + moved, -20, 30))
    if not moved:
        images[7].PixelData = images[6].PixelData
    dicom_files.save_all(tmp_path, images)
    with pytest.raises(InputError, match=r"two different images at z = 3\d\.0 mm .* phases") as raised:
        read(tmp_path, resample_gaps=True)
    assert str(tmp_path) in str(raised.value)


def test_single_slice_needs_a_thickness(dicom_files: Files, tmp_path: Path) -> None:
    (image,) = dicom_files.stack(hu((5, 6, 1)))
    path = dicom_files.save(tmp_path / "slice", image)
    with pytest.raises(InputError, match="says no thickness"):
        read_image(path)
    image.SliceThickness = 3
    dicom_files.save(path, image)
    assert read_image(path).grid.spacing_mm[2] == 3
    image.SpacingBetweenSlices = -2.5  # some scanners give it a sign
    dicom_files.save(path, image)
    volume = read_image(path)
    assert volume.grid.spacing_mm[2] == 2.5
    assert volume.warnings == ("slice: a single slice; its thickness of 2.5 mm is taken as spacing.",)


@pytest.mark.parametrize("what", ["orientations", "sizes", "pixel spacings"])
def test_mixed_stack_is_refused(dicom_files: Files, tmp_path: Path, what: str) -> None:
    other = {
        "orientations": dicom_files.stack(hu(), directions=rotation(90, 0, 0)[:, :2]),
        "sizes": dicom_files.stack(hu((6, 6, 5))),
        "pixel spacings": dicom_files.stack(hu(), spacing=(0.6, 0.8, 2.0)),
    }[what]
    dicom_files.save_all(tmp_path, dicom_files.stack(hu()) + other)
    first, second = find_series(tmp_path)
    mixed = replace(first, files=first.files + second.files, frames=())
    with pytest.raises(InputError, match=f"{tmp_path.name}: mixed {what}"):
        read_series(mixed)


# --- which series ----------------------------------------------------------------------------------


def test_localiser_in_a_series_is_set_apart(dicom_files: Files, tmp_path: Path) -> None:
    coronal, sagittal = rotation(-90, 0, 0)[:, :2], rotation(90, 0, 90)[:, :2]
    images = dicom_files.stack(hu(), SeriesDescription="Abdomen")
    images += dicom_files.stack(hu((8, 8, 1)), directions=coronal, SeriesDescription="Abdomen")
    images += dicom_files.stack(hu((8, 8, 2)), directions=sagittal, SeriesDescription="Abdomen")
    found = find_series(dicom_files.save_all(tmp_path, images))
    by_slices = {series.slices: series for series in found}
    assert {k: series.description for k, series in by_slices.items()} == {
        5: "Abdomen (axial, 7 x 6)",
        1: "Abdomen (coronal, 8 x 8)",
        2: "Abdomen (sagittal, 8 x 8)",
    }
    np.testing.assert_array_equal(read_series(by_slices[5]).array, hu())
    np.testing.assert_array_equal(read_series(by_slices[2]).array, hu((8, 8, 2)))


def test_dual_echo_series_is_two(dicom_files: Files, tmp_path: Path) -> None:
    images = []
    for seed, time in enumerate((2.3, 4.6)):
        images += dicom_files.stack(
            hu(seed=seed), modality="MR", EchoTime=time, SeriesDescription="T1-DUAL", SeriesNumber=801
        )
    found = find_series(dicom_files.save_all(tmp_path, images))
    assert [series.echo_time_ms for series in found] == [2.3, 4.6]
    assert [row[:4] for row in series_table(found)[1:]] == [
        ("801.1", "T1-DUAL (echo 2.30 ms)", "MR", "5"),
        ("801.2", "T1-DUAL (echo 4.60 ms)", "MR", "5"),
    ]
    for seed, series in enumerate(found):
        np.testing.assert_array_equal(read_series(series).array, hu(seed=seed))
    assert choose_series(found, "801.2", tmp_path) is found[1]
    assert choose_series(found, "t1-dual (Echo 4.60 ms)", tmp_path) is found[1]
    for ambiguous in ("801", "T1-DUAL", "1.2.3"):
        with pytest.raises(InputError, match="more than one series"):
            choose_series(found, ambiguous, tmp_path)


def test_echo_times_that_vary_without_repeating_are_one_stack_with_a_warning(
    dicom_files: Files, tmp_path: Path
) -> None:
    images = dicom_files.stack(hu(), modality="MR")
    for image, time in zip(images, (2.3, 2.3, 2.3, 4.6, 4.6), strict=True):
        image.EchoTime = time
    volume = read(dicom_files.save_all(tmp_path, images))
    assert volume.warnings == (f"{tmp_path.name}: echo times of 2.3 to 4.6 ms in one stack of slices.",)


def mixed_study(dicom_files: Files, folder: Path) -> Path:
    """Two series, 2 and 3, in one folder, part of them deeper down."""
    for number, (description, uid) in enumerate([("Portal venous", "1.2.5"), ("Native", "1.2.4")], start=2):
        about = {"SeriesInstanceUID": uid, "SeriesNumber": number, "SeriesDescription": description}
        for k, image in enumerate(dicom_files.stack(hu(seed=number), **about)):
            place = folder / "deep" / str(number) if k < 3 else folder
            dicom_files.save(place / f"{number}-{k}.dcm", image)
    return folder


def test_series_are_found_in_subfolders_and_sorted_by_number(dicom_files: Files, tmp_path: Path) -> None:
    found = find_series(mixed_study(dicom_files, tmp_path))
    assert [(series.number, series.uid, series.slices) for series in found] == [
        (2, "1.2.5", 5),
        (3, "1.2.4", 5),
    ]
    for series in found:
        np.testing.assert_array_equal(read_series(series).array, hu(seed=series.number))
    assert series_table(found) == [
        ("series", "description", "modality", "slices", "spacing in mm"),
        ("2", "Portal venous", "CT", "5", "0.7 x 0.8 x 2"),
        ("3", "Native", "CT", "5", "0.7 x 0.8 x 2"),
    ]


@pytest.mark.parametrize("wanted", ["3", " 3 ", "1.2.4", "native", "NATIVE"])
def test_series_is_chosen_by_number_uid_or_description(
    dicom_files: Files, tmp_path: Path, wanted: str
) -> None:
    found = find_series(mixed_study(dicom_files, tmp_path))
    assert choose_series(found, wanted, tmp_path).description == "Native"


def test_several_series_are_listed_when_none_is_named(dicom_files: Files, tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        read_image(mixed_study(dicom_files, tmp_path))
    first, *table = str(raised.value).splitlines()
    assert first == f"{tmp_path}: 2 series of images; say which one with --series:"
    assert [line.split() for line in table] == [
        ["series", "description", "modality", "slices", "spacing", "in", "mm"],
        ["2", "Portal", "venous", "CT", "5", "0.7", "x", "0.8", "x", "2"],
        ["3", "Native", "CT", "5", "0.7", "x", "0.8", "x", "2"],
    ]
    assert "1.2.4" not in str(raised.value)


@pytest.mark.parametrize("wanted", ["1", "9", "", "nat"])
def test_unknown_series_is_refused_with_the_list(dicom_files: Files, tmp_path: Path, wanted: str) -> None:
    found = find_series(mixed_study(dicom_files, tmp_path))
    with pytest.raises(InputError, match="no series is called .*\n.*\n.*Portal venous"):
        choose_series(found, wanted, tmp_path)


def test_two_patients_without_series_uid_are_not_merged(dicom_files: Files, tmp_path: Path) -> None:
    for name in ("one", "two"):
        images = dicom_files.stack(hu())
        for image in images:
            del image.SeriesInstanceUID, image.StudyInstanceUID
        dicom_files.save_all(tmp_path / name, images)
    assert [series.slices for series in find_series(tmp_path)] == [5, 5]


def test_a_description_cannot_write_to_the_terminal(dicom_files: Files, tmp_path: Path) -> None:
    dicom_files.save_all(tmp_path, dicom_files.stack(hu(), SeriesDescription="A\x1b[31mB"))
    assert only(tmp_path).description == "A [31mB"


# --- what is in a folder ---------------------------------------------------------------------------


def test_other_files_and_objects_are_left_out(dicom_files: Files, tmp_path: Path) -> None:
    dicom_files.save_all(tmp_path, dicom_files.stack(hu()))
    (tmp_path / "notes.txt").write_text("x" * 1000)
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "._0001.dcm").write_bytes(b"\0\5\x16\7")
    (tmp_path / ".DS_Store").write_bytes(bytes(range(256)))
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "key.png")
    for name, sop_class in [
        ("sr", "1.2.840.10008.5.1.4.1.1.88.11"),
        ("rtstruct", "1.2.840.10008.5.1.4.1.1.481.3"),
        ("pr", "1.2.840.10008.5.1.4.1.1.11.1"),
        ("private", "1.2.3.4.5"),
    ]:
        other = Dataset()
        other.SOPClassUID, other.SOPInstanceUID = sop_class, "1.2.9"
        dicom_files.save(tmp_path / name, other)
    for sop_class in (
        "1.2.840.10008.5.1.4.1.1.66.4",
        "1.2.840.10008.5.1.4.1.1.66.7",
        "1.2.840.10008.5.1.4.1.1.66.99",
        "1.2.840.10008.5.1.4.1.1.481.2",
    ):  # SEG, label map, one of the future, dose: with pixels
        segmentation = dicom_files.image(np.ones((3, 4, 4), np.uint8))
        segmentation.SOPClassUID = sop_class
        dicom_files.save(tmp_path / sop_class, segmentation)
    for modality in ("SEG", "PR", "RTDOSE"):  # under a private class
        image = dicom_files.image(np.ones((4, 4), np.uint8), Modality=modality)
        image.SOPClassUID = "1.2.3.4.6"
        dicom_files.save(tmp_path / modality, image)
    volume = read(tmp_path)
    np.testing.assert_array_equal(volume.array, hu())
    (warning,) = volume.warnings
    assert "no images" in warning
    assert sum(int(count) for count in re.findall(r"(\d+) x", warning)) == 4 + 4 + 3


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_dicomdir_is_not_followed(dicom_files: Files, tmp_path: Path) -> None:
    dicom_files.save_all(tmp_path / "secret", dicom_files.stack(hu(seed=1), SeriesInstanceUID="1.2.6"))
    record = Dataset()
    record.DirectoryRecordType = "IMAGE"
    record.ReferencedFileID = ["..", "..", "secret", "0000"]
    directory = Dataset()
    directory.SOPClassUID, directory.SOPInstanceUID = MediaStorageDirectoryStorage, "1.2.9"
    directory.DirectoryRecordSequence = Items([record])
    study = tmp_path / "study" / "images"
    dicom_files.save(study / "DICOMDIR", directory)
    with pytest.raises(InputError, match="a folder without DICOM images"):
        read_image(study)
    with pytest.raises(InputError, match="not a DICOM image"):
        read_image(study / "DICOMDIR")
    dicom_files.save_all(study, dicom_files.stack(hu()))
    assert all(file.parent == study for file in only(study).files)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_to_files_are_followed_others_not_and_pipes_do_not_block(
    dicom_files: Files, tmp_path: Path
) -> None:
    outside = dicom_files.save_all(tmp_path / "outside", dicom_files.stack(hu(), SeriesInstanceUID="1.2.6"))
    inside = dicom_files.save_all(tmp_path / "inside", dicom_files.stack(hu()))
    (inside / "0002").rename(tmp_path / "annexed")
    (inside / "0002").symlink_to(tmp_path / "annexed")
    (inside / "folder").symlink_to(outside, target_is_directory=True)
    (inside / "self").symlink_to(inside, target_is_directory=True)
    os.mkfifo(inside / "pipe")
    volume = read(inside)
    np.testing.assert_array_equal(volume.array, hu())
    assert "2 x link to a folder" in " ".join(volume.warnings)
    (tmp_path / "named").symlink_to(inside, target_is_directory=True)  # what the user names is meant
    assert only(tmp_path / "named").slices == 5


def test_file_without_preamble_is_known_by_its_content(dicom_files: Files, tmp_path: Path) -> None:
    (image,) = dicom_files.stack(hu((5, 6, 1)), SliceThickness=2)
    plain = dicom_files.save(tmp_path / "plain", image)
    for implicit in (False, True):
        bare = tmp_path / f"bare{implicit}"
        image.file_meta = FileMetaDataset()
        pydicom.dcmwrite(bare, image, implicit_vr=implicit, little_endian=True)
        assert bare.read_bytes()[:2] == b"\x08\x00"
        assert is_dicom(bare)
        np.testing.assert_array_equal(read_image(bare).array, read_image(plain).array)
    assert is_dicom(plain)
    for other in (tmp_path, tmp_path / "gone", *[tmp_path / f"{n}.bin" for n in range(3)]):
        if other.suffix:
            start = {"0": b"\x08\x00\x05\x00CS", "1": b"\x08\x00\x05\x00\x04\0\0\0", "2": b"\x5c\x01\0\0"}[
                other.stem
            ]
            other.write_bytes(start.ljust(400, b"\x01"))
        assert not is_dicom(other)


def test_read_image_takes_files_by_ending_or_content(dicom_files: Files, tmp_path: Path) -> None:
    (image,) = dicom_files.stack(hu((5, 6, 1)), SliceThickness=2)
    for name in ("a.dcm", "b.IMA", "c", "d.1", "e.dicom"):
        assert read_image(dicom_files.save(tmp_path / name, image)).array.shape == (5, 6, 1)
    assert image_suffix("X.DCM") == ".dcm"
    (tmp_path / "fake.dcm").write_bytes(b"no" * 200)
    (tmp_path / "empty.dcm").write_bytes(b"")
    with pytest.raises(InputError, match=r"fake\.dcm: not a DICOM image"):
        read_image(tmp_path / "fake.dcm")
    with pytest.raises(InputError, match="the file is empty"):
        read_image(tmp_path / "empty.dcm")
    with pytest.raises(InputError, match="no such file"):
        read_image(tmp_path / "gone.dcm")
    with pytest.raises(InputError, match="no such file or folder"):
        find_series(tmp_path / "gone")
    with pytest.raises(InputError, match="this is DICOM"):
        read_labels(tmp_path / "a.dcm", values=None)


# --- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "slope", "intercept", "expected"),
    [
        (np.int16, None, None, np.int16),
        (np.uint16, 1, -1000, np.int16),
        (np.uint16, "1.0", "-1024.0", np.int16),
        (np.uint16, 1, 40000, np.int32),
        (np.int16, 0.5, -10, np.float32),
        (np.int16, 2, 0, np.float32),
        (np.int16, 1, 0.5, np.float32),
        (np.uint8, 1, 0, np.int16),
        (np.int32, 1, 0, np.int32),
    ],
)
def test_rescale_keeps_integers_where_it_can(
    dicom_files: Files, tmp_path: Path, dtype: Any, slope: Any, intercept: Any, expected: Any
) -> None:
    pixels = np.arange(7 * 6 * 5).reshape(7, 6, 5).astype(dtype)
    if dtype == np.int32:
        pixels *= 1_000_003
    rescale = {} if slope is None else {"RescaleSlope": slope, "RescaleIntercept": intercept}
    volume = read(dicom_files.save_all(tmp_path, dicom_files.stack(pixels, **rescale)))
    assert volume.array.dtype == expected
    np.testing.assert_array_equal(volume.array, pixels * np.float64(slope or 1) + np.float64(intercept or 0))


def test_slope_may_differ_from_slice_to_slice(dicom_files: Files, tmp_path: Path) -> None:
    images = dicom_files.stack(hu(), modality="MR")
    for k, image in enumerate(images):
        image.RescaleSlope, image.RescaleIntercept = 0.5 + k, -k
    volume = read(dicom_files.save_all(tmp_path, images))
    np.testing.assert_allclose(volume.array, hu() * (0.5 + np.arange(5)) - np.arange(5), rtol=1e-6)
    assert volume.array.dtype == np.float32


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize("slope", ["0", "1e38", "nan"])
def test_useless_slope_is_refused(dicom_files: Files, tmp_path: Path, slope: str) -> None:
    with pytest.raises(InputError, match="the rescale slope|the DICOM attribute RescaleSlope"):
        read(dicom_files.save_all(tmp_path, dicom_files.stack(hu(), RescaleSlope=slope)))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("high_bit", [11, 15])
@pytest.mark.parametrize("syntax", [None, RLELossless])
def test_unused_bits_do_not_matter(
    dicom_files: Files, tmp_path: Path, signed: bool, high_bit: int, syntax: str | None
) -> None:
    values = np.random.default_rng(0).integers(-2048 if signed else 0, 2048 if signed else 4096, (7, 6, 3))
    shift = high_bit - 11
    overlay = 0x5000 if shift == 0 else 0x0005
    bits = (((values & 0xFFF) << shift) | overlay).astype(np.uint16)
    images = dicom_files.stack(bits, BitsStored=12, HighBit=high_bit, PixelRepresentation=int(signed))
    for number, image in enumerate(images):
        dicom_files.save(tmp_path / str(number), image, **({"syntax": syntax} if syntax else {}))
    np.testing.assert_array_equal(read(tmp_path).array, values)


def test_monochrome1_is_turned_round_except_for_hu(dicom_files: Files, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, (7, 6, 3)).astype(np.uint16)
    how = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
    dicom_files.save_all(tmp_path / "mr", dicom_files.stack(pixels, modality="MR", **how))
    dicom_files.save_all(tmp_path / "ct", dicom_files.stack(pixels, RescaleIntercept=-1000, **how))
    np.testing.assert_array_equal(read(tmp_path / "mr").array, 4095 - pixels.astype(int))
    ct = read(tmp_path / "ct")
    np.testing.assert_array_equal(ct.array, pixels.astype(int) - 1000)
    assert "MONOCHROME1" in ct.warnings[0]
    signed = dicom_files.image(hu((6, 7)), "DX", PhotometricInterpretation="MONOCHROME1")
    picture = read_image(dicom_files.save(tmp_path / "dx", signed))
    np.testing.assert_array_equal(picture.array[0], -1 - hu((6, 7)))


def test_padding_and_big_endian(dicom_files: Files, tmp_path: Path) -> None:
    padded = hu()
    padded[0] = -2000
    how = {"PixelPaddingValue": -2000, "RescaleSlope": 1, "RescaleIntercept": 0}
    dicom_files.save_all(tmp_path / "little", dicom_files.stack(padded, **how))
    np.testing.assert_array_equal(read(tmp_path / "little").array, np.maximum(padded, -1000))

    (image,) = dicom_files.stack(padded[..., :1], SliceThickness=2)
    image.PixelData = np.ascontiguousarray(padded[..., 0].T).astype(">i2").tobytes()
    path = dicom_files.save(tmp_path / "big.dcm", image)
    image.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.2"
    pydicom.dcmwrite(path, image, implicit_vr=False, little_endian=False, force_encoding=True)
    np.testing.assert_array_equal(read_image(path).array[..., 0], padded[..., 0])


def test_constant_image_is_refused(dicom_files: Files, tmp_path: Path) -> None:
    dicom_files.save_all(tmp_path, dicom_files.stack(np.full((4, 4, 3), 7, np.int16)))
    with pytest.raises(InputError, match="every value is 7"):
        read_image(tmp_path)


def test_memory_is_little_more_than_the_array(dicom_files: Files, tmp_path: Path) -> None:
    array = hu((256, 256, 60))
    dicom_files.save_all(tmp_path, dicom_files.stack(array, RescaleIntercept=0))
    series = only(tmp_path)
    tracemalloc.start()
    try:
        volume = read_series(series)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(volume.array, array)
    assert peak < 1.4 * array.nbytes


# --- compressed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("signed", [False, True])
def test_lossless_compression_changes_nothing(
    dicom_files: Files, tmp_path: Path, syntax: str, signed: bool
) -> None:
    pixels = hu((40, 36, 3)) // 2
    pixels = pixels if signed else (pixels + 500).astype(np.uint16)
    how = {"BitsStored": 12, "HighBit": 11, "RescaleSlope": 1, "RescaleIntercept": -24}
    for number, image in enumerate(dicom_files.stack(pixels, **how)):
        dicom_files.save(tmp_path / str(number), image, syntax)
    volume = read(tmp_path)
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, pixels.astype(int) - 24)


def jpeg_lossless(plain: Path, target: Path) -> Path:
    encoder = shutil.which("dcmcjpeg")
    if encoder is None:
        pytest.skip("dcmcjpeg of dcmtk is not installed")
    subprocess.run([encoder, "+e1", "--uid-never", str(plain), str(target)], check=True, capture_output=True)
    assert pydicom.dcmread(target).file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.70"
    return target


@pytest.mark.parametrize(
    ("slope", "photometric"), [(1, "MONOCHROME2"), (0.25, "MONOCHROME2"), (1, "MONOCHROME1")]
)
def test_jpeg_lossless_is_decoded_by_simpleitk(
    dicom_files: Files, tmp_path: Path, slope: float, photometric: str
) -> None:
    pixels = (hu((9, 8, 3)) + 1000).astype(np.uint16)
    how = {"RescaleSlope": slope, "RescaleIntercept": -1000, "PhotometricInterpretation": photometric}
    images = dicom_files.stack(pixels, modality="MR", **how, BitsStored=12, HighBit=11)
    for number, image in enumerate(images):
        plain = dicom_files.save(tmp_path / "plain" / str(number), image)
        (tmp_path / "jpeg").mkdir(exist_ok=True)
        jpeg_lossless(plain, tmp_path / "jpeg" / str(number))
    expected, found = read(tmp_path / "plain"), read(tmp_path / "jpeg")
    np.testing.assert_array_equal(found.array, expected.array)
    assert found.array.dtype == expected.array.dtype
    np.testing.assert_array_equal(found.grid.affine, expected.grid.affine)


def test_jpeg_lossless_frames_are_decoded_by_simpleitk(dicom_files: Files, tmp_path: Path) -> None:
    pixels = (hu((9, 8, 4)) + 1000).astype(np.uint16)
    plain = dicom_files.save(tmp_path / "plain.dcm", dicom_files.enhanced(pixels, order=[2, 0, 3, 1]))
    found = read_image(jpeg_lossless(plain, tmp_path / "jpeg.dcm"))
    np.testing.assert_array_equal(found.array, pixels.astype(int) - 1000)


def test_damaged_compressed_pixels_are_named(dicom_files: Files, tmp_path: Path) -> None:
    (image,) = dicom_files.stack(hu((40, 40, 1)), SliceThickness=2)
    path = dicom_files.save(tmp_path / "slice.dcm", image, RLELossless)
    content = bytearray(path.read_bytes())
    content[-900:-100] = bytes(800)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"slice\.dcm.*damaged"):
        read_image(path)


# --- enhanced multi-frame --------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
def test_enhanced_ct_is_ordered_by_frame_positions(dicom_files: Files, tmp_path: Path, shared: bool) -> None:
    stored = (hu() + 1000).astype(np.uint16)
    path = dicom_files.save(
        tmp_path / "ct.dcm", dicom_files.enhanced(stored, order=[3, 0, 4, 2, 1], shared=shared)
    )
    assert (only(path).files, only(path).slices) == ((path,), 5)
    volume = read_image(path)
    np.testing.assert_array_equal(volume.array, hu())
    assert volume.array.dtype == np.int16
    np.testing.assert_allclose(volume.grid.spacing_mm, (0.7, 0.8, 2.0))
    np.testing.assert_allclose(volume.grid.affine[:3, 3], (10, 20, 30))


def test_enhanced_mr_has_a_slope_for_each_frame(dicom_files: Files, tmp_path: Path) -> None:
    slopes = [0.5, 1.0, 1.5, 2.0, 2.5]
    enhanced = dicom_files.enhanced(hu(), "MR", order=[4, 3, 2, 1, 0], slopes=slopes)
    volume = read_image(dicom_files.save(tmp_path / "mr.dcm", enhanced))
    np.testing.assert_allclose(volume.array, hu() * np.array(slopes), rtol=1e-6)


def test_enhanced_compressed_and_with_a_missing_frame(dicom_files: Files, tmp_path: Path) -> None:
    stored = (hu() + 1000).astype(np.uint16)
    path = dicom_files.save(
        tmp_path / "rle.dcm", dicom_files.enhanced(stored, order=[1, 0, 2, 4, 3]), RLELossless
    )
    np.testing.assert_array_equal(read_image(path).array, hu())
    path = dicom_files.save(tmp_path / "gap.dcm", dicom_files.enhanced(stored, order=[0, 1, 2, 4]))
    with pytest.raises(InputError, match=r"gap\.dcm: 4\.0 mm between slices 3 and 4 \(z = 34\.0 mm\)"):
        read_image(path)


def test_enhanced_file_with_two_echoes_is_two_series(dicom_files: Files, tmp_path: Path) -> None:
    both = np.concatenate([hu(), hu(seed=1)], axis=2)
    enhanced = dicom_files.enhanced(both, "MR", echo_times=[2.3] * 5 + [4.6] * 5)
    for k, item in enumerate(enhanced.PerFrameFunctionalGroupsSequence):
        item.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 2.0 * (k % 5)]
    found = find_series(dicom_files.save(tmp_path / "dual.dcm", enhanced))
    assert [series.echo_time_ms for series in found] == [2.3, 4.6]
    for seed, series in enumerate(found):
        np.testing.assert_array_equal(read_series(series).array, hu(seed=seed) - 1000)


def test_enhanced_file_of_highdicom(tmp_path: Path, dicom_files: Files) -> None:
    legacy = pytest.importorskip("highdicom.legacy")
    images = dicom_files.stack(
        hu(), PatientSex="", StudyDate="", StudyTime="", AccessionNumber="", StudyID=""
    )
    for image in images:
        image.ReferringPhysicianName = image.PositionReferenceIndicator = ""
        image.FrameOfReferenceUID, image.SeriesNumber = "1.2.8", 1
        image.ImageType, image.Manufacturer, image.RescaleSlope, image.RescaleIntercept = (
            ["ORIGINAL", "PRIMARY", "AXIAL"],
            "",
            1,
            -100,
        )
        image.BurnedInAnnotation, image.SliceThickness = "NO", 2
        dicom_files.save(tmp_path / "classic" / f"{image.InstanceNumber}", image)
    read_back = [pydicom.dcmread(file) for file in sorted((tmp_path / "classic").iterdir())]
    enhanced = legacy.LegacyConvertedEnhancedCTImage(read_back[::-1], "1.2.10", 1, "1.2.11", 1)
    enhanced.save_as(tmp_path / "enhanced.dcm")
    volume, classic = read_image(tmp_path / "enhanced.dcm"), read(tmp_path / "classic")
    np.testing.assert_array_equal(volume.array, classic.array)
    np.testing.assert_allclose(volume.grid.affine, classic.grid.affine)


# --- pictures --------------------------------------------------------------------------------------


def test_xray_is_a_grey_picture(dicom_files: Files, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, (6, 7)).astype(np.uint16)
    path = dicom_files.save(tmp_path / "xray", dicom_files.image(pixels, "DX", BitsStored=12, HighBit=11))
    picture = read_image(path)
    assert isinstance(picture, Picture)
    assert picture.array.dtype == np.uint16
    np.testing.assert_array_equal(picture.array, pixels[None])
    turned = dicom_files.image(
        pixels, "DX", BitsStored=12, HighBit=11, PhotometricInterpretation="MONOCHROME1"
    )
    np.testing.assert_array_equal(read_image(dicom_files.save(path, turned)).array, 4095 - pixels[None])
    byte = read_image(dicom_files.save(path, dicom_files.image(pixels.astype(np.uint8), "DX")))
    assert byte.array.dtype == np.uint8


def test_pictures_of_one_series_are_an_entry_each(dicom_files: Files, tmp_path: Path) -> None:
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 7)).astype(np.uint8)
        dicom_files.save(tmp_path / f"{number}.dcm", dicom_files.image(pixels, "DX", SeriesNumber=1))
    found = find_series(tmp_path)
    assert [series.files for series in found] == [(tmp_path / f"{number}.dcm",) for number in range(3)]
    assert [row[0] for row in series_table(found)] == ["series", "1.1", "1.2", "1.3"]
    assert found[0].spacing_mm is None
    assert choose_series(found, "1.2", tmp_path) is found[1]


@pytest.mark.parametrize("planar", [0, 1])
def test_rgb_photo(dicom_files: Files, tmp_path: Path, planar: int) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    image = dicom_files.image(rgb, "XC", PlanarConfiguration=planar)
    if planar:
        image.PixelData = np.ascontiguousarray(rgb.transpose(2, 0, 1)).tobytes() + b"\0"
    picture = read_image(dicom_files.save(tmp_path / "photo", image))
    assert picture.array.dtype == np.uint8
    np.testing.assert_array_equal(picture.array, rgb.transpose(2, 0, 1))


@pytest.mark.parametrize("photometric", ["YBR_FULL", "YBR_FULL_422"])
def test_ybr_photo_becomes_rgb(dicom_files: Files, tmp_path: Path, photometric: str) -> None:
    # One colour for each pair of columns: what 4:2:2 can hold.
    rgb = np.repeat(np.random.default_rng(0).integers(0, 256, (5, 4, 3)), 2, axis=1).astype(np.uint8)
    ybr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    image = dicom_files.image(ybr, "XC", PhotometricInterpretation=photometric)
    if photometric == "YBR_FULL_422":
        pairs = ybr.reshape(5, 4, 2, 3)
        image.PixelData = np.stack(
            [pairs[:, :, 0, 0], pairs[:, :, 1, 0], pairs[:, :, 0, 1], pairs[:, :, 0, 2]], axis=-1
        ).tobytes()
    picture = read_image(dicom_files.save(tmp_path / "photo", image))
    np.testing.assert_allclose(picture.array, rgb.transpose(2, 0, 1).astype(float), atol=3)


def test_jpeg_photo(dicom_files: Files, tmp_path: Path) -> None:
    rows, columns = np.indices((32, 48))
    rgb = np.stack([rows * 6, columns * 4, 255 - rows * 3], axis=-1).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "JPEG", quality=98, subsampling=0)
    image = dicom_files.image(rgb, "XC", PhotometricInterpretation="YBR_FULL_422")
    path = dicom_files.save(tmp_path / "photo", image)
    image.PixelData = encapsulate([stream.getvalue()])
    image["PixelData"].VR, image["PixelData"].is_undefined_length = "OB", True
    image.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    image.save_as(path, enforce_file_format=True)
    picture = read_image(path)
    assert picture.array.shape == (3, 32, 48)
    np.testing.assert_allclose(picture.array, rgb.transpose(2, 0, 1).astype(float), atol=8)


@pytest.mark.parametrize("bits", [8, 16])
def test_palette_becomes_rgb(dicom_files: Files, tmp_path: Path, bits: int) -> None:
    indices = np.random.default_rng(0).integers(0, 256, (6, 8)).astype(np.uint8)
    colours = np.random.default_rng(1).integers(0, 256, (3, 256))
    image = dicom_files.image(indices, "XC", PhotometricInterpretation="PALETTE COLOR")
    image.SOPClassUID = SecondaryCaptureImageStorage
    for name, table in zip(("Red", "Green", "Blue"), colours, strict=True):
        setattr(image, f"{name}PaletteColorLookupTableDescriptor", [256, 0, bits])
        entries = (table * 257).astype("<u2") if bits == 16 else table.astype(np.uint8)
        setattr(image, f"{name}PaletteColorLookupTableData", entries.tobytes())
    picture = read_image(dicom_files.save(tmp_path / "palette", image))
    assert picture.array.dtype == np.uint8
    np.testing.assert_array_equal(picture.array, colours[:, indices])


def test_clip_and_unsupported_pixels_are_refused(dicom_files: Files, tmp_path: Path) -> None:
    clip = dicom_files.image(np.arange(60, dtype=np.uint8).reshape(5, 3, 4), "DX")
    path = dicom_files.save(tmp_path / "clip", clip)
    assert only(path).slices == 5
    with pytest.raises(InputError, match="5 frames without positions"):
        read_image(path)
    # One position for all frames, as in some multi-frame objects: the first frame alone is no volume.
    dicom_files.save(path, dicom_files.place(clip, (0, 0, 0)))
    assert only(path).spacing_mm is None
    with pytest.raises(InputError, match="5 frames without positions"):
        read_image(path)
    shared = Dataset()
    shared.PixelMeasuresSequence = Items([Dataset()])
    clip.SharedFunctionalGroupsSequence = Items([shared])
    with pytest.raises(InputError, match="5 frames without positions"):
        read_image(dicom_files.save(path, clip))
    odd = dicom_files.image(
        np.arange(12, dtype=np.uint8).reshape(3, 4), "DX", PhotometricInterpretation="HSV"
    )
    with pytest.raises(InputError, match="HSV cannot be read"):
        read_image(dicom_files.save(path, odd))


# --- damaged and hostile files ---------------------------------------------------------------------


def test_truncated_slice_of_a_folder_is_named(dicom_files: Files, tmp_path: Path) -> None:
    dicom_files.save_all(tmp_path, dicom_files.stack(hu((20, 20, 5))))
    path = tmp_path / "0003"
    content = path.read_bytes()
    for length in (len(content) - 1, len(content) - 810, 500, 340, 140):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"0003: truncated or damaged"):
            read_image(tmp_path)


@pytest.mark.parametrize("syntax", [None, RLELossless])
def test_absurd_sizes_are_refused_before_memory_is_asked_for(
    dicom_files: Files, tmp_path: Path, syntax: str | None
) -> None:
    image = dicom_files.image(hu((4, 4)), "DX")
    path = dicom_files.save(tmp_path / "huge", image, **({"syntax": syntax} if syntax else {}))
    image.Rows = image.Columns = 65535
    image.NumberOfFrames = 1_000_000
    image.save_as(path, enforce_file_format=True)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="65535 x 65535 x 1000000 pixels are announced"):
            read_image(path)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_element_longer_than_the_file_costs_no_memory(dicom_files: Files, tmp_path: Path) -> None:
    path = dicom_files.save(tmp_path / "long", dicom_files.image(hu((4, 4)), "DX", SeriesDescription="A"))
    content = path.read_bytes()
    at = content.index(b"\x08\x00\x3e\x10LO")
    path.write_bytes(
        content[:at] + b"\x08\x00\x3e\x10UT\0\0" + (0xFFFFFFF0).to_bytes(4, "little") + b"A" * 40
    )
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="long: truncated or damaged"):
            read_image(path)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_bottomless_sequences_are_refused(dicom_files: Files, tmp_path: Path) -> None:
    path = dicom_files.save(tmp_path / "deep", dicom_files.image(hu((4, 4)), "DX"))
    content = path.read_bytes()
    at = content.index(b"\x20\x00\x0d\x00UI")
    level = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    path.write_bytes(content[:at] + level * 20_000 + content[at:])
    with pytest.raises(InputError, match="deep: truncated or damaged"):
        read_image(path)


def test_deflated_file_is_refused_before_it_is_unpacked(dicom_files: Files, tmp_path: Path) -> None:
    path = dicom_files.save(tmp_path / "bomb", dicom_files.image(hu((4, 4)), "DX"))
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    dataset.save_as(path, enforce_file_format=True)
    with pytest.raises(InputError, match=": a deflated file"):
        read_image(path)


def test_nothing_about_the_patient_is_said(
    dicom_files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = dicom_files.save_all(tmp_path, dicom_files.stack(hu((20, 20, 6)), SeriesNumber=1))
    series = only(folder)
    for path in folder.iterdir():
        content = path.read_bytes()
        assert content.count(b"19010203") == 1
        content = content.replace(b"19010203", b"SECRETXX").replace(b"IS\x02\x001 ", b"IS\x02\x00S!")
        path.write_bytes(content.replace(b"UI\x06\x001.2.3\0", b"UI\x06\x00SECRET"))
    with pytest.warns(UserWarning, match="SECRET"):  # what would be said
        assert pydicom.dcmread(folder / "0000").SeriesInstanceUID
    caplog.clear()
    before = vars(pydicom.config.settings).copy()
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        volume = read_image(folder)
        (folder / "0002").write_bytes((folder / "0002").read_bytes()[:-5])
        with pytest.raises(InputError) as damaged:
            read_image(folder)
        (folder / "0002").unlink()
        for lost in series.files[1:3]:
            lost.unlink(missing_ok=True)
        with pytest.raises(InputError) as gap:
            read_image(folder)
    assert "slices look missing" in str(gap.value)
    said = [
        caplog.text,
        *map(str, caught),
        *capfd.readouterr(),
        str(damaged.value),
        str(gap.value),
        *volume.warnings,
    ]
    assert "SECRET" not in "".join(said)
    assert not caught
    assert vars(pydicom.config.settings) == before
    assert logging.getLogger("pydicom").level == logging.WARNING
    assert damaged.value.__suppress_context__ or damaged.value.__context__ is None


def test_command_line_help_does_not_load_pydicom() -> None:
    code = "import sys, sgan_core.cli.segment as s; s.parser(); sys.exit('pydicom' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
