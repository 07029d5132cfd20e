"""Headers that say the same thing in other places, other encodings, in part or not at all.

Values are those of pydicom, SimpleITK (GDCM) or a closed form; or the image is refused, or one sentence names the
attribute. Every variant is a few tiny files.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut, apply_modality_lut
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from sgan_core.cohort import Intensity
from sgan_core.errors import InputError
from sgan_core.imaging.image import Picture, Volume
from sgan_core.imaging.readers import read_image
from sgan_core.imaging.slices import to_model

Files = Any  # tests/conftest.py
SIZE = COLUMNS, ROWS, SLICES = 8, 6, 3
LITTLE, BIG, IMPLICIT = ExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian
NAMES = {LITTLE: "little", BIG: "big", IMPLICIT: "implicit", RLELossless: "rle"}
NAMES |= {JPEG2000Lossless: "j2k", JPEGLSLossless: "jls"}
TABLES: list[Sequence[Any]] = []  # of parameters


def table(*axes: Sequence[Any], **options: Any) -> pytest.MarkDecorator:
    """Every combination of the axes, as one parameter ``variant``."""
    TABLES.append(rows := list(itertools.product(*axes)))
    ids = ["-".join(NAMES.get(str(part), str(part)) for part in row) for row in rows]
    return pytest.mark.parametrize("variant", rows, ids=ids)


def pixels(bits: int, signed: bool, seed: int = 0, shape: tuple[int, ...] = SIZE) -> np.ndarray:
    """Every bit pattern may occur, but not the extremes, which padding has."""
    lowest = -(1 << (bits - 1)) if signed else 0
    kind = f"{'i' if signed else 'u'}{1 if bits <= 8 else 2 if bits <= 16 else 4}"
    found = np.random.default_rng(seed).integers(lowest + 1, lowest + (1 << bits) - 1, shape)
    return found.astype(kind)


def by_pydicom(folder: Path) -> np.ndarray:
    """(I, J, K): pydicom's pixels, with its Modality LUT or rescale."""
    read = [pydicom.dcmread(file) for file in sorted(folder.iterdir())]
    return np.stack([apply_modality_lut(one.pixel_array, one).T for one in read], axis=2)


def by_itk(folder: Path) -> np.ndarray:
    image = sitk.ReadImage([str(file) for file in sorted(folder.iterdir())])
    return sitk.GetArrayFromImage(image).transpose()


def said(image: Volume | Picture) -> str:
    return "\n".join((*image.warnings, *image.doubts))


def same(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found.astype(float), expected.astype(float), rtol=1e-6, atol=1e-6)


# --- rescale, slice by slice -----------------------------------------------------------------------

STORED = [(8, False), (12, False), (12, True), (16, False), (16, True)]
RESCALES = [("1", "-1024"), ("0.5", "-10.5"), ("2", "0")]


@table(["CT", "MR"], STORED, RESCALES, [LITTLE, IMPLICIT, BIG, RLELossless])
def test_rescale_is_pydicoms(dicom_files: Files, tmp_path: Path, variant: Any) -> None:
    modality, (bits, signed), (slope, intercept), syntax = variant
    how = {"BitsStored": bits, "HighBit": bits - 1, "RescaleSlope": slope, "RescaleIntercept": intercept}
    folder = dicom_files.write(
        tmp_path / "x", dicom_files.stack(pixels(bits, signed), modality=modality, **how), syntax
    )
    volume = read_image(folder)
    same(volume.array, by_pydicom(folder))
    assert said(volume) == ""
    if syntax != RLELossless:
        same(volume.array, by_itk(folder))


LOST = ["absent", "empty"]


@table(
    ["CT", "MR"],
    LOST,
    ["RescaleSlope", "RescaleIntercept", "both"],
    [("2", "-1024"), ("1", "-1024"), ("1", "0")],
)
def test_rescale_that_some_slices_lack_is_refused_unless_it_changes_nothing(
    dicom_files: Files, tmp_path: Path, variant: Any
) -> None:
    modality, how, keyword, (slope, intercept) = variant
    stored = pixels(12, True)
    images = dicom_files.stack(stored, modality=modality, RescaleSlope=slope, RescaleIntercept=intercept)
    lost = ("RescaleSlope", "RescaleIntercept") if keyword == "both" else (keyword,)
    for one in lost:
        drop(images[1], one, how)
    folder = dicom_files.write(tmp_path / "x", images)
    changes = {"RescaleSlope": slope != "1", "RescaleIntercept": intercept != "0"}
    if any(changes[one] for one in lost):
        with pytest.raises(
            InputError, match=r"Rescale (Slope|Intercept) \(0028,105\d\) is missing in 1 of 3 images"
        ):
            read_image(folder)
    else:
        same(read_image(folder).array, stored.astype(float) * float(slope) + float(intercept))


