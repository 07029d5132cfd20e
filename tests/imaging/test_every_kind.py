"""Every kind of input that is read, in every format that is written, as other programs read it.

An image shows three levels: air, and two labels that are a little and much brighter. What stands in for the model sees
no more than the image that it is handed, and labels what is bright. So a label map must lie where its maker put
the brightness, in mm, whatever way the file took through reader and writer; the places are closed forms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import highdicom as hd
import nibabel as nib
import nrrd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import slicerio
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)
from scipy.spatial.transform import Rotation

from sgan_core import batch
from sgan_core.batch import BatchConfig, run_batch
from sgan_core.cohort import Intensity, Label
from sgan_core.errors import InputError
from sgan_core.imaging.dicom.seg import read_dicom_seg
from sgan_core.imaging.image import Picture, Volume
from sgan_core.imaging.readers import read_labels
from sgan_core.imaging.slices import to_model
from sgan_core.inputs import find_inputs
from sgan_core.labelling import Chosen
from sgan_core.segment import Segmentation
from sgan_core.trust import Trust

Files = Any  # tests/conftest.py
LABELS = (Label(1, "liver", (221, 130, 101), "10200004"), Label(3, "spleen", (157, 108, 162), "78961009"))
VALUES = np.array([0, 1, 3], np.uint8)  # of the levels
FORMATS = ("nifti", "nrrd", "dicom-seg")
SAME_MM = 1e-3
SHAPE = (9, 7, 5)
SPACING = (0.7, 0.8, 2.0)
ORIGIN = (-10.0, -20.0, 30.0)  # LPS, of DicomFiles.stack
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Kind:
    """An input with what must come out of it."""

    path: Path
    levels: np.ndarray  # (I, J, K) or, of a picture, (H, W): 0, 1 or 2
    affine: np.ndarray | None = None  # RAS; None of a picture
    sources: Sequence[Path] = ()  # DICOM files, of a volume one a slice of it, in its order; or one
    frames: Sequence[int] = ()  # of a multi-frame file, the frame of each slice, from 1
    resample: bool = False
    series: str | None = None  # which one of a file with several
    refused: dict[str, str] = field(default_factory=dict)  # by format, with which words


def pattern(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Levels without any symmetry; of three slices or more the first shows nothing."""
    levels = np.random.default_rng(list(shape)).choice(3, shape, p=(0.5, 0.3, 0.2))
    if len(shape) == 3 and shape[2] > 2:
        levels[..., 0] = 0
    return levels


def affine_of(
    directions: np.ndarray | None = None,
    spacing: Sequence[float] = SPACING,
    origin: Sequence[float] = ORIGIN,
) -> np.ndarray:
    """RAS affine of slices in DICOM's terms: LPS directions (3, 2) along a row and a column."""
    directions = np.eye(3)[:, :2] if directions is None else directions
    affine = np.eye(4)
    affine[:3, :2] = directions
    affine[:3, 2] = np.cross(directions[:, 0], directions[:, 1])
    affine[:3, :3] *= spacing
    affine[:3, 3] = origin
    return LPS @ affine


# --- DICOM volumes ----------------------------------------------------------------------------------

WHO = {
    "PatientName": "Doe^Jane",
    "PatientID": "ID-4711",
    "StudyInstanceUID": generate_uid(entropy_srcs=["study"]),
    "SeriesInstanceUID": generate_uid(entropy_srcs=["series"]),
    "FrameOfReferenceUID": generate_uid(entropy_srcs=["frame of reference"]),
    "StudyDate": "20200102",
    "SeriesNumber": 7,
}
HU = {"RescaleSlope": 1, "RescaleIntercept": -1024}
# As Python has them: not what DicomFiles writes of itself, but so that it says what is meant.
SAGITTAL = np.array([[0, 0], [1, 0], [0, -1]], float)
CORONAL = np.array([[1, 0], [0, 0], [0, -1]], float)
OBLIQUE = Rotation.from_euler("xyz", (10, -20, 15), degrees=True).as_matrix()[:, :2]


def series(
    files: Files,
    folder: Path,
    *,
    levels: np.ndarray | None = None,
    directions: np.ndarray | None = None,
    syntax: str = ExplicitVRLittleEndian,
    dtype: type = np.int16,
    modality: str = "CT",
    backwards: bool = False,
    inverted: bool = False,
    refused: dict[str, str] | None = None,
    without: Sequence[str] = (),
    **attributes: Any,
) -> Kind:
    """A stack of single slices."""
    levels = pattern() if levels is None else levels
    stored = (20 + 100 * (2 - levels if inverted else levels)).astype(dtype)
    attributes = WHO | {"SliceThickness": 2} | (HU if modality == "CT" else {}) | attributes
    images = files.stack(stored, directions=directions, modality=modality, **attributes)
    for image in images:
        for keyword in without:
            delattr(image, keyword)
    paths = written(files, folder, images[::-1] if backwards else images, syntax)
    affine = affine_of(directions)
    return Kind(folder, levels, affine, paths[::-1] if backwards else paths, refused=refused or {})


