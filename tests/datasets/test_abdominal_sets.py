"""LiTS, its Decathlon copy, its slices, and CHAOS: made-up files in the official layouts, and real samples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from sgan_core.cohort import Case, Cohort, rank_labelled, validate
from sgan_core.errors import InputError
from sgan_core.imaging.image import Picture, Volume
from sgan_core.imaging.readers import read_labels, require_same_grid
from sgan_datasets import chaos, lits, lits_slices, msd_liver
from sgan_datasets.check import check
from sgan_datasets.merge import merge_cohorts
from sgan_datasets.source import DataSet

LITS, MSD, SLICES = lits.DATA_SETS[0], msd_liver.DATA_SETS[0], lits_slices.DATA_SETS[0]
CHAOS_CT, CHAOS_MR, T2, T2_LIVER = chaos.DATA_SETS


def loaded(data_set: DataSet, root: Path) -> Cohort:
    """The cohort of a folder, which holds to the rules of every cohort."""
    cohort = data_set.load(root)
    ranked = replace(cohort, cases=rank_labelled(cohort.cases))
    validate(ranked, source=data_set.about.name)
    return ranked


def kinds(data_set: DataSet, root: Path) -> list[str]:
    return [problem.kind for problem in data_set.scan(root).problems]


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def write_png(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.mark.parametrize("data_set", [LITS, MSD, SLICES, *chaos.DATA_SETS], ids=lambda d: d.about.name)
def test_a_folder_of_other_files_says_what_was_looked_for(data_set: DataSet, tmp_path: Path) -> None:
    touch(tmp_path, "holiday.jpg")
    with pytest.raises(InputError, match=data_set.about.name) as caught:
        data_set.scan(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError):
        data_set.scan(tmp_path / "nowhere")


# --- LiTS ---


def test_lits_joins_batches_and_test_volumes(tmp_path: Path) -> None:
    touch(tmp_path, "Training Batch 1/volume-0.nii", "Training Batch 1/segmentation-0.nii")
    touch(tmp_path, "Training Batch 2/volume-28.nii.gz", "Training Batch 2/segmentation-28.nii.gz")
    touch(tmp_path, "tests/test-volume-0.nii", "Training Batch 1/._volume-0.nii")
    cohort = loaded(LITS, tmp_path)
    assert [(case.id, case.split, case.labelled) for case in cohort.cases] == [
        ("lits-0", "train", True),
        ("lits-28", "train", True),
        ("lits-test-0", "test", False),
    ]
    assert len({case.patient for case in cohort.cases}) == 3  # volume 0 and test volume 0 are two people
    assert cohort.labels[0].stored == (1, 2)
    assert (cohort.intensity.low, cohort.intensity.high) == (-160, 240)
    assert not LITS.scan(tmp_path).problems
    assert loaded(LITS, tmp_path / "Training Batch 1").cases == cohort.cases[:1]


def test_lits_reports_what_has_no_partner_or_two(tmp_path: Path) -> None:
    touch(tmp_path, "volume-1.nii", "segmentation-2.nii", "volume-3.nii", "segmentation-3.nii")
    touch(tmp_path, "copy/volume-3.nii")
    assert kinds(LITS, tmp_path) == ["duplicate", "missing", "missing"]
    assert [case.labelled for case in LITS.load(tmp_path).cases] == [False, True]


def test_tumour_counts_as_liver(tmp_path: Path) -> None:
    stored = np.zeros((4, 4, 2), np.uint8)
    stored[0], stored[1] = 1, 2
    for name in ("volume-5.nii", "segmentation-5.nii"):
        nib.save(nib.Nifti1Image(stored, np.eye(4)), tmp_path / name)
    cohort = LITS.load(tmp_path)
    label = read_labels(cohort.cases[0].label or "", values=cohort.stored_values)
    assert isinstance(label, Volume)
    assert np.isin(label.array, cohort.labels[0].stored).sum() == 16


# --- Task03_Liver ---


def msd_folder(root: Path, training: tuple[int, ...], tests: tuple[int, ...]) -> Path:
    folder = root / "Task03_Liver"
    for number in training:
        touch(folder, f"imagesTr/liver_{number}.nii.gz", f"labelsTr/liver_{number}.nii.gz")
        touch(folder, f"imagesTr/._liver_{number}.nii.gz", f"labelsTr/._liver_{number}.nii.gz")
    touch(folder, *(f"imagesTs/liver_{number}.nii.gz" for number in tests))
    entry = {
        "name": "Liver",
        "labels": {"0": "background", "1": "liver", "2": "cancer"},
        "training": [
            {"image": f"./imagesTr/liver_{n}.nii.gz", "label": f"./labelsTr/liver_{n}.nii.gz"}
            for n in training
        ],
        "test": [f"./imagesTs/liver_{n}.nii.gz" for n in tests],
    }
    (folder / "dataset.json").write_text(json.dumps(entry), encoding="utf-8")
    return folder


def test_decathlon_folder_without_its_macos_files(tmp_path: Path) -> None:
    folder = msd_folder(tmp_path, (0, 2, 10), (132,))
    cohort = loaded(MSD, tmp_path)
    assert [(case.patient, case.split) for case in cohort.cases] == [
        ("msd-liver-0", "train"),
        ("msd-liver-2", "train"),
        ("msd-liver-10", "train"),
        ("msd-liver-132", "test"),
    ]
    assert cohort.labels[0].stored == (1, 2)
    assert not MSD.scan(folder).problems
    assert MSD.load(folder) == MSD.load(tmp_path)


def test_decathlon_files_that_are_listed_but_gone_are_reported(tmp_path: Path) -> None:
    folder = msd_folder(tmp_path, (0, 2), ())
    (folder / "imagesTr/liver_2.nii.gz").unlink()
    problems = MSD.scan(folder).problems
    assert [problem.kind for problem in problems] == ["missing", "missing"]
    assert all("liver_2.nii.gz" in problem.text for problem in problems)


def test_decathlon_list_that_is_no_list(tmp_path: Path) -> None:
    folder = msd_folder(tmp_path, (0,), ())
    (folder / "dataset.json").write_text('{"training": 3}', encoding="utf-8")
    with pytest.raises(InputError, match=r"dataset\.json"):
        MSD.scan(folder)
    (folder / "dataset.json").unlink()
    assert kinds(MSD, folder) == ["missing"]


# --- slices of LiTS ---


def slices_folder(root: Path, slices: dict[str, bool]) -> Path:
    for name, masked in slices.items():
        touch(root, f"gray128/images/{name}.jpg")
        if masked:
            touch(root, f"gray128/masks/{name}_mask.png")
    return root / "gray128"


def test_slices_of_one_person_stay_together(tmp_path: Path) -> None:
    folder = slices_folder(tmp_path, {f"volume-{n}_slice_4": True for n in (3, 7, 8, 9, 10, 11)})
    cohort = loaded(SLICES, folder)
    assert Counter(case.patient for case in cohort.cases) == {"lits-3": 1, "lits-7+8+9+10": 4, "lits-11": 1}
    assert [case.patient for case in cohort.select("validation")] == ["lits-3"]
    assert [case.id for case in cohort.cases][:2] == ["lits-3_slice_4", "lits-7_slice_4"]


def test_slices_outside_the_liver_are_empty_and_lost_masks_are_not(tmp_path: Path) -> None:
    around = {f"volume-1_slice_{s}": s in (4, 8) for s in (2, 4, 6, 8, 10)}
    folder = slices_folder(tmp_path, {**around, "volume-2_slice_2": False})
    cases = {case.id: case for case in loaded(SLICES, folder).cases}
    assert [case.id for case in cases.values() if case.empty] == ["lits-1_slice_2", "lits-1_slice_10"]
    assert [case.id for case in cases.values() if not case.labelled] == ["lits-1_slice_6", "lits-2_slice_2"]
    texts = [problem.text for problem in SLICES.scan(folder).problems]
    assert len(texts) == 2
    assert "volume-1_slice_6.jpg" in texts[0]
    assert "volume-2_slice_2.jpg" in texts[1]


def test_the_soft_tissue_window_is_the_second_channel(tmp_path: Path) -> None:
    (tmp_path / "train_images").mkdir()
    colour = np.zeros((16, 16, 3), np.uint8)
    colour[..., 0], colour[..., 1], colour[..., 2] = 90, 120, 100
    Image.fromarray(colour).save(tmp_path / "train_images/volume-1_slice_2.jpg", quality=100)
    write_png(tmp_path / "train_masks/volume-1_slice_2_mask.png", np.full((16, 16), 2, np.uint8))
    for root in (tmp_path, tmp_path / "train_images", tmp_path / "train_masks"):
        image = lits_slices.read_image(loaded(SLICES, root).cases[0])
        assert image.array.shape == (1, 16, 16)
        assert abs(float(image.array.mean()) - 120) < 3  # JPEG


@pytest.mark.parametrize(
    ("folder", "slices", "masked"), [("gray128", 3614, 1477), ("gray256", 824, 824), (".", 132, 132)]
)
def test_real_slices_of_lits(shared: Path, folder: str, slices: int, masked: int) -> None:
    root = shared / "data/LiTS" / folder
    cohort = loaded(SLICES, root)
    assert len(cohort.cases) == slices
    assert sum(case.label is not None for case in cohort.cases) == masked
    assert sum(case.empty for case in cohort.cases) == slices - masked
    assert len({case.id.split("_")[0] for case in cohort.cases}) == 22
    assert len({case.patient for case in cohort.cases}) == 19
    assert len({case.patient for case in cohort.select("validation")}) == 4
    assert not SLICES.scan(root).problems


def test_real_liver_is_where_the_mask_of_a_slice_says(shared: Path) -> None:
    for folder in (".", "gray128"):
        cohort = SLICES.load(shared / "data/LiTS" / folder)
        case = next(case for case in cohort.cases if case.label)
        image = lits_slices.read_image(case)
        label = read_labels(case.label or "", values=cohort.stored_values)
        assert isinstance(label, np.ndarray)
        assert image.array.shape == (1, *label.shape)
        assert (np.asarray(Image.open(case.label or "")) > 0).sum() == np.isin(label, (1, 2)).sum() > 0
        # Liver of about 100 HU is bright in a window of -40 to 160 HU.
        assert image.array[0][label > 0].mean() > image.array[0][label == 0].mean() + 40


# --- CHAOS, made up ---


def write_dicom(path: Path, pixels: np.ndarray, z: float, series: str, number: int = 1) -> None:
    """An axial slice, (rows, columns), at height z in mm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    slice_ = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    slice_.StudyInstanceUID = slice_.SeriesInstanceUID = slice_.FrameOfReferenceUID = series
    slice_.Modality, slice_.SeriesNumber, slice_.InstanceNumber = "CT", 1, number
    slice_.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    slice_.ImagePositionPatient, slice_.PixelSpacing, slice_.SliceThickness = [-20, -30, z], [2, 1.5], 5
    slice_.Rows, slice_.Columns = pixels.shape
    slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
    slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
    slice_.RescaleSlope, slice_.RescaleIntercept = 1, 0
    slice_.PixelData = pixels.astype("<i2").tobytes()
    slice_.save_as(path, enforce_file_format=True)