def drop(image: Dataset, keyword: str, how: str) -> None:
    if how == "absent":
        delattr(image, keyword)
    else:
        setattr(image, keyword, None)


@table(LOST, ["RescaleSlope", "RescaleIntercept", "both"], STORED)
def test_ct_that_does_not_say_how_it_becomes_hu_is_doubted(
    dicom_files: Files, tmp_path: Path, variant: Any
) -> None:
    how, keyword, (bits, signed) = variant
    stored = np.abs(pixels(bits, signed))
    images = dicom_files.stack(stored, RescaleSlope=1, RescaleIntercept=0)
    for image, one in itertools.product(images, ("RescaleSlope", "RescaleIntercept")):
        if keyword in (one, "both"):
            drop(image, one, how)
    volume = read_image(dicom_files.write(tmp_path / "x", images))
    same(volume.array, stored)
    assert ("Intercept" if keyword != "RescaleSlope" else "Slope") in said(volume)
    assert bool(volume.doubts) == (keyword != "RescaleSlope")


def test_ct_with_air_and_without_rescale_holds_hu(dicom_files: Files, tmp_path: Path) -> None:
    volume = read_image(dicom_files.write(tmp_path / "x", dicom_files.stack(pixels(12, True))))
    assert said(volume) == ""


@table(["OD", "ED", "Z_EFF", "HU", "US", ""])
def test_rescale_type_that_is_not_hu_is_doubted_in_ct(
    dicom_files: Files, tmp_path: Path, variant: Any
) -> None:
    (kind,) = variant
    how = {"RescaleSlope": 1, "RescaleIntercept": 0, "RescaleType": kind}
    volume = read_image(dicom_files.write(tmp_path / "x", dicom_files.stack(pixels(12, True), **how)))
    assert ("Rescale Type (0028,1054)" in " ".join(volume.doubts)) == (kind in ("OD", "ED", "Z_EFF"))


# --- enhanced objects ------------------------------------------------------------------------------

GROUPED = {
    "PixelSpacing": ("PixelMeasuresSequence", [0.8, 0.7]),
    "SliceThickness": ("PixelMeasuresSequence", "2"),
    "ImageOrientationPatient": ("PlaneOrientationSequence", [0, 1, 0, 1, 0, 0]),
    "RescaleSlope": ("PixelValueTransformationSequence", "2"),
    "RescaleIntercept": ("PixelValueTransformationSequence", "-1024"),
}
PLACES = [
    "top",
    "shared",
    "frame",
    "root macro",
    "top and shared",
    "top contradicts shared",
    "some frames",
    "nowhere",
]


def macro(holder: Dataset, sequence: str) -> Dataset:
    if sequence not in holder:
        setattr(holder, sequence, Items([Dataset()]))
    return holder[sequence].value[0]


def enhanced(dicom_files: Files, places: dict[str, str], modality: str, stored: np.ndarray) -> Dataset:
    """A multi-frame object with the attributes of GROUPED where ``places`` says, in shared groups else."""
    image = dicom_files.enhanced(stored, modality)
    shared, frames = image.SharedFunctionalGroupsSequence[0], image.PerFrameFunctionalGroupsSequence
    shared.clear()
    shared.FrameAnatomySequence = Items([Dataset()])
    for keyword, (sequence, value) in GROUPED.items():
        place = places.get(keyword, "shared")
        if "top" in place:
            other = (
                [0.5, 0.5]
                if keyword == "PixelSpacing"
                else [1, 0, 0, 0, 1, 0]
                if "Orient" in keyword
                else "7"
            )
            setattr(image, keyword, other if "contradicts" in place else value)
        if "shared" in place:
            setattr(macro(shared, sequence), keyword, value)
        if place == "root macro":
            setattr(macro(image, sequence), keyword, value)
        for frame in frames if place == "frame" else frames[:2] if place == "some frames" else ():
            setattr(macro(frame, sequence), keyword, value)
    return image