def written(files: Files, folder: Path, images: Sequence[Dataset], syntax: str = "") -> list[Path]:
    files.write(folder, images, syntax or ExplicitVRLittleEndian)
    return [folder / f"{number}.dcm" for number in range(len(images))]


def gaps(files: Files, folder: Path, *, heights: Sequence[float]) -> Kind:
    """Slices at these heights, mm, which the reader resamples onto steps of 2 mm."""
    levels = pattern((*SHAPE[:2], len(heights)))
    levels[0, 0], levels[1, 0] = 0, 2  # every slice has the whole range
    positions = np.array(ORIGIN) + np.outer(heights, (0, 0, 1))
    images = files.stack((20 + 100 * levels).astype(np.int16), positions=positions, **WHO, **HU)
    paths = written(files, folder, images)
    even = np.arange(0, heights[-1] + 1, SPACING[2])
    between = np.apply_along_axis(lambda column: np.interp(even, heights, column), 2, levels.astype(float))
    return Kind(folder, label_of(between / 2), affine_of(), paths, resample=True)


def tilted(files: Files, folder: Path) -> Kind:
    """Each slice lies a row further down than the last; straightened, all are as many rows higher."""
    levels = pattern()
    steps = np.arange(SHAPE[2])[:, None]
    positions = np.array(ORIGIN) + steps * (0, SPACING[1], SPACING[2])
    images = files.stack((20 + 100 * levels).astype(np.int16), positions=positions, **WHO, **HU)
    paths = written(files, folder, images)
    straight = np.zeros((SHAPE[0], SHAPE[1] + SHAPE[2] - 1, SHAPE[2]), int)
    for k in range(SHAPE[2]):
        straight[:, k : k + SHAPE[1], k] = levels[..., k]
    return Kind(folder, straight, affine_of(), paths, resample=True)


def enhanced(
    files: Files,
    folder: Path,
    *,
    modality: str = "CT",
    sop_class: str = "",
    without: Sequence[str] = (),
    order: Sequence[int] = (2, 0, 1, 4, 3),
    shared: bool = True,
    measures: bool = True,
    **attributes: Any,
) -> Kind:
    """A multi-frame object, its frames in ``order``."""
    levels = pattern((*SHAPE[:2], len(order)))
    stored = (20 + 100 * levels).astype(np.int16)
    image = files.enhanced(stored, modality, order=order, shared=shared, **WHO | attributes)
    if sop_class:
        image.SOPClassUID = sop_class
    for keyword in without:
        delattr(image, keyword)
    for group in image.SharedFunctionalGroupsSequence if not measures else ():
        del group.PixelMeasuresSequence[0].SliceThickness
    paths = written(files, folder, [image])
    frames = [list(order).index(k) + 1 for k in range(len(order))]
    spacing = SPACING if len(order) > 1 else (*SPACING[:2], 9.0)  # the thickness, where no distance is seen
    return Kind(paths[0], levels, affine_of(spacing=spacing), paths, frames)


def enhanced_files(files: Files, folder: Path, *, frames: int = 1) -> Kind:
    """Multi-frame objects of so many frames each."""
    levels = pattern((9, 7, 6))
    images = []
    for start in range(0, 6, frames):
        part = levels[..., start : start + frames]
        image = files.enhanced((20 + 100 * part).astype(np.int16), "CT", **WHO)
        for k, group in enumerate(image.PerFrameFunctionalGroupsSequence, start):
            group.PlanePositionSequence[0].ImagePositionPatient = [*ORIGIN[:2], ORIGIN[2] + k * SPACING[2]]
        images.append(image)
    refused = {"dicom-seg": "2 multi-frame files.*--format nifti"} if frames > 1 else {}
    return Kind(folder, levels, affine_of(), written(files, folder, images), refused=refused)


def second_echo(files: Files, folder: Path) -> Kind:
    """Frames 6 to 10 lie where 1 to 5 do."""
    levels = pattern()
    stored = (20 + 100 * levels).astype(np.int16)
    times = [10.0] * SHAPE[2] + [20.0] * SHAPE[2]
    image = files.enhanced(stored, "MR", order=[*range(SHAPE[2])] * 2, echo_times=times, **WHO)
    paths = written(files, folder, [image])
    return Kind(paths[0], levels, affine_of(), paths, range(6, 11), series="7.2")


