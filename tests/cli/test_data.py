"""sgan-data through its command line: one's own folder becomes a cohort, or one line says why not."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from sgan_core.cli.data import main
from sgan_core.cohort import Cohort, labelled_patients, load_cohort, require_files
from sgan_core.imaging.intensity import CT_WINDOWS_HU
from sgan_core.imaging.readers import read_labels

PNG = '--images "img/*_*.png" --labels "seg/*_*_mask.png" --patient "img/(P[0-9]+)_" --modality ct'


def picture(path: Path, values: Iterable[int]) -> None:
    """A grey PNG of 8 x 8 whose first pixels hold the values."""
    pixels = np.zeros(64, np.uint8)
    pixels[: len(list(values))] = list(values)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.reshape(8, 8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight patients of two slices; each slice 1 has a mask with 1 and 2, P7 and P8 have none."""
    root = tmp_path / "scans"
    for patient in range(1, 9):
        for slice_index in (1, 2):
            picture(root / f"img/P{patient}_{slice_index}.png", range(64))
        if patient < 7:
            picture(root / f"seg/P{patient}_1_mask.png", (0, 1, 2))
    return root


def prepare(folder: Path, options: str) -> int:
    return main(["prepare", "custom", str(folder), *shlex.split(options), "--output", str(folder / "out")])


def prepared(folder: Path, options: str) -> Cohort:
    assert prepare(folder, options) == 0
    cohort = load_cohort(folder / "out")
    require_files(cohort)
    return cohort


def splits(cohort: Cohort) -> dict[str, str]:
    """Patient -> split, having checked that no patient is divided."""
    found: dict[str, set[str]] = {}
    for case in cohort.cases:
        found.setdefault(case.patient, set()).add(case.split)
    assert all(len(split) == 1 for split in found.values())
    return {patient: split.pop() for patient, split in found.items()}


# --- what becomes of the files ---


def test_images_without_label_file_are_unlabelled(folder: Path) -> None:
    cohort = prepared(folder, PNG)
    cases = {case.id: case for case in cohort.cases}
    assert len(cases) == 16
    assert cases["P1_1"].label == str((folder / "seg/P1_1_mask.png").resolve())
    assert cases["P1_2"].label is None
    assert not cases["P1_2"].empty
    assert labelled_patients(cohort) | {"P7", "P8"} == {p for p, s in splits(cohort).items() if s == "train"}
    assert cases["P8_1"].labelled_rank is None


def test_missing_label_is_empty_when_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cohort = prepared(folder, f"{PNG} --missing-label-is-empty")
    assert all(case.empty == (case.label is None) for case in cohort.cases)
    assert "2 patients have no label file at all and count as empty, e.g. P7" in capsys.readouterr().err


def test_a_fifth_of_the_labelled_patients_validates(folder: Path) -> None:
    chosen = [patient for patient, split in splits(prepared(folder, PNG)).items() if split == "validation"]
    assert len(chosen) == 1
    assert chosen[0] not in ("P7", "P8")


