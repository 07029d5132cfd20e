"""DICOM segmentations read back with highdicom, checked with dciodvfy and dcmdump."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy.spatial.transform import Rotation

from sgan_core import __version__
from sgan_core.cohort import Label
from sgan_core.errors import InputError
from sgan_core.imaging.dicom import seg
from sgan_core.imaging.dicom.seg import (
    check_dicom_seg,
    read_dicom_seg,
    read_dicom_seg_labels,
    write_dicom_seg,
)
from sgan_core.imaging.grid import Grid, corner_distance_mm

LIVER = Label(1, "liver", (221, 130, 101), "10200004")
SPLEEN = Label(2, "spleen", (157, 108, 162), "78961009")
CLOTH = Label(3, "Tüte: größer als ½", (10, 200, 30))
LABELS = (LIVER, SPLEEN, CLOTH)
SLICES, ROWS, COLUMNS = 20, 24, 32
SPACING = (0.8, 0.7)  # between rows, between columns
STEP_MM = 2.5
ROTATION = Rotation.from_euler("xyz", (10, -20, 15), degrees=True).as_matrix()
ORIGIN_LPS = np.array([-100.0, 55.5, -321.75])
PATIENT = "Müller^Käthe"


def position(k: float) -> np.ndarray:
    """LPS position of the first pixel of slice k."""
    return ORIGIN_LPS + k * STEP_MM * ROTATION[:, 2]


def grid(slices: int = SLICES, step: np.ndarray | None = None) -> Grid:
    affine_lps = np.eye(4)
    affine_lps[:3, :3] = ROTATION * (SPACING[1], SPACING[0], STEP_MM)
    if step is not None:
        affine_lps[:3, 2] = step
    affine_lps[:3, 3] = ORIGIN_LPS
    return Grid((COLUMNS, ROWS, slices), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_lps)


def ct_slice(k: int, **changes: Any) -> Dataset:
    """A CT image of slice k; an attribute changed to None is left out."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = UID(CTImageStorage)
    image = Dataset()
    image.file_meta = meta
    image.SpecificCharacterSet = "ISO_IR 100"
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.SOPClassUID = CTImageStorage
    image.SOPInstanceUID = generate_uid(entropy_srcs=["slice", str(k)])
    meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.StudyDate, image.StudyTime, image.AccessionNumber = "20200102", "101112", "A-1"
    image.Modality, image.Manufacturer, image.ReferringPhysicianName = "CT", "Maker", "Doe^Jane"
    image.StudyDescription, image.SeriesDescription = "Bauch für Übung", "portal venous"
    image.PatientName, image.PatientID = PATIENT, "ID-4711"
    image.PatientBirthDate, image.PatientSex = "19500203", "F"
    image.SliceThickness, image.KVP, image.PatientPosition = 2.5, 120, "HFS"
    image.StudyInstanceUID = generate_uid(entropy_srcs=["study"])
    image.SeriesInstanceUID = generate_uid(entropy_srcs=["series"])
    image.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame"])
    image.PositionReferenceIndicator = ""
    image.StudyID, image.SeriesNumber, image.InstanceNumber = "S1", 7, k + 1
    image.ImagePositionPatient = [f"{x:.10g}" for x in position(k)]
    image.ImageOrientationPatient = [f"{x:.10g}" for x in ROTATION[:, :2].T.ravel()]
    image.PixelSpacing = list(SPACING)
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows, image.Columns = ROWS, COLUMNS
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit, image.PixelRepresentation = 15, 1
    image.RescaleIntercept, image.RescaleSlope = -1024, 1
    image.PixelData = np.full((ROWS, COLUMNS), k, np.int16).tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some tests want invalid values
        for keyword, value in changes.items():
            if value is None:
                delattr(image, keyword)
            else:
                setattr(image, keyword, value)
    return image


def write_series(folder: Path, images: Sequence[Dataset]) -> list[Path]:
    """Files whose names and order say nothing of their positions."""
    folder.mkdir(exist_ok=True)
    order = np.random.default_rng(4).permutation(len(images))
    paths = [folder / f"{name:03d}.dcm" for name in order]
    for path, image in zip(paths, images, strict=True):
        image.save_as(path, enforce_file_format=True)
    return sorted(paths)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_series(tmp_path_factory.mktemp("series"), [ct_slice(k) for k in range(SLICES)])