def with_a_copy(files: Files, folder: Path) -> Kind:
    """One slice in two instances, of which either may be referred to."""
    kind = series(files, folder, levels=pattern((9, 7, 3)))
    copy = pydicom.dcmread(folder / "1.dcm")
    copy.SOPInstanceUID = copy.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    copy.save_as(folder / "copy.dcm")
    return replace(kind, sources=[*kind.sources, folder / "copy.dcm"])


ENHANCED_PET, LEGACY_CT = "1.2.840.10008.5.1.4.1.1.130", "1.2.840.10008.5.1.4.1.1.2.2"
XA_3D, TOMOSYNTHESIS = "1.2.840.10008.5.1.4.1.1.13.1.1", "1.2.840.10008.5.1.4.1.1.13.1.3"
CAPTURE, CAPTURES = "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.7.3"
PET = "1.2.840.10008.5.1.4.1.1.128"
NO_INSTANCE = {"dicom-seg": "SOPInstanceUID is missing.*--format nifti"}

VOLUMES: dict[str, Callable[[Files, Path], Kind]] = {
    "CT, explicit little endian": series,
    "CT, implicit little endian": partial(series, syntax=ImplicitVRLittleEndian),
    "CT, big endian": partial(series, syntax=ExplicitVRBigEndian),
    "CT, deflated": partial(
        series,
        syntax=DeflatedExplicitVRLittleEndian,
        refused=dict.fromkeys(FORMATS, "deflated.*Explicit VR Little Endian"),
    ),
    "CT, RLE": partial(series, syntax=RLELossless),
    "CT, JPEG-LS": partial(series, syntax=JPEGLSLossless),
    "CT, JPEG 2000": partial(series, syntax=JPEG2000Lossless, levels=pattern((40, 36, 3))),
    "CT, JPEG Lossless": partial(series, syntax=JPEGLosslessSV1),
    "CT, unsigned": partial(series, dtype=np.uint16),
    "CT, sagittal": partial(series, directions=SAGITTAL),
    "CT, coronal": partial(series, directions=CORONAL),
    "CT, oblique": partial(series, directions=OBLIQUE),
    "CT, from the head down": partial(series, backwards=True),
    "CT, feet first": partial(series, directions=np.array([[-1, 0], [0, 1], [0, 0]], float)),
    "CT, one slice": partial(series, levels=pattern((9, 7, 1))),
    "CT, two slices": partial(series, levels=pattern((9, 7, 2))),
    "CT, nothing bright but one pixel": partial(
        series, levels=np.eye(1, 9 * 7 * 5, 173, dtype=int).reshape(SHAPE) * 2
    ),
    "CT, a slice twice": with_a_copy,
    "CT, uneven": partial(gaps, heights=(0, 2, 4, 5, 8, 10)),
    "CT, a slice missing": partial(gaps, heights=(0, 2, 4, 8, 10)),
    "CT, tilted": tilted,
    "CT, no frame of reference": partial(series, without=["FrameOfReferenceUID"]),
    "CT, no thickness": partial(series, without=["SliceThickness"]),
    "CT, without study and series": partial(series, StudyInstanceUID="", SeriesInstanceUID=""),
    "CT, of a maker's class": partial(series, SOPClassUID="1.3.12.2.1107.5.9.1"),
    "CT, a retired class": partial(series, SOPClassUID="1.2.840.10008.5.1.4.1.1.5"),
    "CT, without an instance UID": partial(series, SOPInstanceUID="", refused=NO_INSTANCE),
    "CT, Latin names": partial(series, SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Käthe"),
    "CT, Japanese names": partial(
        series,
        SpecificCharacterSet=["", "ISO 2022 IR 87"],
        PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう",
    ),
    "CT, Cyrillic names": partial(series, SpecificCharacterSet="ISO_IR 144", PatientName="Люкceмбypг"),
    "CT, Chinese names": partial(series, SpecificCharacterSet="GB18030", PatientName="Wang^XiaoDong=王^小东"),
    "CT, names in UTF-8": partial(series, SpecificCharacterSet="ISO_IR 192", PatientName="Δημήτρης"),
    "CT, no such character set": partial(series, SpecificCharacterSet="ISO_IR 999"),
    "CT, an empty character set": partial(series, SpecificCharacterSet=""),
    "CT, no patient": partial(series, without=["PatientName", "PatientID", "PatientBirthDate"]),
    "MR": partial(series, modality="MR"),
    "MR, white is low": partial(
        series, modality="MR", inverted=True, PhotometricInterpretation="MONOCHROME1", dtype=np.uint8
    ),
    "PET": partial(
        series,
        modality="MR",
        SOPClassUID=PET,
        Modality="PT",
        RescaleSlope="0.25",
        RescaleIntercept=0,
        dtype=np.uint16,
    ),
    "secondary capture with positions": partial(series, modality="MR", SOPClassUID=CAPTURE, Modality="OT"),
    "enhanced CT": enhanced,
    "enhanced CT, no frame of reference": partial(enhanced, without=["FrameOfReferenceUID"]),
    "enhanced CT, all of it in each frame": partial(enhanced, shared=False),
    "enhanced CT, no thickness": partial(enhanced, measures=False),
    "enhanced CT, one frame": partial(enhanced, order=[0]),
    "enhanced CT, a file for each slice": enhanced_files,
    "enhanced CT, two files of three slices": partial(enhanced_files, frames=3),
    "enhanced MR": partial(enhanced, modality="MR"),
    "enhanced MR, no frame of reference": partial(enhanced, modality="MR", without=["FrameOfReferenceUID"]),
    "enhanced MR, the second of two echoes": second_echo,
    "enhanced PET": partial(enhanced, modality="MR", sop_class=ENHANCED_PET, Modality="PT"),
    "legacy converted CT": partial(enhanced, sop_class=LEGACY_CT),
    "3-D angiography": partial(enhanced, modality="MR", sop_class=XA_3D, Modality="XA"),
    "tomosynthesis": partial(enhanced, modality="MR", sop_class=TOMOSYNTHESIS, Modality="MG"),
    "multi-frame secondary capture with positions": partial(
        enhanced, modality="MR", sop_class=CAPTURES, Modality="OT"
    ),
}


# --- DICOM pictures ---------------------------------------------------------------------------------


def picture(
    files: Files,
    folder: Path,
    *,
    sop_class: str,
    modality: str = "OT",
    spacing: bool = False,
    thickness: bool = False,
    colour: str = "",
    inverted: bool = False,
    frames: int = 0,
    dtype: type = np.uint16,
    syntax: str = ExplicitVRLittleEndian,
    refused: dict[str, str] | None = None,
    **attributes: Any,
) -> Kind:
    """One image without positions. colour: "", "RGB", "YBR_FULL" or "PALETTE COLOR"."""
    levels = pattern((23, 31))
    stored = 20 + 100 * (2 - levels if inverted else levels)
    if spacing:
        attributes |= {"PixelSpacing": [0.4, 0.5]}
    if thickness:
        attributes |= {"SliceThickness": 3}
    if colour in ("RGB", "YBR_FULL"):
        stored = np.stack([stored] * 3, axis=-1)
        stored[..., 1:] = 128 if colour == "YBR_FULL" else stored[..., 1:] // 2
    stored = stored.astype(np.uint8 if colour else dtype)
    stored = np.stack([stored] * frames) if frames else stored
    image = files.image(stored, "DX", **WHO | {"SOPClassUID": sop_class, "Modality": modality} | attributes)
    if inverted:
        image.PhotometricInterpretation = "MONOCHROME1"
    if colour:
        image.PhotometricInterpretation = colour
    if colour == "PALETTE COLOR":
        for name in ("Red", "Green", "Blue"):
            image.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [256, 0, 16])
            ramp = (np.arange(256) * 257).astype("<u2")
            image.add_new(f"{name}PaletteColorLookupTableData", "OW", ramp.tobytes())
    paths = written(files, folder, [image], syntax)
    return Kind(paths[0], levels, None, paths, refused=refused or {})


