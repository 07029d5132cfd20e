"""CHAOS: CT of liver donors and T1 / T2 MRI of others, as DICOM series with one mask picture a slice.

``chaos-ct`` and ``chaos-mr`` have the one class that both kinds of image share, the liver; ``chaos-t2`` is the T2
alone with its four organs, to test models of ``btcv-abdomen`` on, and ``chaos-t2-liver`` with the liver.

From the organisers' Data and Rules pages: the CT counts, the kinds of images, the licence. From their readme, as
others quote it: the values of the masks, and that both T1 phases share theirs. Layout and values were checked on
one CT series, one MR slice and pictures of eleven MR patients. Not verified: the number of MR patients, the
division into 20 and 20, the rest of the archive, T2 as DICOM, and which phase the names of the T1 masks follow (in
the files seen, the in-phase one). Slices and masks are matched by their order, so either phase works.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from sgan_core.cohort import Case, Cohort, Intensity, Label
from sgan_core.errors import InputError
from sgan_core.imaging import readers
from sgan_core.imaging.dicom import Series, find_series, read_series
from sgan_core.imaging.image import Picture, Volume
from sgan_core.imaging.mask_slices import stack_masks
from sgan_datasets.anatomy import named_label
from sgan_datasets.layout import (
    absolute,
    files_of,
    find_folder,
    missing_pairs,
    natural,
    picture_shape,
    read_mask,
    resize_nearest,
)
from sgan_datasets.picture_slices import slice_cases
from sgan_datasets.source import About, DataSet, Problem, Scan

LIVER = named_label(1, "liver")  # read_label turns the stored bands into classes
# Values of the MR masks, nominally 63, 126, 189 and 252; others are background. Classes are counted in this order.
BANDS = {"liver": (55, 70), "right kidney": (110, 135), "left kidney": (175, 200), "spleen": (240, 255)}
ORGANS = tuple(BANDS)

_SETS = {"Train_Sets": "train", "Test_Sets": "test"}
# Folders of T1 in-phase slices as pictures; complete patients, then single slices.
_PICTURE_SETS = ("PNG_T1_InPhase", "PNG_T1_InPhase_sparse")


@dataclass(frozen=True)
class _Series:
    """Where a series and its masks lie in a patient's folder."""

    images: str
    masks: str
    domain: str


_CT_SERIES = (_Series("DICOM_anon", "Ground", "ct"),)
_T2_SERIES = (_Series("T2SPIR/DICOM_anon", "T2SPIR/Ground", "t2"),)
_MR_SERIES = (
    _Series("T1DUAL/DICOM_anon/InPhase", "T1DUAL/Ground", "t1_in"),
    _Series("T1DUAL/DICOM_anon/OutPhase", "T1DUAL/Ground", "t1_out"),
    *_T2_SERIES,
)
_MR_INTENSITY = Intensity(percentiles=(0.5, 99.5))
_T2_SLICE_STEM = re.compile(r"chaos-(\d+)_slice_(\d+)")

# --- what they are ---

_PAGE = "https://chaos.grand-challenge.org"
_LICENCE = "CC BY-NC-SA 4.0, no commercial use; cite the data's DOI and the paper (the organisers, on the Rules page)"
_GET = "CHAOS_Train_Sets.zip, and CHAOS_Test_Sets.zip if wanted, from doi:10.5281/zenodo.3362844, unpacked"
_CITATION = (
    "Kavur et al.: CHAOS Challenge - combined (CT-MR) healthy abdominal organ segmentation. Medical Image "
    "Analysis 69, 101950, 2021. doi:10.1016/j.media.2020.101950; data: doi:10.5281/zenodo.3362844"
)
_COMMON_QUIRKS = """\
Test_Sets has no Ground. Volumes are ordered by position in the patient, file names need not be: the n-th mask
belongs to the n-th DICOM file by name. A mask of another size than its slice is resized (nearest).
The CT patients and the MR patients are different people (organisers)."""