@table(GROUPED, PLACES, [("CT", IMPLICIT), ("MR", BIG)])
def test_enhanced_attributes_are_found_wherever_they_stand(
    dicom_files: Files, tmp_path: Path, variant: Any
) -> None:
    keyword, place, (modality, syntax) = variant
    stored = pixels(12, True)
    folder = dicom_files.write(
        tmp_path / "x", [enhanced(dicom_files, {keyword: place}, modality, stored)], syntax
    )
    label = {
        "RescaleSlope": r"Rescale Slope \(0028,1053\)",
        "RescaleIntercept": r"Rescale Intercept \(0028,1052\)",
    }
    if keyword == "SliceThickness" and place in ("some frames", "nowhere"):
        pass  # positions say it
    elif place in ("some frames", "nowhere") and not (place == "nowhere" and "Rescale" in keyword):
        with pytest.raises(
            InputError, match=label.get(keyword, "Pixel Spacing|Orientation|2 series of images")
        ):
            read_image(folder)
        return
    volume = read_image(folder)
    slope = 1.0 if (keyword, place) == ("RescaleSlope", "nowhere") else 2.0
    intercept = 0.0 if (keyword, place) == ("RescaleIntercept", "nowhere") else -1024.0
    # Columns lie along y, rows along x; the normal turns round, and with it the order of slices.
    same(volume.array, (stored * slope + intercept)[..., ::-1])
    expected = np.array([[0, 0.8, 0, -10], [0.7, 0, 0, -20], [0, 0, -2, 34], [0, 0, 0, 1]])
    np.testing.assert_allclose(volume.grid.affine, np.diag([-1, -1, 1, 1]) @ expected, atol=1e-6)
    tag = f"({pydicom.datadict.tag_for_keyword(keyword) >> 16:04X},"
    expected_words = {"top": "top level", "top contradicts shared": "contradicts"}.get(place)
    assert (tag in said(volume)) == (expected_words is not None or "no Rescale" in said(volume))
    assert not expected_words or expected_words in said(volume)


def test_one_position_for_all_frames_is_none(dicom_files: Files, tmp_path: Path) -> None:
    image = enhanced(dicom_files, {}, "CT", pixels(12, True))
    for frame in image.PerFrameFunctionalGroupsSequence:
        del frame.PlanePositionSequence
    image.ImagePositionPatient = [0, 0, 0]
    with pytest.raises(InputError, match="no Image Position"):
        read_image(dicom_files.write(tmp_path / "x", [image]))
    one = enhanced(dicom_files, {}, "CT", pixels(12, True)[..., :1])
    del one.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence
    one.ImagePositionPatient = [-10, -20, 30]
    assert read_image(dicom_files.write(tmp_path / "y", [one])).grid.affine[2, 3] == 30


def test_colours_with_a_sign_are_doubted(dicom_files: Files, tmp_path: Path) -> None:
    image = dicom_files.image(pixels(8, False, shape=(6, 8, 3)), "XC")
    assert not read_image(dicom_files.write(tmp_path / "x", [image])).doubts
    image.PixelRepresentation = 1
    assert "(0028,0103) says signed" in said(read_image(dicom_files.write(tmp_path / "y", [image])))


@pytest.mark.parametrize(
    ("signed", "high", "odd"), [(False, 0x2000, True), (True, 0x2000, True), (True, 0, False)]
)
def test_bits_beyond_those_stored_are_doubted(
    dicom_files: Files, tmp_path: Path, signed: bool, high: int, odd: bool
) -> None:
    stored = pixels(12, signed)
    if signed and not odd:
        stored[:, :, 0] &= 0x0FFF  # the sign is not carried on: usual
    stored[2, 2, 1] = 5 | high
    images = dicom_files.stack(stored, BitsStored=12, HighBit=11)
    doubts = " ".join(read_image(dicom_files.write(tmp_path / "x", images)).doubts)
    assert ("leaves out" in doubts) == odd


@pytest.mark.parametrize(("keyword", "tag"), [("BitsStored", "0028,0101"), ("SamplesPerPixel", "0028,0002")])
def test_missing_kind_of_pixels_is_doubted(
    dicom_files: Files, tmp_path: Path, keyword: str, tag: str
) -> None:
    images = dicom_files.stack(pixels(16, True))
    for image in images:
        delattr(image, keyword)
    (doubt,) = read_image(dicom_files.write(tmp_path / "x", images)).doubts
    assert f"({tag})" in doubt


def test_air_that_became_the_brightest_is_doubted(dicom_files: Files, tmp_path: Path) -> None:
    hu = np.random.default_rng(0).integers(-1000, 1000, SIZE).astype(np.int16)
    images = dicom_files.stack(hu, RescaleSlope="1", RescaleIntercept="0")
    assert not read_image(dicom_files.write(tmp_path / "x", images)).doubts
    for image in images:
        image.PixelRepresentation = 0
    assert "read as unsigned" in " ".join(read_image(dicom_files.write(tmp_path / "y", images)).doubts)


def test_part_of_a_concatenation_is_doubted(dicom_files: Files, tmp_path: Path) -> None:
    image = dicom_files.enhanced(pixels(12, False))
    image.InConcatenationNumber, image.InConcatenationTotalNumber = 1, 2
    assert "divided into 2 files, 1 are here" in " ".join(
        read_image(dicom_files.write(tmp_path / "x", [image])).doubts
    )


# --- real world values -----------------------------------------------------------------------------