US, US_CLIP = "1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.3.1"
CLASSES = {
    "secondary capture": (CAPTURE, "OT"),
    "ultrasound": (US, "US"),
    "DX": ("1.2.840.10008.5.1.4.1.1.1.1", "DX"),
    "CR": ("1.2.840.10008.5.1.4.1.1.1", "CR"),
    "mammogram": ("1.2.840.10008.5.1.4.1.1.1.2", "MG"),
    "angiogram": ("1.2.840.10008.5.1.4.1.1.12.1", "XA"),
    "fluoroscopy": ("1.2.840.10008.5.1.4.1.1.12.2", "RF"),
    "photograph": ("1.2.840.10008.5.1.4.1.1.77.1.4", "XC"),
    "fundus": ("1.2.840.10008.5.1.4.1.1.77.1.5.1", "OP"),
    "multi-frame secondary capture of one frame": ("1.2.840.10008.5.1.4.1.1.7.3", "OT"),
    "ultrasound clip of one frame": (US_CLIP, "US"),
}
PICTURES: dict[str, Callable[[Files, Path], Kind]] = {
    f"{name}{', pixel spacing' * spacing}{', thickness' * thickness}": partial(
        picture,
        sop_class=sop_class,
        modality=modality,
        spacing=spacing,
        thickness=thickness,
        frames=int("one frame" in name),
    )
    for name, (sop_class, modality) in CLASSES.items()
    for spacing in (False, True)
    for thickness in (False, True)
}
PICTURES |= {
    "palette": partial(picture, sop_class=US, modality="US", colour="PALETTE COLOR", dtype=np.uint8),
    "ultrasound in RGB": partial(picture, sop_class=US, modality="US", colour="RGB", spacing=True),
    "ultrasound in YBR": partial(picture, sop_class=US, modality="US", colour="YBR_FULL"),
    "DX, white is low": partial(
        picture, sop_class=CLASSES["DX"][0], modality="DX", inverted=True, dtype=np.uint8
    ),
    "DX, Latin name": partial(
        picture,
        sop_class=CLASSES["DX"][0],
        modality="DX",
        SpecificCharacterSet="ISO_IR 100",
        PatientName="Müller^Käthe",
    ),
    "DX, a maker's class": partial(picture, sop_class="1.2.840.113619.4.30", modality="DX"),
    "ultrasound, retired class": partial(picture, sop_class="1.2.840.10008.5.1.4.1.1.6", modality="US"),
    "DX, 12 bits, JPEG Lossless": partial(
        picture,
        sop_class=CLASSES["DX"][0],
        modality="DX",
        BitsStored=12,
        HighBit=11,
        syntax=JPEGLosslessSV1,
    ),
    "captures in true colour, of one frame": partial(
        picture, sop_class="1.2.840.10008.5.1.4.1.1.7.4", colour="RGB", NumberOfFrames=1
    ),
    "slide microscopy of one frame": partial(
        picture,
        sop_class="1.2.840.10008.5.1.4.1.1.77.1.6",
        modality="SM",
        colour="RGB",
        NumberOfFrames=1,
        ImageOrientationSlide=[0, -1, 0, -1, 0, 0],
        TotalPixelMatrixRows=23,
        TotalPixelMatrixColumns=31,
    ),
    "ultrasound clip": partial(
        picture, sop_class=US_CLIP, modality="US", frames=2, refused=dict.fromkeys(FORMATS, "2 frames")
    ),
}


