"""What lies in a folder and what a series tells of itself: nothing that belongs to a scan vanishes in silence."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sgan_core.errors import InputError
from sgan_core.imaging.dicom import choose_series, find_series, read_series
from sgan_core.imaging.dicom.search import search
from sgan_core.imaging.readers import read_image

SHAPE = (6, 5, 12)


def hu(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)


def save(files: Any, folder: Path, name: str = "IM{:04d}.dcm", **attributes: Any) -> list[Path]:
    images = files.stack(hu(), **{"SeriesInstanceUID": "1.2.3", **attributes})
    return [files.save(folder / name.format(n), image) for n, image in enumerate(images)]


# --- files that look like slices -------------------------------------------------------------------


def cut(size: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:size])

    return change


def dead_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "gone")


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def link_to_a_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def overwritten(path: Path) -> None:
    path.write_bytes(b"\xff" * 900)


CHANGES = [cut(0), cut(100), cut(131), cut(400), cut(-10), overwritten]
if sys.platform != "win32":
    CHANGES += [dead_link, link_to_itself, link_to_a_device, pipe]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["IM{:04d}.dcm", "IM{:04d}", "1.2.840.{}.7", "img{}.ima"])
def test_a_slice_that_cannot_be_read_is_no_shorter_scan(
    change: Callable[[Path], None], name: str, dicom_files: Any, tmp_path: Path
) -> None:
    paths = save(dicom_files, tmp_path, name)
    for path in paths[-3:]:
        change(path)
    with pytest.raises(InputError, match=r"3 of 12 files of this series cannot be read") as caught:
        read_image(tmp_path)
    assert paths[-3].name in str(caught.value)
    for path in paths[-3:]:  # the advice works
        path.unlink()
    assert read_image(tmp_path).array.shape == (6, 5, 9)


@pytest.mark.parametrize("ending", [".part", ".crdownload", ".gz"])
def test_an_unfinished_copy_is_a_slice_too(ending: str, dicom_files: Any, tmp_path: Path) -> None:
    paths = save(dicom_files, tmp_path)
    paths[-1].rename(paths[-1].with_name(paths[-1].name + ending)).write_bytes(b"x" * 40)
    with pytest.raises(InputError, match=r"1 of 12 files"):
        read_image(tmp_path)


@pytest.mark.parametrize(
    "name", ["notes.txt", "README", ".DS_Store", "._IM0001.dcm", "Thumbs.db", "report.pdf"]
)
def test_what_is_no_slice_needs_no_word(name: str, dicom_files: Any, tmp_path: Path) -> None:
    save(dicom_files, tmp_path)
    (tmp_path / name).write_bytes(b"\0\5\x16\7" * 100)
    volume = read_image(tmp_path)
    assert (volume.array.shape, volume.warnings, volume.doubts) == (SHAPE, (), ())


def test_only_the_series_of_a_damaged_file_is_refused(dicom_files: Any, tmp_path: Path) -> None:
    save(dicom_files, tmp_path)
    other = save(dicom_files, tmp_path, "OTHER{}.dcm", SeriesInstanceUID="1.2.4", SeriesNumber=2)
    cut(-10)(other[3])
    found = find_series(tmp_path)
    assert [bool(one.problem) for one in found] == [True, False]
    whole = read_series(next(one for one in found if one.uid == "1.2.3"))
    assert whole.array.shape == SHAPE
    assert "a file in the folder cannot be read" in " ".join(whole.warnings)
    with pytest.raises(InputError, match="OTHER3"):
        read_series(choose_series(found, "2", tmp_path))


def test_an_unreadable_file_elsewhere_in_the_study_is_said(dicom_files: Any, tmp_path: Path) -> None:
    save(dicom_files, tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "IM0001.dcm").touch()
    volume = read_image(tmp_path)
    assert "IM0001.dcm is empty" in " ".join(volume.warnings)


def test_nothing_but_damaged_files_is_said(tmp_path: Path) -> None:
    for n in range(3):
        (tmp_path / f"{n}.dcm").touch()
    with pytest.raises(InputError, match=r"0\.dcm: is empty; 3 files cannot be read"):
        read_image(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("size", [660, 690, 719])
def test_a_slice_cut_within_its_series_uid_belongs_to_the_series(
    size: int, dicom_files: Any, tmp_path: Path
) -> None:
    files = save(dicom_files, tmp_path, SeriesInstanceUID="1.2.826.0.1.3680043.8.498.1234567890")
    content = files[2].read_bytes()
    at = content.index(b"1.2.826.0.1.3680043.8.498.1234567890")
    files[2].write_bytes(content[: at + 8 + size % 20])
    with pytest.raises(InputError, match="a part of the scan would be missing"):
        read_image(tmp_path)


def test_an_empty_file_of_another_name_is_a_slice_too(dicom_files: Any, tmp_path: Path) -> None:
    files = save(dicom_files, tmp_path, name="IM{:04d}")
    files[2].unlink()
    (tmp_path / "45C48CCE").touch()
    with pytest.raises(InputError, match="45C48CCE: is empty"):
        read_image(tmp_path)


def test_an_empty_mark_is_no_slice(dicom_files: Any, tmp_path: Path) -> None:
    save(dicom_files, tmp_path, name="IM{:04d}")
    (tmp_path / "COMPLETE").touch()
    assert read_image(tmp_path).array.shape == SHAPE


def test_what_a_killed_run_left_is_no_slice(dicom_files: Any, tmp_path: Path) -> None:
    save(dicom_files, tmp_path)
    (tmp_path / ".0123456789abcdef.part.dcm").touch()
    assert read_image(tmp_path).array.shape == SHAPE


@pytest.mark.parametrize("keyword", ["PatientID", "PatientName", "PatientBirthDate"])
def test_two_patients_are_never_one_scan(keyword: str, dicom_files: Any, tmp_path: Path) -> None:
    """Whatever UIDs an anonymiser has left alike."""
    images = dicom_files.stack(hu(), SeriesInstanceUID="1.2.3")
    for image in images[3:]:
        setattr(image, keyword, {"PatientBirthDate": "19500101"}.get(keyword, "OTHER"))
    dicom_files.save_all(tmp_path, images)
    assert len(find_series(tmp_path)) == 2
    with pytest.raises(InputError, match="--series|several"):
        read_image(tmp_path)


def test_linked_slices_are_read(dicom_files: Any, tmp_path: Path) -> None:
    paths = save(dicom_files, tmp_path / "series")
    store = tmp_path / "annex"
    store.mkdir()
    for n, path in enumerate(paths[4:]):
        path.rename(store / f"{n}")
        path.symlink_to(os.path.relpath(store / f"{n}", path.parent))
    np.testing.assert_array_equal(read_image(tmp_path / "series").array, hu())
    (tmp_path / "series" / ".git").mkdir()
    (tmp_path / "series" / ".git" / "object.dcm").write_bytes(paths[0].read_bytes())
    assert search(tmp_path / "series").left_out == []


def test_a_slice_that_may_not_be_read_is_no_shorter_scan(
    dicom_files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = save(dicom_files, tmp_path)[-1]
    opened = Path.open

    def refuse(path: Path, *arguments: Any, **settings: Any) -> Any:  # root may read everything
        if path == last:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **settings)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"1 of 12 files"):
        read_image(tmp_path)


# --- what only plans or documents a scan ------------------------------------------------------------


def test_localizers_and_captures_stand_beside_a_scan(dicom_files: Any, tmp_path: Path) -> None:
    save(dicom_files, tmp_path, SeriesNumber=3)
    views = dicom_files.stack(
        hu(1, (6, 5, 1)),
        directions=np.array([[1.0, 0], [0, 0], [0, -1]]),
        SeriesInstanceUID="1.2.5",
        SeriesNumber=1,
        SliceThickness=1,
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
    )
    dicom_files.save(tmp_path / "scout", *views)
    capture = dicom_files.image(np.random.default_rng(0).integers(0, 255, (9, 9, 3)).astype(np.uint8))
    capture.SOPClassUID, capture.SeriesInstanceUID, capture.SeriesNumber = (
        "1.2.840.10008.5.1.4.1.1.7",
        "1.2.6",
        99,
    )
    dicom_files.save(tmp_path / "dose", capture)
    volume = read_image(tmp_path)
    np.testing.assert_array_equal(volume.array, hu())
    assert any("1 x localizer, 1 x secondary capture" in text for text in volume.warnings)
    found = find_series(tmp_path)
    assert read_series(choose_series(found, "99", tmp_path)).array.shape == (3, 9, 9)  # named, they are taken
    assert read_series(choose_series(found, "1", tmp_path)).array.shape == (6, 5, 1)
    assert read_image(tmp_path / "dose").array.shape == (3, 9, 9)  # so they are alone


# --- what a series tells of itself -----------------------------------------------------------------


def doubts(files: Any, folder: Path, numbers: list[int], **attributes: Any) -> str:
    images = files.stack(hu(shape=(6, 5, len(numbers))), **attributes)
    for image, number in zip(images, numbers, strict=True):
        image.InstanceNumber = number
    files.save_all(folder, images)
    return "; ".join(read_image(folder).doubts)


@pytest.mark.parametrize(
    ("numbers", "attributes", "said"),
    [
        (range(1, 9), {}, ""),
        (range(8, 0, -1), {}, ""),
        (range(5, 13), {}, "lower end: its images are numbered from 5 on"),
        (range(12, 4, -1), {}, "upper end: its images are numbered from 5 on"),
        (range(2, 18, 2), {}, ""),  # every second: one of two echoes
        (range(1, 17, 2), {"SliceThickness": 1}, "only one of every 2 images is here"),
        (range(9, 17), {}, ""),  # after a whole stack of others
        (range(501, 509), {}, ""),  # numbers of their own
        (range(13, 21), {}, "lower end: its images are numbered from 13 on"),  # most of it is missing
        ([5, 7, 6, 9, 8, 11, 10, 12], {}, ""),  # in no order of the stack
        (range(1, 9), {"ImagesInAcquisition": 8}, ""),
        (range(1, 9), {"ImagesInAcquisition": 12}, "names 12 images in the acquisition, 8 are here"),
        (range(1, 9), {"ImagesInAcquisition": 4}, ""),  # one of two acquisitions
        (range(1, 9), {"NumberOfSlices": 12}, "names 12 slices, 8 are here"),
        (range(1, 9), {"NumberOfSeriesRelatedInstances": 9}, "names 9 images in the series, 8 are here"),
    ],
)
def test_a_series_that_tells_of_more_than_there_is(
    numbers: range, attributes: dict[str, Any], said: str, dicom_files: Any, tmp_path: Path
) -> None:
    found = doubts(dicom_files, tmp_path, list(numbers), **attributes)
    assert found == said if not said else said in found
    assert not said or found.startswith("the scan may be incomplete")


def test_whole_scans_of_hospitals_raise_no_doubt(shared: Path) -> None:
    roots = list((shared / "data" / "CHAOS").rglob("DICOM_anon"))
    assert len(roots) >= 2
    for root in roots:
        for one in find_series(root):
            assert (one.doubts, one.problem, one.warnings) == ((), "", ()), root