def mapping(slope: float, intercept: float, unit: str = "[hnsf'U]") -> Items:
    item, code = Dataset(), Dataset()
    code.CodeValue = unit
    item.RealWorldValueSlope, item.RealWorldValueIntercept = slope, intercept
    item.MeasurementUnitsCodeSequence = Items([code])
    return Items([item])


@table(["slice", "top", "shared", "frame"], [True, False], ["CT", "MR"], ["[hnsf'U]", "1"])
def test_real_world_values_count_only_where_there_is_no_rescale(
    dicom_files: Files, tmp_path: Path, variant: Any
) -> None:
    place, rescaled, modality, unit = variant
    stored = pixels(12, False)
    if place == "slice":
        images = dicom_files.stack(stored, modality=modality)
        holders = images
    else:
        images = [dicom_files.enhanced(stored, modality)]
        shared, frames = (
            images[0].SharedFunctionalGroupsSequence[0],
            images[0].PerFrameFunctionalGroupsSequence,
        )
        del shared.PixelValueTransformationSequence
        holders = {"top": images, "shared": [shared], "frame": frames}[place]
    for holder in holders:
        holder.RealWorldValueMappingSequence = mapping(2.0, -1024.0, unit)
    for image in images if rescaled else ():
        image.RescaleSlope, image.RescaleIntercept = "3", "-7"
    volume = read_image(dicom_files.write(tmp_path / "x", images))
    applied = not rescaled and (modality == "MR" or unit != "1")
    slope, intercept = (3, -7) if rescaled else (2, -1024) if applied else (1, 0)
    same(volume.array, stored * float(slope) + intercept)
    assert ("(0040,9096)" in said(volume)) == (not rescaled)
    assert bool(volume.doubts) == (not rescaled and not applied)


@table([True, False], [LITTLE, BIG, IMPLICIT], ["BQML", "CNTS"], [True, False])
def test_pet_has_a_scale_a_slice(dicom_files: Files, tmp_path: Path, variant: Any) -> None:
    """Each slice of a PET has its own slope (PS3.3 C.8.9.4); a mapping to SUV beside it changes nothing."""
    signed, syntax, unit, mapped = variant
    stored = pixels(16, signed)
    images = dicom_files.stack(stored, Units=unit, DecayCorrection="START")
    for image, slope in zip(images, ("0.731", "2.5", "11.0625"), strict=True):
        image.RescaleSlope, image.RescaleIntercept = slope, "0"
        image.Modality, image.SOPClassUID = "PT", "1.2.840.10008.5.1.4.1.1.128"
        if mapped:
            image.RealWorldValueMappingSequence = mapping(float(slope) / 1000, 0, "{SUVbw}g/ml")
    folder = dicom_files.write(tmp_path / "x", images, syntax)
    volume = read_image(folder)
    same(volume.array, stored * np.array([0.731, 2.5, 11.0625]))
    same(volume.array, by_pydicom(folder))
    same(volume.array, by_itk(folder))
    assert not volume.doubts


# --- Modality LUT ----------------------------------------------------------------------------------


def lut(table: np.ndarray, first: int, vr: str, signed: bool) -> Items:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if signed else "US", [len(table), first, 8 * table.dtype.itemsize])
    item.ModalityLUTType = "HU"
    item.add_new("LUTData", vr, table.astype("<u2").tobytes() if vr == "OW" else table.tolist())
    return Items([item])


@table(["CT", "MR"], [np.uint8, np.uint16], ["US", "OW"], [True, False], ["", "rescale"], [IMPLICIT, BIG])
def test_modality_lut_is_pydicoms(dicom_files: Files, tmp_path: Path, variant: Any) -> None:
    modality, dtype, vr, signed, beside, syntax = variant
    stored = pixels(12, signed)
    first = -100 if signed else 200  # values on both sides of the table
    entries = np.random.default_rng(3).integers(0, np.iinfo(dtype).max, 300).astype(dtype)
    how = {"RescaleSlope": "2", "RescaleIntercept": "-5"} if beside else {}
    images = dicom_files.stack(stored, modality=modality, **how)
    for image in images:
        image.ModalityLUTSequence = lut(entries, first, vr, signed)
    folder = dicom_files.write(tmp_path / "x", images, syntax)
    volume = read_image(folder)
    same(volume.array, entries.astype(int)[np.clip(stored.astype(int) - first, 0, 299)])
    if syntax != BIG:
        same(volume.array, by_pydicom(folder))
    assert "Modality LUT Sequence (0028,3000)" in said(volume)
    del images[1].ModalityLUTSequence
    with pytest.raises(InputError, match=r"Modality LUT Sequence \(0028,3000\) is missing in 1 of 3"):
        read_image(dicom_files.write(tmp_path / "y", images, syntax))