# --- other files ------------------------------------------------------------------------------------

NO_DICOM = {"dicom-seg": "not DICOM.*--format nifti or nrrd"}
LEFT_HANDED = np.array([[0.7, 0, 0, 5], [0, 0.8, 0, -7], [0, 0, -2, 9], [0, 0, 0, 1.0]])
TURNED = affine_of(Rotation.from_euler("xyz", (30, 50, -70), degrees=True).as_matrix()[:, :2])
SHEARED = np.array([[0.7, 0.2, 0, 5], [0, 0.8, 0, -7], [0, 0, 2, 9], [0, 0, 0, 1.0]])
AXES = np.array(
    [[0, 0, 2.0, 5], [-0.7, 0, 0, -7], [0, 0.8, 0, 9], [0, 0, 0, 1]]
)  # i to the back, k to the right


def nifti(
    _: Files, folder: Path, *, ending: str = ".nii.gz", dtype: type = np.int16, affine: np.ndarray = TURNED
) -> Kind:
    levels = pattern()
    image = nib.Nifti1Image((20 + 100 * levels).astype(dtype), affine)
    if ending == ".img":
        image = nib.Nifti1Pair(image.dataobj, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    folder.mkdir()
    nib.save(image, folder / f"scan{ending}")
    return Kind(folder / f"scan{ending.replace('.img', '.hdr')}", levels, affine, refused=NO_DICOM)


def flat_nifti(_: Files, folder: Path) -> Kind:
    levels = pattern((9, 7))
    affine = affine_of(OBLIQUE)
    folder.mkdir()
    nib.save(nib.Nifti1Image((20 + 100 * levels).astype(np.int16), affine), folder / "flat.nii")
    return Kind(folder / "flat.nii", levels[..., None], affine, refused=NO_DICOM)


def itk(_: Files, folder: Path, *, ending: str, affine: np.ndarray = TURNED, dtype: type = np.int16) -> Kind:
    levels = pattern()
    image = sitk.GetImageFromArray(np.ascontiguousarray((20 + 100 * levels).astype(dtype).T))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection(((LPS @ affine)[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin((LPS @ affine)[:3, 3].tolist())
    folder.mkdir()
    sitk.WriteImage(image, str(folder / f"scan{ending}"))
    return Kind(folder / f"scan{ending}", levels, affine, refused=NO_DICOM)


def photo(_: Files, folder: Path, *, ending: str, mode: str) -> Kind:
    levels = np.kron(pattern((5, 7)), np.ones((8, 8), int))  # blocks of JPEG
    grey = Image.fromarray((20 + 100 * levels).astype(np.uint16 if mode == "I;16" else np.uint8))
    image = grey if mode == "I;16" else grey.convert(mode)
    folder.mkdir()
    image.save(folder / f"photo{ending}")
    return Kind(folder / f"photo{ending}", levels, refused=NO_DICOM)


OTHERS: dict[str, Callable[[Files, Path], Kind]] = {
    "NIfTI, int16, .nii.gz": nifti,
    "NIfTI, float32, .nii": partial(nifti, ending=".nii", dtype=np.float32),
    "NIfTI, uint8, .hdr and .img": partial(nifti, ending=".img", dtype=np.uint8),
    "NIfTI, left-handed": partial(nifti, affine=LEFT_HANDED),
    "NIfTI, axes in another order": partial(nifti, affine=AXES),
    "NIfTI, sheared": partial(nifti, affine=SHEARED),
    "NIfTI, 2-D": flat_nifti,
    "NRRD": partial(itk, ending=".nrrd"),
    "NRRD, left-handed": partial(itk, ending=".nrrd", affine=LEFT_HANDED),
    "NRRD, .nhdr": partial(itk, ending=".nhdr", dtype=np.float32),
    "MetaImage, .mha": partial(itk, ending=".mha"),
    "MetaImage, .mhd": partial(itk, ending=".mhd", dtype=np.uint8, affine=AXES),
    "PNG, grey": partial(photo, ending=".png", mode="L"),
    "PNG, RGB": partial(photo, ending=".png", mode="RGB"),
    "PNG, RGBA": partial(photo, ending=".png", mode="RGBA"),
    "PNG, palette": partial(photo, ending=".png", mode="P"),
    "PNG, 16 bits": partial(photo, ending=".png", mode="I;16"),
    "JPEG, grey": partial(photo, ending=".jpg", mode="L"),
    "JPEG, RGB": partial(photo, ending=".jpeg", mode="RGB"),
    "BMP": partial(photo, ending=".bmp", mode="RGB"),
    "TIFF": partial(photo, ending=".tif", mode="RGB"),
    "TIFF, 16 bits": partial(photo, ending=".tiff", mode="I;16"),
    "GIF": partial(photo, ending=".gif", mode="P"),
}


# --- the way through --------------------------------------------------------------------------------


def label_of(brightness: np.ndarray) -> np.ndarray:
    """Levels of brightness 0 to 1. Halves and thirds, of interpolation, are no borders."""
    return np.floor(2.0 * brightness + 0.4).astype(int)


def stand_in(image: Volume | Picture, bundle: Any, config: Any, **_: Any) -> Segmentation:
    """Label what is bright in the image as it was read."""
    values = image.array.astype(np.float64)
    values = values.mean(axis=0) if isinstance(image, Picture) else values  # (C, H, W) -> (H, W)
    low, high = np.percentile(values, 0.0), np.percentile(values, 100.0)
    labels = VALUES[label_of((values - low) / (high - low))]
    stack = to_model(image, size=32, intensity=Intensity(-160.0, 240.0, "HU"))
    probs = np.zeros((len(stack.images), 3, 32, 32), np.float16)
    trust, chosen = Trust("ok", 1.0, "made up"), Chosen("paper", "asked for")
    return Segmentation(labels, stack, stack.images, probs, probs, None, trust, "encoder", chosen, 0, 0.1, ())


BUNDLE: Any = SimpleNamespace(
    name="model",
    hash="0" * 64,
    facts={},
    device=SimpleNamespace(type="cpu"),
    config=SimpleNamespace(seed=0, labels=LABELS, modality="ct"),
    require_inverter=lambda: None,
)


def segmented(kind: Kind, output: Path, format: str) -> dict[str, Any]:
    """The case in run.json."""
    config = BatchConfig(format=format, resample_gaps=kind.resample, series=kind.series, report=False)
    result = run_batch(find_inputs([kind.path]).inputs, BUNDLE, output, config, options={})
    (case,) = result.record["cases"]
    return case


# --- as others read it ------------------------------------------------------------------------------

Placed = tuple[np.ndarray, np.ndarray]  # array (I, J, K) with its RAS affine


def is_sheared(affine: np.ndarray) -> bool:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return not np.allclose(axes.T @ axes, np.eye(3), atol=1e-4)


def by_nibabel(path: Path) -> Placed:
    image = nib.load(path)
    if not is_sheared(image.affine):  # a qform holds no shear
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-3)
    return np.asarray(image.dataobj), image.affine


def by_itk(path: Path) -> Placed:
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).T, LPS @ affine


def by_slicerio(path: Path) -> Placed:
    found = slicerio.read_segmentation(str(path))
    assert [(one["name"], one["labelValue"]) for one in found["segments"]] == [
        (label.name, label.value) for label in LABELS
    ]
    assert found["encoding"] == "gzip"
    return found["voxels"], LPS @ np.array(found["ijkToLPS"])


def by_pynrrd(path: Path) -> Placed:
    array, header = nrrd.read(str(path))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = header["space directions"].T, header["space origin"]
    assert header["space"] == "left-posterior-superior"
    return array, LPS @ affine


def by_us(path: Path) -> Placed:
    found = read_labels(path, values={1, 3})
    assert isinstance(found, Volume)
    return found.array, found.grid.affine


def seg_by_us(path: Path) -> Placed:
    found = read_dicom_seg(path)
    assert isinstance(found, Volume)
    return VALUES[found.array], found.grid.affine


def seg_by_highdicom(path: Path) -> Placed:
    volume = hd.seg.segread(path).get_volume(combine_segments=True, allow_missing_positions=True)
    # (slice, row, column) -> (column, row, slice)
    return VALUES[volume.array.transpose(2, 1, 0)], LPS @ volume.affine[:, [2, 1, 0, 3]]


def seg_by_pydicom(path: Path) -> Placed:
    """Frame by frame, on a grid from the lowest to the highest of them."""
    file = pydicom.dcmread(path)
    (shared,) = file.SharedFunctionalGroupsSequence
    measures = shared.PixelMeasuresSequence[0]
    directions = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3).T
    normal = np.cross(directions[:, 0], directions[:, 1])
    groups = file.PerFrameFunctionalGroupsSequence
    places = np.array([one.PlanePositionSequence[0].ImagePositionPatient for one in groups], float)
    step = float(measures.get("SpacingBetweenSlices") or measures.SliceThickness)
    slices = ((places - places[0]) @ normal / step).round().astype(int)
    slices -= slices.min()
    array = np.zeros((file.Columns, file.Rows, slices.max() + 1), np.uint8)
    pixels = file.pixel_array.reshape(-1, file.Rows, file.Columns)
    for k, group, frame in zip(slices, groups, pixels, strict=True):
        array[..., k][frame.T > 0] = VALUES[group.SegmentIdentificationSequence[0].ReferencedSegmentNumber]
    spacing = (float(measures.PixelSpacing[1]), float(measures.PixelSpacing[0]), step)
    return array, affine_of(directions, spacing, places[slices.argmin()])


VOLUME_READERS = {
    "nifti": (by_nibabel, by_itk, by_us),
    "nrrd": (by_itk, by_slicerio, by_pynrrd, by_us),
    "dicom-seg": (seg_by_us, seg_by_highdicom, seg_by_pydicom),
}


def at_the_voxels_of(found: Placed, affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """What another grid holds at the voxels of this one, which must be its own in whatever order."""
    array, there = found
    index = np.linalg.inv(there) @ affine  # (i, j, k, 1) -> their (i, j, k, 1)
    np.testing.assert_allclose(there @ index.round(), affine, atol=SAME_MM / max(shape))
    ijk = np.indices(shape).reshape(3, -1)
    theirs = (index.round()[:3, :3] @ ijk + index.round()[:3, 3:]).astype(int)
    inside = ((theirs >= 0) & (theirs < np.array(array.shape)[:, None])).all(axis=0)
    assert inside.all()
    return array[tuple(theirs)].reshape(shape)


def check_volume(path: Path, format: str, kind: Kind) -> None:
    expected = VALUES[kind.levels]
    for reader in VOLUME_READERS[format]:
        if format == "nifti" and reader is by_itk and is_sheared(kind.affine):
            continue  # ITK takes the qform of such a file
        found = reader(path)
        np.testing.assert_array_equal(
            at_the_voxels_of(found, kind.affine, expected.shape), expected, reader.__name__
        )
        voxel_ml = abs(np.linalg.det(found[1][:3, :3])) / 1000
        for value in VALUES[1:]:
            ml = np.count_nonzero(found[0] == value) * voxel_ml
            assert ml == pytest.approx(
                np.count_nonzero(expected == value) * abs(np.linalg.det(kind.affine[:3, :3])) / 1000, rel=1e-4
            )


def check_picture(path: Path, kind: Kind) -> None:
    expected = VALUES[kind.levels]
    np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)
    np.testing.assert_array_equal(read_labels(path, values={1, 3}), expected)
    colours = np.zeros((4, 3), int)
    for label in LABELS:
        colours[label.value] = label.rgb
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), colours[expected])


