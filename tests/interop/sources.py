"""Series with a known mask, and what we write for them: the same file of ours is then opened by other tools."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from PIL import Image
from pydicom.uid import generate_uid
from scipy.spatial.transform import Rotation

from sgan_core.cohort import Label
from sgan_core.imaging.dicom import find_series, read_series
from sgan_core.imaging.dicom.seg import write_dicom_seg
from sgan_core.imaging.image import Volume
from sgan_core.imaging.readers import read_image
from sgan_core.imaging.writers import write_labels, write_mask_png

LIVER = Label(1, "liver", (221, 130, 101), "10200004")
SPLEEN = Label(2, "spleen", (157, 108, 162), "78961009")
TUMOUR = Label(3, "Tumor: größer als ½", (10, 200, 30), "108369006")
CLOTH = Label(3, "cloth", (144, 0, 255))  # no SNOMED CT code: a private one
LOBE = Label(
    3, "left|right ~ lobe^2; a:b=c", (1, 2, 3), "10200004"
)  # with what 3D Slicer parts its entries by
LUNG = Label(1, "lung", (9, 9, 200), "39607008")
MODEL, SEED = "phantom-ct-liver", 3
STEP = 100  # of the image's values from label to label: the mask is read off the image as we read it
PATIENT = {"PatientName": "Müller^Käthe", "PatientID": "ID-4711", "PatientBirthDate": "19500203"}


@dataclass(frozen=True, eq=False)
class Source:
    """A series, where its mask lies, and our files of that mask."""

    name: str
    files: list[Path]  # of the series; none of a NIfTI image
    mask: np.ndarray  # (I, J, K) uint8, i along the rows of the pixels, j down their columns
    affine_lps: np.ndarray | None  # (4, 4): (i, j, k, 1) -> mm, voxel centres; None: a picture
    labels: tuple[Label, ...]
    segmentation: Path | None  # DICOM SEG, of a series
    image: Path  # .seg.nrrd of a volume, PNG of a picture
    nifti: Path | None = None

    @property
    def spacing_mm(self) -> np.ndarray:
        """Of the voxels, (3,)."""
        assert self.affine_lps is not None
        return np.linalg.norm(self.affine_lps[:3, :3], axis=0)

    def volume_ml(self, label: Label) -> float:
        """Of a label."""
        assert self.affine_lps is not None
        return float(np.sum(self.mask == label.value) * abs(np.linalg.det(self.affine_lps[:3, :3])) / 1000)


def pattern(shape: tuple[int, int, int], labels: tuple[Label, ...]) -> np.ndarray:
    """A mask (I, J, K) that no turn and no flip leaves as it is; it touches the sides of the volume."""
    i, j, k = shape
    mask = np.zeros(shape, np.uint8)
    mask[3 : i // 2, 2 : j // 3, : max(1, k - 2)] = 1
    if len(labels) > 1:
        mask[i - 4 :, : j // 2, k // 3 :] = 2
        mask[: i // 3, j - 5 :, : k // 2 + 1] = 3
    mask[np.random.default_rng(0).random(shape) < 0.02] = 0
    mask[:2, 0, 0] = 1
    return mask


def affine(
    origin: tuple[float, float, float],
    turn_degrees: tuple[float, float, float],
    spacing: tuple[float, float, float],
) -> np.ndarray:
    """(4, 4) in LPS: axes turned about x, y and z."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", turn_degrees, degrees=True).as_matrix() * spacing
    matrix[:3, 3] = origin
    return matrix


def _facts(name: str, **more: Any) -> dict[str, Any]:
    """Attributes of a series of its own study."""
    return {
        "StudyInstanceUID": generate_uid(entropy_srcs=["interop", name, "study"]),
        "SeriesInstanceUID": generate_uid(entropy_srcs=["interop", name, "series"]),
        "FrameOfReferenceUID": generate_uid(entropy_srcs=["interop", name, "frame"]),
        "PositionReferenceIndicator": "",
        "SpecificCharacterSet": "ISO_IR 192",
        "StudyDate": "20200102",
        "StudyTime": "101112",
        "StudyID": "S1",
        "AccessionNumber": "A-1",
        "ReferringPhysicianName": "Doe^Jane",
        "PatientSex": "F",
        "SeriesNumber": 7,
        "Manufacturer": "Maker",
        **PATIENT,
        **more,
    }