CT_ABOUT = About(
    name="chaos-ct",
    modality="ct",
    what="CT of healthy potential liver donors, portal venous phase, with liver masks",
    size="40 patients: 20 for training (1367 slices), 20 for testing (1408) whose masks are not published",
    source=_PAGE,
    licence=_LICENCE,
    get=_GET,
    citation=_CITATION,
    layout=f"""\
Train_Sets/CT/<patient>/DICOM_anon/*.dcm, Train_Sets/CT/<patient>/Ground/liver_GT_NNN.png
Test_Sets/CT/<patient>/DICOM_anon/*.dcm
The root is the folder of these, or any of Train_Sets, Test_Sets and their CT folder.
Masks: any value above 0 is liver.
{_COMMON_QUIRKS}
Patients are called chaos-ct-<patient>.""",
)
MR_ABOUT = About(
    name="chaos-mr",
    modality="mr",
    what="abdominal MRI of healthy people, T1 in-phase, T1 out-of-phase and T2 (SPIR), with liver masks",
    size="40 patients, 3 series each: 20 for training, 20 for testing whose masks are not published",
    source=_PAGE,
    licence=_LICENCE,
    get=_GET,
    citation=_CITATION,
    layout=f"""\
Train_Sets/MR/<patient>/T1DUAL/DICOM_anon/InPhase/*.dcm and .../OutPhase/*.dcm, T1DUAL/Ground/*.png
Train_Sets/MR/<patient>/T2SPIR/DICOM_anon/*.dcm, T2SPIR/Ground/*.png
Test_Sets/MR/<patient>/..., the same without Ground
PNG_T1_InPhase/MR/<patient>/Image/*.png, Ground/*.png: T1 in-phase slices that others saved as 8-bit pictures
PNG_T1_InPhase_sparse/MR/<patient>/Image/*.png, Ground_liver/*.png: the same, single slices
The root is the folder of these, or any of them, or their MR folder.
Masks in Ground: 63 (55 to 70) liver, 126 right kidney, 189 left kidney, 252 spleen; all but liver become
background. Masks in Ground_liver: above 127 is liver.
{_COMMON_QUIRKS}
Both T1 phases share one Ground (they are registered). T2 has its own. Domains: t1_in, t1_out, t2.
The pictures are stretched slice by slice, so their grey levels do not compare between slices.
Patients are called chaos-mr-<patient>, in pictures and series alike, also in chaos-t2.""",
)
T2_ABOUT = replace(
    MR_ABOUT,
    name="chaos-t2",
    what="abdominal T2 (SPIR) MRI of healthy people with liver, right kidney, left kidney and spleen; for testing",
    size="40 patients: 20 with masks, 20 whose masks are not published",
    layout=f"""\
Train_Sets/MR/<patient>/T2SPIR/DICOM_anon/*.dcm, T2SPIR/Ground/*.png
Test_Sets/MR/<patient>/T2SPIR/DICOM_anon/*.dcm
images/chaos-PP_slice_KKK.jpg, masks/chaos-PP_slice_KKK.png: slices that others saved as 8-bit pictures
The root is the folder of these, or Train_Sets, Test_Sets, their MR folder, images or masks.
Masks in Ground: 63 (55 to 70) liver, 126 (110 to 135) right kidney, 189 (175 to 200) left kidney, 252 (240 to 255)
spleen, others background. Masks in masks: 1, 2, 3, 4 in the same order. Every slice has one.
Classes: 1 liver, 2 right kidney, 3 left kidney, 4 spleen, as btcv-abdomen; chaos-t2-liver has the liver alone, as
btcv-liver, lits and chaos-mr.
Quirks: KKK rises from the feet to the head; a topmost saved slice that is black padding is left out.
{_COMMON_QUIRKS}
Every case is in the split test: this is what models of CT are tested on (--split changes it). Patients are called
chaos-mr-<patient>: the same people as in chaos-mr, so that merging keeps each in one split.""",
)
T2_LIVER_ABOUT = replace(T2_ABOUT, name="chaos-t2-liver", what="the same with the liver alone")

# --- what lies in the folder ---


def scan_ct(root: Path) -> Scan:
    """CT series and masks by names. Raises InputError when root holds no CT patients of CHAOS."""
    sets = _sets(root, "CT", ())
    cases, problems = _unique(
        found
        for folder, split in sets
        for patient in _patients(folder)
        for found in _series_cases(patient, f"chaos-ct-{patient.name}", split, _CT_SERIES)
    )
    intensity = Intensity(low=-160.0, high=240.0, unit="HU")
    return _scanned("chaos-ct", "ct", intensity, root, cases, problems, inside="DICOM_anon/*.dcm")


def scan_mr(root: Path) -> Scan:
    """MR series and pictures with their masks by names. Raises InputError when root holds none of CHAOS."""
    sets = _sets(root, "MR", _PICTURE_SETS)
    cases, problems = _unique(
        found
        for folder, split in sets
        for patient in _patients(folder)
        for cases_of in (_series_cases, _picture_cases)
        for found in cases_of(patient, f"chaos-mr-{patient.name}", split, _MR_SERIES)
    )
    inside = "T1DUAL/DICOM_anon/InPhase/*.dcm"
    return _scanned("chaos-mr", "mr", _MR_INTENSITY, root, cases, problems, inside=inside)