def check_seg_picture(path: Path, kind: Kind) -> None:
    segmentation = hd.seg.segread(path)
    uid = pydicom.dcmread(kind.sources[0]).SOPInstanceUID
    by_source = segmentation.get_pixels_by_source_instance([uid], combine_segments=True)
    np.testing.assert_array_equal(VALUES[by_source[0]], VALUES[kind.levels])
    np.testing.assert_array_equal(read_dicom_seg(path), kind.levels)
    file = pydicom.dcmread(path)
    numbers = [
        group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        for group in file.PerFrameFunctionalGroupsSequence
    ]
    frames = file.pixel_array.reshape(-1, *kind.levels.shape)
    np.testing.assert_array_equal(
        sum(n * frame for n, frame in zip(numbers, frames, strict=True)), kind.levels
    )
    assert "FrameOfReferenceUID" not in segmentation


def check_seg_sources(path: Path, kind: Kind) -> None:
    """Patient, study, frame of reference; every source file; every slice its source, unless it was resampled."""
    segmentation = hd.seg.segread(path)
    sources = [pydicom.dcmread(file) for file in kind.sources]
    for keyword in ("PatientName", "PatientID", "StudyDate", "StudyInstanceUID"):
        if sources[0].get(keyword):
            assert segmentation.get(keyword) == sources[0].get(keyword), keyword
    assert segmentation.StudyInstanceUID
    assert segmentation.SeriesInstanceUID != sources[0].SeriesInstanceUID
    if kind.affine is not None:
        frame = sources[0].get("FrameOfReferenceUID")
        assert segmentation.FrameOfReferenceUID == frame if frame else segmentation.FrameOfReferenceUID
    (referenced,) = segmentation.ReferencedSeriesSequence
    if sources[0].SeriesInstanceUID:
        assert referenced.SeriesInstanceUID == sources[0].SeriesInstanceUID
    assert sorted(
        (item.ReferencedSOPInstanceUID, item.ReferencedSOPClassUID)
        for item in referenced.ReferencedInstanceSequence
    ) == sorted((source.SOPInstanceUID, source.SOPClassUID) for source in sources)
    if kind.affine is None or kind.resample:
        return
    if kind.frames:
        found = segmentation.get_pixels_by_source_frame(
            sources[0].SOPInstanceUID,
            list(kind.frames),
            combine_segments=True,
            assert_missing_frames_are_empty=True,
        )
    else:
        found = segmentation.get_pixels_by_source_instance(
            [source.SOPInstanceUID for source in sources[: kind.levels.shape[2]]],
            combine_segments=True,
            assert_missing_frames_are_empty=True,
        )
    np.testing.assert_array_equal(found.transpose(2, 1, 0), kind.levels)