def labelmap(slices: int = SLICES) -> np.ndarray:
    """(I, J, K): liver and spleen on some slices, nothing on the outer ones, the third label nowhere."""
    labels = np.zeros((COLUMNS, ROWS, slices), np.uint8)
    labels[3:20, 2:9, 2:-3] = 1
    labels[20:30, 11:23, slices // 4 : -slices // 4] = 2
    labels[np.random.default_rng(0).random(labels.shape) < 0.001] = 0
    return labels


def written(tmp_path: Path, *args: Any, **kwargs: Any) -> hd.seg.Segmentation:
    path = tmp_path / "seg.dcm"
    write_dicom_seg(path, *args, **kwargs)
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["seg.dcm"]
    return hd.seg.segread(path)


def sources_of(segmentation: hd.seg.Segmentation) -> list[list[str]]:
    """The SOP instances that each frame refers to."""
    return [
        [
            str(image.ReferencedSOPInstanceUID)
            for derivation in groups.get("DerivationImageSequence", [])
            for image in derivation.SourceImageSequence
        ]
        for groups in segmentation.PerFrameFunctionalGroupsSequence
    ]


def require_tool(name: str) -> None:
    if shutil.which(name) is None:
        message = f"{name} not found (Debian packages dicom3tools and dcmtk)"
        if "SGAN_REQUIRE_DICOM_TOOLS" in os.environ:
            pytest.fail(message)
        pytest.skip(message)


def errors_of(path: Path) -> list[str]:
    """What dciodvfy takes for errors, and nothing when dcmdump parses the file as well."""
    require_tool("dciodvfy")
    require_tool("dcmdump")
    subprocess.run(["dcmdump", str(path)], check=True, capture_output=True)
    found = subprocess.run(
        ["dciodvfy", str(path)], check=False, capture_output=True, text=True, errors="replace"
    )
    lines = (found.stdout + found.stderr).splitlines()
    assert "Segmentation" in lines  # the IOD that it has recognised
    return [line for line in lines if line.startswith("Error")]


# --- the oblique series --------------------------------------------------------------------------


def test_masks_and_world_positions_come_back_by_highdicom(tmp_path: Path, series: list[Path]) -> None:
    segmentation = written(tmp_path, labelmap(), grid(), LABELS, series)
    assert segmentation.segmentation_type.value == "BINARY"
    volume = segmentation.get_volume().flip_spatial(0)  # highdicom counts the slices downwards
    # highdicom: (slice, row, column, segment)
    for number in (1, 2, 3):
        expected = (labelmap() == number).transpose(2, 1, 0)
        np.testing.assert_array_equal(volume.array[..., number - 1], expected)
    affine_ras = np.diag([-1, -1, 1, 1]) @ volume.affine[:, [2, 1, 0, 3]]
    assert corner_distance_mm(Grid(grid().shape, affine_ras), grid()) < 1e-5


def test_every_frame_refers_to_the_slice_at_its_place(tmp_path: Path, series: list[Path]) -> None:
    segmentation = written(tmp_path, labelmap(), grid(), LABELS, series)
    place_of = {
        str(image.SOPInstanceUID): np.array(image.ImagePositionPatient, float)
        for image in map(pydicom.dcmread, series)
    }
    sources = sources_of(segmentation)
    assert len(sources) > 20
    for groups, found in zip(segmentation.PerFrameFunctionalGroupsSequence, sources, strict=True):
        (uid,) = found
        here = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        np.testing.assert_allclose(here, place_of[uid], atol=1e-9)
        preserved = groups.DerivationImageSequence[0].SourceImageSequence[0].SpatialLocationsPreserved
        assert preserved == "YES"
    (referenced,) = segmentation.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == generate_uid(entropy_srcs=["series"])
    instances = {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence}
    assert instances == set(place_of)


def test_a_mask_is_found_by_its_source_instance(tmp_path: Path, series: list[Path]) -> None:
    segmentation = written(tmp_path, labelmap(), grid(), LABELS, series)
    uid = generate_uid(entropy_srcs=["slice", "7"])
    found = segmentation.get_pixels_by_source_instance([uid], combine_segments=True)
    np.testing.assert_array_equal(found[0], labelmap()[:, :, 7].T)


@pytest.mark.parametrize("slices", [SLICES, 1])
def test_our_reader_gives_the_labels_on_the_same_grid(
    tmp_path: Path, series: list[Path], slices: int
) -> None:
    labels = labelmap()[:, :, 7:][:, :, :slices] if slices == 1 else labelmap()
    place = grid(slices)
    if slices == 1:
        place.affine[:3, 3] = grid().affine[:3] @ (0, 0, 7, 1)
    write_dicom_seg(tmp_path / "seg.dcm", labels, place, LABELS, series)
    volume = read_dicom_seg(tmp_path / "seg.dcm")
    assert volume.array.dtype == np.uint8
    np.testing.assert_array_equal(volume.array, labels)
    assert corner_distance_mm(volume.grid, place) < 1e-5


def test_a_series_of_one_slice_is_segmented(tmp_path: Path) -> None:
    files = write_series(tmp_path / "one", [ct_slice(0)])
    labels = labelmap()[:, :, 7:8]
    segmentation = written(tmp_path, labels, grid(1), LABELS, files)
    volume = read_dicom_seg(tmp_path / "seg.dcm")
    np.testing.assert_array_equal(volume.array, labels)
    assert volume.grid.spacing_mm[2] == pytest.approx(STEP_MM)  # as thick as the source says
    assert sources_of(segmentation)[0] == [generate_uid(entropy_srcs=["slice", "0"])]
    assert errors_of(tmp_path / "seg.dcm") == []


def test_segments_tell_names_codes_colours_and_the_program(tmp_path: Path, series: list[Path]) -> None:
    segmentation = written(
        tmp_path, labelmap(), grid(), LABELS, series, description="Leber", model_name="ct-liver", seed=3
    )
    liver, spleen, cloth = segmentation.SegmentSequence
    assert [segment.SegmentLabel for segment in (liver, spleen, cloth)] == [label.name for label in LABELS]
    for segment, label in ((liver, LIVER), (spleen, SPLEEN)):
        assert segment.SegmentedPropertyTypeCodeSequence[0] == hd.sr.CodedConcept(
            label.code, "SCT", label.name
        )
        assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "123037004"
    private = cloth.SegmentedPropertyTypeCodeSequence[0]
    assert (private.CodingSchemeDesignator, private.CodeMeaning) == ("99SGAN", CLOTH.name)
    assert segmentation.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99SGAN"
    colours = [
        hd.color.CIELabColor.from_dicom_value(segment.RecommendedDisplayCIELabValue).to_rgb()
        for segment in segmentation.SegmentSequence
    ]
    np.testing.assert_allclose(colours, [label.rgb for label in LABELS], atol=1)
    assert liver.SegmentAlgorithmType == "AUTOMATIC"
    assert "ct-liver" in liver.SegmentAlgorithmName
    algorithm = liver.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmVersion, algorithm.AlgorithmParameters) == (__version__, "seed=3")
    assert segmentation.Manufacturer == "SemanticGAN"
    assert segmentation.SoftwareVersions == __version__
    assert segmentation.SeriesNumber == 107
    assert segmentation.SeriesDescription == "Leber"
    assert segmentation["ContentCreatorName"].is_empty  # no person


