"""Chest X-ray sets: real files where they are at hand, else made-up ones in the official layout."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sgan_core.cohort import Case, rank_labelled, validate
from sgan_core.errors import InputError
from sgan_core.imaging.readers import read_picture
from sgan_datasets import data_set
from sgan_datasets.jsrt import RAW_SHAPE, read_radiograph
from sgan_datasets.prepare import prepare
from sgan_datasets.source import DataSet, Scan

XRAY_SETS = ("jsrt", "cxr14", "nih", "montgomery", "shenzhen", "wingspan", "covid-chestxray")


def scanned(name: str, root: Path) -> Scan:
    """The scan, whose cohort keeps every rule once its patients are ranked."""
    scan = data_set(name).scan(root)
    cohort = scan.cohort
    assert [label.name for label in cohort.labels] == ["lung"]
    assert (cohort.name, cohort.modality) == (name, "xray")
    assert cohort.intensity.percentiles == (0.5, 99.5)
    assert all(case.labelled_rank is None for case in cohort.cases)
    assert all(Path(case.image).is_absolute() and Path(case.image).is_file() for case in cohort.cases)
    validate(replace(cohort, cases=rank_labelled(cohort.cases)), source=name)
    return scan


def save(path: Path, pixels: np.ndarray | list[list[int]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
    return path


def stripe(column: int, *, size: int = 8, value: int = 255) -> np.ndarray:
    """A mask with one bright column."""
    mask = np.zeros((size, size), np.uint8)
    mask[:, column] = value
    return mask


def columns_of(labels: np.ndarray) -> list[int]:
    return sorted(set(np.nonzero(labels)[1].tolist()))


def label_of(name: str, case: Case) -> np.ndarray:
    read_label = data_set(name).read_label
    assert read_label is not None
    labels = read_label(case)
    assert isinstance(labels, np.ndarray)
    assert labels.dtype == np.uint8
    assert labels.max() <= 1
    return labels


def ramp(size: int = 8) -> np.ndarray:
    return np.arange(size * size, dtype=np.uint8).reshape(size, size)


@pytest.mark.parametrize("name", XRAY_SETS)
def test_everything_one_wants_to_know_is_said(name: str) -> None:
    found: DataSet = data_set(name)
    facts = vars(found.about)
    assert all(facts.values()), [key for key, value in facts.items() if not value]
    assert found.about.source.startswith("http")


@pytest.mark.parametrize("name", XRAY_SETS)
def test_another_folder_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "holiday").mkdir()
    save(tmp_path / "holiday" / "beach.png", ramp())
    for root in (tmp_path / "holiday", tmp_path / "nowhere"):
        with pytest.raises(InputError, match=root.name) as error:
            data_set(name).load(root)
        assert "\n" not in str(error.value)


# --- Wingspan ---


def test_wingspan_is_one_patient_an_image(shared: Path) -> None:
    scan = scanned("wingspan", shared / "data" / "Wingspan")
    cases = scan.cohort.cases
    assert scan.problems == ()
    assert len(cases) == len({case.patient for case in cases}) == 175
    assert all(case.labelled and case.split == "train" for case in cases)
    domains = Counter(case.domain for case in cases)
    assert domains["wingspan-1.2.410.200048"] == 128
    assert domains["wingspan-10.11.1247"] == 1
    assert len(domains) == 7


def test_wingspan_label_is_the_union_of_both_sides(shared: Path) -> None:
    root = shared / "data" / "Wingspan"
    for case in data_set("wingspan").load(root).cases[::60]:
        joined = read_picture(root / "mask" / "lungs" / Path(case.image).name).array[0] > 127
        np.testing.assert_array_equal(label_of("wingspan", case), joined)


def make_wingspan(root: Path, *names: str) -> None:
    for name in names:
        save(root / "png" / f"{name}.png", ramp())
        save(root / "mask" / "left_lung" / f"{name}.png", stripe(5, value=128))
        save(root / "mask" / "right_lung" / f"{name}.png", stripe(2, value=127))


def test_edges_up_to_127_are_no_lung(tmp_path: Path) -> None:
    make_wingspan(tmp_path / "wingspan", "1.2.3.4.5")
    (case,) = scanned("wingspan", tmp_path).cohort.cases
    assert columns_of(label_of("wingspan", case)) == [5]


def test_mask_of_one_side_alone_is_no_label(tmp_path: Path) -> None:
    make_wingspan(tmp_path, "1.2.3.4.5", "1.2.3.4.6", "1.2.3.4.7")
    (tmp_path / "mask" / "right_lung" / "1.2.3.4.5.png").unlink()
    (tmp_path / "mask" / "left_lung" / "1.2.3.4.6.png").unlink()
    (tmp_path / "png" / "1.2.3.4.7.png").unlink()
    scan = scanned("wingspan", tmp_path)
    assert [case.labelled for case in scan.cohort.cases] == [False, False]
    texts = [problem.text for problem in scan.problems]
    assert any("1.2.3.4.5.png: no mask of the right lung" in text for text in texts)
    assert any("1.2.3.4.6.png: no mask of the left lung" in text for text in texts)
    assert any("1.2.3.4.7.png: no image" in text for text in texts)


def test_thorax_tells_the_lungs_apart_and_has_the_heart(shared: Path) -> None:
    root = shared / "data" / "Wingspan"
    cohort = data_set("wingspan-thorax").load(root)
    assert [(label.value, label.name, label.code) for label in cohort.labels] == [
        (1, "left lung", "44029006"),
        (2, "right lung", "3341006"),
        (3, "heart", "80891009"),
    ]
    for case in cohort.cases[::60]:
        read_label = data_set("wingspan-thorax").read_label
        assert read_label is not None
        labels = read_label(case)
        # The patient's left is on the right of the picture, and the heart leans to the left.
        left, right, heart = (np.nonzero(labels == value)[1].mean() for value in (1, 2, 3))
        assert right < heart < left
        for value, part in ((1, "left_lung"), (2, "right_lung"), (3, "heart")):
            mask = read_picture(root / "mask" / part / Path(case.image).name).array[0] > 127
            assert np.mean(mask == (labels == value)) > 0.999  # but for edges that two masks share


def test_thorax_without_heart_is_no_label(tmp_path: Path) -> None:
    make_wingspan(tmp_path, "1.2.3.4.5", "1.2.3.4.6")
    save(tmp_path / "mask" / "heart" / "1.2.3.4.5.png", stripe(4))
    scan = data_set("wingspan-thorax").scan(tmp_path)
    assert [case.labelled for case in scan.cohort.cases] == [True, False]
    assert [problem.text for problem in scan.problems] == [
        f"{tmp_path / 'mask' / 'heart' / '1.2.3.4.6.png'}: no mask of the heart."
    ]


def test_a_device_can_be_kept_for_test(shared: Path, tmp_path: Path) -> None:
    kept = ("wingspan-1.2.840.113619", "wingspan-1.2.156.112536")
    found = prepare(data_set("wingspan"), shared / "data" / "Wingspan", tmp_path, test_domains=kept)
    splits = Counter((case.domain in kept, case.split) for case in found.cohort.cases)
    assert splits == {(True, "test"): 18 + 11, (False, "train"): 117, (False, "validation"): 29}
    with pytest.raises(InputError, match=r"'siemens' is not among the domains found \(wingspan-1"):
        prepare(data_set("wingspan"), shared / "data" / "Wingspan", tmp_path, test_domains=["siemens"])


def test_mask_of_another_picture_is_refused(tmp_path: Path) -> None:
    make_wingspan(tmp_path, "1.2.3.4.5")
    save(tmp_path / "png" / "1.2.3.4.5.png", ramp()[:6])
    (case,) = scanned("wingspan", tmp_path).cohort.cases
    with pytest.raises(InputError, match="8 x 8 pixels, the image 1.2.3.4.5.png is 8 x 6"):
        label_of("wingspan", case)


# --- COVID-19 image data collection ---


def test_covid_set_has_several_images_a_patient(shared: Path) -> None:
    scan = scanned("covid-chestxray", shared / "data" / "covid-chestxray-dataset")
    cases = scan.cohort.cases
    assert scan.problems == ()
    assert len(cases) == 73
    assert len({case.patient for case in cases}) == 45
    masks = Counter(Path(case.label or "").parent.name for case in cases)
    assert masks == {"semantic_masks_v7labs_lungs": 56, "masks_generalblockchain_lungs": 17}
    assert {case.id for case in cases} >= {"covid-jkms-35-e79-g001-l-a", "covid-covid-19-pneumonia-mild"}


def test_covid_masks_have_the_size_of_their_image_and_ignore_devices(shared: Path) -> None:
    root = shared / "data" / "covid-chestxray-dataset"
    ignored = 0
    for case in data_set("covid-chestxray").load(root).cases:
        labels = label_of("covid-chestxray", case)
        with Image.open(case.image) as image, Image.open(case.label or "") as mask:
            assert labels.shape == (image.height, image.width)
            stored = np.asarray(mask)
        assert 0.05 < labels.mean() < 0.7
        np.testing.assert_array_equal(labels == 1, stored == 255)
        ignored += int((stored == 127).sum())
    assert ignored > 0


def make_covid(root: Path) -> None:
    rows = ["patientid,view,modality,folder,filename"]
    for patient, view, modality, name in (
        ("7", "PA", "X-ray", "a.jpg"),
        ("7", "AP Supine", "X-ray", "a.png"),
        ("8b", "AP", "X-ray", "b.png"),
        ("9", "L", "X-ray", "side.png"),
        ("9", "Axial", "CT", "slice.png"),
    ):
        rows.append(f"{patient},{view},{modality},images,{name}")
        save(root / "images" / name, ramp())
    (root / "metadata.csv").write_text("\n".join(rows), encoding="utf-8")
    (root / "semantic_masks_v7labs_lungs").mkdir()
    with (root / "semantic_masks_v7labs_lungs" / "a.jpg").open("wb") as file:
        Image.fromarray(stripe(1)).save(file, format="PNG")  # PNG data behind a .jpg name
    save(root / "masks_generalblockchain_lungs" / "a.png", stripe(2))
    save(root / "masks_generalblockchain_lungs" / "b.png", stripe(3))


def test_covid_prefers_v7_and_leaves_out_lateral_views_and_ct(tmp_path: Path) -> None:
    make_covid(tmp_path)
    scan = scanned("covid-chestxray", tmp_path)
    assert scan.problems == ()
    found = {
        case.id: (case.patient, columns_of(label_of("covid-chestxray", case))) for case in scan.cohort.cases
    }
    assert found == {
        "covid-a.jpg": ("covid-7", [1]),  # both are called a
        "covid-a.png": ("covid-7", [2]),
        "covid-b": ("covid-8b", [3]),
    }


def test_covid_orphans_are_named(tmp_path: Path) -> None:
    make_covid(tmp_path)
    (tmp_path / "images" / "b.png").unlink()
    save(tmp_path / "images" / "stranger.png", ramp())
    save(tmp_path / "semantic_masks_v7labs_lungs" / "ghost.png", stripe(1))
    texts = [problem.text for problem in scanned("covid-chestxray", tmp_path).problems]
    assert len(texts) == 4
    for part in (
        "b.png is listed",
        "stranger.png: no row of metadata.csv",
        "ghost.png: no image",
        "b.png: no image",
    ):
        assert any(part in text for text in texts), part


# --- ChestX-ray14 ---


def test_cxr14_images_of_a_patient_share_the_patient(shared: Path) -> None:
    scan = scanned("cxr14", shared / "data" / "CXR14")
    cases = scan.cohort.cases
    assert scan.problems == ()
    assert len(cases) == 735
    assert len({case.patient for case in cases}) == 176
    assert not any(case.labelled for case in cases)
    assert cases[1].id == "cxr14-00000003_000"
    assert cases[1].patient == cases[2].patient == "cxr14-00000003"


TABLE_HEAD = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
TABLE_HEAD += "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"


def make_cxr14(root: Path, names: list[str], *, rows: list[str] | None = None) -> None:
    """As unpacked: one folder an archive, each with a folder images."""
    for number, name in enumerate(names, 1):
        save(root / f"images_{number:03d}" / "images" / f"{name}.png", ramp())
    lines = [
        f"{name}.png,No Finding,0,{int(name[:8])},58,M,PA,2682,2749,0.143,0.143,\n" for name in rows or names
    ]
    (root / "Data_Entry_2017_v2020.csv").write_text(TABLE_HEAD + "".join(lines), encoding="utf-8")


def test_cxr14_official_test_list_is_kept(tmp_path: Path) -> None:
    make_cxr14(tmp_path, ["00000001_000", "00000002_000", "00000002_001", "00000003_000"])
    (tmp_path / "train_val_list.txt").write_text("00000001_000.png\n")
    (tmp_path / "test_list.txt").write_text("00000002_000.png\n00000002_001.png")
    scan = scanned("cxr14", tmp_path)
    assert scan.problems == ()
    assert {case.id[6:]: case.split for case in scan.cohort.cases} == {
        "00000001_000": "train",
        "00000002_000": "test",
        "00000002_001": "test",
        "00000003_000": "train",
    }


def test_cxr14_patient_in_both_lists_stays_in_test(tmp_path: Path) -> None:
    make_cxr14(tmp_path, ["00000002_000", "00000002_001"])
    (tmp_path / "train_val_list.txt").write_text("00000002_000.png\n")
    (tmp_path / "test_list.txt").write_text("00000002_001.png\n")
    scan = scanned("cxr14", tmp_path)
    assert {case.split for case in scan.cohort.cases} == {"test"}
    assert [problem.kind for problem in scan.problems] == ["leak"]
    assert "cxr14-00000002" in scan.problems[0].text


def test_cxr14_differences_between_table_and_files_are_summed_up(tmp_path: Path) -> None:
    make_cxr14(tmp_path, ["00000001_000"], rows=["00000002_000", "00000002_001"])
    save(tmp_path / "images" / "cover.png", ramp())
    with (tmp_path / "Data_Entry_2017_v2020.csv").open("a") as table:
        table.write("00000004_000.png,No Finding,0,5,58,M,PA,2682,2749,0.143,0.143,\n")
    scan = scanned("cxr14", tmp_path)
    assert [problem.text for problem in scan.problems] == [
        "3 rows without picture, e.g. 00000002_000.",
        "1 pictures without row, e.g. 00000001_000.",
        "1 rows whose Patient ID is not that of the name, e.g. 00000004_000.",
        "1 pictures not named <patient>_<follow-up>, left out, e.g. cover.",
    ]


def test_cxr14_without_table_is_read_from_names(tmp_path: Path) -> None:
    save(tmp_path / "00000001_000.png", ramp())
    scan = scanned("cxr14", tmp_path)
    assert [case.patient for case in scan.cohort.cases] == ["cxr14-00000001"]
    assert "no Data_Entry_2017.csv" in scan.problems[0].text


# --- NIH ---


def make_nih(root: Path, *names: str) -> None:
    for column, name in enumerate(names):
        save(root / "images" / f"{name}.png", ramp())
        save(root / "masks" / f"{name}_mask.png", stripe(column))


def test_nih_images_are_those_of_cxr14(tmp_path: Path) -> None:
    make_nih(tmp_path / "NIH", "NIH_0001", "NIH_0002", "NIH_0010")
    (tmp_path / "NIH" / "correspondence_with_chestXray8.csv").write_text(
        "NIH,ChestX-ray14,scan,mask\n"
        "NIH_0010,00009863_008.png,images/NIH_0010.png,masks/NIH_0010_mask.png\n"
        "NIH_0002,00009863_038.png,images/NIH_0002.png,masks/NIH_0002_mask.png\n"
        "NIH_0001,00003028_078.png,images/NIH_0001.png,masks/NIH_0001_mask.png\n"
    )
    scan = scanned("nih", tmp_path)
    assert scan.problems == ()
    first, second, third = scan.cohort.cases
    assert (first.id, first.patient) == ("cxr14-00003028_078", "cxr14-00003028")
    assert second.patient == third.patient == "cxr14-00009863"
    assert columns_of(label_of("nih", second)) == [1]
    make_cxr14(tmp_path / "CXR14", ["00009863_008"])
    (same,) = data_set("cxr14").load(tmp_path / "CXR14").cases
    assert (same.id, same.patient) == (third.id, third.patient)


def test_nih_without_table_warns_of_a_leak(tmp_path: Path) -> None:
    make_nih(tmp_path, "NIH_0001", "00009863_008")
    scan = scanned("nih", tmp_path)
    assert {case.patient for case in scan.cohort.cases} == {"nih-NIH_0001", "cxr14-00009863"}
    assert [problem.kind for problem in scan.problems] == ["leak"]
    assert "1 pictures is not known, e.g. NIH_0001" in scan.problems[0].text


def test_nih_orphans_are_named(tmp_path: Path) -> None:
    make_nih(tmp_path, "00000001_000", "00000002_000")
    (tmp_path / "images" / "00000001_000.png").unlink()
    (tmp_path / "masks" / "00000002_000_mask.png").unlink()
    texts = [problem.text for problem in scanned("nih", tmp_path).problems]
    assert len(texts) == 2
    assert "00000002_000.png: no mask" in texts[0]
    assert "00000001_000_mask.png: no image" in texts[1]


# --- Montgomery, Shenzhen ---


def make_montgomery(base: Path, *names: str) -> None:
    for name in names:
        save(base / "CXR_png" / f"{name}.png", ramp())
        for side, column in (("left", 6), ("right", 1)):
            folder = base / "ManualMask" / f"{side}Mask"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(stripe(column)).convert("1").save(folder / f"{name}.png")
    (base / "CXR_png" / "Thumbs.db").touch()


@pytest.mark.parametrize("inner", ["", "MontgomerySet", "NLM-MontgomeryCXRSet/MontgomerySet"])
def test_montgomery_joins_both_sides(tmp_path: Path, inner: str) -> None:
    make_montgomery(tmp_path / inner, "MCUCXR_0001_0", "MCUCXR_0104_1")
    scan = scanned("montgomery", tmp_path)
    assert scan.problems == ()
    assert [case.id for case in scan.cohort.cases] == ["montgomery-MCUCXR_0001_0", "montgomery-MCUCXR_0104_1"]
    assert [case.patient for case in scan.cohort.cases] == [
        "montgomery-MCUCXR_0001",
        "montgomery-MCUCXR_0104",
    ]
    assert columns_of(label_of("montgomery", scan.cohort.cases[0])) == [1, 6]


def test_montgomery_orphans_are_named(tmp_path: Path) -> None:
    make_montgomery(tmp_path, "MCUCXR_0001_0", "MCUCXR_0002_0", "MCUCXR_0003_0")
    (tmp_path / "CXR_png" / "MCUCXR_0001_0.png").unlink()
    for side in ("left", "right"):
        (tmp_path / "ManualMask" / f"{side}Mask" / "MCUCXR_0002_0.png").unlink()
    texts = [problem.text for problem in scanned("montgomery", tmp_path).problems]
    assert len(texts) == 2
    assert "MCUCXR_0002_0.png: no mask" in texts[0]
    assert "MCUCXR_0001_0.png: no image" in texts[1]


def make_shenzhen(base: Path, *names: str, masks: str = "mask") -> None:
    for name in names:
        save(base / "CXR_png" / f"{name}.png", ramp())
    save(base / masks / f"{names[0]}_mask.png", stripe(4))


@pytest.mark.parametrize("masks", ["mask", "mask/mask", "masks", "../mask"])
def test_shenzhen_images_without_mask_are_unlabelled(tmp_path: Path, masks: str) -> None:
    make_shenzhen(tmp_path / "ChinaSet_AllFiles", "CHNCXR_0001_0", "CHNCXR_0662_1", masks=masks)
    scan = scanned("shenzhen", tmp_path)
    assert scan.problems == ()
    first, second = scan.cohort.cases
    assert (first.id, first.patient) == ("shenzhen-CHNCXR_0001_0", "shenzhen-CHNCXR_0001")
    assert columns_of(label_of("shenzhen", first)) == [4]
    assert second.label is None


def test_shenzhen_mask_without_image_is_named(tmp_path: Path) -> None:
    make_shenzhen(tmp_path, "CHNCXR_0001_0", "CHNCXR_0002_0")
    (tmp_path / "CXR_png" / "CHNCXR_0001_0.png").unlink()
    (problem,) = scanned("shenzhen", tmp_path).problems
    assert "CHNCXR_0001_0_mask.png: no image" in problem.text


def test_shenzhen_without_masks_says_so(tmp_path: Path) -> None:
    save(tmp_path / "CXR_png" / "CHNCXR_0001_0.png", ramp())
    (problem,) = scanned("shenzhen", tmp_path).problems
    assert "no folder mask" in problem.text


def test_mixed_release_is_told_apart(tmp_path: Path) -> None:
    """Both sets in one folder, as on Kaggle."""
    base = tmp_path / "Lung Segmentation"
    make_shenzhen(base, "CHNCXR_0001_0", masks="masks")
    save(base / "CXR_png" / "MCUCXR_0001_0.png", ramp())
    save(base / "masks" / "MCUCXR_0001_0.png", stripe(2))
    for name, column in (("montgomery", 2), ("shenzhen", 4)):
        scan = scanned(name, tmp_path)
        assert scan.problems == ()
        (case,) = scan.cohort.cases
        assert columns_of(label_of(name, case)) == [column]


# --- JSRT ---


def film() -> np.ndarray:
    """Raw values of a film: bright where it is black, as over the lungs; a few above 12 bits."""
    raw = np.full(RAW_SHAPE, 500, ">u2")
    raw[512:1536, 256:768] = 3500
    raw[0, 0], raw[0, 1] = 4095, 5000
    return raw


def make_jsrt(root: Path, *names: str, folder: str = "All247images", scratch: str = "scratch") -> None:
    for number, name in enumerate(names):
        (root / folder).mkdir(parents=True, exist_ok=True)
        film().tofile(root / folder / f"{name}.IMG")
        for side, columns in (("left", slice(600, 900)), ("right", slice(128, 384))):
            mask = np.zeros((1024, 1024), np.uint8)
            mask[256:768, columns] = 255
            save(root / scratch / f"fold{number % 2 + 1}" / "masks" / f"{side} lung" / f"{name}.gif", mask)
    save(root / scratch / "fold1" / "masks" / "heart" / f"{names[0]}.gif", stripe(3))


def test_jsrt_raw_picture_comes_out_with_dark_lungs(tmp_path: Path) -> None:
    make_jsrt(tmp_path, "JPCLN001", "JPCNN093")
    scan = scanned("jsrt", tmp_path)
    assert scan.problems == ()
    assert [case.id for case in scan.cohort.cases] == ["jsrt-JPCLN001", "jsrt-JPCNN093"]
    assert [case.patient for case in scan.cohort.cases] == ["jsrt-JPCLN001", "jsrt-JPCNN093"]
    picture = read_radiograph(scan.cohort.cases[0])
    assert picture.array.shape == (1, *RAW_SHAPE)
    assert picture.array.dtype == np.uint16
    assert picture.array[0, 1000, 500] == 4095 - 3500
    assert picture.array[0, 1000, 1500] == 4095 - 500
    assert picture.array[0, 0, :2].tolist() == [0, 0]


def test_jsrt_masks_are_joined_and_doubled_in_size(tmp_path: Path) -> None:
    make_jsrt(tmp_path, "JPCLN001")
    (case,) = scanned("jsrt", tmp_path).cohort.cases
    expected = np.zeros(RAW_SHAPE, np.uint8)
    expected[512:1536, 256:768] = 1
    expected[512:1536, 1200:1800] = 1
    np.testing.assert_array_equal(label_of("jsrt", case), expected)


def test_jsrt_masks_without_folds_and_png_pictures_are_read(tmp_path: Path) -> None:
    save(tmp_path / "Images" / "JPCLN001.png", ramp())
    for side, column in (("left", 1), ("right", 0)):
        save(tmp_path / "Masks" / f"{side}_lung" / "JPCLN001.gif", stripe(column, size=4))
    scan = scanned("jsrt", tmp_path)
    assert scan.problems == ()
    (case,) = scan.cohort.cases
    np.testing.assert_array_equal(read_radiograph(case).array[0], ramp())
    assert columns_of(label_of("jsrt", case)) == [0, 1, 2, 3]


def test_jsrt_raw_file_goes_before_a_picture_made_of_it(tmp_path: Path) -> None:
    make_jsrt(tmp_path, "JPCLN001")
    save(tmp_path / "All247images" / "JPCLN001.bmp", ramp())
    (case,) = scanned("jsrt", tmp_path).cohort.cases
    assert case.image.endswith(".IMG")


def test_jsrt_orphans_are_named(tmp_path: Path) -> None:
    for name in ("JPCLN001", "JPCLN002"):
        save(tmp_path / "Images" / f"{name}.png", ramp())
    for name in ("JPCLN002", "JPCLN003"):
        for side in ("left", "right"):
            save(tmp_path / "scr" / "fold1" / "masks" / f"{side} lung" / f"{name}.gif", stripe(1))
    texts = [problem.text for problem in scanned("jsrt", tmp_path).problems]
    assert len(texts) == 2
    assert "JPCLN001.png: no mask" in texts[0]
    assert "JPCLN003.gif: no image" in texts[1]


def test_jsrt_without_masks_says_so_once(tmp_path: Path) -> None:
    for name in ("JPCLN001", "JPCLN002"):
        save(tmp_path / "Images" / f"{name}.png", ramp())
    (problem,) = scanned("jsrt", tmp_path).problems
    assert "scratch/fold1/masks/left lung" in problem.text


def test_jsrt_raw_file_that_is_cut_or_blank_is_refused(tmp_path: Path) -> None:
    make_jsrt(tmp_path, "JPCLN001")
    (case,) = scanned("jsrt", tmp_path).cohort.cases
    np.zeros(RAW_SHAPE, ">u2").tofile(case.image)
    with pytest.raises(InputError, match="every value is 0"):
        read_radiograph(case)
    Path(case.image).write_bytes(b"\0" * 1001)
    with pytest.raises(InputError, match="1001 bytes, 8388608 are needed"):
        read_radiograph(case)
    Path(case.image).unlink()
    with pytest.raises(InputError, match="cannot be read"):
        read_radiograph(case)


def test_jsrt_is_prepared_as_files_that_every_reader_knows(tmp_path: Path) -> None:
    make_jsrt(tmp_path / "JSRT", "JPCLN001")
    prepared = prepare(data_set("jsrt"), tmp_path / "JSRT", tmp_path / "out").cohort
    (case,) = prepared.cases
    picture = read_picture(case.image)
    assert picture.array.dtype == np.uint16
    assert picture.array[0, 1000, 500] == 4095 - 3500
    assert case.labelled_rank == 0