EVERY = VOLUMES | PICTURES | OTHERS
# What becomes of a picture does not depend on its size in mm, nor on the format of volumes.
WRITTEN = [
    (name, format)
    for name in EVERY
    for format in FORMATS
    if format == "dicom-seg"
    or name in VOLUMES
    or name in (*OTHERS, "DX", "ultrasound clip")
    or (format == "nifti" and not name.endswith(("pixel spacing", "thickness")))
]


@pytest.mark.filterwarnings("ignore:Unknown encoding 'ISO_IR 999'")
@pytest.mark.parametrize(("name", "format"), WRITTEN, ids=["-".join(pair) for pair in WRITTEN])
def test_every_kind_in_every_format_is_what_others_read(
    name: str, format: str, dicom_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = EVERY[name](dicom_files, tmp_path / "in")
    if format in kind.refused:
        monkeypatch.setattr(batch, "segment_volume", lambda *_, **__: pytest.fail("it was segmented"))
        with pytest.raises(InputError, match=kind.refused[format]):
            segmented(kind, tmp_path / "out", format)
        assert not (tmp_path / "out").exists()
        return
    monkeypatch.setattr(batch, "segment_volume", stand_in)
    case = segmented(kind, tmp_path / "out", format)
    path = Path(case["output"])
    for label in case["labels"]:
        assert label["voxels"] == np.count_nonzero(VALUES[kind.levels] == label["value"])
    if format == "dicom-seg":
        check_seg_sources(path, kind)
    if kind.affine is not None:
        check_volume(path, format, kind)
    elif format == "dicom-seg":
        check_seg_picture(path, kind)
    else:
        check_picture(path, kind)