def test_patient_and_study_are_the_sources_in_utf_8(tmp_path: Path, series: list[Path]) -> None:
    segmentation = written(tmp_path, labelmap(), grid(), LABELS, series)
    source = pydicom.dcmread(series[0])
    assert segmentation.SpecificCharacterSet == "ISO_IR 192"
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDescription"):
        assert getattr(segmentation, keyword) == getattr(source, keyword), keyword
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "StudyDate", "AccessionNumber", "StudyID"):
        assert getattr(segmentation, keyword) == getattr(source, keyword), keyword
    assert str(segmentation.PatientName) == PATIENT
    assert PATIENT.encode() in (tmp_path / "seg.dcm").read_bytes()


def test_names_in_japanese_stay_whole(tmp_path: Path) -> None:
    changes = {
        "SpecificCharacterSet": ["", "ISO 2022 IR 87"],
        "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう",
    }
    files = write_series(tmp_path / "japan", [ct_slice(k, **changes) for k in range(3)])
    labels = np.ones((COLUMNS, ROWS, 3), np.uint8)
    segmentation = written(tmp_path, labels, grid(3), [Label(1, "肝臓", (1, 2, 3), "10200004")], files)
    assert segmentation.PatientName.ideographic == "山田^太郎"
    assert segmentation.SegmentSequence[0].SegmentLabel == "肝臓"


def test_labels_are_read_back(tmp_path: Path, series: list[Path]) -> None:
    write_dicom_seg(tmp_path / "seg.dcm", labelmap(), grid(), LABELS, series)
    found = read_dicom_seg_labels(tmp_path / "seg.dcm")
    assert [(label.value, label.name, label.code) for label in found] == [
        (label.value, label.name, label.code) for label in LABELS
    ]
    np.testing.assert_allclose([label.rgb for label in found], [label.rgb for label in LABELS], atol=1)


@pytest.mark.parametrize("content", ["some", "empty", "full"])
def test_dciodvfy_finds_no_error(tmp_path: Path, series: list[Path], content: str) -> None:
    labels = {"some": labelmap(), "empty": 0 * labelmap(), "full": 0 * labelmap() + 1}[content]
    write_dicom_seg(tmp_path / "seg.dcm", labels.astype(np.uint8), grid(), LABELS, series, model_name="ct")
    assert errors_of(tmp_path / "seg.dcm") == []


@pytest.mark.parametrize("labels", [LABELS, (LIVER,)])
def test_an_empty_label_map_is_a_small_valid_file(
    tmp_path: Path, series: list[Path], labels: tuple[Label, ...]
) -> None:
    segmentation = written(tmp_path, np.zeros(grid().shape, np.uint8), grid(), labels, series)
    assert segmentation.NumberOfFrames == 2  # the first and the last slice
    assert not segmentation.pixel_array.any()
    assert segmentation.number_of_segments == len(labels)
    volume = read_dicom_seg(tmp_path / "seg.dcm")
    assert volume.array.shape == grid().shape
    assert not volume.array.any()
    assert corner_distance_mm(volume.grid, grid()) < 1e-5


def test_outer_slices_of_odd_size_stay_empty(tmp_path: Path) -> None:
    """Frames of 23 x 31 bits do not begin at whole bytes."""
    rows, columns = 23, 31
    pixels = np.zeros((rows, columns), np.int16).tobytes()
    images = [ct_slice(k, Rows=rows, Columns=columns, PixelData=pixels) for k in range(SLICES)]
    files = write_series(tmp_path / "odd", images)
    labels = labelmap()[:columns, :rows]
    labels[:, :, 2] = 0  # 14 slices of liver stay: the last frame of that segment begins at bit 15 * 713
    written(tmp_path, labels, Grid(labels.shape, grid().affine), LABELS, files)
    np.testing.assert_array_equal(read_dicom_seg(tmp_path / "seg.dcm").array, labels)


@pytest.mark.parametrize("kept", [1, 3])
def test_empty_frames_make_the_pixels_of_even_length(tmp_path: Path, kept: int) -> None:
    """Frames of 23 x 31 bits are of an even number of bytes by 16; web viewers do not expect a byte more."""
    rows, columns = 23, 31
    pixels = np.zeros((rows, columns), np.int16).tobytes()
    images = [ct_slice(k, Rows=rows, Columns=columns, PixelData=pixels) for k in range(20)]
    files = write_series(tmp_path / "odd", images)
    labels = np.zeros((columns, rows, 20), np.uint8)
    labels[3:9, 4:8, 5 : 5 + kept], labels[12:15, 4:8, 6] = 1, 2
    segmentation = written(tmp_path, labels, Grid(labels.shape, grid().affine), LABELS, files)
    assert segmentation.NumberOfFrames == 16
    assert len(segmentation.PixelData) == 16 * rows * columns // 8
    np.testing.assert_array_equal(read_dicom_seg(tmp_path / "seg.dcm").array, labels)


def test_frames_without_their_label_are_left_out(tmp_path: Path, series: list[Path]) -> None:
    segmentation = written(tmp_path, labelmap(), grid(), LABELS, series)
    planes = sum(int((labelmap() == number).any(axis=(0, 1)).sum()) for number in (1, 2))
    assert segmentation.NumberOfFrames == planes + 2


def test_label_values_with_gaps_become_segments_one_two(tmp_path: Path, series: list[Path]) -> None:
    values = np.array([0, 7, 3], np.uint8)[labelmap()]
    labels = (Label(3, "spleen", (1, 2, 3)), Label(7, "liver", (4, 5, 6)))
    segmentation = written(tmp_path, values, grid(), labels, series)
    found = read_dicom_seg(tmp_path / "seg.dcm").array
    np.testing.assert_array_equal(found == 1, values == 3)
    np.testing.assert_array_equal(found == 2, values == 7)
    assert [segment.SegmentLabel for segment in segmentation.SegmentSequence] == ["spleen", "liver"]