@table(["MONOCHROME1", "MONOCHROME2"], [8, 16])
def test_modality_lut_of_an_xray(dicom_files: Files, tmp_path: Path, variant: Any) -> None:
    photometric, bits = variant
    stored = pixels(10, False, shape=(ROWS, COLUMNS))
    entries = np.linspace(0, (1 << bits) - 1, 1024).astype(np.uint16 if bits == 16 else np.uint8)
    image = dicom_files.image(stored, "DX", PhotometricInterpretation=photometric, BitsStored=10, HighBit=9)
    image.ModalityLUTSequence = lut(entries, 0, "OW", False)
    picture = read_image(dicom_files.write(tmp_path / "x", [image]) / "0.dcm")
    turned = photometric == "MONOCHROME1"
    expected = entries[stored].astype(int)
    same(picture.array[0], (1 << bits) - 1 - expected if turned else expected)


# --- padding ---------------------------------------------------------------------------------------


def padded_pixels(
    bits: int, signed: bool, high: bool, shape: tuple[int, ...] = SIZE
) -> tuple[np.ndarray, int]:
    stored, lowest = pixels(bits, signed, shape=shape), -(1 << (bits - 1)) if signed else 0
    value = lowest + (1 << bits) - 1 if high else lowest
    stored[:2, :2] = value
    return stored, value


def padding_tag(value: int, vr: str) -> int:
    """As a writer who mixes the value representations up has it."""
    return (value & 0xFFFF) if vr == "US" else (value & 0xFFFF ^ 0x8000) - 0x8000


@table(
    ["CT", "MR"], STORED[::2], [True, False], [("US", IMPLICIT), ("SS", BIG), ("US", BIG)], ["value", "range"]
)
def test_padding_is_air_and_does_not_count(dicom_files: Files, tmp_path: Path, variant: Any) -> None:
    modality, (bits, signed), high, (vr, syntax), kind = variant
    stored, value = padded_pixels(bits, signed, high)
    how = {"BitsStored": bits, "HighBit": bits - 1, "RescaleSlope": 1, "RescaleIntercept": -100}
    images = dicom_files.stack(stored, modality=modality, **how)
    for image in images:
        image.add_new("PixelPaddingValue", vr, padding_tag(value, vr))
        if kind == "range":
            image.add_new("PixelPaddingRangeLimit", vr, padding_tag(value, vr))
    volume = read_image(dicom_files.write(tmp_path / "x", images, syntax))
    padding, values = stored == value, stored.astype(int) - 100
    expected = np.where(padding, -1000 if modality == "CT" else values[~padding].min(), values)
    same(volume.array, expected)
    assert "Pixel Padding Value (0028,0120)" in said(volume)
    if modality == "MR":
        np.testing.assert_array_equal(volume.padded, padding)
        stack = to_model(volume, size=8, intensity=Intensity(percentiles=(1.0, 99.0)))
        np.testing.assert_allclose((stack.low, stack.high), np.percentile(values[~padding], (1, 99)))


@table(["MONOCHROME1", "MONOCHROME2"], [True, False], [10, 16], [None, 0.7])
def test_padding_of_an_xray_sets_neither_black_nor_white(
    dicom_files: Files, tmp_path: Path, variant: Any
) -> None:
    photometric, high, bits, central = variant
    stored, value = padded_pixels(bits, False, high, shape=(30, 40))
    stored[:, :13] = value
    how = {"PhotometricInterpretation": photometric, "BitsStored": bits, "HighBit": bits - 1}
    image = dicom_files.image(stored, "DX", PixelPaddingValue=value, **how)
    picture = read_image(dicom_files.write(tmp_path / "x", [image]) / "0.dcm")
    padding, values = stored == value, stored.astype(int)
    values = (1 << bits) - 1 - values if photometric == "MONOCHROME1" else values
    same(picture.array[0], np.where(padding, values[~padding].min(), values))
    stack = to_model(picture, size=32, intensity=Intensity(percentiles=(1.0, 99.0), central=central))
    middle = (slice(None),) if central is None else (slice(4, 26), slice(6, 34))
    counted = values[middle][~padding[middle]]
    np.testing.assert_allclose((stack.low, stack.high), np.percentile(counted, (1, 99)))


def test_padding_that_does_not_fit_into_the_stored_bits_is_seen(dicom_files: Files, tmp_path: Path) -> None:
    stored = pixels(12, False)
    words = stored.copy()
    words[:2] = 63536
    how = {
        "BitsStored": 12,
        "HighBit": 11,
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "PixelPaddingValue": 63536,
    }
    volume = read_image(dicom_files.write(tmp_path / "x", dicom_files.stack(words, **how)))
    expected = stored.astype(int) - 1024
    expected[:2] = -1000
    same(volume.array, expected)