def write_series(folder: Path, names: list[str], heights: list[float], pixels: list[np.ndarray]) -> None:
    series = generate_uid()
    for number, (name, z, slice_) in enumerate(zip(names, heights, pixels, strict=True), 1):
        write_dicom(folder / name, slice_, z, series, number)


def slices_and_masks(
    count: int, rows: int = 12, columns: int = 10
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Noise whose liver, another rectangle in each slice, is 500 plus the number of the slice."""
    random = np.random.default_rng(0)
    slices, masks = [], []
    for n in range(count):
        mask = np.zeros((rows, columns), bool)
        mask[1 + n : 4 + n, 2:8] = True
        slices.append(np.where(mask, 500 + n, random.integers(0, 50, mask.shape)))
        masks.append(mask)
    return slices, masks


@pytest.mark.parametrize("heights", [[40, 35, 30, 25], [25, 30, 35, 40], [30, 40, 25, 35]], ids=str)
def test_ct_masks_go_where_their_slices_lie(tmp_path: Path, heights: list[float]) -> None:
    patient = tmp_path / "Train_Sets/CT/8"
    slices, masks = slices_and_masks(4)
    write_series(patient / "DICOM_anon", [f"i{n:04d},0000b.dcm" for n in range(4)], heights, slices)
    for n, mask in enumerate(masks):
        Image.fromarray(mask).convert("1").save(_made(patient / f"Ground/liver_GT_{n:03d}.png"))
    (case,) = loaded(CHAOS_CT, tmp_path).cases
    assert (case.id, case.patient, case.domain) == ("chaos-ct-8", "chaos-ct-8", "ct")
    image, label = chaos.read_image(case), chaos.read_ct_label(case)
    assert isinstance(image, Volume)
    assert isinstance(label, Volume)
    require_same_grid(label, image, label_path="label", image_path="image")
    assert label.array.dtype == np.uint8
    np.testing.assert_array_equal(label.array, image.array >= 500)


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def mr_patient(patient: Path, *, mask_scale: int = 1) -> None:
    """In-phase, out-of-phase and T2 with the masks' names following the in-phase files."""
    slices, masks = slices_and_masks(4)
    heights: list[float] = [0, 6, 12, 18]
    dual, spir = patient / "T1DUAL", patient / "T2SPIR"
    even, odd = ([f"IMG-0004-{2 * n + first:05d}" for n in range(4)] for first in (2, 1))
    write_series(dual / "DICOM_anon/InPhase", [f"{name}.dcm" for name in even], heights, slices)
    write_series(dual / "DICOM_anon/OutPhase", [f"{name}.dcm" for name in odd], heights[::-1], slices)
    write_series(spir / "DICOM_anon", [f"IMG-0002-{n:05d}.dcm" for n in (1, 2, 3, 10)], heights, slices)
    for name, other, mask in zip(even, (1, 2, 3, 10), masks, strict=True):
        organs = np.where(mask, 63, 0).astype(np.uint8)
        organs[0, :4] = 126, 189, 252, 32  # kidneys, spleen, and a value that the organisers call background
        stored = np.kron(organs, np.ones((mask_scale, mask_scale), np.uint8))
        write_png(dual / f"Ground/{name}.png", stored)
        write_png(spir / f"Ground/IMG-0002-{other:05d}.png", stored)


@pytest.mark.parametrize("mask_scale", [1, 3])
def test_mr_phases_share_their_masks(tmp_path: Path, mask_scale: int) -> None:
    mr_patient(tmp_path / "Train_Sets/MR/1", mask_scale=mask_scale)
    cohort = loaded(CHAOS_MR, tmp_path)
    assert [(case.id, case.domain) for case in cohort.cases] == [
        ("chaos-mr-1_t1_in", "t1_in"),
        ("chaos-mr-1_t1_out", "t1_out"),
        ("chaos-mr-1_t2", "t2"),
    ]
    assert {case.patient for case in cohort.cases} == {"chaos-mr-1"}
    for case in cohort.cases:
        image, label = chaos.read_image(case), chaos.read_mr_label(case)
        assert isinstance(image, Volume)
        assert isinstance(label, Volume)
        np.testing.assert_array_equal(label.array, image.array >= 500)


def test_two_series_in_one_folder_are_refused(tmp_path: Path) -> None:
    mr_patient(tmp_path / "Train_Sets/MR/1")
    case = CHAOS_MR.load(tmp_path).cases[0]
    write_series(Path(case.image), ["IMG-0009-00001.dcm"], [3], [np.arange(120).reshape(12, 10)])
    for read in (chaos.read_image, chaos.read_mr_label):
        with pytest.raises(InputError, match="2 DICOM series found, one is expected"):
            read(case)


def test_mask_stack_that_does_not_fit_its_slices_is_refused(tmp_path: Path) -> None:
    mr_patient(tmp_path / "Train_Sets/MR/1")
    case = CHAOS_MR.load(tmp_path).cases[0]
    (Path(case.label or "") / "IMG-0004-00002.png").unlink()
    with pytest.raises(InputError, match="3 masks for 4 slices"):
        chaos.read_mr_label(case)


def chaos_tree(root: Path) -> None:
    for number in (1, 10):
        touch(root, f"Train_Sets/CT/{number}/DICOM_anon/i0000,0000b.dcm")
        touch(root, f"Train_Sets/CT/{number}/Ground/liver_GT_000.png")
        for part in ("DICOM_anon/InPhase", "DICOM_anon/OutPhase"):
            touch(root, f"Train_Sets/MR/{number}/T1DUAL/{part}/IMG-0004-00002.dcm")
        touch(root, f"Train_Sets/MR/{number}/T1DUAL/Ground/IMG-0004-00002.png")
    touch(root, "Test_Sets/CT/4/DICOM_anon/i0000,0000b.dcm")
    touch(root, "Test_Sets/MR/4/T1DUAL/DICOM_anon/InPhase/IMG-0004-00002.dcm")


def test_chaos_test_sets_are_unlabelled_test_cases(tmp_path: Path) -> None:
    chaos_tree(tmp_path)
    ct, mr = loaded(CHAOS_CT, tmp_path), loaded(CHAOS_MR, tmp_path)
    assert [(case.id, case.split, case.labelled) for case in ct.cases] == [
        ("chaos-ct-1", "train", True),
        ("chaos-ct-10", "train", True),
        ("chaos-ct-4", "test", False),
    ]
    assert [case.id for case in mr.cases][-1] == "chaos-mr-4_t1_in"
    assert not {case.patient for case in ct.cases} & {case.patient for case in mr.cases}
    assert ct.modality == "ct"
    assert mr.modality == "mr"
    assert mr.intensity.percentiles
    assert kinds(CHAOS_CT, tmp_path) == kinds(CHAOS_MR, tmp_path) == []


@pytest.mark.parametrize("inner", ["Train_Sets", "Train_Sets/CT", "Test_Sets", "Test_Sets/CT"])
def test_chaos_accepts_inner_folders(tmp_path: Path, inner: str) -> None:
    chaos_tree(tmp_path)
    split = "train" if inner.startswith("Train") else "test"
    assert CHAOS_CT.load(tmp_path / inner).cases == CHAOS_CT.load(tmp_path).select(split)


def test_chaos_reports_masks_and_slices_that_do_not_match(tmp_path: Path) -> None:
    chaos_tree(tmp_path)
    train = tmp_path / "Train_Sets/CT"
    touch(train, "1/Ground/liver_GT_001.png")  # one mask too many
    (train / "10/Ground/liver_GT_000.png").unlink()
    touch(train, "20/Ground/liver_GT_000.png")  # no slices
    scan = CHAOS_CT.scan(tmp_path)
    assert [problem.kind for problem in scan.problems] == ["missing"] * 3
    assert "2 masks for the 1 slices" in scan.problems[0].text
    assert [case.labelled for case in scan.cohort.cases] == [False, False, False]


def test_chaos_patient_in_both_sets_is_reported(tmp_path: Path) -> None:
    chaos_tree(tmp_path)
    touch(tmp_path, "Test_Sets/CT/10/DICOM_anon/i0000,0000b.dcm")
    assert kinds(CHAOS_CT, tmp_path) == ["leak"]
    loaded(CHAOS_CT, tmp_path)


def test_chaos_pictures_and_series_of_one_patient_are_one_patient(tmp_path: Path) -> None:
    chaos_tree(tmp_path)
    touch(tmp_path, "PNG_T1_InPhase/MR/1/Image/IMG-00002.png", "PNG_T1_InPhase/MR/1/Ground/IMG-00002.png")
    touch(tmp_path, "PNG_T1_InPhase_sparse/MR/1/Image/IMG-00002.png")
    cases = loaded(CHAOS_MR, tmp_path).cases
    assert [case.id for case in cases if case.patient == "chaos-mr-1"] == [
        "chaos-mr-1_t1_in",
        "chaos-mr-1_t1_out",
        "chaos-mr-1_t1_in_slice_2",
    ]
    assert kinds(CHAOS_MR, tmp_path) == ["missing", "duplicate"]


def test_chaos_picture_masks(tmp_path: Path) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    rgba = np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    whole, single = tmp_path / "PNG_T1_InPhase/MR/1", tmp_path / "PNG_T1_InPhase_sparse/MR/2"
    for patient in (whole, single):
        write_png(patient / "Image/IMG-00004.png", rgba)
    bands = np.array([[54, 55, 63, 70], [71, 126, 189, 252], [0, 0, 63, 63], [0, 0, 0, 0]], np.uint8)
    write_png(whole / "Ground/IMG-00004.png", np.kron(bands, np.ones((4, 4), np.uint8)))  # twice the image
    write_png(single / "Ground_liver/IMG-00004.png", np.dstack([grey * 4] * 3))
    first, second = loaded(CHAOS_MR, tmp_path).cases
    image = chaos.read_image(first)
    assert isinstance(image, Picture)
    np.testing.assert_array_equal(image.array, grey[None])
    expected = np.array([[0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]], np.uint8)
    np.testing.assert_array_equal(chaos.read_mr_label(first), np.kron(expected, np.ones((2, 2), np.uint8)))
    np.testing.assert_array_equal(chaos.read_mr_label(second), grey * 4 > 127)


# --- CHAOS T2, made up ---


@pytest.mark.parametrize("mask_scale", [1, 3])
def test_t2_series_has_four_organs(tmp_path: Path, mask_scale: int) -> None:
    mr_patient(tmp_path / "Train_Sets/MR/1", mask_scale=mask_scale)
    (case,) = loaded(T2, tmp_path).cases
    assert (case.id, case.patient, case.split, case.domain) == ("chaos-mr-1_t2", "chaos-mr-1", "test", "t2")
    assert T2_LIVER.load(tmp_path).cases == (case,)
    image, organs, liver = (chaos.read_image(case), T2.read_label(case), T2_LIVER.read_label(case))
    assert isinstance(image, Volume)
    assert isinstance(organs, Volume)
    assert isinstance(liver, Volume)
    require_same_grid(organs, image, label_path="label", image_path="image")
    np.testing.assert_array_equal(organs.array == 1, image.array >= 500)
    np.testing.assert_array_equal(liver.array, image.array >= 500)
    corner = np.zeros(image.array.shape, bool)  # (columns, rows, slices); mr_patient draws three organs there
    for column in range(4):
        corner[column, 0] = True
        assert (organs.array[column, 0] == (2, 3, 4, 0)[column]).all()
    assert not organs.array[~corner & (image.array < 500)].any()


def test_bands_of_the_four_organs(tmp_path: Path) -> None:
    bands = {
        1: (55, 63, 70),
        2: (110, 126, 135),
        3: (175, 189, 200),
        4: (240, 252, 255),
        0: (0, 32, 54, 71, 109, 136, 174, 201, 239),
    }
    classes, stored = zip(*((value, grey) for value, greys in bands.items() for grey in greys), strict=True)
    write_png(tmp_path / "Image/IMG-00002.png", np.array([stored], np.uint8))
    write_png(tmp_path / "Ground/IMG-00002.png", np.array([stored], np.uint8))
    case = Case("a", "a", str(tmp_path / "Image/IMG-00002.png"), str(tmp_path / "Ground/IMG-00002.png"))
    np.testing.assert_array_equal(chaos.read_mr_label(case, chaos.ORGANS), [classes])
    np.testing.assert_array_equal(chaos.read_mr_label(case), [[value == 1 for value in classes]])


def test_t2_of_the_test_sets_is_unlabelled_and_without_problem(tmp_path: Path) -> None:
    touch(tmp_path, "Train_Sets/MR/1/T2SPIR/DICOM_anon/a.dcm", "Train_Sets/MR/1/T2SPIR/Ground/a.png")
    touch(tmp_path, "Train_Sets/MR/2/T2SPIR/DICOM_anon/a.dcm", "Test_Sets/MR/4/T2SPIR/DICOM_anon/a.dcm")
    cases = loaded(T2, tmp_path).cases
    assert [(case.id, case.split, case.labelled) for case in cases] == [
        ("chaos-mr-1_t2", "test", True),
        ("chaos-mr-2_t2", "test", False),
        ("chaos-mr-4_t2", "test", False),
    ]
    (problem,) = T2.scan(tmp_path).problems
    assert problem.kind == "missing"
    assert "MR/2/T2SPIR/Ground" in problem.text.replace("\\", "/")


def t2_slices(root: Path, masks: dict[str, int | None]) -> Path:
    """Grey ramps by name with a mask of 4 x 4 pixels of one value; None: no mask file."""
    for name, value in masks.items():
        write_png(root / f"images/{name}.png", np.arange(256, dtype=np.uint8).reshape(16, 16))
        (root / f"images/{name}.png").rename(root / f"images/{name}.jpg")  # known by its content
        if value is not None:
            mask = np.zeros((16, 16), np.uint8)
            mask[2:6, 3:7] = value
            write_png(root / f"masks/{name}.png", mask)
    return root


def test_t2_slices_are_of_the_people_of_chaos_mr(tmp_path: Path) -> None:
    names = {f"chaos-{n:02d}_slice_{s:03d}": s for n in (1, 37) for s in range(5)}
    cohort = loaded(T2, t2_slices(tmp_path, names))
    assert [case.id for case in cohort.cases] == [
        f"chaos-mr-{n}_t2_slice_{s}" for n in (1, 37) for s in range(5)
    ]
    assert {(case.patient, case.split, case.domain) for case in cohort.cases} == {
        ("chaos-mr-1", "test", "t2"),
        ("chaos-mr-37", "test", "t2"),
    }
    assert not T2.scan(tmp_path).problems
    for case, value in zip(cohort.cases, [*range(5)] * 2, strict=True):
        organs, liver = np.asarray(T2.read_label(case)), np.asarray(T2_LIVER.read_label(case))
        assert np.count_nonzero(organs == value) == (16 if value else 256)
        assert np.count_nonzero(liver) == (16 if value == 1 else 0)
        assert chaos.read_image(case).array.shape == (1, 16, 16)
    for inner in ("images", "masks"):
        assert T2.load(tmp_path / inner).cases == cohort.cases


def test_a_t2_slice_without_mask_is_not_taken_for_empty(tmp_path: Path) -> None:
    root = t2_slices(
        tmp_path, {"chaos-01_slice_000": None, "chaos-01_slice_001": 1, "chaos-01_slice_002": None}
    )
    scan = T2.scan(root)
    assert [case.labelled for case in scan.cohort.cases] == [False, True, False]
    assert [problem.kind for problem in scan.problems] == ["missing", "missing"]


def test_unknown_values_and_odd_names_of_t2_slices_are_found(tmp_path: Path) -> None:
    root = t2_slices(tmp_path, {"chaos-01_slice_000": 5, "chaos-01_slice_001": 4, "T2_slice_003": 1})
    for data_set in (T2, T2_LIVER):
        found = check(data_set, root)
        assert sorted(problem.kind for problem in found.problems) == [
            "duplicate",
            "layout",
            "layout",
            "value",
        ]
        assert any("chaos-01_slice_000.png" in problem.text for problem in found.problems)


def test_merging_t1_with_t2_keeps_every_person_in_one_split(tmp_path: Path) -> None:
    for number in (1, 2):
        mr_patient(tmp_path / f"archive/Train_Sets/MR/{number}")
    t2_slices(tmp_path / "slices", {"chaos-02_slice_000": 1})
    t1 = CHAOS_MR.load(tmp_path / "archive")
    merged, _ = merge_cohorts([t1, T2_LIVER.load(tmp_path / "slices")], name="both")
    assert {case.patient: case.split for case in merged.cases} == {
        "chaos-mr-1": "train",
        "chaos-mr-2": "test",
    }
    assert len(merged.cases) == 7
    # The series of the archive is one case under both names.
    merged, _ = merge_cohorts([t1, T2_LIVER.load(tmp_path / "archive")], name="both")
    assert len(merged.cases) == len(t1.cases) == 6
    assert {case.split for case in merged.cases} == {"test"}


# --- CHAOS, real ---


def test_real_ct_liver_lies_on_liver(shared: Path) -> None:
    (case,) = loaded(CHAOS_CT, shared / "data/CHAOS").cases
    image, label = chaos.read_image(case), chaos.read_ct_label(case)
    assert isinstance(image, Volume)
    assert isinstance(label, Volume)
    require_same_grid(label, image, label_path="label", image_path="image")
    masks = sorted((shared / "data/CHAOS/Train_Sets/CT/3/Ground").glob("*.png"))
    assert label.array.shape == (512, 512, 78)
    assert len(masks) == 78
    assert label.array.sum(dtype=int) == sum(int((np.asarray(Image.open(m)) > 0).sum()) for m in masks)
    assert int(label.array.any(axis=(0, 1)).sum()) == 71
    inside = image.array[label.array == 1].astype(float)
    # The same numbers from pydicom and PIL alone; masks in the reverse order give 36 +- 248.
    assert inside.mean() == pytest.approx(141, abs=1)
    assert inside.std() == pytest.approx(34, abs=1)


def test_real_mr_slice_has_the_mask_of_its_picture(shared: Path) -> None:
    root = shared / "data/CHAOS"
    cases = {case.id: case for case in loaded(CHAOS_MR, root).cases}
    series, picture = cases["chaos-mr-1_t1_in"], cases["chaos-mr-1_t1_in_slice_40"]
    assert series.patient == picture.patient
    label = chaos.read_mr_label(series)
    array = label.array[:, :, 0].T if isinstance(label, Volume) else label
    np.testing.assert_array_equal(array, chaos.read_mr_label(picture))
    assert chaos.read_image(series).array.shape[:2] in ((256, 256), (1, 256))


@pytest.mark.parametrize(("patient", "slices", "with_liver"), [("1", 35, 25), ("37", 30, 18)])
def test_real_mr_pictures(shared: Path, patient: str, slices: int, with_liver: int) -> None:
    cohort = loaded(CHAOS_MR, shared / "data/CHAOS/PNG_T1_InPhase")
    cases = [case for case in cohort.cases if case.patient == f"chaos-mr-{patient}"]
    labels = [chaos.read_mr_label(case) for case in cases]
    assert len(cases) == slices
    assert sum(bool(np.any(label)) for label in labels) == with_liver
    assert {case.domain for case in cases} == {"t1_in"}
    assert chaos.read_image(cases[0]).array.shape == (1, 256, 256)


def test_real_mr_single_slices(shared: Path) -> None:
    cohort = loaded(CHAOS_MR, shared / "data/CHAOS/PNG_T1_InPhase_sparse")
    assert len(cohort.cases) == 15
    assert len({case.patient for case in cohort.cases}) == 9
    for case in cohort.cases:
        label = chaos.read_mr_label(case)
        assert isinstance(label, np.ndarray)
        assert label.shape == (256, 256)
        assert label.max() == 1
        assert label.mean() < 0.3


def test_real_mr_pictures_are_brighter_where_the_liver_is(shared: Path) -> None:
    contrast: list[float] = []
    read: Callable[[Case], Volume | Picture] = chaos.read_image
    for case in CHAOS_MR.load(shared / "data/CHAOS/PNG_T1_InPhase_sparse").cases:
        inside = np.asarray(chaos.read_mr_label(case)) == 1
        grey = read(case).array[0]
        contrast.append(float(grey[inside].mean() - grey[~inside].mean()))
    assert min(contrast) > 0


@pytest.mark.parametrize("data_set", [T2, T2_LIVER], ids=lambda d: d.about.name)
def test_real_t2_organs_have_as_many_voxels_as_their_masks(data_set: DataSet, shared: Path) -> None:
    root = shared / "data/CHAOS_T2"
    scan = data_set.scan(root)
    cases, labels = scan.cohort.cases, scan.cohort.labels
    assert scan.problems == ()
    assert {case.patient for case in cases} == {
        f"chaos-mr-{n}" for n in (1, 2, 3, 15, 19, 22, 31, 33, 34, 36, 37)
    }
    assert len(cases) == len(list((root / "images").glob("*.jpg"))) - 9 == 386  # 9 are black
    stored = sum(
        np.bincount(np.asarray(Image.open(path)).ravel(), minlength=256)
        for path in (root / "masks").glob("*.png")
    )
    counts = sum(np.bincount(np.asarray(data_set.read_label(case)).ravel(), minlength=256) for case in cases)
    assert [counts[label.value] for label in labels] == [stored[label.value] for label in labels]
    assert counts[1:].sum() == sum(stored[label.value] for label in labels)
    assert stored[1] == 837_913


def test_real_t2_organs_lie_where_a_radiologist_expects_them(
    shared: Path, organs_in_place: Callable[[np.ndarray], None]
) -> None:
    cohort = T2.load(shared / "data/CHAOS_T2")
    for patient in dict.fromkeys(case.patient for case in cohort.cases):
        cases = [case for case in cohort.cases if case.patient == patient]
        volume = np.stack([np.asarray(T2.read_label(case)) for case in cases])
        organs_in_place(volume)


def test_dicom_files_of_the_tests_are_dicom(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", np.ones((3, 4)), 5.0, generate_uid())
    assert pydicom.dcmread(tmp_path / "a.dcm").pixel_array.shape == (3, 4)
