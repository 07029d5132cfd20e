"""Folders, tables, pairs and masks, as the data sets' modules find them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sgan_core.errors import InputError
from sgan_datasets.layout import (
    absolute,
    files_of,
    find_folder,
    missing_pairs,
    picture_shape,
    read_csv,
    read_mask,
    read_union,
    require_file,
    require_folder,
    resize_nearest,
    safe_id,
    without,
)


def _touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


# --- folders and files ---


def test_first_candidate_is_taken_whatever_its_case(tmp_path: Path) -> None:
    (tmp_path / "Outer" / "IMAGES").mkdir(parents=True)
    (tmp_path / "Images").mkdir()
    assert require_folder(tmp_path, ("outer/images", "images"), "x") == tmp_path / "Outer" / "IMAGES"
    assert find_folder(tmp_path, ("images",)) == tmp_path / "Images"
    assert find_folder(tmp_path, (".",)) == tmp_path
    assert find_folder(tmp_path, ("masks", "images/masks")) is None


def test_missing_folder_is_named_with_what_was_looked_for(tmp_path: Path) -> None:
    _touch(tmp_path / "images")  # a file is no folder
    with pytest.raises(
        InputError, match="not the data set x, the folder images or a/images is missing"
    ) as error:
        require_folder(tmp_path, ("images", "a/images"), "x")
    assert str(tmp_path) in str(error.value)
    with pytest.raises(InputError, match="no such folder"):
        require_folder(tmp_path / "nowhere", ("images",), "x")


def test_file_is_found_or_named(tmp_path: Path) -> None:
    _touch(tmp_path / "Table.CSV")
    assert require_file(tmp_path, ("a.csv", "table.csv"), "x") == tmp_path / "Table.CSV"
    with pytest.raises(InputError, match="the file a.csv is missing"):
        require_file(tmp_path, ("a.csv",), "x")


def test_files_are_listed_by_name_in_natural_order(tmp_path: Path) -> None:
    names = ("s_10.png", "s_2.PNG", "._s_2.png", ".hidden.png", "Thumbs.db", "note.txt", "s_2.jpg")
    _touch(*(tmp_path / name for name in names))
    (tmp_path / "deeper").mkdir()
    _touch(tmp_path / "deeper" / "s_1.png")
    found = files_of(tmp_path, (".png", ".jpg"))
    assert list(found) == ["s_2", "s_10"]
    assert found["s_2"].name == "s_2.PNG"
    assert files_of(tmp_path / "none", (".png",)) == {}


def test_ending_may_be_more_than_a_suffix(tmp_path: Path) -> None:
    _touch(tmp_path / "a_mask.png", tmp_path / "b.png")
    assert list(files_of(tmp_path, ("_mask.png",))) == ["a"]
    assert list(files_of(tmp_path, ("_mask.png", ".png"))) == ["a", "b"]
    assert list(files_of(tmp_path, ("",))) == ["a_mask.png", "b.png"]


def test_absolute_path_keeps_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path)
    assert absolute(Path("link/a.png")) == str(tmp_path / "link" / "a.png")


@pytest.mark.parametrize(
    ("text", "plain"),
    [("a b/c:d", "a_b_c_d"), (".-hidden", "hidden"), ("ok-1_2.3+4", "ok-1_2.3+4"), ("", "_")],
)
def test_any_text_becomes_a_plain_name(text: str, plain: str) -> None:
    assert safe_id(text) == plain


# --- tables ---


def test_table_is_read_with_its_quirks(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes("\ufeffname; x;\r\nJö; 1;\r\n\r\nshort\r\n".encode())
    assert read_csv(table, ("name", "x")) == [
        {"name": "Jö", "x": "1", "": ""},
        {"name": "short", "x": "", "": ""},
    ]
    table.write_text('a,b\n"1,5",2\n')
    assert read_csv(table) == [{"a": "1,5", "b": "2"}]


def test_line_break_within_quotes_does_not_end_a_row(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text('a,b\n"two\nlines",2\n')
    assert read_csv(table) == [{"a": "two\nlines", "b": "2"}]


def test_unusable_table_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    with pytest.raises(InputError, match="cannot be read"):
        read_csv(table)
    table.write_text("")
    with pytest.raises(InputError, match="no column 'a'; found are none"):
        read_csv(table, ("a",))
    table.write_text("b,c\n1,2\n")
    with pytest.raises(InputError, match="no column 'a'; found are b, c"):
        read_csv(table, ("a",))
    table.write_bytes(b"a\n\xff\xfe\x00")
    with pytest.raises(InputError, match="not a table in UTF-8"):
        read_csv(table)


# --- pairs ---


def test_orphans_of_both_kinds_are_named() -> None:
    images = {"a": Path("images/a.png"), "b": Path("images/b.png")}
    masks = {"b": Path("masks/b.png"), "c": Path("masks/c.png")}
    problems = missing_pairs(images, masks)
    assert {problem.kind for problem in problems} == {"missing"}
    assert [problem.text for problem in problems] == [
        "images/a.png: no mask belongs to it.",
        "masks/c.png: no image belongs to it.",
    ]
    assert without(images, masks, "mask") == problems[:1]


# --- masks ---


def _grey(path: Path, values: list[list[int]]) -> Path:
    Image.fromarray(np.array(values, np.uint8)).save(path)
    return path


def test_union_is_bright_in_any_mask(tmp_path: Path) -> None:
    left = _grey(tmp_path / "left.png", [[255, 127, 0, 0]])
    right = _grey(tmp_path / "right.png", [[0, 0, 128, 0]])
    np.testing.assert_array_equal(read_union([left, right]), [[1, 0, 1, 0]])
    joined = read_union([left], value=7)
    assert joined.dtype == np.uint8
    np.testing.assert_array_equal(joined, [[7, 0, 0, 0]])


def test_mask_is_what_a_palette_shows(tmp_path: Path) -> None:
    """GIF and PNG with a palette: index 1 may be black."""
    picture = Image.fromarray(np.array([[0, 1, 1, 0]], np.uint8), mode="P")
    picture.putpalette([255, 255, 255, 0, 0, 0])
    for name in ("mask.gif", "mask.png"):
        picture.save(tmp_path / name)
        np.testing.assert_array_equal(read_mask(tmp_path / name), [[True, False, False, True]])


def test_empty_and_one_bit_masks_are_fine(tmp_path: Path) -> None:
    assert not read_mask(_grey(tmp_path / "empty.png", [[0, 0]])).any()
    Image.new("1", (3, 2), 1).save(tmp_path / "one.png")
    assert read_mask(tmp_path / "one.png").all()


def test_masks_of_two_sizes_are_not_joined(tmp_path: Path) -> None:
    left, right = _grey(tmp_path / "l.png", [[0, 255]]), _grey(tmp_path / "r.png", [[0], [255]])
    with pytest.raises(InputError, match="1 x 2 pixels, the masks beside it are 2 x 1"):
        read_union([left, right])


def test_damaged_mask_is_refused_in_one_line(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
    whole, cut, text = tmp_path / "whole.png", tmp_path / "cut.png", tmp_path / "text.png"
    Image.fromarray(noise).save(whole)
    cut.write_bytes(whole.read_bytes()[:1000])
    text.write_text("no picture")
    for path in (cut, text, tmp_path / "missing.png"):
        with pytest.raises(InputError, match=path.name) as error:
            read_mask(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("orientation", "shape"), [(1, (2, 5)), (3, (2, 5)), (6, (5, 2))])
def test_picture_shape_is_that_of_the_upright_picture(
    tmp_path: Path, orientation: int, shape: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("L", (5, 2), 9).save(tmp_path / "a.jpg", exif=exif)
    assert picture_shape(tmp_path / "a.jpg") == shape


def test_nearest_labels_keep_their_place() -> None:
    labels = np.array([[0, 1], [2, 3]], np.uint8)
    np.testing.assert_array_equal(resize_nearest(labels, (4, 6)), np.kron(labels, np.ones((2, 3), np.uint8)))
    np.testing.assert_array_equal(resize_nearest(np.arange(9).reshape(3, 3), (1, 1)), [[4]])
    assert resize_nearest(labels, (2, 2)) is labels