def test_padding_value_inside_the_image_is_the_images_own(dicom_files: Files, tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(-1000, 1000, (9, 8, 3)).astype(np.int16)
    stored[stored == 0] = 1
    stored[4:6, 3:5] = 0  # water
    stored[0] = 0  # padding
    how = {"RescaleSlope": 1, "RescaleIntercept": 0, "PixelPaddingValue": 0}
    volume = read_image(dicom_files.write(tmp_path / "x", dicom_files.stack(stored, **how)))
    assert (volume.array[4:6, 3:5] == 0).all()
    assert (volume.array[0] == -1000).all()


@table(["CT", "MR", "DX"])
def test_image_that_is_all_padding_is_refused(dicom_files: Files, tmp_path: Path, variant: Any) -> None:
    (modality,) = variant
    stored = pixels(12, False)
    how = {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 4095, "RescaleSlope": 1, "RescaleIntercept": 0}
    if modality == "DX":
        images = [dicom_files.image(np.ascontiguousarray(stored[..., 0].T), "DX", **how)]
    else:
        images = dicom_files.stack(stored, modality=modality, **how)
    folder = dicom_files.write(tmp_path / "x", images)
    with pytest.raises(InputError, match=r"every pixel is padding \(Pixel Padding Value \(0028,0120\)\)"):
        read_image(folder / "0.dcm" if modality == "DX" else folder)


# --- black and white -------------------------------------------------------------------------------


@table(["MONOCHROME1", "MONOCHROME2"], ["INVERSE", "IDENTITY", ""], ["DX", "MR", "CT"], STORED[::2], [BIG])
def test_brightness_is_turned_round_once(dicom_files: Files, tmp_path: Path, variant: Any) -> None:
    photometric, shape, modality, (bits, signed), syntax = variant
    how = {"PhotometricInterpretation": photometric, "PresentationLUTShape": shape or None}
    how |= {"BitsStored": bits, "HighBit": bits - 1}
    stored = pixels(bits, signed)
    if modality == "DX":
        stored = np.ascontiguousarray(stored[..., 0].T)
        picture = read_image(
            dicom_files.write(tmp_path / "x", [dicom_files.image(stored, "DX", **how)], syntax) / "0.dcm"
        )
        found = picture.array[0]
    else:
        images = dicom_files.stack(stored, modality=modality, **how, RescaleSlope=1, RescaleIntercept=0)
        picture = read_image(dicom_files.write(tmp_path / "x", images, syntax))
        found = picture.array
    mirror = -1 if signed else (1 << bits) - 1
    same(found, mirror - stored.astype(int) if photometric == "MONOCHROME1" and modality != "CT" else stored)
    contradiction = (
        (photometric == "MONOCHROME1") != (shape == "INVERSE") and shape != "" and modality != "CT"
    )
    assert ("Presentation LUT Shape (2050,0020)" in " ".join(picture.doubts)) == contradiction


@table(["PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing"], [[1, 1], [4, 3]])
def test_pixels_that_are_not_square_are_said_of_pictures(
    dicom_files: Files, tmp_path: Path, variant: Any
) -> None:
    keyword, sides = variant
    image = dicom_files.image(pixels(10, False, shape=(ROWS, COLUMNS)), "DX", **{keyword: sides})
    picture = read_image(dicom_files.write(tmp_path / "x", [image]) / "0.dcm")
    assert bool(picture.doubts) == (sides == [4, 3])


@table([(["L", "F"], ""), (["R", "F"], "mirrored"), (["L", "H"], "upside down"), (["A", "F"], "")])
def test_xray_seen_from_behind_is_said(dicom_files: Files, tmp_path: Path, variant: Any) -> None:
    ((directions, word),) = variant
    image = dicom_files.image(pixels(10, False, shape=(ROWS, COLUMNS)), "DX", PatientOrientation=directions)
    picture = read_image(dicom_files.write(tmp_path / "x", [image]) / "0.dcm")
    assert word in " ".join(picture.doubts) if word else not picture.doubts


@table([0.0, 15.0])
def test_tilt_that_the_positions_do_not_show_is_said(
    dicom_files: Files, tmp_path: Path, variant: Any
) -> None:
    how = {"GantryDetectorTilt": variant[0], "RescaleSlope": 1, "RescaleIntercept": 0}
    volume = read_image(dicom_files.write(tmp_path / "x", dicom_files.stack(pixels(12, True), **how)))
    assert ("Gantry/Detector Tilt (0018,1120)" in said(volume)) == (variant[0] > 0)


# --- bytes -----------------------------------------------------------------------------------------


@table(["OB", "OW"], [LITTLE, BIG], [(4, 6), (5, 7), (5, 6)], [False, True])
def test_bytes_of_eight_bits(dicom_files: Files, tmp_path: Path, variant: Any) -> None:
    vr, syntax, (rows, columns), many = variant
    stored = pixels(8, False, shape=(columns, rows, 3))
    if many:
        images = [dicom_files.enhanced(stored, "MR", slopes=[1, 1, 1])]
    else:
        images = dicom_files.stack(stored, modality="MR")
    for image in images:
        image["PixelData"].VR = vr
    same(read_image(dicom_files.write(tmp_path / "x", images, syntax)).array, stored)


PALETTES = [(8, 8, "plain"), (8, 16, "plain"), (16, 8, "plain"), (16, 16, "plain")]
PALETTES += [(8, 8, "segmented"), (16, 16, "segmented")]


@table(PALETTES, [LITTLE, IMPLICIT, BIG], [0, 3])
def test_palettes(dicom_files: Files, tmp_path: Path, variant: Any) -> None:
    (described, bits, kind), syntax, first = variant
    indices = np.random.default_rng(0).integers(0, 100, (ROWS, COLUMNS)).astype(np.uint8)
    image = dicom_files.image(indices, "XC", PhotometricInterpretation="PALETTE COLOR")
    image["PixelData"].VR = "OB"
    scale = 256 if bits == 16 else 1
    colours = np.random.default_rng(1).integers(1, 256, (3, 100))
    colours[0, 50], colours[:, 20:31] = 255, np.arange(20, 31) * 8
    for name, row in zip(("Red", "Green", "Blue"), colours * scale, strict=True):
        image.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [100, first, described])
        packed = "<u1" if bits == 8 and described == 8 else "<u2"
        if kind == "plain":
            image.add_new(f"{name}PaletteColorLookupTableData", "OW", row.astype(packed).tobytes())
        else:  # discrete, linear, discrete (PS3.3 C.7.9.2)
            parts = [0, 21, *row[:21], 1, 10, row[30], 0, 69, *row[31:]]
            content = np.array(parts).astype(packed).tobytes()
            image.add_new(
                f"Segmented{name}PaletteColorLookupTableData", "OW", content + b"\0" * (len(content) % 2)
            )
    folder = dicom_files.write(tmp_path / "x", [image], syntax)
    picture = read_image(folder / "0.dcm")
    np.testing.assert_array_equal(picture.array, colours[:, np.clip(indices.astype(int) - first, 0, 99)])
    if syntax == LITTLE and described == bits:
        theirs = apply_color_lut(indices, pydicom.dcmread(folder / "0.dcm"))
        np.testing.assert_array_equal(picture.array, (theirs // scale).transpose(2, 0, 1))
    assert ("the palette says" in said(picture)) == (described != bits)


def compressed(image: Dataset, codes: np.ndarray, bits: int, syntax: str) -> Dataset:
    if syntax == JPEG2000Lossless:
        content = pytest.importorskip("openjpeg.utils").encode_array(codes, bits_stored=bits)
    else:
        content = pytest.importorskip("jpeg_ls").encode_pixel_data(
            codes.tobytes(),
            rows=codes.shape[0],
            columns=codes.shape[1],
            samples_per_pixel=1,
            bits_allocated=16,
            bits_stored=bits,
            pixel_representation=0,
            photometric_interpretation="MONOCHROME2",
        )
    image.PixelData = encapsulate([bytes(content)])
    image["PixelData"].is_undefined_length = True
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = syntax
    return image


CODES = [(JPEG2000Lossless, signed) for signed in (False, True)] + [(JPEGLSLossless, False)]


@table(CODES, [10, 12, 16], [False, True], [10, 12, 16])
def test_compressed_pixels_of_another_sign_or_depth_are_gdcms(
    dicom_files: Files, tmp_path: Path, variant: Any
) -> None:
    (syntax, coded_signed), coded_bits, signed, bits = variant
    codes = pixels(coded_bits, coded_signed, shape=(40, 36))
    (image,) = dicom_files.stack(np.zeros((36, 40, 1), np.uint16), modality="MR", SliceThickness=2)
    image.BitsStored, image.HighBit, image.PixelRepresentation = bits, bits - 1, int(signed)
    path = tmp_path / "x.dcm"
    compressed(image, codes, coded_bits, syntax).save_as(path, enforce_file_format=True)
    volume = read_image(path)
    same(volume.array, by_itk_file(path))
    contradicts = syntax == JPEG2000Lossless and signed != coded_signed
    assert ("Pixel Representation (0028,0103)" in said(volume)) == contradicts
    assert ("Bits Stored (0028,0101)" in " ".join(volume.doubts)) == (
        coded_bits > bits or (coded_bits < bits and signed and not coded_signed)
    )


@table(CODES, [False, True])
def test_more_bits_than_needed_are_no_fault(dicom_files: Files, tmp_path: Path, variant: Any) -> None:
    (syntax, coded_signed), signed = variant
    values = pixels(10, signed and coded_signed, shape=(40, 36))
    values = values if signed == coded_signed or not signed else values.astype(np.int16) - 512
    (image,) = dicom_files.stack(np.zeros((36, 40, 1), np.uint16), modality="MR", SliceThickness=2)
    image.BitsStored, image.HighBit, image.PixelRepresentation = 12, 11, int(signed)
    path = tmp_path / "x.dcm"
    codes = values.astype(np.int16 if coded_signed else np.uint16)
    compressed(image, codes, 16, syntax).save_as(path, enforce_file_format=True)
    volume = read_image(path)
    same(volume.array[..., 0].T, values)
    assert not volume.doubts


def by_itk_file(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path))).transpose()