def _written(
    folder: Path,
    name: str,
    mask: np.ndarray,
    matrix: np.ndarray | None,
    labels: tuple[Label, ...],
    **read: Any,
) -> Source:
    """Write all formats for the series in a folder; the mask is that of the image as we read it.

    mask, matrix: where it must lie, whatever order of voxels our reader chooses.
    """
    (series,) = find_series(folder / "series")
    image = read_series(series, **read)
    facts = {"frames": series.frames, "model_name": MODEL, "seed": SEED}
    segmentation = folder / f"{name}_seg.dcm"
    if isinstance(image, Volume):
        found = np.rint(image.array / STEP).astype(np.uint8)
        write_dicom_seg(segmentation, found, image.grid, labels, series.files, **facts)
        nrrd, nifti = folder / f"{name}_seg.seg.nrrd", folder / f"{name}_seg.nii.gz"
        write_labels(nrrd, found, image.grid, labels)
        write_labels(nifti, found, image.grid, labels)
        return Source(name, series.files, mask, matrix, labels, segmentation, nrrd, nifti)
    from sgan_core.batch import _pixel_grid

    plane = np.rint(image.array[0] / STEP).astype(np.uint8)  # (H, W)
    write_dicom_seg(
        segmentation, plane.T[..., None], _pixel_grid(*plane.shape), labels, series.files, **facts
    )
    write_mask_png(folder / f"{name}_seg.png", plane, labels)
    return Source(name, series.files, mask, None, labels, segmentation, folder / f"{name}_seg.png")


def axial_ct(folder: Path, dicom: Any) -> Source:
    """Three labels, all present; files in no order."""
    labels, matrix = (LIVER, SPLEEN, CLOTH), affine((-120.5, -80.25, -310.0), (0, 0, 0), (0.7, 0.8, 2.5))
    mask = pattern((40, 32, 14), labels)
    dicom.save_all(
        folder / "series", _stack(dicom, mask, matrix, **_facts("ct", SliceThickness=2.5, KVP=120))
    )
    return _written(folder, "ct", mask, matrix, labels)


def oblique_mr(folder: Path, dicom: Any) -> Source:
    """Three labels, the second of them absent; rows, columns and slices lie across the patient's axes."""
    labels, matrix = (LIVER, SPLEEN, TUMOUR), affine((30.0, -55.5, 12.25), (62, -25, 40), (0.9, 0.65, 4.0))
    mask = pattern((33, 27, 9), labels)
    mask[mask == SPLEEN.value] = 0
    facts = _facts("mr", SliceThickness=3.5, SpacingBetweenSlices=4.0)
    dicom.save_all(folder / "series", _stack(dicom, mask, matrix, modality="MR", **facts))
    return _written(folder, "mr", mask, matrix, labels)


def enhanced_mr(folder: Path, dicom: Any) -> Source:
    """One file of many frames, which are in the order of no axis."""
    labels, matrix = (LIVER,), affine((-10.0, -20.0, 30.0), (0, 0, 0), (0.7, 0.8, 2.0))
    mask = pattern((30, 24, 8), labels)
    order = np.random.default_rng(1).permutation(mask.shape[2]).tolist()
    image = dicom.enhanced(
        mask.astype(np.int16) * STEP, "MR", order=order, slopes=[1.0] * len(order), **_facts("enhanced")
    )
    dicom.save_all(folder / "series", [image])
    return _written(folder, "enhanced", mask, matrix, labels)


def resampled_ct(folder: Path, dicom: Any) -> Source:
    """A series without its slices 5 and 6, which are interpolated."""
    labels, matrix = (LIVER, SPLEEN, CLOTH), affine((-60.0, 12.0, 140.0), (0, 0, 0), (0.8, 0.8, 3.0))
    mask = pattern((36, 28, 12), labels)
    mask[:, :, 5:8] = mask[:, :, [4]]  # what is interpolated between two equal slices is equal
    images = _stack(dicom, mask, matrix, **_facts("resampled", SliceThickness=3.0, KVP=120))
    dicom.save_all(folder / "series", images[:5] + images[7:])
    return _written(folder, "resampled", mask, matrix, labels, resample_gaps=True)


def one_slice(folder: Path, dicom: Any) -> Source:
    """A series of one slice: only its thickness says how far it reaches."""
    labels, matrix = (LIVER, SPLEEN, CLOTH), affine((-100.0, -70.0, 55.0), (0, 0, 0), (0.7, 0.8, 5.0))
    mask = pattern((28, 36, 1), labels)
    dicom.save_all(
        folder / "series", _stack(dicom, mask, matrix, **_facts("slice", SliceThickness=5.0, KVP=120))
    )
    return _written(folder, "slice", mask, matrix, labels)


def x_ray(folder: Path, dicom: Any) -> Source:
    """A digital X-ray with Pixel Spacing: a picture without a place in the patient."""
    labels, mask = (LUNG,), pattern((30, 40, 1), (LUNG,))
    facts = _facts(
        "xray", PixelSpacing=[0.14, 0.14], ImagerPixelSpacing=[0.15, 0.15], PatientOrientation=["L", "F"]
    )
    del facts["FrameOfReferenceUID"], facts["PositionReferenceIndicator"]
    image = dicom.image(mask[:, :, 0].T.astype(np.uint16) * STEP, "DX", InstanceNumber=1, **facts)
    dicom.save_all(folder / "series", [image])
    return _written(folder, "xray", mask, None, labels)


