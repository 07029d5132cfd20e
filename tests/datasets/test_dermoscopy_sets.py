"""ISIC, HAM10000, PH2, DermIS and DermQuest: real samples, and made-up files in the official layouts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sgan_core.cohort import Case, Cohort, rank_labelled, validate
from sgan_core.errors import InputError
from sgan_core.imaging.readers import read_picture
from sgan_datasets import dermis, ham10000, isic, ph2
from sgan_datasets.dermoscopy import lesion_cohort
from sgan_datasets.merge import merge_cohorts
from sgan_datasets.source import DataSet

ISIC2016, ISIC2017, ISIC2018 = isic.DATA_SETS
HAM, PH2 = ham10000.DATA_SETS[0], ph2.DATA_SETS[0]
DERMIS, DERMQUEST = dermis.DATA_SETS
ALL = (*isic.DATA_SETS, HAM, PH2, DERMIS, DERMQUEST)


def loaded(data_set: DataSet, root: Path) -> Cohort:
    """The cohort of a folder, which holds to the rules of every cohort."""
    cohort = data_set.load(root)
    validate(replace(cohort, cases=rank_labelled(cohort.cases)), source="x")
    assert all(case.labelled_rank is None for case in cohort.cases)
    assert {case.domain for case in cohort.cases} == {data_set.about.name}
    return cohort


def counts(cohort: Cohort) -> dict[tuple[str, bool], int]:
    return dict(Counter((case.split, case.labelled) for case in cohort.cases))


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


def save(picture: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def grey(array: object) -> Image.Image:
    return Image.fromarray(np.asarray(array, np.uint8))


@pytest.mark.parametrize("data_set", ALL, ids=lambda d: d.about.name)
def test_a_folder_of_other_files_says_what_was_looked_for(data_set: DataSet, tmp_path: Path) -> None:
    touch(tmp_path, "holiday.jpg")
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=data_set.about.name) as error:
            data_set.load(root)
        assert str(root) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("data_set", ALL, ids=lambda d: d.about.name)
def test_one_class_in_the_range_of_the_preset(data_set: DataSet) -> None:
    cohort = lesion_cohort(data_set.about.name, ())
    assert [(label.value, label.name) for label in cohort.labels] == [(1, "skin lesion")]
    assert (cohort.modality, cohort.intensity.low, cohort.intensity.high) == ("dermoscopy", 0.0, 255.0)
    assert data_set.about.modality == "dermoscopy"
    assert all((data_set.about.licence, data_set.about.citation, data_set.about.layout, data_set.about.get))


# --- real samples ---


@pytest.mark.parametrize(
    ("data_set", "folder", "expected"),
    [
        (ISIC2016, "ISIC2016_fullres", {("train", True): 14}),
        (ISIC2017, "ISIC2017", {("train", True): 1261, ("validation", True): 101, ("test", True): 398}),
        (ISIC2017, "ISIC2017_fullres", {("train", True): 8}),
        (
            ISIC2018,
            "ISIC2018",
            {("train", True): 1664, ("validation", True): 63, ("test", False): 715, ("train", False): 1292},
        ),
        (ISIC2018, "ISIC2018_fullres", {("train", True): 4}),
        (HAM, "HAM10000_fullres", {("train", True): 4}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_real_samples(
    shared: Path, data_set: DataSet, folder: str, expected: dict[tuple[str, bool], int]
) -> None:
    cohort = loaded(data_set, shared / "data" / folder)
    assert counts(cohort) == expected
    assert all(case.patient == case.id and case.id in case.image for case in cohort.cases)
    assert [p.kind for p in data_set.scan(shared / "data" / folder).problems] == (
        ["missing"] if folder in ("ISIC2018", "HAM10000_fullres") else []  # no table of lesions
    )
    smallest = min((case for case in cohort.cases if case.label), key=lambda c: Path(c.image).stat().st_size)
    assert smallest.label is not None
    lesion, stored = label_of(data_set, smallest), np.asarray(Image.open(smallest.label))
    assert lesion.shape == read_picture(smallest.image).array.shape[1:]
    np.testing.assert_array_equal(lesion * 255, stored)


def test_real_images_keep_their_names_over_the_years(shared: Path) -> None:
    years = [(ISIC2016, "ISIC2016_fullres"), (ISIC2017, "ISIC2017"), (ISIC2018, "ISIC2018")]
    of_year = [{c.id: c.patient for c in loaded(one, shared / "data" / name).cases} for one, name in years]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        common = of_year[first].keys() & of_year[second].keys()
        assert common
        assert all(of_year[first][name] == of_year[second][name] for name in common)


# --- ISIC, made up ---


def test_2016_masks_are_called_segmentation_with_a_capital(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "ISBI2016_ISIC_Part1_Training_Data/ISIC_0000000.jpg",
        "ISBI2016_ISIC_Part1_Training_GroundTruth/ISIC_0000000_Segmentation.png",
        "ISBI2016_ISIC_Part1_Test_Data/ISIC_0000003.jpg",
        "ISBI2016_ISIC_Part1_Test_GroundTruth/ISIC_0000003_Segmentation.png",
        "ISBI2016_ISIC_Part1_Training_GroundTruth.csv",
    )
    assert counts(loaded(ISIC2016, tmp_path)) == {("train", True): 1, ("test", True): 1}
    assert problems(ISIC2016, tmp_path) == []


def test_2017_superpixels_and_tables_are_no_images(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "ISIC-2017_Test_v2_Data/ISIC_0012086.jpg",
        "ISIC-2017_Test_v2_Data/ISIC_0012086_superpixels.png",
        "ISIC-2017_Test_v2_Data/ISIC-2017_Test_v2_Data_metadata.csv",
        "ISIC-2017_Test_v2_Data/._ISIC_0012086.jpg",
        "ISIC-2017_Test_v2_Part1_GroundTruth/ISIC_0012086_segmentation.png",
    )
    (case,) = loaded(ISIC2017, tmp_path).cases
    assert (case.id, case.patient, case.split) == ("ISIC_0012086", "ISIC_0012086", "test")
    assert Path(case.image).name == "ISIC_0012086.jpg"
    assert Path(case.label or "").name == "ISIC_0012086_segmentation.png"
    assert problems(ISIC2017, tmp_path) == []


@pytest.mark.parametrize("inner", ["", "ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth"])
@pytest.mark.parametrize("nested", [False, True])
def test_folders_are_found_however_they_were_unpacked(tmp_path: Path, inner: str, nested: bool) -> None:
    for folder, file in (
        ("ISIC-2017_Training_Data", "ISIC_0000000.jpg"),
        ("ISIC-2017_Training_Part1_GroundTruth", "ISIC_0000000_segmentation.png"),
    ):
        touch(tmp_path, f"{folder}/{folder}/{file}" if nested else f"{folder}/{file}")
    assert counts(loaded(ISIC2017, tmp_path / inner)) == {("train", True): 1}


def test_images_and_masks_without_each_other_are_reported(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "ISIC-2017_Training_Data/ISIC_0000000.jpg",
        "ISIC-2017_Training_Data/ISIC_0000001.jpg",
        "ISIC-2017_Training_Part1_GroundTruth/ISIC_0000001_segmentation.png",
        "ISIC-2017_Training_Part1_GroundTruth/ISIC_0000002_segmentation.png",
        "ISIC-2017_Validation_Data/ISIC_0000009.jpg",  # no folder of masks: nothing is missing
    )
    assert counts(loaded(ISIC2017, tmp_path)) == {
        ("train", False): 1,
        ("train", True): 1,
        ("validation", False): 1,
    }
    assert problems(ISIC2017, tmp_path) == [
        ("missing", "ISIC_0000000.jpg"),
        ("missing", "ISIC_0000002_segmentation.png"),
    ]


def test_folders_without_an_image_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "ISIC-2017_Training_Data/lesion.jpg")
    with pytest.raises(InputError, match="no image is called ISIC_"):
        ISIC2017.load(tmp_path)


def test_an_image_in_two_parts_stays_in_the_test_part(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "ISIC-2017_Training_Data/ISIC_0000000.jpg",
        "ISIC-2017_Training_Data/ISIC_0000001.jpg",
        "ISIC-2017_Test_v2_Data/ISIC_0000000.jpg",
    )
    assert [(c.id, c.split) for c in loaded(ISIC2017, tmp_path).cases] == [
        ("ISIC_0000001", "train"),
        ("ISIC_0000000", "test"),
    ]
    assert problems(ISIC2017, tmp_path) == [("leak", "ISIC_0000000.jpg")]


def make_2018(root: Path) -> None:
    touch(
        root,
        "ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg",
        "ISIC2018_Task1-2_Training_Input/ATTRIBUTION.txt",
        "ISIC2018_Task1_Training_GroundTruth/ISIC_0000000_segmentation.png",
        "ISIC2018_Task1-2_Test_Input/ISIC_0012169.jpg",
        "ISIC2018_Task3_Training_Input/ISIC_0024306.jpg",
        "ISIC2018_Task3_Training_Input/ISIC_0024307.jpg",
        "ISIC2018_Task3_Training_Input/ISIC_0024308.jpg",
    )


LESIONS = {"ISIC_0024306": "HAM_0000550", "ISIC_0024307": "HAM_0003577", "ISIC_0024308": "HAM_0000550"}
GROUPINGS = "image,lesion_id,diagnosis_confirm_type\n" + "".join(
    f"{image},{lesion},histopathology\n" for image, lesion in LESIONS.items()
)
METADATA = "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset\n" + "".join(
    f"{lesion},{image},nv,histo,45.0,male,trunk,vidir_molemax\n" for image, lesion in LESIONS.items()
)


def test_2018_test_part_and_task_3_have_no_masks(tmp_path: Path) -> None:
    make_2018(tmp_path)
    cohort = loaded(ISIC2018, tmp_path)
    assert counts(cohort) == {("train", True): 1, ("test", False): 1, ("train", False): 3}
    assert [p.patient for p in cohort.cases] == [c.id for c in cohort.cases]
    assert problems(ISIC2018, tmp_path) == [("missing", "ISIC2018_Task3_Training_Input")]
    touch(tmp_path, "ISIC2018_Task1_Test_GroundTruth/ISIC_0012169_segmentation.png")
    assert counts(loaded(ISIC2018, tmp_path))["test", True] == 1


def test_2018_task_3_images_of_one_lesion_are_one_patient(tmp_path: Path) -> None:
    make_2018(tmp_path)
    (tmp_path / "ISIC2018_Task3_Training_LesionGroupings.csv").write_text(GROUPINGS)
    patients = {case.id: case.patient for case in loaded(ISIC2018, tmp_path).cases}
    assert {name: patients[name] for name in LESIONS} == LESIONS
    assert patients["ISIC_0000000"] == "ISIC_0000000"
    assert problems(ISIC2018, tmp_path) == []


# --- HAM10000, made up ---


def make_ham(root: Path) -> None:
    touch(
        root,
        "HAM10000_images_part_1/ISIC_0024306.jpg",
        "HAM10000_images_part_2/ISIC_0024307.jpg",
        "HAM10000_images_part_2/ISIC_0024308.jpg",
        *(f"HAM10000_segmentations_lesion_tschandl/{name}_segmentation.png" for name in LESIONS),
    )


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ("HAM10000_metadata.csv", METADATA),
        ("HAM10000_metadata", METADATA),
        ("HAM10000_metadata.tab", METADATA.replace(",", "\t").replace("HAM_0000550", '"HAM_0000550"')),
        ("ISIC2018_Task3_Training_LesionGroupings.csv", GROUPINGS),
    ],
)
def test_the_lesion_is_the_patient(tmp_path: Path, table: str, text: str) -> None:
    make_ham(tmp_path)
    (tmp_path / table).write_text(text)
    cohort = loaded(HAM, tmp_path)
    assert {case.id: case.patient for case in cohort.cases} == LESIONS
    assert counts(cohort) == {("train", True): 3}
    assert problems(HAM, tmp_path) == []


def test_without_a_table_of_lesions_the_image_is_the_patient(tmp_path: Path) -> None:
    make_ham(tmp_path)
    (tmp_path / "HAM10000_segmentations_lesion_tschandl/ISIC_0024307_segmentation.png").unlink()
    assert {case.id: case.patient for case in loaded(HAM, tmp_path).cases} == {name: name for name in LESIONS}
    assert problems(HAM, tmp_path) == [("missing", "ISIC_0024307.jpg"), ("missing", "HAM10000_images_part_1")]


@pytest.mark.parametrize(
    ("table", "text"), [("HAM10000_metadata.csv", "a,b\n1,2\n"), ("HAM10000_metadata.tab", "a\tb\n1\t2\n")]
)
def test_a_table_without_lesions_is_refused(tmp_path: Path, table: str, text: str) -> None:
    make_ham(tmp_path)
    (tmp_path / table).write_text(text)
    with pytest.raises(InputError, match=table):
        HAM.load(tmp_path)


def test_ham_images_count_once_beside_those_of_the_challenge(tmp_path: Path) -> None:
    make_2018(tmp_path / "isic")
    make_ham(tmp_path / "ham" / "dataverse_files")
    (tmp_path / "isic/ISIC2018_Task3_Training_LesionGroupings.csv").write_text(GROUPINGS)
    (tmp_path / "ham/dataverse_files/HAM10000_metadata.csv").write_text(METADATA)
    merged, _ = merge_cohorts(
        [loaded(ISIC2018, tmp_path / "isic"), loaded(HAM, tmp_path / "ham")], name="both"
    )
    assert counts(merged) == {("train", True): 4, ("test", False): 1}


# --- masks ---


def test_grey_edges_are_parted_in_the_middle(tmp_path: Path) -> None:
    mask = save(grey([[0, 3, 127], [128, 250, 255]]), tmp_path / "mask.png")
    label = label_of(ISIC2018, Case("a", "a", "a.jpg", str(mask)))
    np.testing.assert_array_equal(label, [[0, 0, 0], [1, 1, 1]])


def test_an_empty_mask_is_no_lesion_but_a_dark_one_is_refused(tmp_path: Path) -> None:
    empty = save(grey(np.zeros((2, 3))), tmp_path / "empty.png")
    assert not label_of(HAM, Case("a", "a", "a.jpg", str(empty))).any()
    dark = save(grey([[0, 1], [1, 1]]), tmp_path / "dark.png")
    with pytest.raises(InputError, match=r"dark.png: the brightest pixel is 1"):
        label_of(HAM, Case("a", "a", "a.jpg", str(dark)))


# --- PH2 ---


def make_ph2(folder: Path, *names: str) -> None:
    for name in names:
        save(grey(np.arange(36).reshape(3, 4, 3)), folder / f"{name}/{name}_Dermoscopic_Image/{name}.bmp")
        save(grey([[0, 0, 0, 0], [0, 255, 255, 0], [0] * 4]).convert("1"), lesion_file(folder, name))
        save(grey(np.eye(3) * 255).convert("1"), folder / f"{name}/{name}_roi/{name}_R1_Label3.bmp")


def lesion_file(folder: Path, name: str) -> Path:
    return folder / f"{name}/{name}_lesion/{name}_lesion.bmp"


@pytest.mark.parametrize(
    ("folder", "root"),
    [
        ("PH2Dataset/PH2 Dataset images", ""),
        ("PH2Dataset/PH2 Dataset images", "PH2Dataset"),
        ("PH2Dataset/PH2 Dataset images", "PH2Dataset/PH2 Dataset images"),
        ("PH2_Dataset_images", ""),
    ],
)
def test_ph2_is_found_at_each_level(tmp_path: Path, folder: str, root: str) -> None:
    make_ph2(tmp_path / folder, "IMD003", "IMD002")
    cohort = loaded(PH2, tmp_path / root)
    assert [(c.id, c.patient, c.split) for c in cohort.cases] == [
        ("ph2-IMD002", "ph2-IMD002", "train"),
        ("ph2-IMD003", "ph2-IMD003", "train"),
    ]
    assert counts(cohort) == {("train", True): 2}
    assert problems(PH2, tmp_path / root) == []


def test_ph2_masks_are_one_bit_or_colour(tmp_path: Path) -> None:
    make_ph2(tmp_path, "IMD002", "IMD003", "IMD004")
    with Image.open(lesion_file(tmp_path, "IMD002")) as one_bit:
        assert one_bit.mode == "1"
        one_bit.convert("RGB").save(lesion_file(tmp_path, "IMD003"))
        swapped = one_bit.point(lambda value: 255 - value).convert("P")
    swapped.putpalette([255, 255, 255] + [0, 0, 0] * 255)  # index 0 is white
    swapped.point(lambda value: min(value, 1)).save(lesion_file(tmp_path, "IMD004"))
    cohort = loaded(PH2, tmp_path)
    assert read_picture(cohort.cases[0].image).array.shape == (3, 3, 4)
    for case in cohort.cases:
        np.testing.assert_array_equal(label_of(PH2, case), [[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]])


def test_ph2_files_that_are_missing_are_reported(tmp_path: Path) -> None:
    make_ph2(tmp_path, "IMD002", "IMD003", "IMD004")
    lesion_file(tmp_path, "IMD002").unlink()
    (tmp_path / "IMD003/IMD003_Dermoscopic_Image/IMD003.bmp").unlink()
    (tmp_path / "IMD005").mkdir()
    assert counts(loaded(PH2, tmp_path)) == {("train", False): 1, ("train", True): 1}
    assert problems(PH2, tmp_path) == [
        ("missing", "IMD002.bmp"),
        ("missing", "IMD003_lesion.bmp"),
        ("missing", "IMD005"),
    ]


# --- DermIS, DermQuest ---


def disc(*, outline: int = 0, gap: float = 0) -> Image.Image:
    """A lesion 120 pixels wide in a picture of 200 x 160: filled, or as a line with a gap in degrees."""
    picture = Image.new("L", (200, 160))
    draw, box = ImageDraw.Draw(picture), (40, 20, 160, 140)
    if outline:
        draw.arc(box, gap, 360, fill=255, width=outline)
    else:
        draw.ellipse(box, fill=255)
    return picture


def contour_case(root: Path, contour: Image.Image, size: tuple[int, int] = (200, 160)) -> Case:
    folder = root / "Skin Image Data Set-1/skin_data/melanoma/dermIS"
    save(Image.new("RGB", size, (200, 150, 120)), folder / "SSM1_orig.jpg")
    save(contour, folder / "SSM1_contour.png")
    (case,) = loaded(DERMIS, root).cases
    return case


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / (first | second).sum())


def test_both_sources_and_diagnoses_are_told_apart(tmp_path: Path) -> None:
    first, second = "Skin Image Data Set-1/skin_data/melanoma", "Skin Image Data Set-2/skin_data/notmelanoma"
    for folder in (f"{first}/dermIS", f"{first}/dermquest", f"{second}/dermis", f"{second}/dermquest"):
        touch(tmp_path, f"{folder}/D1_orig.jpg", f"{folder}/D1_contour.png", f"{folder}/Thumbs.db")
    touch(tmp_path, f"{second}/dermis/D2_orig.jpg", f"{second}/dermquest/D3_contour.png")
    assert [(c.id, c.patient, c.labelled) for c in loaded(DERMIS, tmp_path).cases] == [
        (name, name, name != "dermis-notmelanoma-D2")
        for name in ("dermis-melanoma-D1", "dermis-notmelanoma-D1", "dermis-notmelanoma-D2")
    ]
    assert counts(loaded(DERMQUEST, tmp_path / first)) == {("train", True): 1}
    assert counts(loaded(DERMQUEST, tmp_path / second / "dermquest")) == {("train", True): 1}
    assert problems(DERMIS, tmp_path) == [("missing", "D2_orig.jpg")]
    assert problems(DERMQUEST, tmp_path) == [("missing", "D3_contour.png")]


def test_a_set_unpacked_twice_counts_once(tmp_path: Path) -> None:
    for copy in ("first", "second"):
        touch(tmp_path, *(f"{copy}/melanoma/dermis/D1_{kind}" for kind in ("orig.jpg", "contour.png")))
    assert len(loaded(DERMIS, tmp_path).cases) == 1
    assert problems(DERMIS, tmp_path) == [("duplicate", "D1_orig.jpg")]


def test_a_filled_contour_stays_as_it_is(tmp_path: Path) -> None:
    label = label_of(DERMIS, contour_case(tmp_path, disc()))
    np.testing.assert_array_equal(label * 255, np.asarray(disc()))


@pytest.mark.parametrize("gap", [0, 8], ids=["closed", "with a gap"])
def test_an_outline_is_filled(tmp_path: Path, gap: float) -> None:
    label = label_of(DERMIS, contour_case(tmp_path, disc(outline=3, gap=gap)))
    assert jaccard(label > 0, np.asarray(disc()) > 0) > 0.98


def test_an_outline_that_stays_open_is_refused(tmp_path: Path) -> None:
    case = contour_case(tmp_path, disc(outline=3, gap=90))
    with pytest.raises(InputError, match=r"SSM1_contour.png: an outline that does not close"):
        label_of(DERMIS, case)


def test_a_contour_of_another_size_is_brought_to_the_image(tmp_path: Path) -> None:
    label = label_of(DERMIS, contour_case(tmp_path, disc(), size=(400, 320)))
    assert label.shape == (320, 400)
    assert jaccard(label > 0, np.asarray(disc().resize((400, 320), Image.Resampling.NEAREST)) > 0) == 1.0
