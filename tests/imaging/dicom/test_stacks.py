"""Several volumes in one series: they come apart by positions, one volume in parts stays whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from sgan_core.errors import InputError
from sgan_core.imaging.dicom import Series, choose_series, find_series, read_series
from sgan_core.imaging.readers import read_image

STEP = 4.0


def voxels(seed: int, slices: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1000, (6, 5, slices)).astype(np.int16)


def stack(
    files: Any, seed: int, slices: int = 6, *, start: float = 0.0, step: float = STEP, **more: Any
) -> list[Dataset]:
    """Slices along z from ``start`` on; values of ``more`` that are lists count slice by slice."""
    each = {key: value for key, value in more.items() if isinstance(value, range)}
    alike = {key: value for key, value in more.items() if key not in each}
    attributes = {"SliceThickness": step, "Modality": "MR", "modality": "MR", **alike}
    images = files.stack(voxels(seed, slices), origin=(0, 0, start), spacing=(1, 1, step), **attributes)
    for key, value in each.items():
        for image, one in zip(images, value, strict=True):
            setattr(image, key, one)
    return images


def write(files: Any, folder: Path, *stacks: list[Dataset], seed: int = 0) -> Path:
    images = [image for one in stacks for image in one]
    for number, image in enumerate(images, start=1):
        image.InstanceNumber = number
    return files.save_all(folder, images, seed=seed)


def volumes(folder: Path) -> dict[str, np.ndarray]:
    """Description -> voxels."""
    return {one.description: read_series(one).array for one in find_series(folder)}


WAYS: list[tuple[str, dict[str, Any], dict[str, Any], tuple[str, str]]] = [
    ("echo", {"EchoTime": 2.3}, {"EchoTime": 4.6}, ("(echo 2.30 ms)", "(echo 4.60 ms)")),
    (
        "magnitude",
        {"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"]},
        {"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]},
        ("(magnitude)", "(phase)"),
    ),
    (
        "dixon",
        {"ImageType": ["DERIVED", "PRIMARY", "DIXON", "WATER"]},
        {"ImageType": ["DERIVED", "PRIMARY", "DIXON", "FAT"]},
        ("(fat)", "(water)"),
    ),
    (
        "unknown kinds",
        {"ImageType": ["DERIVED", "PRIMARY", "A"]},
        {"ImageType": ["DERIVED", "PRIMARY", "B"]},
        ("(image type 1)", "(image type 2)"),
    ),
    (
        "component",
        {"ComplexImageComponent": "REAL"},
        {"ComplexImageComponent": "IMAGINARY"},
        ("(imaginary)", "(real)"),
    ),
    (
        "acquisition",
        {"AcquisitionNumber": 1},
        {"AcquisitionNumber": 2},
        ("(acquisition 1)", "(acquisition 2)"),
    ),
    (
        "time",
        {"TemporalPositionIdentifier": 1},
        {"TemporalPositionIdentifier": 2},
        ("(time point 1)", "(time point 2)"),
    ),
    ("b-value", {"DiffusionBValue": 0.0}, {"DiffusionBValue": 800.0}, ("(b = 0)", "(b = 800)")),
    (
        "direction",
        {"DiffusionGradientOrientation": [1.0, 0.0, 0.0]},
        {"DiffusionGradientOrientation": [0.0, 1.0, 0.0]},
        ("(direction 1)", "(direction 2)"),
    ),
    ("trigger", {"TriggerTime": 0}, {"TriggerTime": 40}, ("(trigger 0 ms)", "(trigger 40 ms)")),
    (
        "inversion",
        {"InversionTime": 100},
        {"InversionTime": 900},
        ("(inversion time 100 ms)", "(inversion time 900 ms)"),
    ),
    ("flip", {"FlipAngle": 5}, {"FlipAngle": 30}, ("(flip angle 5)", "(flip angle 30)")),
    ("kernel", {"ConvolutionKernel": "B30f"}, {"ConvolutionKernel": "B70f"}, ("(kernel 1)", "(kernel 2)")),
    ("voltage", {"KVP": 80}, {"KVP": 140}, ("(80 kV)", "(140 kV)")),
    ("contrast", {}, {"ContrastBolusAgent": "SECRET"}, ("(contrast 2)", "(without contrast)")),
    ("thickness", {"SliceThickness": 2}, {"SliceThickness": 5}, ("(2 mm thick)", "(5 mm thick)")),
    (
        "place",
        {"FrameOfReferenceUID": "1.2.1"},
        {"FrameOfReferenceUID": "1.2.2"},
        ("(frame of reference 1)", "(frame of reference 2)"),
    ),
    (
        "clock",
        {"AcquisitionTime": "101000"},
        {"AcquisitionTime": "101040"},
        ("(time point 1 of 2)", "(time point 2 of 2)"),
    ),
]


@pytest.mark.parametrize(
    ("first", "second", "names"), [way[1:] for way in WAYS], ids=[way[0] for way in WAYS]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_two_volumes_in_one_place_come_apart(
    first: dict[str, Any],
    second: dict[str, Any],
    names: tuple[str, str],
    seed: int,
    dicom_files: Any,
    tmp_path: Path,
) -> None:
    write(dicom_files, tmp_path, stack(dicom_files, 1, **first), stack(dicom_files, 2, **second), seed=seed)
    found = volumes(tmp_path)
    assert tuple(sorted(found)) == tuple(sorted(names))
    wanted = [voxels(1), voxels(2)]
    for array in found.values():
        (index,) = [n for n, want in enumerate(wanted) if np.array_equal(array, want)]
        wanted.pop(index)
    with pytest.raises(InputError, match="2 series of images"):
        read_image(tmp_path)


@pytest.mark.parametrize("shift", [STEP / 2, 1.3, 0.4])
@pytest.mark.parametrize("count", [6, 5, 3])
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_second_acquisition_between_the_slices_is_no_thinner_scan(
    shift: float, count: int, modality: str, dicom_files: Any, tmp_path: Path
) -> None:
    kind = {"Modality": modality, "modality": modality}
    one = stack(dicom_files, 1, AcquisitionNumber=1, **kind)
    two = stack(dicom_files, 2, count, start=shift, AcquisitionNumber=2, **kind)
    write(dicom_files, tmp_path, one, two)
    assert sorted(array.shape[2] for array in volumes(tmp_path).values()) == sorted([6, count])


def test_without_a_number_the_order_of_the_images_tells_two_passes(dicom_files: Any, tmp_path: Path) -> None:
    kind = {"Modality": "CT", "modality": "CT"}
    one, two = stack(dicom_files, 1, **kind), stack(dicom_files, 2, 5, start=STEP / 2, **kind)
    write(dicom_files, tmp_path, one, two)
    found = volumes(tmp_path)
    np.testing.assert_array_equal(found["(pass 1)"], voxels(1))
    np.testing.assert_array_equal(found["(pass 2)"], voxels(2, 5))


def test_two_sets_that_are_numbered_alike_are_two_scans(dicom_files: Any, tmp_path: Path) -> None:
    images = stack(dicom_files, 0) + stack(dicom_files, 1, start=STEP / 2)
    for number, image in enumerate(images):
        image.InstanceNumber = number % 6 + 1
    dicom_files.save_all(tmp_path, images)
    found = list(volumes(tmp_path).values())
    assert len(found) == 2
    for seed, array in enumerate(found):
        np.testing.assert_array_equal(array, voxels(seed))


def one_volume(files: Any) -> dict[str, list[Dataset]]:
    """Ways of a single volume."""
    every = {"SpacingBetweenSlices": STEP}
    odd_first = stack(files, 0, 12, **every)
    for k, image in enumerate(odd_first):
        image.AcquisitionNumber, image.AcquisitionTime = 1 + k % 2, f"1010{k % 2:02d}"
    parts = stack(files, 0, 12)
    for k, image in enumerate(parts):
        image.AcquisitionNumber = 1 + k // 4
    counted = stack(files, 0, 12, AcquisitionNumber=range(1, 13), TriggerTime=range(1, 13))
    times = stack(files, 0, 12, TriggerTime=range(300, 312), EchoTime=2.3)
    for k, image in enumerate(times):
        image.EchoTime = 2.3 + 0.01 * (k % 3)
    late_contrast = stack(files, 0, 12)
    for image in late_contrast[6:]:
        image.ContrastBolusAgent = "X"
    ct = stack(files, 0, 12, Modality="CT", modality="CT")
    for k, image in enumerate(ct):
        image.AcquisitionNumber, image.KVP = 1 + k // 6, 120
    return {
        "every second slice first": odd_first,
        "parts one after the other": parts,
        "a number a slice": counted,
        "times of its own": times,
        "contrast from the middle on": late_contrast,
        "CT in two parts": ct,
    }


@pytest.mark.parametrize("which", range(6))
def test_one_volume_in_parts_stays_whole(which: int, dicom_files: Any, tmp_path: Path) -> None:
    name, images = list(one_volume(dicom_files).items())[which]
    write(dicom_files, tmp_path, images)
    np.testing.assert_array_equal(read_image(tmp_path).array, voxels(0, 12), err_msg=name)


def test_odd_and_even_slices_are_two_scans_where_the_header_says_so(dicom_files: Any, tmp_path: Path) -> None:
    images = stack(dicom_files, 0, 12, SpacingBetweenSlices=2 * STEP)
    for k, image in enumerate(images):
        image.AcquisitionNumber = 1 + k % 2
    write(dicom_files, tmp_path, images)
    assert sorted(volumes(tmp_path)) == ["(acquisition 1)", "(acquisition 2)"]


def test_images_that_follow_a_bolus_stand_beside_the_scan(dicom_files: Any, tmp_path: Path) -> None:
    ct = {"Modality": "CT", "modality": "CT"}
    scan = stack(dicom_files, 1, 10, AcquisitionNumber=30, **ct)
    tracked = [stack(dicom_files, 10 + n, 1, start=8.0, AcquisitionNumber=n, **ct) for n in range(1, 9)]
    write(dicom_files, tmp_path, *tracked, scan)
    found = find_series(tmp_path)
    assert sorted(one.slices for one in found) == [1] * 8 + [10]
    longest = max(found, key=lambda one: one.slices)
    np.testing.assert_array_equal(read_series(longest).array, voxels(1, 10))
    assert choose_series(found, longest.description, tmp_path) is longest


def test_two_traits_together(dicom_files: Any, tmp_path: Path) -> None:
    stacks = [
        stack(dicom_files, 10 * time + echo, EchoTime=float(echo), TemporalPositionIdentifier=time)
        for time in (1, 2, 3)
        for echo in (2, 4)
    ]
    write(dicom_files, tmp_path, *stacks)
    found = volumes(tmp_path)
    assert len(found) == 6
    np.testing.assert_array_equal(found["(echo 4.00 ms, time point 3)"], voxels(34))


def test_phases_of_the_heart_by_the_rank_of_their_time(dicom_files: Any, tmp_path: Path) -> None:
    """Trigger times that differ a little from place to place."""
    stacks = []
    for phase in range(25):
        images = stack(dicom_files, phase, 4)
        for k, image in enumerate(images):
            image.TriggerTime = f"{30.3 * phase + k:.1f}"
        stacks.append(images)
    write(dicom_files, tmp_path, *stacks)
    found = volumes(tmp_path)
    assert len(found) == 25
    np.testing.assert_array_equal(found["(heart phase 7 of 25)"], voxels(6, 4))


def test_a_shorter_time_point_is_in_doubt(dicom_files: Any, tmp_path: Path) -> None:
    write(
        dicom_files,
        tmp_path,
        stack(dicom_files, 1, TemporalPositionIdentifier=1, NumberOfTemporalPositions=3),
        stack(dicom_files, 2, 4, TemporalPositionIdentifier=2, NumberOfTemporalPositions=3),
    )
    whole, short = find_series(tmp_path)
    assert [text for text in whole.doubts if "3 time points, 2 are here" in text]
    assert [text for text in short.doubts if "4 slices, other volumes of its series have 6" in text]
    assert not [text for text in whole.doubts if "other volumes" in text]


def test_second_copies_belong_to_their_originals(dicom_files: Any, tmp_path: Path) -> None:
    one = stack(dicom_files, 1, EchoTime=2.0)
    two = stack(dicom_files, 2, EchoTime=4.0)
    write(dicom_files, tmp_path / "a", one, two)
    write(dicom_files, tmp_path / "b", two)
    found = find_series(tmp_path)
    assert [one.slices for one in found] == [6, 12]
    volume = read_series(found[1])
    np.testing.assert_array_equal(volume.array, voxels(2))
    assert "6 of 12 images are exact copies" in " ".join(volume.warnings)


def test_what_nothing_tells_apart_is_refused(dicom_files: Any, tmp_path: Path) -> None:
    write(dicom_files, tmp_path, stack(dicom_files, 1), stack(dicom_files, 2))
    with pytest.raises(InputError, match="two different images at"):
        read_image(tmp_path)


def test_a_mosaic_is_refused_by_name(dicom_files: Any, tmp_path: Path) -> None:
    image = stack(dicom_files, 1, 1, ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"])
    write(dicom_files, tmp_path, image)
    with pytest.raises(InputError, match="a mosaic"):
        read_image(tmp_path)


# --- enhanced objects --------------------------------------------------------------------------------


def group(**attributes: Any) -> Items:
    item = Dataset()
    for key, value in attributes.items():
        setattr(item, key, value)
    return Items([item])


ENHANCED = [
    ("FrameContentSequence", {"StackID": "1"}, {"StackID": "2"}, ["(stack 1)", "(stack 2)"]),
    (
        "FrameContentSequence",
        {"TemporalPositionIndex": 1},
        {"TemporalPositionIndex": 2},
        ["(time point 1)", "(time point 2)"],
    ),
    (
        "FrameContentSequence",
        {"FrameAcquisitionNumber": 1},
        {"FrameAcquisitionNumber": 2},
        ["(acquisition 1)", "(acquisition 2)"],
    ),
    ("MRDiffusionSequence", {"DiffusionBValue": 0.0}, {"DiffusionBValue": 50.0}, ["(b = 0)", "(b = 50)"]),
    (
        "MREchoSequence",
        {"EffectiveEchoTime": 2.0},
        {"EffectiveEchoTime": 4.0},
        ["(echo 2.00 ms)", "(echo 4.00 ms)"],
    ),
    (
        "MRImageFrameTypeSequence",
        {"FrameType": ["ORIGINAL", "PRIMARY", "M"], "ComplexImageComponent": "MAGNITUDE"},
        {"FrameType": ["ORIGINAL", "PRIMARY", "P"], "ComplexImageComponent": "PHASE"},
        ["(magnitude)", "(phase)"],
    ),
    (
        "CardiacSynchronizationSequence",
        {"NominalCardiacTriggerDelayTime": 0.0},
        {"NominalCardiacTriggerDelayTime": 40.0},
        ["(trigger 0 ms)", "(trigger 40 ms)"],
    ),
]


@pytest.mark.parametrize(("sequence", "first", "second", "names"), ENHANCED)
def test_volumes_of_one_enhanced_object_come_apart(
    sequence: str,
    first: dict[str, Any],
    second: dict[str, Any],
    names: list[str],
    dicom_files: Any,
    tmp_path: Path,
) -> None:
    both = np.concatenate([voxels(1), voxels(2)], axis=2)
    dataset = dicom_files.enhanced(both, "MR", shared=False, slopes=[1] * 12)
    for frame, item in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        item.PlanePositionSequence = group(ImagePositionPatient=[0, 0, 2.0 * (frame % 6)])
        setattr(item, sequence, group(**(first if frame < 6 else second)))
    dicom_files.save(tmp_path / "x", dataset)
    found = volumes(tmp_path)
    assert sorted(found) == names
    for name, seed in zip(names, (1, 2), strict=True):
        np.testing.assert_array_equal(found[name], voxels(seed))


def test_stacks_of_one_object_are_apart_wherever_they_lie(dicom_files: Any, tmp_path: Path) -> None:
    """Two slabs that follow each other at the same step are still two stacks."""
    dataset = dicom_files.enhanced(voxels(1, 8), "MR", shared=False, slopes=[1] * 8)
    for frame, item in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        item.FrameContentSequence = group(StackID=str(1 + frame // 4))
    dicom_files.save(tmp_path / "x", dataset)
    assert {name: array.shape[2] for name, array in volumes(tmp_path).items()} == {
        "(stack 1)": 4,
        "(stack 2)": 4,
    }


# --- properties ------------------------------------------------------------------------------------


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    ways=st.lists(st.sampled_from(WAYS), min_size=1, max_size=2, unique_by=lambda way: way[0]),
    slices=st.tuples(st.integers(3, 6), st.integers(3, 6)),
    shift=st.sampled_from([0.0, 0.0, STEP / 2, 0.7]),
    seed=st.integers(0, 1000),
)
def test_any_two_volumes_come_apart_and_the_order_of_files_does_not_matter(
    ways: list[Any], slices: tuple[int, int], shift: float, seed: int, dicom_files: Any, tmp_path_factory: Any
) -> None:
    kinds: list[dict[str, Any]] = [{}, {}]
    for way in ways:
        kinds[0] |= way[1]
        kinds[1] |= way[2]
    # Times alone tell volumes apart where each place has as many.
    assume([way[0] for way in ways] != ["clock"] or (not shift and slices[0] == slices[1]))
    results: list[list[tuple[str, bytes]]] = []
    for order in (seed, seed + 1):
        folder = tmp_path_factory.mktemp("series")
        one = stack(dicom_files, 1, slices[0], **kinds[0])
        two = stack(dicom_files, 2, slices[1], start=shift, **kinds[1])
        for number, image in enumerate([*one, *two]):
            image.SOPInstanceUID = f"1.2.{number + 1}"
        write(dicom_files, folder, one, two, seed=order)
        found: list[Series] = find_series(folder)
        results.append([(one.description, read_series(one).array.tobytes()) for one in found])
    assert results[0] == results[1]
    wanted = {voxels(1, slices[0]).tobytes(), voxels(2, slices[1]).tobytes()}
    assert {array for _, array in results[0]} == wanted


def test_nothing_of_the_header_but_codes_gets_into_the_table(dicom_files: Any, tmp_path: Path) -> None:
    one = stack(dicom_files, 1, ContrastBolusAgent="SECRET agent", ConvolutionKernel="SECRET1")
    two = stack(dicom_files, 2, ContrastBolusAgent="other", ConvolutionKernel="SECRET2")
    write(dicom_files, tmp_path, one, two)
    assert "SECRET" not in "".join(volumes(tmp_path))
    assert pydicom.dcmread(next(tmp_path.iterdir())).ContrastBolusAgent