@table(
    ["slices", "enhanced"],
    ["MONOCHROME1", "MONOCHROME2"],
    ["0.25"],
    ["rescale", "lut"],
    [12, 16],
    [0, 1],
)
def test_jpeg_lossless_means_what_its_plain_pixels_mean(
    dicom_files: Files, tmp_path: Path, variant: Any
) -> None:
    kind, photometric, slope, how, bits, signed = variant
    stored = pixels(bits, bool(signed), shape=(16, 18, 3))
    if kind == "slices":
        images = dicom_files.stack(stored, modality="MR")
    else:
        images = [dicom_files.enhanced(stored, "MR")]
        del images[0].SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence
    for image in images:
        image.PhotometricInterpretation, image.BitsStored, image.HighBit = photometric, bits, bits - 1
        image.RescaleSlope, image.RescaleIntercept, image.PixelPaddingValue = (
            slope,
            "-1000",
            int(stored[0, 0, 0]),
        )
        if how == "lut":
            image.ModalityLUTSequence = lut(np.arange(4000, dtype=np.uint16)[::-1], 0, "OW", bool(signed))
    plain = read_image(dicom_files.write(tmp_path / "plain", images))
    (tmp_path / "jpeg").mkdir()
    for number, image in enumerate(images):
        frames = np.frombuffer(image.PixelData, stored.dtype).reshape(-1, 18, 16)
        image.PixelData = encapsulate([dicom_files.jpeg_lossless(frame) for frame in frames])
        image["PixelData"].is_undefined_length = True
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = JPEGLosslessSV1
        image.save_as(tmp_path / "jpeg" / f"{number}.dcm", enforce_file_format=True)
    found = read_image(tmp_path / "jpeg")
    np.testing.assert_array_equal(found.array, plain.array)
    np.testing.assert_array_equal(found.grid.affine, plain.grid.affine)