def test_equal_results_have_equal_uids_and_others_do_not(tmp_path: Path, series: list[Path]) -> None:
    def uid(*args: Any, **kwargs: Any) -> tuple[str, str]:
        found = written(tmp_path, *args, **kwargs)
        return found.SeriesInstanceUID, found.SOPInstanceUID

    first = uid(labelmap(), grid(), LABELS, series)
    assert first == uid(labelmap(), grid(), LABELS, series[::-1])
    changed = labelmap()
    changed[0, 0, 0] = 1
    for other in (
        uid(changed, grid(), LABELS, series),
        uid(labelmap(), grid(), LABELS, series, model_name="other"),
        uid(labelmap(), grid(), LABELS, series, seed=1),
    ):
        assert not set(first) & set(other)
    assert len(set(first)) == 2


# --- where slices and grid differ -------------------------------------------------------------------


def test_a_grid_counted_from_the_other_end_is_the_same_place(tmp_path: Path, series: list[Path]) -> None:
    flipped = grid().affine @ np.diag([1.0, 1.0, -1.0, 1.0])
    flipped[:3, 3] = (grid().affine @ (0, 0, SLICES - 1, 1))[:3]
    segmentation = written(tmp_path, labelmap()[:, :, ::-1], Grid(grid().shape, flipped), LABELS, series)
    np.testing.assert_array_equal(read_dicom_seg(tmp_path / "seg.dcm").array, labelmap())
    assert all(len(found) == 1 for found in sources_of(segmentation))


def test_rounded_positions_are_still_the_source_slices(tmp_path: Path) -> None:
    rounded = [ct_slice(k, ImagePositionPatient=[f"{x:.1f}" for x in position(k)]) for k in range(SLICES)]
    files = write_series(tmp_path / "rounded", rounded)
    segmentation = written(tmp_path, labelmap(), grid(), LABELS, files)
    assert all(len(found) == 1 for found in sources_of(segmentation))
    volume = read_dicom_seg(tmp_path / "seg.dcm")
    np.testing.assert_array_equal(volume.array, labelmap())
    assert corner_distance_mm(volume.grid, grid()) < 0.15


def test_interpolated_slices_get_positions_of_their_own(tmp_path: Path) -> None:
    files = write_series(tmp_path / "gap", [ct_slice(k) for k in range(SLICES) if k not in (8, 9)])
    segmentation = written(tmp_path, labelmap(), grid(), LABELS, files)
    assert not any(sources_of(segmentation))
    (referenced,) = segmentation.ReferencedSeriesSequence
    assert len(referenced.ReferencedInstanceSequence) == SLICES - 2
    volume = read_dicom_seg(tmp_path / "seg.dcm")
    np.testing.assert_array_equal(volume.array, labelmap())
    assert corner_distance_mm(volume.grid, grid()) < 1e-5
    assert errors_of(tmp_path / "seg.dcm") == []


def test_a_grid_half_a_voxel_off_is_not_moved_onto_the_slices(tmp_path: Path, series: list[Path]) -> None:
    shifted = grid().affine.copy()
    shifted[:3, 3] += 0.5 * shifted[:3, 0]
    segmentation = written(tmp_path, labelmap(), Grid(grid().shape, shifted), LABELS, series)
    volume = read_dicom_seg(tmp_path / "seg.dcm")
    assert corner_distance_mm(volume.grid, Grid(grid().shape, shifted)) < 1e-5
    for groups in segmentation.PerFrameFunctionalGroupsSequence:
        for derivation in groups.get("DerivationImageSequence", []):
            assert derivation.SourceImageSequence[0].SpatialLocationsPreserved != "YES"