def scan_t2(root: Path, about: About = T2_ABOUT, organs: tuple[str, ...] = ORGANS) -> Scan:
    """T2 series, else slices, with their masks by names; all for testing.

    organs: the first of ``ORGANS``, which are the classes. Raises InputError when root holds no T2 of CHAOS.
    """
    cases, problems = _unique(
        found
        for folder, split in _sets(root, "MR", ())
        for patient in _patients(folder)
        for found in _series_cases(patient, f"chaos-mr-{patient.name}", split, _T2_SERIES)
    )
    if not cases:
        cases, problems = slice_cases(
            root, _T2_SLICE_STEM, lambda patient: f"chaos-mr-{patient}", domain="t2", unmasked_is_empty=False
        )
    cases = [replace(case, split="test") for case in cases]
    labels = tuple(named_label(value, organ) for value, organ in enumerate(organs, start=1))
    inside = "T2SPIR/DICOM_anon/*.dcm and no images/chaos-PP_slice_KKK.jpg"
    return _scanned(about.name, "mr", _MR_INTENSITY, root, cases, problems, inside=inside, labels=labels)


def _scanned(
    name: str,
    modality: str,
    intensity: Intensity,
    root: Path,
    cases: list[Case],
    problems: list[Problem],
    *,
    inside: str,
    labels: tuple[Label, ...] = (LIVER,),
) -> Scan:
    """inside: what a patient's folder should hold. Raises InputError without cases."""
    if not cases:
        raise InputError(
            f"{root}: not the data set {name}, no Train_Sets/{modality.upper()}/<patient>/{inside} was found. "
            "Give the folder that holds Train_Sets."
        )
    return Scan(Cohort(name, modality, intensity, labels, tuple(cases)), tuple(problems))


def _sets(root: Path, modality: str, picture_sets: Iterable[str]) -> list[tuple[Path, str]]:
    """Folders whose subfolders are patients, with the split of each."""
    root = Path(absolute(root))
    wanted = [(f"{folder}/{modality}", split) for folder, split in _SETS.items()]
    wanted += [(f"CHAOS_{folder}/{folder}/{modality}", split) for folder, split in _SETS.items()]
    wanted += [(f"{folder}/{modality}", "train") for folder in picture_sets]
    found = [(folder, split) for name, split in wanted if (folder := find_folder(root, (name,)))]
    if not found:
        inner = root if root.name.upper() == modality else find_folder(root, (modality,))
        if inner:
            found = [(inner, "test" if inner.parent.name.lower() == "test_sets" else "train")]
    return found


def _patients(folder: Path) -> list[Path]:
    names = sorted((name for name in os.listdir(folder) if re.fullmatch(r"\d+", name)), key=natural)
    return [folder / name for name in names if (folder / name).is_dir()]


_Found = tuple[Case | None, list[Problem]]


def _series_cases(patient: Path, name: str, split: str, series: Iterable[_Series]) -> Iterator[_Found]:
    """A case for each DICOM series of a patient's folder, its masks checked by their number."""
    for one in series:
        images, masks = find_folder(patient, (one.images,)), find_folder(patient, (one.masks,))
        slices = files_of(images, (".dcm",)) if images else {}
        grounds = files_of(masks, (".png",)) if masks else {}
        problems = _check_series(patient, one, len(slices), len(grounds), split)
        if images is None or not slices:
            yield None, problems
            continue
        yield (
            Case(
                id=name if one.domain == "ct" else f"{name}_{one.domain}",
                patient=name,
                image=absolute(images),
                # Masks that cannot be given to their slices are worse than none.
                label=absolute(masks) if masks and len(slices) == len(grounds) else None,
                split=split,
                domain=one.domain,
            ),
            problems,
        )


def _check_series(patient: Path, series: _Series, slices: int, masks: int, split: str) -> list[Problem]:
    images, grounds = patient / series.images, patient / series.masks
    if slices == masks or (slices and not masks and split == "test"):
        return []
    if not masks:
        text = f"{grounds}: no mask (*.png) for the {slices} slices of {images}."
    elif not slices:
        text = f"{images}: no slice (*.dcm) for the {masks} masks of {grounds}."
    else:
        text = f"{grounds}: {masks} masks for the {slices} slices of {images}; they are left out."
    return [Problem("missing", text)]


def _picture_cases(patient: Path, name: str, split: str, _: Iterable[_Series]) -> Iterator[_Found]:
    """A case for each T1 in-phase slice that is stored as a picture."""
    folder = find_folder(patient, ("Image",))
    if folder is None:
        return
    masks_folder = find_folder(patient, ("Ground", "Ground_liver"))
    images = files_of(folder, (".png",))
    masks = files_of(masks_folder, (".png",)) if masks_folder else {}
    yield None, missing_pairs(images, masks)
    for stem, path in images.items():
        number = re.search(r"\d+$", stem)
        case = Case(
            id=f"{name}_t1_in_slice_{int(number[0]) if number else stem}",
            patient=name,
            image=absolute(path),
            label=absolute(masks[stem]) if stem in masks else None,
            split=split,
            domain="t1_in",
        )
        yield case, []