def test_few_labelled_patients_all_train(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for patient in (5, 6):
        (folder / f"seg/P{patient}_1_mask.png").unlink()
    assert set(splits(prepared(folder, PNG)).values()) == {"train"}
    assert "too few to keep some for validation" in capsys.readouterr().err


def test_named_validation_and_same_person(folder: Path) -> None:
    found = splits(prepared(folder, f"{PNG} --same-patient P1,P3 --same-patient P4,P5,P6 --validation P3,P8"))
    assert found == {
        "P1+P3": "validation",
        "P8": "validation",
        "P2": "train",
        "P4+P5+P6": "train",
        "P7": "train",
    }


def test_the_seed_decides_the_order(folder: Path) -> None:
    orders = set()
    for seed in range(5):
        cohort = prepared(folder, f"{PNG} --validation P1 --seed {seed}")
        orders.add(tuple(sorted(labelled_patients(cohort, 3))))
    assert len(orders) > 1


@pytest.mark.parametrize("written", ["--intensity-range -40,160", "--intensity-range=-40,160"])
def test_negative_range_is_understood_as_written(folder: Path, written: str) -> None:
    intensity = prepared(folder, f"{PNG} {written} --validation P1").intensity
    assert (intensity.low, intensity.high, intensity.unit) == (-40, 160, "HU")


def test_ct_pictures_without_range_are_taken_for_the_default_window(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    intensity = prepared(folder, PNG).intensity
    assert (intensity.low, intensity.high, intensity.unit) == (-160, 240, "HU")
    assert "-160 to 240 HU" in capsys.readouterr().err


def test_a_window_has_a_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    intensity = prepared(folder, f"{PNG} --window lung --validation P1").intensity
    assert (intensity.low, intensity.high, intensity.unit) == (-1350, 150, "HU")
    assert "are taken to show" not in capsys.readouterr().err  # nothing was guessed


def test_help_names_every_window(capsys: pytest.CaptureFixture[str]) -> None:
    main(["prepare", "custom", "--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in CT_WINDOWS_HU)


def test_other_modalities_use_percentiles(folder: Path) -> None:
    xray = prepared(folder, PNG.replace("ct", "xray")).intensity
    assert (xray.percentiles, xray.central) == ((0.5, 99.5), 0.7)
    mr = prepared(folder, PNG.replace("ct", "mr")).intensity
    assert (mr.percentiles, mr.central) == ((0.5, 99.5), None)


@pytest.mark.parametrize(
    ("options", "modality", "correction"),
    [
        ("--bias-correction", "mr", "bias_correction"),
        ("--equalise", "xray", "equalise"),
        ("--colour-constancy", "dermoscopy", "colour_constancy"),
    ],
)
def test_corrections_are_asked_for_by_name(
    folder: Path, options: str, modality: str, correction: str
) -> None:
    cohort = prepared(folder, f"{PNG.replace('ct', modality)} {options}")
    assert cohort.intensity.corrections == (correction,)
    assert not cohort.squash


def test_pictures_may_be_squashed(folder: Path) -> None:
    assert prepared(folder, f"{PNG} --squash").squash


# --- labels ---


def test_values_found_become_classes(folder: Path) -> None:
    labels = prepared(folder, PNG).labels
    assert [(label.value, label.name, label.stored) for label in labels] == [
        (1, "label_1", (1,)),
        (2, "label_2", (2,)),
    ]


def test_values_merge_into_a_named_organ(folder: Path) -> None:
    cohort = prepared(folder, f"{PNG} --label 1,2=liver")
    (liver,) = cohort.labels
    assert (liver.value, liver.stored, liver.code) == (1, (1, 2), "10200004")
    assert cohort.stored_values == {1, 2}


def test_background_ignores_values(folder: Path) -> None:
    cohort = prepared(folder, f"{PNG} --label 2=tumour 1=background")
    assert [(label.value, label.name, label.stored) for label in cohort.labels] == [(1, "tumour", (2,))]
    assert cohort.ignored_values == (1,)


def test_black_and_white_masks(folder: Path) -> None:
    for mask in (folder / "seg").iterdir():
        picture(mask, (0, 255))
    cohort = prepared(folder, f"{PNG} --label 255=liver")
    assert cohort.labels[0].stored == (255,)
    label = next(case.label for case in cohort.cases if case.label)
    assert set(np.unique(read_labels(label, values=cohort.stored_values))) == {0, 255}


# --- what is in the files, for programs ---

VOLUMES = "--images 'ct/*.nii.gz' --labels 'seg/*.nii.gz' --patient '/([a-z]+)' --modality ct --label 1=liver 2=spleen"


def volume(path: Path, array: np.ndarray, spacing_mm: tuple[float, ...] = (-2.0, -2.0, 5.0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array.astype(np.int16), np.diag([*spacing_mm, 1.0])), path)


def ct(seed: int) -> np.ndarray:
    """Air with a block of tissue, (8, 7, 6) in HU."""
    array = np.random.default_rng(seed).integers(-1000, -900, (8, 7, 6))
    array[2:6, 2:6, 1:5] += 1000
    return array


def organs(liver: int, spleen: int) -> np.ndarray:
    """A label map with so many voxels of each."""
    values = np.repeat([1, 2, 0], [liver, spleen, 8 * 7 * 6 - liver - spleen])
    return values.reshape(8, 7, 6)


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """Two labelled scans and two unlabelled ones, nothing wrong with any."""
    root = tmp_path / "scans"
    for number, name in enumerate("abcd"):
        volume(root / f"ct/{name}.nii.gz", ct(number))
    volume(root / "seg/a.nii.gz", organs(7, 3))
    volume(root / "seg/b.nii.gz", organs(9, 0))
    return root


def surveyed(folder: Path, options: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert prepare(folder, f"{options} --json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    return dict(json.loads(line))


def test_json_tells_what_each_case_holds(volumes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = surveyed(volumes, VOLUMES, capsys)
    assert table["cohort"] == str(volumes / "out" / "cohort.json")
    assert len(load_cohort(table["cohort"]).cases) == 4
    assert table["splits"] == {"train": {"labelled": 2, "unlabelled": 2, "labelled_patients": 2}}
    first = table["cases"][0]
    array = ct(0)
    assert first == {
        "name": "a",
        "file": str(volumes / "ct/a.nii.gz"),
        "labelled": True,
        "split": "train",
        "patient": "a",
        "orientation": "LPS",
        "spacing_mm": [2.0, 2.0, 5.0],
        "size": [8, 7, 6],
        "intensity": {
            name: pytest.approx(float(np.percentile(array, share)), rel=1e-5)
            for name, share in (("min", 0), ("p1", 1), ("p50", 50), ("p99", 99), ("max", 100))
        },
        "label_voxels": {"liver": 7, "spleen": 3},
        "problems": [],
    }
    assert [case["label_voxels"] for case in table["cases"][1:]] == [{"liver": 9, "spleen": 0}, None, None]
    assert [case["problems"] for case in table["cases"]] == [[], [], [], []]
    assert [problem["severity"] for problem in table["problems"]] == ["warning"]
    assert "too few to keep some for validation" in table["problems"][0]["text"]


SPOILT: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "unreadable": (lambda root: (root / "ct/c.nii.gz").write_bytes(b"none"), "error", "c.nii.gz"),
    "constant": (
        lambda root: volume(root / "ct/c.nii.gz", np.full((8, 7, 6), 40)),
        "error",
        "every value is 40",
    ),
    "no HU": (
        lambda root: volume(root / "ct/c.nii.gz", ct(2) + 1024),
        "warning",
        "not CT in Hounsfield units",
    ),
    "outside the range": (
        lambda root: volume(
            root / "ct/c.nii.gz", np.where(ct(2) < -500, -1000, 900) + np.eye(8, 7)[..., None]
        ),
        "warning",
        "0.0% of the voxels lie between -160 and 240",
    ),
    "turned": (
        lambda root: volume(root / "ct/c.nii.gz", ct(2), (2.0, 2.0, 5.0)),
        "warning",
        "axes lead to RAS, those of most cases to LPS",
    ),
    "label of another size": (
        lambda root: volume(root / "seg/c.nii.gz", organs(7, 3)[:5]),
        "error",
        "label c.nii.gz and image c.nii.gz differ in shape",
    ),
    "label elsewhere": (
        lambda root: volume(root / "seg/c.nii.gz", organs(7, 3), (-2.0, -2.0, 7.0)),
        "error",
        "mm apart",
    ),
    "empty label": (
        lambda root: volume(root / "seg/c.nii.gz", organs(0, 0)),
        "warning",
        "the label file holds no voxel of any class",
    ),
}


@pytest.mark.parametrize(("spoil", "severity", "words"), SPOILT.values(), ids=SPOILT.keys())
def test_json_names_the_problem_of_a_case(
    volumes: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    severity: str,
    words: str,
) -> None:
    spoil(volumes)
    table = surveyed(volumes, VOLUMES, capsys)
    (problem,) = table["cases"][2]["problems"]
    assert problem["severity"] == severity
    assert words in problem["text"]
    assert [case["problems"] for case in table["cases"] if case["name"] != "c"] == [[], [], []]


def test_json_names_problems_of_the_set(volumes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volume(volumes / "ct/c.nii.gz", ct(2), (2.0, -2.0, 5.0))
    volume(volumes / "ct/d.nii.gz", ct(0))
    texts = [problem["text"] for problem in surveyed(volumes, VOLUMES, capsys)["problems"]]
    assert texts[:2] == ["orientations differ: LPS (3), RPS (1)", "the same image: a, d"]


def test_mr_that_looks_like_ct_is_named(volumes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = surveyed(volumes, VOLUMES.replace("ct --label", "mr --label"), capsys)
    assert all("this may be CT" in case["problems"][0]["text"] for case in table["cases"])


def test_json_of_pictures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6)).save(folder / "img/P1_2.png")
    table = surveyed(folder, PNG, capsys)
    first, second = table["cases"][:2]
    assert (first["orientation"], first["spacing_mm"], first["size"]) == (None, None, [8, 8])
    assert second["size"] == [6, 4]  # columns, rows
    assert first["label_voxels"] == {"label_1": 1, "label_2": 1}
    assert table["splits"].keys() == {"train", "validation"}
    assert sum(split["labelled"] for split in table["splits"].values()) == 6


# --- globs ---


def test_volumes_in_folders_of_patients(tmp_path: Path) -> None:
    for patient in ("anna", "ben"):
        (tmp_path / f"x/{patient}").mkdir(parents=True)
        for name, values in (("ct", range(8)), ("seg", (0, 1) * 4)):
            array = np.array(list(values), np.int16).reshape(2, 2, 2)
            nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / f"x/{patient}/{name}.nii.gz")
    cohort = prepared(
        tmp_path,
        '--images "**/ct.nii.gz" --labels "**/seg.nii.gz" --patient "([^/]+)/ct" --modality ct --label 1=a',
    )
    assert [(case.id, case.patient) for case in cohort.cases] == [
        ("x__anna__ct", "anna"),
        ("x__ben__ct", "ben"),
    ]
    assert all(case.label for case in cohort.cases)


def test_masks_beside_the_images_are_not_taken_for_images(tmp_path: Path) -> None:
    for patient in "ab":
        picture(tmp_path / f"{patient}.png", range(9))
        picture(tmp_path / f"{patient}_mask.png", (0, 1))
        picture(tmp_path / f".{patient}.png", range(9))  # hidden, as some systems leave behind
    cohort = prepared(tmp_path, '--images "*.png" --labels "*_mask.png" --patient "." --modality xray')
    assert [case.id for case in cohort.cases] == ["a", "b"]


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
def test_linked_folders_are_searched_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "scans/img").rename(tmp_path / "elsewhere")
    (folder / "img").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/loop").symlink_to(folder)
    assert len(prepared(folder, PNG).cases) == 16


def test_slices_are_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 9, 100):
        picture(tmp_path / f"img/P1_{number}.png", range(9))
    picture(tmp_path / "seg/P1_9_mask.png", (0, 1))
    assert [case.id for case in prepared(tmp_path, PNG).cases] == ["P1_9", "P1_10", "P1_100"]


def test_label_without_image_is_a_warning(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(folder / "seg/P1_7_mask.png", (0, 1))
    assert len(prepared(folder, PNG).cases) == 16
    assert "1 label files have no image, e.g. seg/P1_7_mask.png" in capsys.readouterr().err


# --- bad input: exit 2, one line, nothing written ---

WRONG = {
    "images match nothing": (PNG.replace("img/*_*", "imgs/*_*"), "--images imgs/*_*.png: matches no file"),
    "labels match nothing": (PNG.replace("seg/", "segs/"), "--labels segs/*_*_mask.png: matches no file"),
    "wildcards differ in number": (PNG.replace("seg/*_*_", "seg/*_"), "has 2 wildcards"),
    "no label fits": (PNG.replace("seg/*_*_mask", "seg/?*_*"), "wildcards"),
    "labels of other images": (PNG.replace("*_*_mask.png", "*_*.png"), "no label belongs to an image"),
    "no patient found": (PNG.replace("P[0-9]+", "Q[0-9]+"), "finds no patient in img/P1_1.png"),
    "not an expression": (PNG.replace("P[0-9]+", "P[0-9"), "not a regular expression"),
    "labels left out": (PNG.replace('--labels "seg/*_*_mask.png"', ""), "no labelled case"),
    "value without a name": (f"{PNG} --label 1=liver", "holds the value 2, which no --label names"),
    "value that does not occur": (f"{PNG} --label 1,2=liver 3=spleen", "no label file holds that value"),
    "value in two labels": (f"{PNG} --label 1,2=liver 2=tumour", "stored value 2 means two labels"),
    "name twice": (f"{PNG} --label 1=liver 2=liver", "two labels are named 'liver'"),
    "only background": (f"{PNG} --label 1,2=background", "no label, but labelled cases"),
    "label without value": (f"{PNG} --label liver", "VALUE=NAME"),
    "unknown validation patient": (f"{PNG} --validation P1,P9", "'P9' is not among the 8 patients"),
    "unknown same patient": (f"{PNG} --same-patient P1,P9", "--same-patient: 'P9' is not among"),
    "person in two groups": (f"{PNG} --same-patient P1,P2 --same-patient P2,P3", "in two groups"),
    "range backwards": (f"{PNG} --intensity-range 240,-160", "LOW must be below HIGH"),
    "range of one": (f"{PNG} --intensity-range -40", "is not LOW,HIGH"),
    "unknown window": (f"{PNG} --window spleen", "choose one of abdomen, liver, lung"),
    "window of MR": (f"{PNG.replace('ct', 'mr')} --window liver", "windows are in HU, for ct"),
    "window and range": (f"{PNG} --window liver --intensity-range 0,9", "give one of them"),
    "bias of CT": (f"{PNG} --bias-correction", "bias_correction is for mr images, the modality is ct"),
    "unknown modality": (PNG.replace("ct", "pet"), "invalid choice: 'pet'"),
    "unknown option": (f"{PNG} --intensity -40,160", "unrecognized arguments"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_options_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    assert prepare(folder, options) == 2
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[-1]
    assert [line for line in lines if line.startswith("sgan-data")] == lines[-1:]
    assert "Traceback" not in lines
    assert not (folder / "out").exists()


def test_empty_label_files_are_no_labels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for mask in (folder / "seg").iterdir():
        picture(mask, (0,))
    assert prepare(folder, PNG) == 2
    assert "no labelled case, the files of --labels" in capsys.readouterr().err


def test_masks_in_black_and_white_of_any_kind_are_one_class(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Grey edges and a palette with white first; what covers most of the pictures is questioned."""
    smooth = np.clip(np.arange(128)[:, None] * 8 - 300, 0, 255).astype(np.uint8).repeat(128, axis=1)
    for patient in range(1, 7):
        Image.fromarray(smooth).save(folder / f"seg/P{patient}_1_mask.png")
    cohort = prepared(folder, f"{PNG} --label 255=liver")
    assert [label.stored for label in cohort.labels] == [(255,)]
    err = capsys.readouterr().err
    assert "6 label files have grey edges, e.g. P1_1_mask.png: a mask with" in err
    assert "cover more than half of most images. Are black and white exchanged?" in err
    mask = Image.fromarray((smooth > 200) * np.uint8(255)).quantize(2)
    for patient in range(1, 7):
        mask.save(folder / f"seg/P{patient}_1_mask.png")
    assert [label.stored for label in prepared(folder, f"{PNG} --label 1=liver").labels] == [(1,)]


def test_pair_of_files_is_one_image(folder: Path) -> None:
    for patient in range(1, 4):
        for part in ("ct", "liver"):
            (folder / part).mkdir(exist_ok=True)
            labels = np.arange(24).reshape(2, 3, 4).astype(np.int16) // (1 if part == "ct" else 12)
            nib.save(nib.Nifti1Pair(labels, np.eye(4)), folder / part / f"P{patient}.hdr")
    cohort = prepared(folder, '--images "ct/P*" --labels "liver/P*" --patient "P[0-9]" --modality ct')
    assert [(Path(case.image).name, Path(str(case.label)).name) for case in cohort.cases] == [
        (f"P{patient}.hdr", f"P{patient}.hdr") for patient in range(1, 4)
    ]


def test_damaged_label_file_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "seg/P3_1_mask.png").write_bytes(b"no picture")
    assert prepare(folder, PNG) == 2
    assert "P3_1_mask.png" in capsys.readouterr().err


def test_file_that_is_no_image_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "img/P1_3.txt").write_text("notes")
    assert prepare(folder, '--images "img/*" --patient "P[0-9]" --modality ct') == 2
    assert "img/P1_3.txt, which is no kind of image" in capsys.readouterr().err


def test_missing_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(tmp_path / "nowhere", PNG) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err


def test_output_that_is_a_file_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "out").write_text("in the way")
    assert prepare(folder, PNG) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("sgan-data: error:")
    assert (folder / "out").read_text() == "in the way"


# --- phantom, list, help ---


def test_phantom_patients_become_files(tmp_path: Path) -> None:
    options = "prepare phantom --patients 2 --labelled 1 --validation 1 --domain t1_in --output"
    assert main([*options.split(), str(tmp_path / "out")]) == 0
    cohort = load_cohort(tmp_path / "out")
    require_files(cohort)
    assert [(case.split, case.label is not None) for case in cohort.cases] == [
        ("train", True),
        ("train", False),
        ("validation", True),
    ]
    labelled = cohort.cases[0]
    labels = read_labels(str(labelled.label), values=cohort.stored_values)
    assert labels.array.shape == nib.load(labelled.image).shape
    assert (labels.array == cohort.labels[0].value).any()
    assert not [name for name in os.listdir(tmp_path / "out" / "images") if name.startswith(".")]


def test_phantom_may_be_unlabelled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "prepare phantom --patients 2 --labelled 0 --validation 0 --output"
    assert main([*options.split(), str(tmp_path / "out")]) == 0
    cohort = load_cohort(tmp_path / "out")
    assert [case.labelled for case in cohort.cases] == [False, False]
    assert list((tmp_path / "out" / "labels").iterdir()) == []


def test_list_names_what_can_be_prepared(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    output = capsys.readouterr().out
    assert "custom" in output
    assert "phantom" in output


@pytest.mark.parametrize("command", ["", "list", "prepare", "prepare custom", "prepare phantom"])
def test_help_answers(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    assert "usage: sgan-data" in capsys.readouterr().out


def test_help_needs_no_heavy_import() -> None:
    code = (
        "import sys; from sgan_core.cli.data import main; main(['prepare', 'custom', '--help']);"
        "sys.exit(bool({'torch', 'monai', 'nibabel', 'SimpleITK', 'scipy'} & set(sys.modules)))"
    )
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=30)
    assert time.monotonic() - start < 10  # about 0.2 s on an idle machine


# --- real data ---


def test_lits_slices_become_a_cohort(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "LiTS" / "gray128"
    if not source.is_dir():
        pytest.skip("LiTS/gray128 is not in the shared folder")
    options = (
        r'--images "images/volume-*_slice_*.jpg" --labels "masks/volume-*_slice_*_mask.png" '
        r'--patient "volume-(\d+)_" --modality ct --intensity-range -40,160 --same-patient 7,8,9,10 '
        r"--missing-label-is-empty --validation 3,12,35,48 --label 1,2=liver"
    )
    command = ["prepare", "custom", str(source), *shlex.split(options), "--output", str(tmp_path)]
    assert main(command) == 0
    cohort = load_cohort(tmp_path)
    require_files(cohort)
    found = splits(cohort)
    assert len(cohort.cases) == 3614
    assert sum(case.label is not None for case in cohort.cases) == 1477
    assert len(found) == 19
    assert {patient for patient, split in found.items() if split == "validation"} == {"3", "12", "35", "48"}
    assert len(labelled_patients(cohort)) == 15
    assert len(labelled_patients(cohort, 8)) == 8