def photograph(folder: Path, dicom: Any) -> Source:
    """An RGB photograph."""
    labels, mask = (Label(1, "skin lesion", (200, 0, 0), "95324001"),), pattern((44, 30, 1), (LUNG,))
    facts = _facts("photo", PatientOrientation=["L", "F"])
    del facts["FrameOfReferenceUID"], facts["PositionReferenceIndicator"]
    plane = mask[:, :, 0].T * np.uint8(STEP)
    pixels = np.stack([plane, plane // 2, plane // 3], axis=-1).astype(np.uint8)
    dicom.save_all(folder / "series", [dicom.image(pixels, "XC", InstanceNumber=1, **facts)])
    return _written(folder, "photo", mask, None, labels)


def left_handed_nifti(folder: Path, _: Any) -> Source:
    """No DICOM, but an oblique NIfTI image whose axes are left-handed, as most converters write them."""
    labels, matrix = (LIVER, SPLEEN, LOBE), affine((10.0, 20.0, 30.0), (20, -15, 33), (0.7, 0.8, 2.5))
    matrix[:3, 0] *= -1
    mask = pattern((31, 26, 9), labels)
    affine_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix
    nib.save(nib.Nifti1Image(mask.astype(np.int16) * STEP, affine_ras), folder / "scan.nii.gz")
    image = read_image(folder / "scan.nii.gz")
    assert isinstance(image, Volume)
    found = np.rint(image.array / STEP).astype(np.uint8)
    nrrd, nifti = folder / "scan_seg.seg.nrrd", folder / "scan_seg.nii.gz"
    write_labels(nrrd, found, image.grid, labels)
    write_labels(nifti, found, image.grid, labels)
    return Source("nifti", [], mask, matrix, labels, None, nrrd, nifti)


def chaos_slices(folder: Path, shared: Path, part: slice) -> tuple[list[Path], np.ndarray, np.ndarray] | None:
    """Slices of a real CT, linked into ``folder``/series; None where the data lack it.

    Returns the files, the liver that was drawn for them (I, J, K) and where it lies, (4, 4) in LPS, as the headers say.
    """
    case = shared / "data" / "CHAOS" / "Train_Sets" / "CT" / "3"
    files = sorted((case / "DICOM_anon").glob("*.dcm"))[part]
    if not files:
        return None
    masks = [np.asarray(Image.open(file)) > 0 for file in sorted((case / "Ground").glob("*.png"))[part]]
    # Files run from the top slice to the lowest, (row, column); the volume from the lowest, (column, row).
    mask = np.stack(masks[::-1]).transpose(2, 1, 0).astype(np.uint8)
    lowest, second = (pydicom.dcmread(file, stop_before_pixels=True) for file in (files[-1], files[-2]))
    matrix = np.diag([*(float(mm) for mm in lowest.PixelSpacing[::-1]), 1.0, 1.0])
    matrix[:3, 2] = np.subtract(second.ImagePositionPatient, lowest.ImagePositionPatient)
    matrix[:3, 3] = lowest.ImagePositionPatient
    (folder / "series").mkdir()
    for file in files:
        (folder / "series" / file.name).symlink_to(file)
    return files, mask, matrix


def chaos_ct(folder: Path, shared: Path) -> Source | None:
    """A real CT with the liver that was drawn for it; None where the data lack it."""
    slices = chaos_slices(folder, shared, slice(30, 60))
    if slices is None:
        return None
    _, mask, matrix = slices
    (series,) = find_series(folder / "series")
    image = read_series(series)
    assert isinstance(image, Volume)
    found = mask if image.grid.affine[2, 2] > 0 else mask[:, :, ::-1]
    segmentation, nrrd, nifti = (folder / f"chaos_seg.{end}" for end in ("dcm", "seg.nrrd", "nii.gz"))
    facts = {"frames": series.frames, "model_name": MODEL, "seed": SEED}
    write_dicom_seg(segmentation, found, image.grid, (LIVER,), series.files, **facts)
    write_labels(nrrd, found, image.grid, (LIVER,))
    write_labels(nifti, found, image.grid, (LIVER,))
    return Source("chaos", series.files, mask, matrix, (LIVER,), segmentation, nrrd, nifti)


MADE: dict[str, Callable[[Path, Any], Source]] = {
    "ct": axial_ct,
    "mr": oblique_mr,
    "enhanced": enhanced_mr,
    "resampled": resampled_ct,
    "slice": one_slice,
    "xray": x_ray,
    "photo": photograph,
    "nifti": left_handed_nifti,
}
VOLUMES = ("ct", "mr", "enhanced", "resampled", "slice", "chaos")
PICTURES = ("xray", "photo")


def _stack(dicom: Any, mask: np.ndarray, matrix: np.ndarray, modality: str = "CT", **facts: Any) -> list[Any]:
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    return dicom.stack(
        mask.astype(np.int16) * STEP,
        modality=modality,
        origin=matrix[:3, 3],
        directions=matrix[:3, :2] / spacing[:2],
        spacing=tuple(spacing),
        RescaleIntercept=0,
        RescaleSlope=1,
        **facts,
    )