@table([("FloatPixelData", "f4", 0x7FE00008), ("DoubleFloatPixelData", "f8", 0x7FE00009)], ["CT", "MR", "DX"])
def test_float_pixels_are_refused_by_name(dicom_files: Files, tmp_path: Path, variant: Any) -> None:
    (keyword, dtype, tag), modality = variant
    image = dicom_files.place(
        dicom_files.image(pixels(12, False, shape=(ROWS, COLUMNS)), modality), (0, 0, 0)
    )
    del image.PixelData
    setattr(image, keyword, np.linspace(0, 1, ROWS * COLUMNS).astype(dtype).tobytes())
    image.BitsAllocated = 8 * np.dtype(dtype).itemsize
    with pytest.raises(InputError, match=rf"Pixel Data \(7FE0,{tag & 0xFFFF:04X}\)"):
        read_image(dicom_files.write(tmp_path / "x", [image]))


# --- said in the documents -------------------------------------------------------------------------


def documented() -> Iterator[tuple[str, str]]:
    """(keyword, what is done with it) of the rows of the table in docs/data.md."""
    text = (Path(__file__).parents[3] / "docs/data.md").read_text()
    section = text.split("### DICOM attributes that change values or geometry")[1].split("\n#")[0]
    for line in section.splitlines():
        if line.startswith("| `"):
            keywords, deed = line.strip("| ").split(" | ", 1)
            for keyword in keywords.replace("`", "").split(", "):
                yield keyword, deed


def test_every_attribute_that_is_read_has_its_row() -> None:
    from sgan_core.imaging.dicom.headers import GEOMETRY, VALUES

    rows = dict(documented())
    wanted = set(f"{GEOMETRY} {VALUES}".split())
    assert wanted <= set(rows)
    assert all(deed.startswith("ignored") for keyword, deed in rows.items() if keyword not in wanted)
    assert not any(deed.startswith("ignored") for keyword, deed in rows.items() if keyword in wanted)
    known = pydicom.datadict.tag_for_keyword, pydicom.datadict.repeater_has_keyword
    assert all(any(known_by(keyword) for known_by in known) for keyword in rows)


def test_there_are_three_hundred_variants() -> None:
    assert sum(map(len, TABLES)) >= 300