def test_part_of_the_slices_refers_to_the_whole_series(tmp_path: Path, series: list[Path]) -> None:
    segmentation = written(tmp_path, labelmap()[:, :, :12], grid(12), LABELS, series)
    assert all(len(found) == 1 for found in sources_of(segmentation))
    assert len(segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == SLICES
    np.testing.assert_array_equal(read_dicom_seg(tmp_path / "seg.dcm").array, labelmap()[:, :, :12])


def test_gantry_tilt_comes_back(tmp_path: Path) -> None:
    step = ROTATION @ (0.0, 0.6, STEP_MM)
    images = [
        ct_slice(k, ImagePositionPatient=(ORIGIN_LPS + k * step).round(6).tolist()) for k in range(SLICES)
    ]
    files = write_series(tmp_path / "tilt", images)
    segmentation = written(tmp_path, labelmap(), grid(step=step), LABELS, files)
    assert all(len(found) == 1 for found in sources_of(segmentation))
    spacing = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices
    assert spacing == pytest.approx(STEP_MM)
    volume = read_dicom_seg(tmp_path / "seg.dcm")
    np.testing.assert_array_equal(volume.array, labelmap())
    assert corner_distance_mm(volume.grid, grid(step=step)) < 1e-4


def test_the_same_slice_given_twice_counts_once(tmp_path: Path, series: list[Path]) -> None:
    segmentation = written(tmp_path, labelmap(), grid(), LABELS, [*series, *series])
    assert len(segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == SLICES


# --- other sources ----------------------------------------------------------------------------------


def enhanced_ct() -> Dataset:
    """The series as one multi-frame image, frames from the last slice to the first."""
    image = ct_slice(0)
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.2.1")
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = image.PixelSpacing, image.SliceThickness
    orientation.ImageOrientationPatient = image.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    image.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for k in reversed(range(SLICES)):
        frame, place = Dataset(), Dataset()
        place.ImagePositionPatient = ct_slice(k).ImagePositionPatient
        frame.PlanePositionSequence = [place]
        frames.append(frame)
    image.PerFrameFunctionalGroupsSequence = frames
    for keyword in ("PixelSpacing", "SliceThickness", "ImagePositionPatient", "ImageOrientationPatient"):
        delattr(image, keyword)
    image.NumberOfFrames = SLICES
    image.PixelData = image.PixelData * SLICES
    return image


def test_an_enhanced_multi_frame_source_is_referred_to_by_frame(tmp_path: Path) -> None:
    files = write_series(tmp_path / "enhanced", [enhanced_ct()])
    segmentation = written(tmp_path, labelmap(), grid(), LABELS, files)
    for groups in segmentation.PerFrameFunctionalGroupsSequence:
        here = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        number = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        np.testing.assert_allclose(here, position(SLICES - number), atol=1e-6)
    np.testing.assert_array_equal(read_dicom_seg(tmp_path / "seg.dcm").array, labelmap())
    assert errors_of(tmp_path / "seg.dcm") == []


def dx_image(**changes: Any) -> Dataset:
    dx = UID("1.2.840.10008.5.1.4.1.1.1.1")
    gone = ("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID", "PixelSpacing", "KVP")
    image = ct_slice(0, SOPClassUID=dx, Modality="DX", **dict.fromkeys(gone), **changes)
    image.file_meta.MediaStorageSOPClassUID = dx
    image.ImagerPixelSpacing = [0.14, 0.14]
    return image


def test_an_x_ray_without_positions_is_referred_to_by_its_pixels(tmp_path: Path) -> None:
    files = write_series(tmp_path / "dx", [dx_image()])
    labels = labelmap()[:, :, 7:8]
    segmentation = written(tmp_path, labels, grid(1), LABELS, files)
    assert set(map(tuple, sources_of(segmentation))) == {(generate_uid(entropy_srcs=["slice", "0"]),)}
    found = read_dicom_seg(tmp_path / "seg.dcm")
    np.testing.assert_array_equal(found, labels[:, :, 0].T)  # (H, W)
    assert errors_of(tmp_path / "seg.dcm") == []


def test_an_x_ray_without_any_label_is_one_empty_frame(tmp_path: Path) -> None:
    files = write_series(tmp_path / "dx", [dx_image()])
    written(tmp_path, np.zeros((COLUMNS, ROWS, 1), np.uint8), grid(1), LABELS, files)
    found = read_dicom_seg(tmp_path / "seg.dcm")
    assert found.shape == (ROWS, COLUMNS)
    assert not found.any()


# --- broken headers and what they must not tell -------------------------------------------------------


def test_anonymised_and_invalid_patient_attributes_are_mended(tmp_path: Path) -> None:
    gone = ("PatientName", "PatientBirthDate", "AccessionNumber", "StudyID", "StudyTime", "SliceThickness")
    wrong = {
        "StudyDate": "2020-13-77",
        "PatientSex": "female",
        "PatientID": "x" * 90,
    }
    images = [ct_slice(k, **dict.fromkeys(gone), **wrong) for k in range(SLICES)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = write_series(tmp_path / "anonymous", images)
    segmentation = written(tmp_path, labelmap(), grid(), LABELS, files)
    for keyword in ("PatientName", "StudyDate", "PatientSex", "PatientID", "StudyID"):
        assert not segmentation[keyword].value, keyword
    np.testing.assert_array_equal(read_dicom_seg(tmp_path / "seg.dcm").array, labelmap())


def test_nothing_of_the_patient_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    # A name in one part and entries longer than allowed: each worth a warning of the libraries.
    changes = {"PatientName": "Verylongname", "PatientID": "Verylong" * 9, "StudyDate": "Verylong" * 9}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = write_series(tmp_path / "secret", [ct_slice(k, **changes) for k in range(3)])
    caplog.clear()
    capfd.readouterr()
    level = logging.getLogger("highdicom").level
    with warnings.catch_warnings(record=True) as told, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        write_dicom_seg(tmp_path / "seg.dcm", labelmap()[:, :, :3], grid(3), LABELS, files)
        read_dicom_seg(tmp_path / "seg.dcm")
    said = caplog.text + "".join(str(entry.message) for entry in told) + "".join(capfd.readouterr())
    assert "Verylong" not in said
    assert generate_uid(entropy_srcs=["slice", "0"]) not in said
    assert logging.getLogger("highdicom").level == level


ODD_HEADERS: dict[str, dict[str, Any]] = {
    "unknown character set": {"SpecificCharacterSet": "ISO_IR 999"},
    "empty character set": {"SpecificCharacterSet": ""},
    "character sets that are none": {"SpecificCharacterSet": ["x", "y"]},
    "no study": {"StudyInstanceUID": None},
    "UIDs that are none": {"StudyInstanceUID": "1.2.3.abc", "SeriesInstanceUID": "1.2.003"},
    "a UID that is too long": {"FrameOfReferenceUID": "1." + "2" * 80},
    "series number out of range": {"SeriesNumber": "99999999999"},
    "a date of former days": {"StudyDate": "2020.01.02"},
    "two names": {"PatientName": ["A^B", "C^D"]},
    "no thickness": {"SliceThickness": "0"},
    "no such compression": {"LossyImageCompression": "yes"},
}


@pytest.mark.parametrize("name", ODD_HEADERS)
def test_odd_headers_are_no_reason_to_lose_a_mask(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = [ct_slice(k, **ODD_HEADERS[name]) for k in range(4)]
        pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
        try:
            files = write_series(tmp_path / "series", images)
        finally:
            pydicom.config.settings.writing_validation_mode = pydicom.config.RAISE
        labels = labelmap()[:, :, 6:10]
        check_dicom_seg(grid(4), LABELS, files)
        segmentation = written(tmp_path, labels, grid(4), LABELS, files)
    np.testing.assert_array_equal(read_dicom_seg(tmp_path / "seg.dcm").array, labels)
    assert all(len(sources) == 1 for sources in sources_of(segmentation))
    kept = ODD_HEADERS[name].get("StudyInstanceUID")
    assert not kept or segmentation.StudyInstanceUID == kept


@pytest.mark.parametrize("spacing", [None, [0.14, 0.14]])
def test_an_x_ray_with_a_pixel_spacing_is_read_back(spacing: list[float] | None, tmp_path: Path) -> None:
    image = dx_image()
    del image.SliceThickness
    if spacing:
        image.PixelSpacing = spacing
    labels = labelmap()[:, :, 7:8]
    written(tmp_path, labels, grid(1), LABELS, write_series(tmp_path / "dx", [image]))
    np.testing.assert_array_equal(read_dicom_seg(tmp_path / "seg.dcm"), labels[:, :, 0].T)


@pytest.mark.parametrize("change", ["no frame of reference", "measures of each frame", "measures on top"])
def test_enhanced_headers_may_say_it_anywhere(change: str, tmp_path: Path) -> None:
    image = enhanced_ct()
    if change == "no frame of reference":
        del image.FrameOfReferenceUID
    else:
        measures = image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
        del image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
        if change == "measures on top":
            image.PixelSpacing, image.SliceThickness = measures[0].PixelSpacing, measures[0].SliceThickness
        else:
            for frame in image.PerFrameFunctionalGroupsSequence:
                frame.PixelMeasuresSequence = measures
    files = write_series(tmp_path / "enhanced", [image])
    segmentation = written(tmp_path, labelmap(), grid(), LABELS, files)
    np.testing.assert_array_equal(read_dicom_seg(tmp_path / "seg.dcm").array, labelmap())
    assert all(len(sources) == 1 for sources in sources_of(segmentation))


def test_one_of_two_volumes_in_a_file_is_referred_to(tmp_path: Path) -> None:
    """Frames 1 to 20 and 21 to 40 lie at the same places."""
    image = enhanced_ct()
    image.PerFrameFunctionalGroupsSequence = [
        frame for _ in range(2) for frame in image.PerFrameFunctionalGroupsSequence
    ]
    image.NumberOfFrames, image.PixelData = 2 * SLICES, image.PixelData * 2
    files = write_series(tmp_path / "two", [image])
    second = [(0, SLICES + number) for number in reversed(range(SLICES))]
    segmentation = written(tmp_path, labelmap(), grid(), LABELS, files, frames=second)
    for groups in segmentation.PerFrameFunctionalGroupsSequence:
        here = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        number = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        np.testing.assert_allclose(here, position(2 * SLICES - number), atol=1e-6)


def test_a_wider_grid_has_positions_of_its_own(tmp_path: Path, series: list[Path]) -> None:
    """A straightened gantry makes slices wider than the source's."""
    affine = grid().affine.copy()
    affine[:3, 3] -= 3 * affine[:3, 0]
    wide = Grid((COLUMNS + 6, ROWS, SLICES), affine)
    labels = np.pad(labelmap(), ((3, 3), (0, 0), (0, 0)))
    check_dicom_seg(wide, LABELS, series)
    written(tmp_path, labels, wide, LABELS, series)
    found = read_dicom_seg(tmp_path / "seg.dcm")
    np.testing.assert_array_equal(found.array, labels)
    assert corner_distance_mm(found.grid, wide) < 1e-3


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_a_dry_run_refuses_what_writing_would(tmp_path: Path, series: list[Path]) -> None:
    two = write_series(tmp_path / "dx", [dx_image(), dx_image(SOPInstanceUID=generate_uid())])
    nameless = write_series(tmp_path / "nameless", [ct_slice(0, SOPClassUID="of.a.maker")])
    turned = [ct_slice(k) for k in range(5)]
    turned[2].ImageOrientationPatient = ct_slice(2).ImageOrientationPatient[3:] + [1, 0, 0]
    one_turned = write_series(tmp_path / "turned", turned)
    small = Grid((COLUMNS - 1, ROWS, SLICES), grid().affine)
    for where, files in ((grid(2), two), (grid(1), nameless), (grid(5), one_turned), (small, series)):
        with pytest.raises(InputError) as dry:
            check_dicom_seg(where, LABELS, files)
        with pytest.raises(InputError) as real:
            write_dicom_seg(tmp_path / "seg.dcm", np.zeros(where.shape, np.uint8), where, LABELS, files)
        assert str(dry.value) == str(real.value)


@pytest.mark.parametrize("sop_class", ["1.3.12.2.1107.5.9.1", "1.2.840.10008.5.1.4.1.1.5"])
def test_a_class_that_highdicom_does_not_know_is_referred_to_by_its_own_name(
    tmp_path: Path, sop_class: str
) -> None:
    """A maker's own; a retired one."""
    files = write_series(tmp_path / "series", [ct_slice(k, SOPClassUID=sop_class) for k in range(3)])
    labels = labelmap()[:, :, 5:8]
    check_dicom_seg(grid(3), LABELS, files)
    segmentation = written(tmp_path, labels, grid(3), LABELS, files)
    np.testing.assert_array_equal(read_dicom_seg(tmp_path / "seg.dcm").array, labels)
    (referenced,) = segmentation.ReferencedSeriesSequence
    items = [*referenced.ReferencedInstanceSequence, *segmentation.SourceImageSequence]
    for groups in segmentation.PerFrameFunctionalGroupsSequence:
        items += groups.DerivationImageSequence[0].SourceImageSequence
    assert {item.ReferencedSOPClassUID for item in items} == {sop_class}


@pytest.mark.parametrize("gap", [False, True])
def test_a_dry_run_does_the_work_of_a_few_slices_only(
    tmp_path: Path, series: list[Path], monkeypatch: pytest.MonkeyPatch, gap: bool
) -> None:
    given: list[dict[str, Any]] = []
    real = hd.seg.Segmentation.__init__

    def listening(self: hd.seg.Segmentation, *args: Any, **kwargs: Any) -> None:
        given.append(kwargs)
        real(self, *args, **kwargs)

    monkeypatch.setattr(hd.seg.Segmentation, "__init__", listening)
    files = series
    if gap:
        files = write_series(tmp_path / "gap", [ct_slice(k) for k in range(SLICES) if k != 8])
    check_dicom_seg(grid(), LABELS, files)
    assert [len(one["source_images"]) for one in given] == [2]
    assert [one["pixel_array"].shape for one in given] == [(2, 1, 1)]
    written(tmp_path, labelmap(), grid(), LABELS, files)
    # Looking up the place of each slice in all files takes highdicom 4 s for 1,000 of them.
    assert ("plane_positions" in given[1]) == gap
    assert len(given[1]["source_images"]) == len(files)


# --- refusals -----------------------------------------------------------------------------------------


def test_slices_of_another_size_are_refused(tmp_path: Path, series: list[Path]) -> None:
    labels = labelmap()[:-1]
    with pytest.raises(InputError, match=r"31 x 24 pixels a slice, the DICOM series 32 x 24"):
        write_dicom_seg(tmp_path / "seg.dcm", labels, Grid(labels.shape, grid().affine), LABELS, series)
    assert list(tmp_path.iterdir()) == []


def test_files_of_two_series_are_refused(tmp_path: Path) -> None:
    other = ct_slice(2, SeriesInstanceUID=generate_uid(entropy_srcs=["other"]))
    files = write_series(tmp_path / "two", [ct_slice(0), ct_slice(1), other])
    with pytest.raises(InputError, match="several series"):
        write_dicom_seg(tmp_path / "seg.dcm", labelmap(3), grid(3), LABELS, files)


def test_two_images_without_positions_are_refused(tmp_path: Path) -> None:
    files = write_series(tmp_path / "dx", [dx_image(), dx_image(SOPInstanceUID=generate_uid())])
    with pytest.raises(InputError, match="no slice positions.*PNG"):
        write_dicom_seg(tmp_path / "seg.dcm", labelmap(8)[:, :, :2], grid(2), LABELS, files)


def test_ct_without_frame_of_reference_is_given_one(tmp_path: Path) -> None:
    """Anonymisers remove it; segmentations of one series must agree on it all the same."""
    files = write_series(tmp_path / "ct", [ct_slice(k, FrameOfReferenceUID=None) for k in range(SLICES)])
    found = []
    for name, mask in (("a.dcm", labelmap()), ("b.dcm", np.zeros_like(labelmap()))):
        write_dicom_seg(tmp_path / name, mask, grid(), LABELS, files)
        found.append(pydicom.dcmread(tmp_path / name).FrameOfReferenceUID)
    assert found[0] == found[1]
    np.testing.assert_array_equal(read_dicom_seg(tmp_path / "a.dcm").array, labelmap())


def test_sheared_pixels_that_miss_the_source_are_refused(tmp_path: Path, series: list[Path]) -> None:
    affine = grid().affine.copy()
    affine[:3, 1] += 0.3 * affine[:3, 0]
    with pytest.raises(InputError, match="right angles"):
        write_dicom_seg(tmp_path / "seg.dcm", labelmap(), Grid(grid().shape, affine), LABELS, series)


def test_unreadable_sources_are_named(tmp_path: Path, series: list[Path]) -> None:
    (tmp_path / "text.dcm").write_text("no DICOM")
    (tmp_path / "empty.dcm").touch()
    for bad in (tmp_path / "text.dcm", tmp_path / "empty.dcm", tmp_path / "gone.dcm", tmp_path):
        with pytest.raises(InputError, match=str(bad)):
            write_dicom_seg(tmp_path / "seg.dcm", labelmap(), grid(), LABELS, [*series, bad])
    with pytest.raises(InputError, match="no DICOM file"):
        write_dicom_seg(tmp_path / "seg.dcm", labelmap(), grid(), LABELS, [])


def test_our_own_mistakes_are_plain_errors(tmp_path: Path, series: list[Path]) -> None:
    with pytest.raises(ValueError, match="no label has"):
        write_dicom_seg(tmp_path / "seg.dcm", labelmap(), grid(), (LIVER,), series)
    with pytest.raises(ValueError, match="shape"):
        write_dicom_seg(tmp_path / "seg.dcm", labelmap(8), grid(), LABELS, series)
    with pytest.raises(ValueError, match="at least one label"):
        write_dicom_seg(tmp_path / "seg.dcm", labelmap(), grid(), (), series)


def test_failed_write_keeps_the_old_file(
    tmp_path: Path, series: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "seg.dcm"
    write_dicom_seg(path, labelmap(), grid(), LABELS, series)
    before = path.read_bytes()

    def write_half(_: object, partial: Path, **__: object) -> None:
        partial.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hd.seg.Segmentation, "save_as", write_half)
    with pytest.raises(InputError, match=r"cannot write seg\.dcm there \(No space"):
        write_dicom_seg(path, labelmap(), grid(), LABELS, series)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def segmentation_of(masks: np.ndarray, kind: str = "BINARY", **kwargs: Any) -> hd.seg.Segmentation:
    """A segmentation by highdicom alone: masks (K, rows, columns, segments) or (K, rows, columns)."""
    count = masks.shape[3] if masks.ndim == 4 else int(masks.max())
    algorithm = hd.AlgorithmIdentificationSequence(
        "a", pydicom.sr.codedict.codes.DCM.ArtificialIntelligence, "1"
    )
    descriptions = [
        hd.seg.SegmentDescription(
            number,
            f"segment {number}",
            pydicom.sr.codedict.codes.SCT.Organ,
            pydicom.sr.codedict.codes.SCT.Liver,
            "AUTOMATIC",
            algorithm,
        )
        for number in range(1, count + 1)
    ]
    return hd.seg.Segmentation(
        [ct_slice(k) for k in range(len(masks))],
        masks,
        kind,
        descriptions,
        generate_uid(),
        1,
        generate_uid(),
        1,
        "m",
        "m",
        "1",
        "1",
        **kwargs,
    )


def test_overlapping_segments_are_refused(tmp_path: Path) -> None:
    masks = np.zeros((3, ROWS, COLUMNS, 2), np.uint8)
    masks[:, 2:6, 2:6, 0] = masks[:, 5:9, 5:9, 1] = 1
    segmentation_of(masks).save_as(tmp_path / "seg.dcm")
    with pytest.raises(InputError, match=r"seg\.dcm: segments overlap"):
        read_dicom_seg(tmp_path / "seg.dcm")


def test_label_map_segmentations_of_others_are_read(tmp_path: Path) -> None:
    labels = labelmap(8)
    segmentation_of(labels.transpose(2, 1, 0), "LABELMAP", omit_empty_frames=False).save_as(
        tmp_path / "seg.dcm"
    )
    np.testing.assert_array_equal(read_dicom_seg(tmp_path / "seg.dcm").array, labels)
    assert [label.value for label in read_dicom_seg_labels(tmp_path / "seg.dcm")] == [1, 2]


def test_fractional_values_are_refused(tmp_path: Path) -> None:
    segmentation_of(np.full((3, ROWS, COLUMNS, 1), 0.5), "FRACTIONAL").save_as(tmp_path / "seg.dcm")
    with pytest.raises(InputError, match="probabilities"):
        read_dicom_seg(tmp_path / "seg.dcm")


def test_uneven_slices_are_refused(tmp_path: Path, series: list[Path]) -> None:
    segmentation = written(tmp_path, labelmap(), grid(), LABELS, series)
    for groups in segmentation.PerFrameFunctionalGroupsSequence[3:5]:
        groups.PlanePositionSequence[0].ImagePositionPatient = (position(3.4)).round(4).tolist()
    segmentation.save_as(tmp_path / "uneven.dcm")
    with pytest.raises(InputError, match="not evenly spaced"):
        read_dicom_seg(tmp_path / "uneven.dcm")


def test_what_is_no_segmentation_is_named(tmp_path: Path, series: list[Path]) -> None:
    (tmp_path / "text.dcm").write_text("no DICOM")
    write_dicom_seg(tmp_path / "seg.dcm", labelmap(), grid(), LABELS, series)
    (tmp_path / "cut.dcm").write_bytes((tmp_path / "seg.dcm").read_bytes()[:-400])
    for bad in (series[0], tmp_path / "text.dcm", tmp_path / "gone.dcm", tmp_path / "cut.dcm"):
        with pytest.raises(InputError, match=str(bad)):
            read_dicom_seg(bad)


def test_damaged_bytes_never_raise_anything_but_input_errors(tmp_path: Path) -> None:
    files = write_series(tmp_path / "three", [ct_slice(k) for k in range(3)])
    labels = labelmap()[:, :, 2:5]
    write_dicom_seg(tmp_path / "seg.dcm", labels, grid(3), LABELS, files)
    whole, segmentation = files[0].read_bytes(), (tmp_path / "seg.dcm").read_bytes()
    rng, refused = np.random.default_rng(2), 0

    def damaged(content: bytes) -> bytes:
        found = bytearray(content)
        for place in rng.integers(132, min(1800, len(found)), 4):
            found[place] = rng.integers(256)
        return bytes(found)

    for _ in range(40):
        files[0].write_bytes(damaged(whole))
        (tmp_path / "damaged.dcm").write_bytes(damaged(segmentation))
        for call in (
            lambda: write_dicom_seg(tmp_path / "out.dcm", labels, grid(3), LABELS, files),
            lambda: read_dicom_seg(tmp_path / "damaged.dcm"),
            lambda: read_dicom_seg_labels(tmp_path / "damaged.dcm"),
        ):
            try:
                call()
            except InputError:
                refused += 1
    assert refused > 20


# --- a real series --------------------------------------------------------------------------------------


def test_chaos_ct_comes_back_and_is_valid(tmp_path: Path, shared: Path) -> None:
    folder = shared / "data" / "CHAOS" / "Train_Sets" / "CT" / "3"
    files = sorted((folder / "DICOM_anon").glob("*.dcm"))
    if not files:
        pytest.skip("CHAOS CT 3 is not in the shared data")
    masks = [np.asarray(Image.open(file)) > 0 for file in sorted((folder / "Ground").glob("*.png"))]
    # Files run from the top slice to the lowest, (row, column); the volume from the lowest, (column, row).
    labels = np.stack(masks[::-1]).transpose(2, 1, 0).astype(np.uint8)
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    lowest = headers[-1]
    affine_lps = np.diag([*(float(s) for s in lowest.PixelSpacing[::-1]), 2.0, 1.0])
    affine_lps[:3, 3] = lowest.ImagePositionPatient
    place = Grid(labels.shape, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_lps)

    segmentation = written(tmp_path, labels, place, (LIVER,), files, model_name="chaos")
    uid_of_file = [str(header.SOPInstanceUID) for header in headers]
    with_liver = [uid for uid, mask in zip(uid_of_file, masks, strict=True) if mask.any()]
    found = segmentation.get_pixels_by_source_instance(with_liver, combine_segments=True)
    np.testing.assert_array_equal(found.astype(bool), [mask for mask in masks if mask.any()])
    volume = read_dicom_seg(tmp_path / "seg.dcm")
    np.testing.assert_array_equal(volume.array, labels)
    assert corner_distance_mm(volume.grid, place) < 1e-6
    assert errors_of(tmp_path / "seg.dcm") == []


def test_tolerance_is_far_from_half_a_voxel() -> None:
    assert 0 < seg.SLICE_TOLERANCE_VOXELS < 0.25


def test_names_beyond_ascii_say_their_character_set_in_their_items(
    series: list[Path], tmp_path: Path
) -> None:
    """Web viewers forget that of the file."""
    segments = written(tmp_path, labelmap(), grid(), LABELS, series).SegmentSequence
    sets = [
        (
            one.get("SpecificCharacterSet"),
            one.SegmentedPropertyTypeCodeSequence[0].get("SpecificCharacterSet"),
        )
        for one in segments
    ]
    assert sets == [(None, None), (None, None), ("ISO_IR 192", "ISO_IR 192")]
