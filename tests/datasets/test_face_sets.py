"""CelebAMask-HQ, MetFaces and FASSEG: real samples, and made-up files in the official layouts."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sgan_core.cohort import Case, Cohort, rank_labelled, validate
from sgan_core.errors import InputError
from sgan_core.imaging.readers import read_picture
from sgan_datasets import celebamask, fasseg, metfaces
from sgan_datasets.source import DataSet

CELEBA, METFACES, FASSEG = (module.DATA_SETS[0] for module in (celebamask, metfaces, fasseg))
ALL = (CELEBA, METFACES, FASSEG)


def loaded(data_set: DataSet, root: Path) -> Cohort:
    """The cohort of a folder, which holds to the rules of every cohort."""
    cohort = data_set.load(root)
    validate(replace(cohort, cases=rank_labelled(cohort.cases)), source="x")
    assert all(case.labelled_rank is None for case in cohort.cases)
    assert {case.domain for case in cohort.cases} == {data_set.about.name}
    assert (cohort.modality, cohort.intensity.low, cohort.intensity.high) == ("face", 0.0, 255.0)
    return cohort


def problems(data_set: DataSet, root: Path) -> list[tuple[str, str]]:
    """Kind of each problem with the name of the file that it begins with."""
    return [(p.kind, Path(p.text.split(": ")[0]).name) for p in data_set.scan(root).problems]


def label_of(data_set: DataSet, case: Case) -> np.ndarray:
    assert data_set.read_label is not None
    label = data_set.read_label(case)
    assert isinstance(label, np.ndarray)
    assert label.dtype == np.uint8
    return label


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def save(array: object, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)
    return path


@pytest.mark.parametrize("data_set", ALL, ids=lambda d: d.about.name)
def test_a_folder_of_other_files_says_what_was_looked_for(data_set: DataSet, tmp_path: Path) -> None:
    touch(tmp_path, "holiday.jpg")
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=data_set.about.name) as error:
            data_set.load(root)
        assert str(root) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data_set", "folder"), [(CELEBA, "CelebA-HQ-img"), (METFACES, "images"), (FASSEG, "V2/Train_RGB")]
)
def test_a_folder_without_pictures_is_refused(data_set: DataSet, folder: str, tmp_path: Path) -> None:
    touch(tmp_path, f"{folder}/read.me")
    with pytest.raises(InputError, match=f"{folder}: no "):
        data_set.load(tmp_path)


def test_what_means_the_same_has_one_name_and_value() -> None:
    celeba = {label.name: label.value for label in celebamask.FACE_PARTS}
    ours = {label.name: label.value for label in fasseg.LABELS}
    assert {name: celeba[name] for name in celeba.keys() & ours.keys()} == {"nose": 2, "eyes": 3, "mouth": 4}
    assert {name: ours[name] for name in ("nose", "eyes", "mouth")} == {"nose": 2, "eyes": 3, "mouth": 4}
    assert set(celebamask.PARTS.values()) - {""} == celeba.keys()


# --- FASSEG ---


def test_fasseg_pictures_are_all_in_train(shared: Path) -> None:
    root = shared / "data" / "FASSEG"
    cohort = loaded(FASSEG, root)
    assert [case.id for case in cohort.cases[:3]] == ["fasseg-train-1", "fasseg-train-5", "fasseg-train-6"]
    assert [case.id.split("-")[1] for case in cohort.cases] == ["train"] * 12 + ["test"] * 32
    assert all(case.labelled and case.split == "train" for case in cohort.cases)
    assert loaded(FASSEG, root / "V2") == cohort
    assert problems(FASSEG, root) == []


def test_fasseg_photographs_that_recur_are_one_patient(shared: Path) -> None:
    patients: dict[bytes, set[str]] = defaultdict(set)
    for case in loaded(FASSEG, shared / "data" / "FASSEG").cases:
        patients[read_picture(case.image).array.tobytes()].add(case.patient)
    assert len(patients) == 39
    assert all(len(names) == 1 for names in patients.values())
    assert len(set.union(*patients.values())) == 39


def test_fasseg_colours_become_classes(shared: Path) -> None:
    cohort = loaded(FASSEG, shared / "data" / "FASSEG")
    exact = {colour: value for value, colour in enumerate(fasseg.COLOURS)}
    for case in cohort.cases[::11]:
        label = label_of(FASSEG, case)
        assert label.shape == read_picture(case.image).array.shape[1:]
        assert set(np.unique(label)) == {0, 1, 2, 3, 4, 5}
        assert case.label is not None
        pixels = np.asarray(Image.open(case.label)).reshape(-1, 3)
        for pixel, value in list(zip(pixels, label.ravel(), strict=True))[::101]:
            assert exact.get(tuple(pixel.tolist()), value) == value
        # Eyes lie above the nose, the nose above the mouth.
        heights = [np.nonzero(label == value)[0].mean() for value in (3, 2, 4)]
        assert heights == sorted(heights)


def test_fasseg_original_files_are_bmp(shared: Path) -> None:
    cohort = loaded(FASSEG, shared / "data" / "FASSEG" / "original_bmp")
    assert [case.id for case in cohort.cases] == [f"fasseg-train-{n}" for n in (1, 5, 6, 11)]
    lossless = {case.id: case for case in loaded(FASSEG, shared / "data" / "FASSEG").cases}
    for case in cohort.cases:
        np.testing.assert_array_equal(label_of(FASSEG, case), label_of(FASSEG, lossless[case.id]))


def test_fasseg_blended_edges_take_the_nearest_colour(tmp_path: Path) -> None:
    colours = [*fasseg.COLOURS, (255, 100, 0), (20, 235, 0), (150, 20, 5), (250, 250, 30)]
    mask = save([colours], tmp_path / "1.png")
    np.testing.assert_array_equal(
        label_of(FASSEG, Case("a", "a", "a.png", str(mask))), [[0, 1, 2, 3, 4, 5, 0, 4, 5, 1]]
    )


def test_fasseg_refuses_what_has_other_colours(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3))
    for array in (noise, noise[..., 0]):
        mask = save(array, tmp_path / "photo.png")
        with pytest.raises(InputError, match="photo.png: not a mask in the six colours"):
            label_of(FASSEG, Case("a", "a", "a.png", str(mask)))


def test_fasseg_reports_what_is_missing(tmp_path: Path) -> None:
    touch(tmp_path, "V2/Train_RGB/1.bmp", "V2/Train_RGB/2.bmp", "V2/Train_Labels/2.bmp")
    touch(tmp_path, "V2/Test_RGB/1.bmp", "V2/Test_Labels/1.bmp", "V2/Test_Labels/7.bmp")
    assert [(c.id, c.labelled) for c in loaded(FASSEG, tmp_path).cases] == [
        ("fasseg-train-1", False),
        ("fasseg-train-2", True),
        ("fasseg-test-1", True),
    ]
    assert problems(FASSEG, tmp_path) == [("missing", "1.bmp"), ("missing", "7.bmp")]


# --- MetFaces ---


def test_metfaces_are_unlabelled(shared: Path) -> None:
    root = shared / "data" / "MetFaces_teaser"
    cohort = loaded(METFACES, root)
    names = [f"metfaces-teaser_{n}" for n in range(3)]
    assert [(c.id, c.patient, c.split, c.labelled) for c in cohort.cases] == [
        (name, name, "train", False) for name in names
    ]
    assert loaded(METFACES, root / "images") == cohort
    assert read_picture(cohort.cases[0].image).array.shape[0] == 3
    assert cohort.labels == celebamask.FACE_PARTS


def test_metfaces_of_one_work_are_one_patient(tmp_path: Path) -> None:
    touch(tmp_path, *(f"images/{name}.png" for name in ("1004-00", "1004-01", "11653-00")))
    touch(tmp_path, "images/metfaces.json", "unprocessed/1004.png")
    assert [(c.id, c.patient) for c in loaded(METFACES, tmp_path).cases] == [
        ("metfaces-1004-00", "metfaces-1004"),
        ("metfaces-1004-01", "metfaces-1004"),
        ("metfaces-11653-00", "metfaces-11653"),
    ]


# --- CelebAMask-HQ ---


def make_celeba(root: Path, parts: dict[str, list[int]], *, width: int = 12) -> None:
    """Image 2001 of double size; each part is the columns named."""
    save(np.full((4, 2 * width, 3), np.arange(2 * width)[:, None]), root / "CelebA-HQ-img/2001.jpg")
    for part, columns in parts.items():
        mask = np.zeros((2, width, 3))  # the set's masks are stored in three equal channels
        mask[:, columns] = 255
        save(mask, root / f"CelebAMask-HQ-mask-anno/1/02001_{part}.png")


def test_celeba_parts_are_joined_to_seven_classes(tmp_path: Path) -> None:
    parts = ["skin", "nose", "l_eye", "r_eye", "u_lip", "mouth", "l_lip", "hair", "l_brow", "r_brow", "r_ear"]
    make_celeba(tmp_path, {part: [n] for n, part in enumerate(parts)})
    (case,) = loaded(CELEBA, tmp_path).cases
    assert (case.id, case.patient) == ("celebamask-02001", "celebamask-02001")
    assert Path(case.label or "").name == "02001_skin.png"
    label = label_of(CELEBA, case)
    assert label.shape == (4, 24)
    np.testing.assert_array_equal(label[0], np.repeat([1, 2, 3, 3, 4, 4, 4, 5, 6, 6, 7, 0], 2))
    names = [x.name for x in celebamask.FACE_PARTS]
    assert names == ["skin", "nose", "eyes", "mouth", "hair", "eyebrows", "ears"]


def test_celeba_later_parts_cover_earlier_ones(tmp_path: Path) -> None:
    make_celeba(
        tmp_path,
        {
            "cloth": [11],
            "neck": [9, 10, 11],
            "hat": [7],
            "hair": [6, 7],
            "l_eye": [3],
            "eye_g": [3, 4],
            "nose": [5],
            "skin": list(range(10)),
        },
    )
    label = label_of(CELEBA, loaded(CELEBA, tmp_path).cases[0])
    np.testing.assert_array_equal(label[0, ::2], [1, 1, 1, 3, 0, 2, 5, 0, 1, 0, 0, 0])


def test_celeba_part_of_another_size_is_refused(tmp_path: Path) -> None:
    make_celeba(tmp_path, {"skin": [0]})
    save(np.full((3, 3), 255), tmp_path / "CelebAMask-HQ-mask-anno/1/02001_nose.png")
    with pytest.raises(InputError, match=r"02001_nose.png: differs in size"):
        label_of(CELEBA, loaded(CELEBA, tmp_path).cases[0])


def make_lists(root: Path, mapping: str = "", partition: str = "") -> None:
    (root / "CelebA-HQ-to-CelebA-mapping.txt").write_text(
        mapping
        or "idx     orig_idx    orig_file\n0  119613  119614.jpg\n1  99094  099095.jpg\n2  200  201.jpg\n"
    )
    (root / "list_eval_partition.txt").write_text(
        partition or "000201.jpg 1\n099095.jpg 2\n119614.jpg 0\n162770.jpg 0\n"
    )


def test_celeba_splits_are_those_of_its_lists(tmp_path: Path) -> None:
    home = tmp_path / "CelebAMask-HQ"
    touch(home, *(f"CelebA-HQ-img/{n}.jpg" for n in range(4)))
    assert {case.split for case in loaded(CELEBA, tmp_path).cases} == {"train"}
    assert problems(CELEBA, tmp_path) == []
    make_lists(home)
    for root in (tmp_path, home):
        splits = {case.id: case.split for case in loaded(CELEBA, root).cases}
        assert list(splits.values()) == ["train", "test", "validation", "train"]
        assert problems(CELEBA, root) == [("missing", "3.jpg")]


@pytest.mark.parametrize(
    ("lists", "file"),
    [
        ({"mapping": "0 119613\n"}, "CelebA-HQ-to-CelebA-mapping.txt"),
        ({"partition": "000001.jpg 3\n"}, "list_eval_partition.txt"),
        ({"partition": "000001.jpg\n"}, "list_eval_partition.txt"),
        ({"partition": "image_id,partition\n"}, "list_eval_partition.txt"),
    ],
)
def test_celeba_lists_that_are_no_lists_are_refused(tmp_path: Path, lists: dict[str, str], file: str) -> None:
    touch(tmp_path, "CelebA-HQ-img/0.jpg")
    make_lists(tmp_path, **lists)
    with pytest.raises(InputError, match=f"{file}: each line is"):
        CELEBA.load(tmp_path)


def test_celeba_reports_what_is_missing(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "CelebA-HQ-img/0.jpg",
        "CelebA-HQ-img/1.jpg",
        "CelebAMask-HQ-mask-anno/0/00001_hair.png",
        "CelebAMask-HQ-mask-anno/0/00001_nose.png",
        "CelebAMask-HQ-mask-anno/0/00002_nose.png",
        "CelebAMask-HQ-mask-anno/0/00002_beard.png",
        "CelebAMask-HQ-mask-anno/.DS_Store",
    )
    cases = loaded(CELEBA, tmp_path).cases
    assert [(c.id, Path(c.label).name if c.label else None) for c in cases] == [
        ("celebamask-00000", None),
        ("celebamask-00001", "00001_nose.png"),
    ]
    assert problems(CELEBA, tmp_path) == [("missing", "0.jpg"), ("missing", "00002_nose.png")]
