"""2,000 mutated headers: an InputError, something said, or the very result that independent readers have.

A reader that takes a damaged or odd header for another one draws a mask on a scan that does not exist. So each
result is compared, values and place, with pydicom and SimpleITK (DICOM), nibabel and SimpleITK (NIfTI), pynrrd
(NRRD), tifffile and SimpleITK (TIFF). What none of them can read must be refused, unless it is still the image
that it was before.
"""

from __future__ import annotations

import gzip
import logging
import struct
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import tifffile
from pydicom.datadict import dictionary_VR
from pydicom.pixels import apply_modality_lut
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from sgan_core.errors import InputError
from sgan_core.imaging.grid import ras_from_lps
from sgan_core.imaging.image import Volume
from sgan_core.imaging.readers import read_image

AIR_HU = -200  # padding becomes something darker than this, which is not compared


@dataclass(frozen=True)
class Answer:
    """What a reader makes of a file."""

    values: np.ndarray  # (I, J, K), or (C, H, W) of a picture
    affine: np.ndarray | None = None  # (4, 4) to RAS mm; None for a picture
    padded: np.ndarray | None = None  # of the values: no part of the image

    def agrees(self, other: Answer) -> bool:
        """Whether values are equal to float32 and voxels lie within a tenth of their size."""
        if self.values.shape != other.values.shape or (self.affine is None) != (other.affine is None):
            return False
        if self.affine is not None and other.affine is not None:
            corners = np.array(np.meshgrid(*((0, n - 1) for n in self.values.shape))).reshape(3, -1)
            apart = (self.affine - other.affine) @ np.vstack([corners, np.ones(8)])
            size = np.linalg.norm(other.affine[:3, :3], axis=0)[np.array(self.values.shape) > 1]
            if not np.abs(apart).max() <= 0.1 * size.min(initial=np.inf):
                return False
        same = np.isclose(self.values, other.values, rtol=1e-5, atol=1e-3, equal_nan=True)
        return bool((same | other.padded if other.padded is not None else same).all())


Reader = Callable[[Path], Answer]


def ours(path: Path) -> tuple[Answer, set[str]]:
    """Our answer, and what is said of it."""
    image = read_image(path)
    said = {*image.warnings, *image.doubts}
    return Answer(image.array.astype(float), image.grid.affine if isinstance(image, Volume) else None), said


def outcome(path: Path, original: Answer, usual: set[str], readers: Sequence[Reader]) -> str:
    """One of refused, said, right, unharmed; or what is wrong."""
    try:
        found, said = ours(path)
    except InputError as error:
        return "said what it must not" if "SECRET" in str(error) else "refused"
    if said - usual:
        return "said"
    references = []
    for reader in readers:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                references.append(reader(path))
        except Exception:  # noqa: BLE001, S112  the libraries raise anything
            continue
    if any(found.agrees(reference) for reference in references):
        return "right"
    if not references and found.agrees(original):
        return "unharmed"
    theirs = (
        ", ".join(f"{reader.values.shape} {reader.values.ravel()[:3]}" for reader in references)
        or "unreadable"
    )
    return f"ours {found.values.shape} {found.values.ravel()[:3]}, theirs {theirs}"


def run(
    trials: int, make: Callable[[np.random.Generator], tuple[Path, str]], of: Callable[[Path, str], str]
) -> Counter[str]:
    """Outcomes of mutated files. make: writes one, and says what was done to it."""
    counts: Counter[str] = Counter()
    wrong = []
    for seed in range(trials):
        path, what = make(np.random.default_rng(seed))
        result = of(path, what)
        counts[result.split()[0]] += 1
        if result not in ("refused", "said", "right", "unharmed"):
            wrong.append(f"seed {seed}: {what}: {result}")
    assert not wrong, f"{len(wrong)} of {trials} {dict(counts)}\n" + "\n".join(wrong[:40])
    assert min(counts["refused"], counts["right"]) > 0, counts
    return counts