def _unique(found: Iterable[_Found]) -> tuple[list[Case], list[Problem]]:
    """Cases and problems. What comes first stays: a patient keeps one split, an id means one case."""
    split_of: dict[str, str] = {}
    by_id: dict[str, Case] = {}
    problems: list[Problem] = []
    for case, of_case in found:
        problems += of_case
        if case is None:
            continue
        if split_of.setdefault(case.patient, case.split) != case.split:
            text = (
                f"{case.image}: left out, as patient {case.patient} is in {split_of[case.patient]} as well."
            )
            problems.append(Problem("leak", text))
        elif by_id.setdefault(case.id, case) is not case:
            text = f"{case.image}: left out, as {by_id[case.id].image} is the same slice or series."
            problems.append(Problem("duplicate", text))
    return list(by_id.values()), problems


# --- reading ---


def read_image(case: Case) -> Volume | Picture:
    """A series as a volume (I, J, K), a picture as (1, H, W) uint8. Raises InputError as the readers do."""
    if Path(case.image).is_dir():
        return read_series(_series_in(Path(case.image)))
    picture = readers.read_picture(case.image)
    return Picture(picture.array[:1], picture.warnings, picture.doubts)  # stored as RGBA, grey in each colour


def read_ct_label(case: Case) -> Volume | np.ndarray:
    """Liver of a CT series, 0 or 1: uint8 (I, J, K) on the image's grid.

    Raises InputError: masks or slices that cannot be read or differ in number.
    """
    return _read_label(case, bands=((1, 255),))


def read_mr_label(case: Case, organs: tuple[str, ...] = ("liver",)) -> Volume | np.ndarray:
    """Organs of an MR series or picture as classes 1, 2, ...: uint8 (I, J, K) on the image's grid, or (H, W).

    organs: the first of ``ORGANS``. Raises InputError: as ``read_ct_label``, and values that a mask of saved slices
    cannot hold.
    """
    return _read_label(case, bands=tuple(BANDS[organ] for organ in organs))


def _read_label(case: Case, *, bands: Sequence[tuple[int, int]]) -> Volume | np.ndarray:
    label = Path(case.label or "")
    if not label.is_dir():
        return resize_nearest(_read_classes(label, bands), picture_shape(case.image))
    series = _series_in(Path(case.image))
    image = read_series(series)
    if isinstance(image, Picture):
        raise InputError(f"{case.image}: its slices have no position in the patient. Get the original files.")
    plane = (image.grid.shape[1], image.grid.shape[0])  # rows, columns
    files = files_of(label, (".png",)).values()
    masks = [resize_nearest(_read_classes(path, bands), plane) for path in files]
    return stack_masks(masks, series, image.grid, label)


def _series_in(folder: Path) -> Series:
    found = find_series(folder)
    if len(found) != 1:
        raise InputError(
            f"{folder}: {len(found)} DICOM series found, one is expected. Get the original files again."
        )
    return found[0]


def _read_classes(path: Path, bands: Sequence[tuple[int, int]]) -> np.ndarray:
    """A mask as classes: (H, W) uint8, 1 where it is in the first band (both ends count), 2 in the second, ..."""
    folder = path.parent.name.lower()
    if folder == "ground_liver":
        return read_mask(path).astype(np.uint8)
    if folder == "masks":  # of T2 slices: the classes themselves
        array = _plane(readers.read_labels(path, values=range(1, len(ORGANS) + 1)))
        return np.where(array <= len(bands), array, 0).astype(np.uint8)
    array = _plane(readers.read_labels(path, values=None))
    classes = np.zeros(array.shape, np.uint8)
    for value, (low, high) in enumerate(bands, start=1):
        classes[(array >= low) & (array <= high)] = value
    return classes


def _plane(labels: Volume | np.ndarray) -> np.ndarray:
    return labels.array if isinstance(labels, Volume) else labels


DATA_SETS = (
    DataSet(CT_ABOUT, scan_ct, read_image, read_ct_label),
    DataSet(MR_ABOUT, scan_mr, read_image, read_mr_label),
    *(
        DataSet(
            about,
            partial(scan_t2, about=about, organs=organs),
            read_image,
            partial(read_mr_label, organs=organs),
        )
        for about, organs in ((T2_ABOUT, ORGANS), (T2_LIVER_ABOUT, ("liver",)))
    ),
)
