"""BTCV: made-up volumes in the layouts of the archive, MONAI and nnU-Net, made-up slices, and real slices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from sgan_core.cli.data import main
from sgan_core.cohort import Cohort, load_cohort, rank_labelled, validate
from sgan_core.errors import InputError
from sgan_core.training.data import read_case
from sgan_datasets import btcv, data_set, lits
from sgan_datasets.check import check
from sgan_datasets.merge import merge_cohorts
from sgan_datasets.pairs import read_case_label
from sgan_datasets.source import DataSet

BTCV, ABDOMEN, LIVER = (data_set(name) for name in ("btcv", "btcv-abdomen", "btcv-liver"))
# What the label files hold, by the challenge's page.
SPLEEN, RIGHT_KIDNEY, LEFT_KIDNEY, STORED_LIVER, PANCREAS, LEFT_ADRENAL = 1, 2, 3, 6, 11, 13


def loaded(source: DataSet, root: Path) -> Cohort:
    """The cohort of a folder, which holds to the rules of every cohort."""
    cohort = source.load(root)
    validate(replace(cohort, cases=rank_labelled(cohort.cases)), source=source.about.name)
    return cohort


def kinds(source: DataSet, root: Path) -> list[str]:
    return [problem.kind for problem in source.scan(root).problems]


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


# --- volumes ---

LAYOUTS = {
    "archive": (
        "RawData/Training/img/img{:04d}",
        "RawData/Training/label/label{:04d}",
        "RawData/Testing/img/img{:04d}",
    ),
    "MONAI": ("imagesTr/img{:04d}", "labelsTr/label{:04d}", "imagesTs/img{:04d}"),
    "nnU-Net": ("imagesTr/ABD_{:03d}_0000", "labelsTr/ABD_{:03d}", "imagesTs/ABD_{:03d}_0000"),
}


def volumes_folder(
    root: Path, layout: str, labelled: tuple[int, ...] = (1, 10, 21), tests: tuple[int, ...] = (61,)
) -> Path:
    image, label, test = (f"{name}.nii.gz" for name in LAYOUTS[layout])
    touch(
        root, *(name.format(n) for n in labelled for name in (image, label)), *(test.format(n) for n in tests)
    )
    return root


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("source", [BTCV, ABDOMEN, LIVER], ids=lambda d: d.about.name)
def test_volumes_are_found_by_their_numbers(source: DataSet, layout: str, tmp_path: Path) -> None:
    cohort = loaded(source, volumes_folder(tmp_path, layout))
    assert [(case.id, case.patient, case.split, case.labelled) for case in cohort.cases] == [
        ("btcv-0001", "btcv-0001", "train", True),
        ("btcv-0010", "btcv-0010", "train", True),
        ("btcv-0021", "btcv-0021", "train", True),
        ("btcv-0061", "btcv-0061", "test", False),
    ]
    assert {case.domain for case in cohort.cases} == {"ct"}
    assert (cohort.intensity, cohort.modality) == (lits.SOFT_TISSUE, "ct")
    assert kinds(source, tmp_path) == []


@pytest.mark.parametrize("inner", ["RawData", "RawData/Training", "RawData/Testing"])
def test_inner_folders_are_accepted(inner: str, tmp_path: Path) -> None:
    root = volumes_folder(tmp_path, "archive")
    split = {"RawData/Training": "train", "RawData/Testing": "test"}.get(inner)
    whole = BTCV.load(root)
    assert BTCV.load(root / inner).cases == (whole.select(split) if split else whole.cases)
    assert kinds(BTCV, root / inner) == []


def test_lost_and_odd_files_are_reported(tmp_path: Path) -> None:
    root = volumes_folder(tmp_path, "archive", labelled=(2, 3))
    training = root / "RawData/Training"
    (training / "label/label0002.nii.gz").unlink()
    touch(training, "label/label0005.nii.gz", "img/average.nii.gz", "img/._img0003.nii.gz", "img/notes.txt")
    touch(root, "imagesTr/img0003.nii.gz")
    scan = BTCV.scan(root)
    assert [(problem.kind, Path(problem.text.split(":")[0]).name) for problem in scan.problems] == [
        ("layout", "average.nii.gz"),
        ("duplicate", "img0003.nii.gz"),
        ("missing", "img0002.nii.gz"),
        ("missing", "label0005.nii.gz"),
    ]
    assert [(case.id, case.labelled) for case in scan.cohort.cases] == [
        ("btcv-0002", False),
        ("btcv-0003", True),
        ("btcv-0061", False),
    ]


def write_volume(root: Path, number: int, labels: np.ndarray, layout: str = "archive") -> None:
    """An image of 10 HU per label value beside its label, both left-handed and with 2 x 2 x 5 mm voxels."""
    affine = np.diag([-2.0, 2.0, 5.0, 1.0])
    image = np.where(labels > 0, 10.0 * labels, -1000.0).astype(np.int16)
    image[0, 0, 0] = -1024
    for name, array in zip(LAYOUTS[layout], (image, labels.astype(np.uint8)), strict=False):
        path = root / f"{name.format(number)}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, affine), path)


def all_organs() -> np.ndarray:
    """Value n in n voxels of row n: (14, 20, 3)."""
    labels = np.zeros((14, 20, 3), np.uint8)
    for value in range(1, 14):
        labels[value, :value, 1] = value
    return labels


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("btcv", tuple(range(1, 14))),
        ("btcv-abdomen", (STORED_LIVER, RIGHT_KIDNEY, LEFT_KIDNEY, SPLEEN)),
        ("btcv-liver", (STORED_LIVER,)),
    ],
)
def test_prepared_volumes_hold_the_classes_of_the_set(
    name: str, stored: tuple[int, ...], layout: str, tmp_path: Path
) -> None:
    """Class n is the n-th of ``stored``: that many voxels, where the image has 10 HU for each of its label value."""
    write_volume(tmp_path, 4, all_organs(), layout)
    assert main(["check", name, str(tmp_path)]) == 0
    assert main(["prepare", name, str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    cohort = load_cohort(tmp_path / "out")
    image, classes = read_case(cohort.cases[0], cohort)
    assert classes is not None
    assert [label.name for label in cohort.labels] == [btcv.ORGANS[value - 1] for value in stored]
    for value, label in enumerate(stored, start=1):
        assert np.count_nonzero(classes == value) == label
        assert set(image.array[classes == value]) == {10 * label}
    assert np.count_nonzero(classes) == sum(stored)


def test_unknown_label_value_is_found(tmp_path: Path) -> None:
    labels = all_organs()
    labels[0, 5, 0] = 14
    write_volume(tmp_path, 4, labels)
    for source in (BTCV, ABDOMEN):
        (problem,) = check(source, tmp_path).problems
        assert problem.kind == "value"
        assert "label0004.nii.gz" in problem.text
        assert "14" in problem.text


# --- classes ---


def test_classes_are_those_of_the_sets_to_compare_with(tmp_path: Path) -> None:
    """The same values, names, colours and codes: a model of one is scored on the other."""
    ct = volumes_folder(tmp_path / "ct", "archive")
    mr = slices_folder(tmp_path / "mr", {"chaos-01_slice_000": 1})
    touch(tmp_path, "mr/Train_Sets/MR/1/T1DUAL/DICOM_anon/InPhase/IMG-0004-00002.dcm", "lits/volume-0.nii")
    organs = ABDOMEN.load(ct).labels
    assert [label.name for label in organs] == ["liver", "right kidney", "left kidney", "spleen"]
    assert organs == data_set("chaos-t2").load(mr).labels
    (liver,) = LIVER.load(ct).labels
    assert liver == organs[0]
    for name, root in (("chaos-t2-liver", mr), ("chaos-mr", mr), ("lits", tmp_path / "lits")):
        (other,) = data_set(name).load(root).labels
        assert replace(other, stored_values=()) == liver


def test_liver_of_volumes_joins_that_of_lits(tmp_path: Path) -> None:
    touch(tmp_path, "lits/volume-0.nii", "lits/segmentation-0.nii")
    write_volume(tmp_path / "btcv", 4, all_organs())
    for name in ("lits", "btcv-liver"):
        folder = tmp_path / name.removesuffix("-liver")
        assert main(["prepare", name, str(folder), "--output", str(tmp_path / f"prepared-{name}")]) == 0
    merged, warnings = merge_cohorts(
        [load_cohort(tmp_path / f"prepared-{name}") for name in ("lits", "btcv-liver")], name="both"
    )
    assert [case.patient for case in merged.cases] == ["lits-0", "btcv-0004"]
    assert [label.name for label in merged.labels] == ["liver"]
    assert warnings == ()


# --- slices ---


def slices_folder(root: Path, slices: dict[str, int | None], *, grey: int | None = None) -> Path:
    """Pictures of noise, or of one grey, by name, with a mask that holds a value; None: no mask file."""
    random = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, value in slices.items():
        pixels = (
            random.integers(0, 256, (16, 16), np.uint8) if grey is None else np.full((16, 16), grey, np.uint8)
        )
        Image.fromarray(pixels).save(root / f"images/{name}.jpg")
        if value is not None:
            mask = np.zeros((16, 16), np.uint8)
            mask[4:8, 2:10] = value
            Image.fromarray(mask).save(root / f"masks/{name}.png")
    return root


def test_slices_belong_to_the_person_of_their_volume(tmp_path: Path) -> None:
    """The labelled volumes are 0001 to 0010 and 0021 to 0040; slices count them from 0."""
    names = {f"btcv-{n:02d}_slice_{s:03d}": STORED_LIVER for n in (0, 9, 10, 29) for s in (7, 8)}
    cohort = loaded(BTCV, slices_folder(tmp_path / "slices", names))
    assert [(case.id, case.patient) for case in cohort.cases] == [
        (f"btcv-{number}_slice_{s}", f"btcv-{number}")
        for number in ("0001", "0010", "0021", "0040")
        for s in (7, 8)
    ]
    volumes = BTCV.load(volumes_folder(tmp_path / "volumes", "MONAI", labelled=(1, 10, 21, 40), tests=()))
    assert {case.patient for case in volumes.cases} == {case.patient for case in cohort.cases}
    for inner in ("images", "masks"):
        assert BTCV.load(tmp_path / "slices" / inner).cases == cohort.cases


def test_slices_outside_the_organs_are_empty_and_lost_masks_are_not(tmp_path: Path) -> None:
    around: dict[str, int | None] = {f"btcv-03_slice_{s:03d}": None for s in range(6)}
    around |= {"btcv-03_slice_001": SPLEEN, "btcv-03_slice_004": SPLEEN, "btcv-05_slice_000": None}
    root = slices_folder(tmp_path, around)
    (root / "masks/btcv-07_slice_000.png").touch()
    for source in (BTCV, ABDOMEN, LIVER):
        scan = source.scan(root)
        cases = scan.cohort.cases
        assert [case.id for case in cases if case.empty] == ["btcv-0004_slice_0", "btcv-0004_slice_5"]
        unlabelled = ["btcv-0004_slice_2", "btcv-0004_slice_3", "btcv-0006_slice_0"]
        assert [case.id for case in cases if not case.labelled] == unlabelled
        named = [Path(problem.text.split(":")[0]).stem for problem in scan.problems]
        assert named == [
            "btcv-03_slice_002",
            "btcv-03_slice_003",
            "btcv-05_slice_000",
            "btcv-07_slice_000",
        ]
        assert {problem.kind for problem in scan.problems} == {"missing"}


def test_without_masks_nothing_counts_as_empty(tmp_path: Path) -> None:
    root = slices_folder(tmp_path, {f"btcv-{n:02d}_slice_{s:03d}": None for n in (0, 1) for s in range(3)})
    (root / "masks").rmdir()
    scan = ABDOMEN.scan(root)
    assert [case.labelled for case in scan.cohort.cases] == [False] * 6
    assert [problem.kind for problem in scan.problems] == ["missing"] * 6


def test_black_padding_at_the_end_of_a_volume_is_left_out(tmp_path: Path) -> None:
    root = slices_folder(tmp_path, {f"btcv-00_slice_{s:03d}": SPLEEN for s in range(3)})
    slices_folder(root, {"btcv-00_slice_003": None, "btcv-00_slice_004": None}, grey=0)
    assert [case.id for case in BTCV.load(root).cases] == [f"btcv-0001_slice_{s}" for s in range(3)]
    assert check(BTCV, root).problems == ()
    # Within the volume, under a mask that shows something, and where it cannot be read, it is for the check to say.
    slices_folder(root, {"btcv-00_slice_001": SPLEEN, "btcv-00_slice_003": SPLEEN}, grey=0)
    (root / "images/btcv-00_slice_004.jpg").write_bytes(b"no picture")
    found = check(BTCV, root)
    assert [problem.kind for problem in found.problems] == ["unreadable"] * 3
    assert len(found.cohort.cases) == 5


def test_odd_names_and_values_of_slices_are_reported(tmp_path: Path) -> None:
    names: dict[str, int | None] = {
        "btcv-00_slice_000": 14,
        "btcv-00_slice_001": LEFT_ADRENAL,
        "btcv-00_slice_1": None,
    }
    names |= {"btcv-30_slice_000": SPLEEN, "btcv-00_slice_000 (copy)": None, "btcv-a_slice_0": None}
    root = slices_folder(tmp_path, names)
    touch(root, "images/Thumbs.db", "images/._btcv-00_slice_000.jpg")
    for source in (BTCV, LIVER):
        found = check(source, root)
        assert [case.id for case in found.cohort.cases] == ["btcv-0001_slice_0", "btcv-0001_slice_1"]
        counts = Counter(problem.kind for problem in found.problems)
        assert counts == {"layout": 4, "duplicate": 1, "value": 1}  # of 30 the mask as well


def test_a_folder_of_other_slices_says_what_was_looked_for(tmp_path: Path) -> None:
    slices_folder(tmp_path, {"volume-1_slice_2": 1, "btcv-31_slice_0": 1})
    for source in (BTCV, ABDOMEN, LIVER):
        with pytest.raises(InputError, match=f"not the data set {source.about.name}") as caught:
            source.scan(tmp_path)
        assert "\n" not in str(caught.value)


# --- real slices ---

# Patients of the folder by the number of their volume, and how many slices TransUNet's list has of it.
SLICES = {
    6: 131,
    7: 163,
    9: 149,
    21: 143,
    23: 96,
    24: 124,
    26: 131,
    27: 88,
    28: 89,
    31: 93,
    33: 104,
    34: 98,
    37: 99,
    39: 90,
}


def test_real_slices_are_those_of_the_volumes(shared: Path) -> None:
    root = shared / "data/BTCV"
    scan = BTCV.scan(root)
    counts = Counter(case.patient for case in scan.cohort.cases)
    absent = {btcv._person(number) for number in (4, 9, 14, 19, 24, 29)}
    assert counts.keys() == {btcv._person(number) for number in range(30)} - absent
    assert len(counts) == 24
    assert scan.problems == ()
    files = list((root / "images").glob("*.jpg"))
    assert len(scan.cohort.cases) == len(files) - 24 == 2987
    assert sum(case.label is not None for case in scan.cohort.cases) == 1714
    assert sum(case.empty for case in scan.cohort.cases) == 2987 - 1714
    assert {number: counts[f"btcv-{number:04d}"] for number in SLICES} == SLICES


@pytest.fixture(scope="module")
def real_masks(shared: Path) -> dict[str, np.ndarray]:
    """Stored values by file, read by Pillow alone."""
    return {
        path.stem: np.asarray(Image.open(path)) for path in sorted((shared / "data/BTCV/masks").glob("*.png"))
    }


@pytest.mark.parametrize("source", [BTCV, ABDOMEN, LIVER], ids=lambda d: d.about.name)
def test_real_organs_have_as_many_voxels_as_their_masks(
    source: DataSet, shared: Path, real_masks: dict[str, np.ndarray]
) -> None:
    stored = sum(np.bincount(mask.ravel(), minlength=14) for mask in real_masks.values())
    expected = {organ: int(stored[value]) for value, organ in enumerate(btcv.ORGANS, start=1)}
    cohort = source.load(shared / "data/BTCV")
    counts = np.zeros(256, np.int64)
    for case in cohort.cases:
        label = read_case_label(source, case, cohort)
        if label is not None:
            counts += np.bincount(np.asarray(label).ravel(), minlength=256)
    assert {label.name: counts[label.value] for label in cohort.labels} == {
        label.name: expected[label.name] for label in cohort.labels
    }
    assert counts[1:].sum() == sum(expected[label.name] for label in cohort.labels)
    assert expected["liver"] == 3_457_379


def test_real_organs_lie_where_a_radiologist_expects_them(
    shared: Path, organs_in_place: Callable[[np.ndarray], None]
) -> None:
    """The patient's right on the picture's left, the spine at the bottom, slices from the feet to the head."""
    cohort = ABDOMEN.load(shared / "data/BTCV")
    for patient in dict.fromkeys(case.patient for case in cohort.cases):
        cases = [case for case in cohort.cases if case.patient == patient and case.label]
        volume = np.stack([np.asarray(read_case_label(ABDOMEN, case, cohort)) for case in cases])
        organs_in_place(volume)
        assert [int(case.id.rsplit("_", 1)[1]) for case in cases] == sorted(
            int(case.id.rsplit("_", 1)[1]) for case in cases
        )