def spoilt(content: bytes, rng: np.random.Generator, start: int, stop: int) -> tuple[bytes, str]:
    """Some bytes of a header changed."""
    changed = bytearray(content)
    done = []
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(start, stop))
        kind = int(rng.integers(0, 4))
        if kind == 0:
            changed[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            changed[at] = int(rng.choice([0, 1, 2, 0x30, 0x39, 0x7F, 0x80, 0xFF]))
        elif kind == 2:
            changed[at : at + 4] = rng.bytes(4)
        else:
            changed[at : at + 2] = rng.bytes(2)
        done.append(f"{('bit', 'byte', 'four', 'two')[kind]} at {at}")
    return bytes(changed), ", ".join(done)


# --- DICOM -----------------------------------------------------------------------------------------

ATTRIBUTES: dict[str, list[Any]] = {
    "Rows": [1, 5, 7, 12],
    "Columns": [1, 7, 9, 16],
    "NumberOfFrames": ["1", "2", "3", "5"],
    "BitsStored": [8, 12, 15, 16],
    "HighBit": [7, 11, 14, 15],
    "BitsAllocated": [8, 16, 32],
    "PixelRepresentation": [0, 1],
    "SamplesPerPixel": [1, 3],
    "PlanarConfiguration": [0, 1],
    "PhotometricInterpretation": ["MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "PALETTE COLOR"],
    "ImagePositionPatient": [
        ["0", "0", "0"],
        ["1.5", "-20", "40"],
        ["-10", "-20", "31"],
        ["-10", "-20", "-34"],
    ],
    "ImageOrientationPatient": [
        ["1", "0", "0", "0", "0", "-1"],
        ["0", "1", "0", "1", "0", "0"],
        ["-1", "0", "0", "0", "-1", "0"],
        ["0.999", "0.0447", "0", "-0.0447", "0.999", "0"],
    ],
    "PixelSpacing": [["1", "2"], ["2", "1"], ["0.5", "0.5"], ["1000", "1000"]],
    "SliceThickness": ["0.1", "100", "-2"],
    "SpacingBetweenSlices": ["0.1", "100", "-2"],
    "ImagerPixelSpacing": [["0.1", "0.1"]],
    "PixelAspectRatio": [["1", "2"], ["1", "1"]],
    "GantryDetectorTilt": ["0", "15"],
    "RescaleSlope": ["2", "0.5", "-1", "1"],
    "RescaleIntercept": ["-1024", "100", "0", "0.25"],
    "RescaleType": ["HU", "US", "OD"],
    "WindowCenter": ["40"],
    "PixelPaddingValue": [0, 50, 65535],
    "Modality": ["CT", "MR", "SEG", "PT", "OT"],
    "SOPClassUID": [
        "1.2.840.10008.5.1.4.1.1.4",
        "1.2.840.10008.5.1.4.1.1.7",
        "1.2.840.10008.5.1.4.1.1.66.4",
        "1.2.840.10008.5.1.4.1.1.88.11",
        "1.2.840.10008.5.1.4.1.1.481.3",
    ],
    "SeriesInstanceUID": ["1.2.4"],
    "InstanceNumber": ["1", "7", "100"],
    "AcquisitionNumber": ["1", "2"],
    "EchoTime": ["2", "4.6"],
    "ImageType": [["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "SECONDARY", "MPR"]],
    "PresentationLUTShape": ["INVERSE", "IDENTITY"],
    "LossyImageCompression": ["01"],
    "SpecificCharacterSet": ["ISO_IR 100", "ISO 2022 IR 87"],
}


def dicom_samples(dicom_files: Any, folder: Path) -> list[Path]:
    """Folders with a CT, an MR of unsigned 12 bits, an enhanced CT and MR, an X-ray, colours, a compressed CT."""
    rng = np.random.default_rng(0)
    signed = rng.integers(-1000, 1000, (8, 6, 3)).astype(np.int16)
    unsigned = rng.integers(0, 4096, (8, 6, 3)).astype(np.uint16)
    plain = {"SliceThickness": 2, "RescaleSlope": 1, "RescaleIntercept": 0}
    twelve = {"BitsStored": 12, "HighBit": 11}
    mr = {"modality": "MR", "EchoTime": 2, **twelve}
    flat = unsigned[..., 0]
    kinds: list[tuple[list[Any], str]] = [
        (dicom_files.stack(signed, **plain), ""),
        (dicom_files.stack(unsigned + 24, **plain | {"RescaleIntercept": -1024}), ""),
        (dicom_files.stack(unsigned, **mr), ""),
        ([dicom_files.enhanced(unsigned, shared=False)], ""),
        ([dicom_files.enhanced(unsigned, "MR", slopes=[1, 2, 3])], ""),
        ([dicom_files.image(flat, "DX", PhotometricInterpretation="MONOCHROME1", **twelve)], ""),
        ([dicom_files.image(flat, "DX", PresentationLUTShape="IDENTITY", **twelve)], ""),
        ([dicom_files.image(rng.integers(0, 256, (8, 6, 3)).astype(np.uint8), "XC")], ""),
        (dicom_files.stack(signed, **plain), RLELossless),
    ]
    made = []
    for number, (images, syntax) in enumerate(kinds):
        for k, image in enumerate(images):
            dicom_files.save(folder / str(number) / f"{k}.dcm", image, *([syntax] if syntax else []))
        made.append(folder / str(number))
    return made


def frame_value(dataset: Any, frame: int, sequence: str, keyword: str) -> Any:
    """Of the frame's own functional groups, else of the shared ones, else of the top level (PS3.3 C.7.6.16)."""
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    for item in (*own[frame : frame + 1], *(dataset.get("SharedFunctionalGroupsSequence") or [])):
        if item.get(sequence) and item[sequence][0].get(keyword) is not None:
            return item[sequence][0].get(keyword)
    return dataset.get(keyword)


def by_pydicom(folder: Path) -> Answer:
    slices = []
    for file in sorted(folder.iterdir()):
        dataset = pydicom.dcmread(file, force=True)
        if "TransferSyntaxUID" not in dataset.file_meta and dataset.original_encoding == (False, True):
            dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        pixels = dataset.pixel_array
        if dataset.SamplesPerPixel == 3:
            assert pixels.ndim == 3
            return Answer(pixels.transpose(2, 0, 1).astype(float))
        frames = pixels.reshape(-1, *pixels.shape[-2:])
        for number, stored in enumerate(frames):
            padding = dataset.get("PixelPaddingValue")
            if isinstance(padding, bytes):
                padding = int.from_bytes(padding, "little")
            bits, signed = int(dataset.BitsStored), dataset.PixelRepresentation
            padded = np.zeros(stored.shape, bool)
            if padding is not None:
                padded = stored.astype(int) == (padding - 65536 if signed and padding > 32767 else padding)
            inverse = dataset.PhotometricInterpretation == "MONOCHROME1" and dataset.Modality != "CT"
            seen = ((-1 if signed else 2**bits - 1) - stored.astype(int)) if inverse else stored
            slope = frame_value(dataset, number, "PixelValueTransformationSequence", "RescaleSlope")
            intercept = frame_value(dataset, number, "PixelValueTransformationSequence", "RescaleIntercept")
            values = apply_modality_lut(seen, pydicom.Dataset())
            values = values * float(1 if slope is None else slope) + float(
                0 if intercept is None else intercept
            )
            position = frame_value(dataset, number, "PlanePositionSequence", "ImagePositionPatient")
            orientation = frame_value(dataset, number, "PlaneOrientationSequence", "ImageOrientationPatient")
            spacing = frame_value(dataset, number, "PixelMeasuresSequence", "PixelSpacing")
            slices.append((values, padded, position, orientation, spacing))
    if len(slices) == 1 and slices[0][2] is None:
        return Answer(slices[0][0][None], None, slices[0][1][None])
    orientations = np.array([one[3] for one in slices], float)
    spacings = np.array([one[4] for one in slices], float)
    assert np.ptp(orientations, axis=0).max() < 1e-3
    assert np.ptp(spacings, axis=0).max() < 1e-3
    row, column = orientations[0].reshape(2, 3)
    positions = np.array([one[2] for one in slices], float)
    order = np.argsort(positions @ np.cross(row, column))
    steps = np.diff(positions[order], axis=0)
    assert len(steps)
    assert np.ptp(steps, axis=0).max() < 0.02
    assert np.abs(steps).max() > 0.01
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * spacings[0, 1], column * spacings[0, 0]
    affine[:3, 2], affine[:3, 3] = steps.mean(axis=0), positions[order[0]]
    values = np.stack([slices[k][0].T for k in order], axis=-1)
    return Answer(values, ras_from_lps(affine), np.stack([slices[k][1].T for k in order], axis=-1))


def of_itk(image: sitk.Image) -> Answer:
    array = sitk.GetArrayFromImage(image).astype(float)
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return Answer(array.transpose(), ras_from_lps(affine))


def by_gdcm(folder: Path) -> Answer:
    files = sorted(map(str, folder.iterdir()))
    if len(files) > 1:
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
        assert sorted(names) == files
        return of_itk(sitk.ReadImage(names, imageIO="GDCMImageIO"))
    # It takes the first frame's rescale for all of them.
    assert "PerFrameFunctionalGroupsSequence" not in pydicom.dcmread(files[0], stop_before_pixels=True)
    image = sitk.ReadImage(files[0], imageIO="GDCMImageIO")
    if image.GetNumberOfComponentsPerPixel() == 3:
        return Answer(sitk.GetArrayFromImage(image)[0].transpose(2, 0, 1).astype(float))
    return of_itk(image)


def by_gdcm_as_picture(folder: Path) -> Answer:
    values = by_gdcm(folder).values
    assert values.shape[2] == 1
    return Answer(values.transpose(2, 1, 0))


@pytest.fixture(autouse=True)
def _silence(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.IGNORE)
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.IGNORE)
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    logging.disable()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)
    sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def changed_attributes(file: Path, keywords: Sequence[str], rng: np.random.Generator) -> str:
    """Set, empty or delete attributes wherever the file has them, else at its top level."""
    dataset = pydicom.dcmread(file)
    done = []
    for keyword in keywords:
        holders = [item for item in holding(dataset, keyword)] or [dataset]
        kind = int(rng.integers(0, 8))
        value = ATTRIBUTES[keyword][int(rng.integers(0, len(ATTRIBUTES[keyword])))]
        for holder in holders[int(rng.integers(0, len(holders))) :]:
            if kind == 0 and keyword in holder:
                del holder[keyword]
            elif kind == 1:
                holder[keyword] = pydicom.DataElement(keyword, binary_vr(keyword), None)
            elif kind > 1:
                holder[keyword] = pydicom.DataElement(keyword, binary_vr(keyword), value)
        done.append(f"{keyword} {('deleted', 'empty')[kind] if kind < 2 else value}")
    dataset.save_as(file, enforce_file_format=True)
    return ", ".join(done)


def binary_vr(keyword: str) -> str:
    vr = dictionary_VR(keyword)
    return "US" if vr == "US or SS" else vr


def holding(dataset: Any, keyword: str) -> list[Any]:
    """The data sets, nested ones too, that have an attribute."""
    own = [dataset] if keyword in dataset else []
    nested = (item for element in dataset if element.VR == "SQ" for item in element.value)
    return own + [found for item in nested for found in holding(item, keyword)]


@pytest.mark.parametrize("bytewise", [False, True])
def test_dicom(dicom_files: Any, tmp_path: Path, bytewise: bool) -> None:
    samples = dicom_samples(dicom_files, tmp_path / "samples")
    contents = {folder: {file.name: file.read_bytes() for file in folder.iterdir()} for folder in samples}
    originals = {folder: ours(folder) for folder in samples}
    target = tmp_path / "case"
    target.mkdir()
    sources = {}

    def make(rng: np.random.Generator) -> tuple[Path, str]:
        for file in target.iterdir():
            file.unlink()
        source = samples[int(rng.integers(0, len(samples)))]
        sources[target] = source
        for name, content in contents[source].items():
            (target / name).write_bytes(content)
        files = sorted(target.iterdir())
        if rng.integers(0, 2):  # one slice, or all of them alike
            files = [files[int(rng.integers(0, len(files)))]]
        keywords = list(rng.choice(list(ATTRIBUTES), int(rng.integers(1, 3)), replace=False))
        seed = int(rng.integers(0, 1 << 30))
        for file in files:
            again = np.random.default_rng(seed)
            if bytewise:
                content = file.read_bytes()
                spoiled, what = spoilt(content, again, 128, min(len(content), 1100))
                file.write_bytes(spoiled)
            else:
                what = changed_attributes(file, keywords, again)
        return target, f"sample {source.name}, {len(files)} file(s): {what}"

    def of(path: Path, _what: str) -> str:
        readers = (by_pydicom, by_gdcm, by_gdcm_as_picture)
        return outcome(path, *originals[sources[path]], readers)

    for folder in samples:  # the references read what is whole as we do
        assert outcome(folder, *originals[folder], (by_pydicom,)) == "right", folder
    run(400, make, of)


# --- NIfTI -----------------------------------------------------------------------------------------

_UNIT_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
FIELDS: dict[str, list[Any]] = {
    "xyzt_units": [0, 1, 2, 3, 10, 11, 8, 18, 255],
    "qform_code": [0, 1, 2, 4, 77],
    "sform_code": [0, 1, 2, 4, -3],
    "pixdim": [
        [1, 2, 2, 2, 0, 0, 0, 0],
        [-1, 0.7, 0.8, 2, 0, 0, 0, 0],
        [0, 0.7, 0.8, 2, 0, 0, 0, 0],
        [1, -0.7, 0.8, 2, 1, 1, 1, 1],
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 700, 800, 2000, 0, 0, 0, 0],
    ],
    "quatern_b": [0.0, 0.01, 0.7071068, 1.0000002, 1.01, -1.0, np.nan],
    "quatern_c": [0.0, 0.01, 0.7071068, 1.0000002, 1.01, -1.0],
    "quatern_d": [0.0, 0.01, 0.7071068, 1.0000002, 1.01, -1.0],
    "qoffset_x": [0.0, 100.0, np.inf],
    "srow_x": [[0.7, 0, 0, 10], [1, 0, 0, 10], [-0.7, 0, 0, 10], [0, 0, 0, 0], [700, 0, 0, 10000]],
    "srow_y": [[0, 0.8, 0, 20], [0, 1, 0, 20], [0.7, 0.8, 0, 20]],
    "srow_z": [[0, 0, 2, 30], [0, 0, 1, 30], [0, 0, -2, 30], [0, 0.1, 2, 30], [np.nan, 0, 2, 30]],
    "scl_slope": [0.0, 1.0, 2.0, -1.0, np.nan, np.inf],
    "scl_inter": [0.0, -1024.0, 0.5, np.nan],
    "datatype": [2, 4, 8, 16, 64, 256, 512, 768, 128, 1792],
    "bitpix": [8, 16, 32],
    "dim": [
        [3, 8, 6, 3, 1, 1, 1, 1],
        [3, 6, 8, 3, 1, 1, 1, 1],
        [4, 8, 6, 3, 1, 1, 1, 1],
        [4, 8, 6, 1, 3, 1, 1, 1],
        [2, 8, 6, 0, 0, 0, 0, 0],
        [5, 8, 6, 3, 1, 1, 1, 1],
        [3, 8, 6, -3, 1, 1, 1, 1],
        [3, 8, 6, 2, 1, 1, 1, 1],
    ],
    "vox_offset": [0, 352, 354, 368, 348],
    "magic": [b"n+1", b"ni1", b"n+2", b""],
    "intent_code": [0, 1002, 1007, 2003],
    "cal_max": [100.0],
    "slice_end": [2],
    "sizeof_hdr": [348, 0, 540],
    "regular": [b"r"],
    "dim_info": [0x39],
}


def by_nibabel(path: Path) -> Answer:
    image = nib.load(path, mmap=False)
    values = np.asanyarray(image.dataobj)
    assert values.dtype.fields is None
    assert values.dtype.kind != "c"
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    values = values.reshape((*values.shape, 1, 1)[:3] if values.ndim < 3 else values.shape)
    affine = image.affine.copy()
    affine[:3] *= _UNIT_MM[int(image.header["xyzt_units"]) & 7]
    return Answer(filled(values.astype(float)), affine)


def filled(values: np.ndarray) -> np.ndarray:
    """As our readers have it: no value becomes the lowest."""
    finite = np.isfinite(values)
    return np.where(finite, values, values[finite].min())


def by_itk(path: Path) -> Answer:
    image = sitk.ReadImage(str(path))
    while image.GetDimension() > 3:
        size = list(image.GetSize())
        assert size[-1] == 1
        image = sitk.Extract(image, [*size[:-1], 0], [0] * len(size))
    if image.GetDimension() == 2:
        image = sitk.JoinSeries(image)
    return of_itk(image)


def nifti_samples() -> list[tuple[str, bytes]]:
    rng = np.random.default_rng(0)
    whole = rng.integers(-1000, 1000, (8, 6, 3)).astype(np.int16)
    affine = np.array([[-0.7, 0, 0, 10], [0, -0.8, 0, 20], [0, 0, 2, 30], [0, 0, 0, 1.0]])
    made = []
    for kind, data, codes in (
        (nib.Nifti1Image, whole, (1, 1)),
        (nib.Nifti1Image, whole, (0, 1)),
        (nib.Nifti1Image, whole, (1, 0)),
        (nib.Nifti1Image, whole.astype(np.float32) / 7, (1, 1)),
        (nib.Nifti2Image, whole, (1, 1)),
        (nib.Nifti1Image, whole, (1, 1)),
    ):
        image = kind(data, affine)
        image.set_sform(affine, codes[0])
        image.set_qform(affine, codes[1])
        image.header.set_xyzt_units("mm", "sec")
        content = image.to_bytes()
        if len(made) == 5:  # big endian
            content = kind(data.byteswap().view(">i2"), affine, image.header.as_byteswapped(">")).to_bytes()
        made.append((".nii", content))
    made.append((".nii.gz", made[0][1]))
    return made


def changed_fields(content: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Fields of a NIfTI header set, whatever its version and byte order."""
    two = struct.unpack("<i", content[:4])[0] == 540 or struct.unpack(">i", content[:4])[0] == 540
    kind = nib.Nifti2Header if two else nib.Nifti1Header
    size = kind.sizeof_hdr
    little = content[0] != 0
    header = np.frombuffer(content[:size], kind.template_dtype.newbyteorder("<" if little else ">"), 1).copy()
    done = []
    for name in rng.choice(list(FIELDS), int(rng.integers(1, 3)), replace=False):
        value = FIELDS[name][int(rng.integers(0, len(FIELDS[name])))]
        if name == "magic" and two or name == "sizeof_hdr" and two or name not in header.dtype.names:
            continue
        header[name] = value
        done.append(f"{name} {value}")
    return header.tobytes() + content[size:], ", ".join(done)


@pytest.mark.parametrize("bytewise", [False, True])
def test_nifti(tmp_path: Path, bytewise: bool) -> None:
    samples = nifti_samples()
    originals = []
    for number, (suffix, content) in enumerate(samples):
        path = tmp_path / f"sample{number}{suffix}"
        path.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
        originals.append(ours(path))
        assert outcome(path, *originals[-1], (by_nibabel,)) == "right"
    source = {}

    def make(rng: np.random.Generator) -> tuple[Path, str]:
        number = int(rng.integers(0, len(samples)))
        suffix, content = samples[number]
        changed, what = spoilt(content, rng, 0, 352) if bytewise else changed_fields(content, rng)
        path = tmp_path / f"case{suffix}"
        path.write_bytes(gzip.compress(changed) if suffix == ".nii.gz" else changed)
        source[path] = number
        return path, f"sample {number}: {what}"

    run(250, make, lambda path, _: outcome(path, *originals[source[path]], (by_nibabel, by_itk)))


# --- NRRD ------------------------------------------------------------------------------------------

LINES: dict[str, list[str]] = {
    "type": ["short", "ushort", "unsigned char", "int", "float", "double", "int8", "block"],
    "dimension": ["2", "3", "4"],
    "space": ["left-posterior-superior", "right-anterior-superior", "LAS", "scanner-xyz", "3D-left-handed"],
    "sizes": ["8 6 3", "6 8 3", "8 6 2", "8 18 1", "8 6 3 1", "144"],
    "space directions": [
        "(0.7,0,0) (0,0.8,0) (0,0,2)",
        "(0.7,0,0) (0,0.8,0) (0,0,-2)",
        "(0,0.7,0) (0.8,0,0) (0,0,2)",
        "none (0,0.8,0) (0,0,2)",
        "(0,0,0) (0,0.8,0) (0,0,2)",
        "(0.7,0,0) (0,0.8,0)",
        "(700,0,0) (0,800,0) (0,0,2000)",
    ],
    "space origin": ["(10,20,30)", "(0,0,0)", "(nan,0,0)", "(1,2)"],
    "space units": [
        '"mm" "mm" "mm"',
        '"m" "m" "m"',
        '"um" "um" "um"',
        '"mm" "mm" "m"',
        '"inch" "inch" "inch"',
    ],
    "kinds": ["domain domain domain", "list domain domain", "domain domain time", "vector domain domain"],
    "endian": ["little", "big"],
    "encoding": ["raw", "ascii", "gzip", "hex"],
    "byte skip": ["0", "2", "-1"],
    "line skip": ["0", "1"],
    "spacings": ["1 2 3"],
    "units": ['"m" "m" "m"'],
    "measurement frame": ["(1,0,0) (0,1,0) (0,0,1)", "(0,1,0) (1,0,0) (0,0,1)"],
    "content": ["nothing"],
    "data file": ["other.raw", "../outside.raw", "LIST"],
    "old min": ["0"],
}

_FLIPS = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
}
_NRRD_UNIT_MM = {"mm": 1.0, "m": 1000.0, "um": 0.001, "": 1.0}


def by_pynrrd(path: Path) -> Answer:
    data, header = nrrd.read(str(path))
    assert "block" not in str(header["type"])
    assert not {"spacings", "thicknesses"} & header.keys() or "space directions" in header
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    affine = np.eye(4)
    directions = np.array(header["space directions"], float)[:3]
    affine[:3, : len(directions)] = directions.T
    affine[:3, 3] = header["space origin"]
    units = {unit.strip('"').lower() for unit in header.get("space units", ["mm"])}
    assert len(units) == 1
    affine[:3] *= _NRRD_UNIT_MM[units.pop()]
    affine[:3] *= np.array(_FLIPS[str(header["space"]).lower()])[:, None]
    assert not {"list", "vector", "time"} & set(header.get("kinds", []))
    return Answer(filled(data.astype(float)), affine)


@pytest.mark.parametrize("bytewise", [False, True])
def test_nrrd(tmp_path: Path, bytewise: bool) -> None:
    array = np.random.default_rng(0).integers(-1000, 1000, (8, 6, 3)).astype("<i2")
    texts, originals = [], []
    for extra in ([], ['space units: "mm" "mm" "mm"', "kinds: domain domain domain"]):
        text = "\n".join(
            [
                "NRRD0005",
                "type: short",
                "dimension: 3",
                "space: left-posterior-superior",
                "sizes: 8 6 3",
                "space directions: (0.7,0,0) (0,0.8,0) (0,0,2)",
                "space origin: (10,20,30)",
                "endian: little",
                "encoding: raw",
                *extra,
            ]
        )
        path = tmp_path / "sample.nrrd"
        path.write_bytes(text.encode() + b"\n\n" + array.tobytes("F"))
        texts.append(text)
        originals.append(ours(path))
        assert outcome(path, *originals[-1], (by_pynrrd,)) == "right"
    source = {}

    def make(rng: np.random.Generator) -> tuple[Path, str]:
        number = int(rng.integers(0, len(texts)))
        text = texts[number].encode()
        if bytewise:
            text, what = spoilt(text, rng, 0, len(text))
        else:
            lines = texts[number].split("\n")
            done = []
            for name in rng.choice(list(LINES), int(rng.integers(1, 3)), replace=False):
                lines = [line for line in lines if not line.startswith(f"{name}:")]
                if rng.integers(0, 6):
                    lines.insert(
                        int(rng.integers(1, len(lines) + 1)),
                        f"{name}: {LINES[name][int(rng.integers(0, len(LINES[name])))]}",
                    )
                    done.append(next(line for line in lines if line.startswith(f"{name}:")))
                else:
                    done.append(f"{name} deleted")
            text, what = "\n".join(lines).encode(), ", ".join(done)
        path = tmp_path / "case.nrrd"
        path.write_bytes(text + b"\n\n" + array.tobytes("F"))
        source[path] = number
        return path, f"sample {number}: {what!r}"

    run(150, make, lambda path, _: outcome(path, *originals[source[path]], (by_pynrrd,)))


# --- TIFF ------------------------------------------------------------------------------------------

TAGS: dict[int, list[int]] = {
    254: [0, 1, 2, 4],  # NewSubfileType
    256: [8, 6, 7, 12],  # ImageWidth
    257: [6, 8, 5, 9],  # ImageLength
    258: [8, 16, 1, 12, 32],  # BitsPerSample
    259: [1, 2, 5, 32773],  # Compression
    262: [0, 1, 2, 3, 5, 6, 8],  # PhotometricInterpretation
    266: [1, 2],  # FillOrder
    274: [1, 2, 3, 4, 5, 6, 7, 8],  # Orientation
    277: [1, 2, 3, 4],  # SamplesPerPixel
    278: [1, 3, 6, 100],  # RowsPerStrip
    284: [1, 2],  # PlanarConfiguration
    317: [1, 2],  # Predictor
    338: [0, 1, 2],  # ExtraSamples
    339: [1, 2, 3],  # SampleFormat
}


def tiff_samples(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    eight = rng.integers(0, 256, (6, 8)).astype(np.uint8)
    sixteen = rng.integers(0, 65536, (6, 8)).astype(np.uint16)
    colour = rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)
    table = np.repeat(np.arange(256, dtype=np.uint16) * 257, 3).reshape(256, 3).T
    table = np.stack([table[0], table[1][::-1], table[2]])
    kinds: list[tuple[np.ndarray, dict[str, Any]]] = [
        (eight, {}),
        (sixteen, {}),
        (eight, {"photometric": "miniswhite"}),
        (sixteen, {"photometric": "miniswhite"}),
        (colour, {"photometric": "rgb"}),
        (colour.transpose(2, 0, 1).copy(), {"photometric": "rgb", "planarconfig": "separate"}),
        (eight, {"photometric": "palette", "colormap": table}),
        (sixteen.astype(np.float32) / 7, {}),
        (sixteen, {"byteorder": ">"}),
        (sixteen.astype(np.int16), {}),
        (colour.astype(np.uint16) * 257, {"photometric": "rgb"}),
    ]
    made = []
    for number, (array, how) in enumerate(kinds):
        path = folder / f"sample{number}.tif"
        more = {"photometric": "minisblack", "metadata": None, "software": False, "rowsperstrip": 6}
        extra = [(274, "H", 1, 1, True), (254, "I", 1, 0, True)]
        tifffile.imwrite(path, array, extratags=extra[:1], **more | how)
        made.append(path)
    return made


def by_tifffile(path: Path) -> Answer:
    with tifffile.TiffFile(path) as file:
        assert len(file.pages) == 1
        page = file.pages[0]
        array = page.asarray()
        kind, planar = int(page.photometric), int(page.planarconfig)
        orientation = int(page.tags[274].value) if 274 in page.tags else 1
        top = float(2**page.bitspersample - 1) if array.dtype.kind in "ub" else None
        table = None if page.colormap is None else page.colormap
    if kind == 3:
        array = (table[:, array] >> 8).astype(float)  # (3, H, W)
    elif kind == 2:
        array = (array if planar == 2 else array.transpose(2, 0, 1)).astype(float)
        assert len(array) == 3
        array = array // 256 if top == 65535 else array
    else:
        assert kind in (0, 1)
        assert array.ndim == 2
        array = (top - array if kind == 0 else array.astype(float))[None]
        array = array * 255 if top == 1 else array
    return Answer(filled(upright(array, orientation)))


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """(C, H, W) turned as the tag Orientation says (TIFF 6.0, page 36)."""
    if orientation >= 5:
        array = array.swapaxes(1, 2)
    return {
        1: array,
        2: array[:, :, ::-1],
        3: array[:, ::-1, ::-1],
        4: array[:, ::-1],
        5: array,
        6: array[:, :, ::-1],
        7: array[:, ::-1, ::-1],
        8: array[:, ::-1],
    }[orientation]


def by_itk_picture(path: Path) -> Answer:
    image = sitk.ReadImage(str(path), imageIO="TIFFImageIO")
    assert image.GetDimension() == 2
    array = sitk.GetArrayFromImage(image).astype(float)
    if array.ndim == 2:
        return Answer(array[None])
    wide = image.GetPixelID() == sitk.sitkVectorUInt16
    return Answer(array.transpose(2, 0, 1)[:3] // (256 if wide else 1))  # without alpha, which is opaque


def changed_tags(content: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Values of tags in the first directory of a TIFF file."""
    order = "<" if content[:2] == b"II" else ">"
    changed = bytearray(content)
    (start,) = struct.unpack_from(f"{order}I", content, 4)
    (count,) = struct.unpack_from(f"{order}H", content, start)
    entries = {}
    for number in range(count):
        at = start + 2 + 12 * number
        entries[struct.unpack_from(f"{order}H", content, at)[0]] = at
    known = [tag for tag in TAGS if tag in entries]
    done = []
    for tag in rng.choice(known, int(rng.integers(1, 3)), replace=False):
        value = int(rng.choice(TAGS[int(tag)]))
        at = entries[int(tag)]
        kind, length = struct.unpack_from(f"{order}HI", changed, at + 2)
        if length == 1:
            struct.pack_into(f"{order}{'H' if kind == 3 else 'I'}", changed, at + 8, value)
        else:
            (where,) = struct.unpack_from(f"{order}I", changed, at + 8)
            struct.pack_into(f"{order}H", changed, where, value)
        done.append(f"tag {tag} {value}")
    return bytes(changed), ", ".join(done)


@pytest.mark.parametrize("bytewise", [False, True])
def test_tiff(tmp_path: Path, bytewise: bool) -> None:
    samples = tiff_samples(tmp_path)
    originals = [ours(path) for path in samples]
    contents = [path.read_bytes() for path in samples]
    for path, original in zip(samples, originals, strict=True):
        assert outcome(path, *original, (by_tifffile,)) == "right", path
    source = {}

    def make(rng: np.random.Generator) -> tuple[Path, str]:
        number = int(rng.integers(0, len(samples)))
        content = contents[number]
        changed, what = spoilt(content, rng, 0, len(content) - 40) if bytewise else changed_tags(content, rng)
        path = tmp_path / "case.tif"
        path.write_bytes(changed)
        source[path] = number
        return path, f"sample {number}: {what}"

    run(200, make, lambda path, _: outcome(path, *originals[source[path]], (by_tifffile, by_itk_picture)))
