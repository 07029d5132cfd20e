"""Pictures and masks against tifffile, SimpleITK and closed form."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from sgan_core.cohort import Label
from sgan_core.errors import InputError
from sgan_core.imaging.pictures import black_and_white, grey_or_rgb
from sgan_core.imaging.readers import read_labels, read_picture
from sgan_core.imaging.writers import write_mask_png

RNG = np.random.default_rng(0)


def values_of(dtype: str, shape: tuple[int, ...] = (6, 9)) -> np.ndarray:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return RNG.normal(size=shape).astype(kind)
    limits = np.iinfo(kind)
    return RNG.integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)


def png(path: Path, pixels: np.ndarray, colour_type: int) -> Path:
    """A 16-bit PNG (PNG specification, 11.2)."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


# --- values of TIFF and PNG -----------------------------------------------------------------------


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8"])
def test_grey_tiff_is_read_with_its_values_or_refused(
    tmp_path: Path, dtype: str, photometric: str, byteorder: str
) -> None:
    path = tmp_path / "xray.tif"
    pixels = values_of(dtype)
    tifffile.imwrite(path, pixels, photometric=photometric, byteorder=byteorder)
    by_tifffile = tifffile.imread(path)  # as stored
    expected = (
        np.iinfo(dtype).max - by_tifffile if photometric == "miniswhite" and dtype[0] == "u" else by_tifffile
    )
    read = dtype in ("u1", "u2", "i2", "i4", "f4") and photometric == "minisblack"
    read |= dtype == "u1" or (dtype, photometric, byteorder) == ("u2", "miniswhite", "<")
    if read:
        np.testing.assert_array_equal(read_picture(path).array[0], expected)
    else:
        with pytest.raises(InputError, match="xray"):
            read_picture(path)


def test_twelve_bits_and_one_bit(tmp_path: Path) -> None:
    twelve = RNG.integers(0, 4096, (6, 8)).astype(np.uint16)
    high, low = twelve.ravel()[::2], twelve.ravel()[1::2]
    packed = np.stack([high >> 4, (high & 15) << 4 | low >> 8, low & 255], axis=1).astype(np.uint8)
    entries = [
        (256, 8),
        (257, 6),
        (258, 12),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, 6),
        (279, packed.size),
    ]
    directory = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in entries)
    content = b"II*\0" + struct.pack("<I", 8 + packed.size) + packed.tobytes()
    (tmp_path / "a.tif").write_bytes(content + struct.pack("<H", len(entries)) + directory + b"\0\0\0\0")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").array[0], twelve)
    mask = RNG.random((6, 9)) > 0.5
    tifffile.imwrite(tmp_path / "white.tif", ~mask, photometric="miniswhite")
    np.testing.assert_array_equal(read_picture(tmp_path / "white.tif").array[0], mask * 255)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_colour_tiff_keeps_its_upper_bits_or_is_refused(tmp_path: Path, dtype: str, planar: str) -> None:
    pixels = values_of(dtype, (6, 9, 3))
    stored = pixels if planar == "contig" else pixels.transpose(2, 0, 1).copy()
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar)
    if (dtype, planar) == ("u2", "separate"):
        with pytest.raises(InputError, match="16-bit TIFF in colour planes"):
            read_picture(tmp_path / "a.tif")
        return
    expected = (pixels >> 8 if dtype == "u2" else pixels).astype(np.uint8)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").array, expected.transpose(2, 0, 1))


def test_sixteen_bit_colour_png_keeps_its_upper_bits(tmp_path: Path) -> None:
    pixels = values_of("u2", (6, 9, 3))
    png(tmp_path / "a.png", pixels, 2)
    by_itk = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.png")))
    np.testing.assert_array_equal(by_itk, pixels)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png").array, (by_itk >> 8).transpose(2, 0, 1))


def test_what_cannot_be_read_right_is_refused_by_name(tmp_path: Path) -> None:
    png(tmp_path / "alpha.png", values_of("u2", (6, 9, 2)), 4)
    tifffile.imwrite(tmp_path / "lab.tif", values_of("u1", (6, 9, 3)), photometric="cielab")
    grey_alpha = {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["assocalpha"]}
    tifffile.imwrite(tmp_path / "assoc.tif", values_of("u1", (6, 9, 2)), **grey_alpha)
    for name, said in (("alpha.png", "16-bit grey"), ("lab.tif", "LAB colours"), ("assoc.tif", "La colours")):
        with pytest.raises(InputError, match=f"{said}.*, which is not read. Save it as"):
            read_picture(tmp_path / name)


def test_tiff_whose_rows_are_missing_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values_of("u2"), photometric="minisblack")
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        file.pages[0].tags["RowsPerStrip"].overwrite(2)
    with pytest.raises(InputError, match="where all of its rows are"):
        read_picture(tmp_path / "a.tif")


def retyped(path: Path, tag: int, *, kind: int = 3, value: int | None = None) -> None:
    """Give an entry of the first directory another type, or another value."""
    content = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    places = [start + 2 + 12 * number for number in range(count)]
    (at,) = [place for place in places if struct.unpack_from("<H", content, place)[0] == tag]
    struct.pack_into("<H", content, at + 2, kind)
    if value is not None:
        struct.pack_into("<H", content, at + 8, value)
    path.write_bytes(content)


@pytest.mark.parametrize("dtype", ["i2", "f4"])
def test_tiff_whose_kind_of_numbers_is_damaged_is_refused(tmp_path: Path, dtype: str) -> None:
    """Of a Sample Format in no known type Pillow takes no notice: signed and real numbers became unsigned ones."""
    tifffile.imwrite(tmp_path / "a.tif", values_of("u2").astype(dtype), photometric="minisblack")
    assert read_picture(tmp_path / "a.tif").array.dtype.kind in "if"
    retyped(tmp_path / "a.tif", 339, kind=99)
    with pytest.raises(InputError, match="two readers understand differently"):
        read_picture(tmp_path / "a.tif")


def test_tiff_whose_strip_is_elsewhere_for_one_reader_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values_of("u1", (6, 9, 3)), photometric="rgb")
    retyped(tmp_path / "a.tif", 258, kind=13)  # BitsPerSample, three values somewhere else
    with pytest.raises(InputError, match=r"a\.tif: "):
        read_picture(tmp_path / "a.tif")


def test_twelve_bits_in_sixteen_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values_of("u2"), photometric="minisblack")
    retyped(tmp_path / "a.tif", 258, value=12)
    with pytest.raises(InputError, match="other bytes than its pixels need"):
        read_picture(tmp_path / "a.tif")


def test_orientation_that_is_none_is_refused(tmp_path: Path) -> None:
    extra = [(274, "H", 1, 1, True)]
    tifffile.imwrite(tmp_path / "a.tif", values_of("u2"), photometric="minisblack", extratags=extra)
    read_picture(tmp_path / "a.tif")
    retyped(tmp_path / "a.tif", 274, value=9)
    with pytest.raises(InputError, match="Orientation is none of 1 to 8"):
        read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "I", "LA"])
def test_tiff_of_every_compression_is_what_was_written(tmp_path: Path, mode: str) -> None:
    """The second opinion refuses nothing that is whole."""
    grey = Image.fromarray(values_of("u1", (12, 17)))
    picture = Image.fromarray(values_of("u2", (12, 17))) if mode == "I;16" else grey.convert(mode)
    expected = grey_or_rgb(picture).astype(float)
    written = []
    for compression in (
        "raw",
        "tiff_lzw",
        "tiff_adobe_deflate",
        "tiff_deflate",
        "packbits",
        "jpeg",
        "group4",
    ):
        with suppress(OSError, KeyError, ValueError, SystemError):  # not every kind of pixels in each
            picture.save(tmp_path / f"{compression}.tif", compression=compression)
            written.append(compression)
    assert {"raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"} <= set(written)
    for compression in written:
        found = read_picture(tmp_path / f"{compression}.tif").array.astype(float)
        assert found.shape == expected.shape
        if compression != "jpeg":
            np.testing.assert_array_equal(found, expected)


def test_no_damage_of_a_png_goes_unnoticed(tmp_path: Path) -> None:
    """Pillow looks at no checksum of the pixels: a changed byte was another mask."""
    rows, columns = np.ogrid[:60, :50]
    disc = ((rows - 30) ** 2 + (columns - 25) ** 2 < 300).astype(np.uint8) * 255
    Image.fromarray(disc).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    first = content.index(b"IDAT")
    for at in range(first, len(content) - 12):
        changed = bytearray(content)
        changed[at] ^= 0x10
        (tmp_path / "a.png").write_bytes(changed)
        with pytest.raises(InputError):
            read_picture(tmp_path / "a.png")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_turned_tiff_is_upright(tmp_path: Path, orientation: int, compression: str | None) -> None:
    pixels = values_of("u1", (6, 9))
    turned = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.T,
        6: pixels.T[:, ::-1],
        7: pixels.T[::-1, ::-1],
        8: pixels.T[::-1],
    }
    extra = [(274, "H", 1, orientation, True)]
    how = {"photometric": "minisblack", "compression": compression, "extratags": extra}
    tifffile.imwrite(tmp_path / "a.tif", pixels, **how)
    if orientation > 4 and compression is None:  # Pillow 12 takes the rows for columns of the turned picture
        with pytest.raises(InputError, match="two readers"):
            read_picture(tmp_path / "a.tif")
        return
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").array[0], turned[orientation])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_is_no_label(tmp_path: Path, mode: str) -> None:
    white = Image.new(mode, (9, 6), (255,) * len(mode))
    alpha = np.zeros((6, 9), np.uint8)
    alpha[2:4, 3:7] = 255
    white.putalpha(Image.fromarray(alpha))
    white.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png", values=[1]), alpha // 255)


def test_cmyk_is_ink_on_white(tmp_path: Path) -> None:
    ink = values_of("u1", (6, 9, 4))
    ink[0, 0], ink[0, 1] = (0, 0, 0, 0), (0, 0, 0, 255)
    tifffile.imwrite(tmp_path / "a.tif", ink, photometric="separated")
    rgb = read_picture(tmp_path / "a.tif").array.transpose(1, 2, 0)
    c_m_y, k = ink[..., :3].astype(float), ink[..., 3:].astype(float)
    np.testing.assert_allclose(rgb, (255 - c_m_y) * (255 - k) / 255, atol=1)
    flat = np.broadcast_to(np.array([0, 128, 255, 0], np.uint8), (16, 16, 4)).copy()
    flat[:8] = 0
    Image.fromarray(flat, "CMYK").save(tmp_path / "a.jpg", quality=100)  # inverted, as Adobe does
    rgb = read_picture(tmp_path / "a.jpg").array.astype(int)
    assert np.abs(rgb[:, 0, 0] - 255).max() <= 2
    assert np.abs(rgb[:, -1, -1] - (255, 127, 0)).max() <= 3


# --- pages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("sample_format", [1, 2])  # unsigned, signed
def test_real_numbers_whose_tiff_says_whole_numbers_are_refused(
    tmp_path: Path, sample_format: int, sign: int
) -> None:
    path = tmp_path / "a.tif"
    values = np.random.default_rng(0).normal(100, 30, (20, 20)).astype(np.float32)
    values[0, :2] = 0.0, -0.0
    Image.fromarray(values * sign).save(path)
    content = path.read_bytes()
    entry = struct.pack("<HHI", 339, 3, 1)
    assert content.count(entry + struct.pack("<I", 3)) == 1
    path.write_bytes(content.replace(entry + struct.pack("<I", 3), entry + struct.pack("<I", sample_format)))
    with pytest.raises(InputError, match="SampleFormat|above 2147483647|two readers"):
        read_picture(path)


@pytest.mark.parametrize("top", [5, 70_000, 2_000_000_000])
def test_whole_numbers_of_32_bits_are_none_that_are_real(tmp_path: Path, top: int) -> None:
    values = np.random.default_rng(0).integers(-top, top, (20, 20), np.int32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").array[0], values)


def test_several_pages_are_refused(tmp_path: Path) -> None:
    pages = values_of("u1", (3, 6, 9))
    tifffile.imwrite(tmp_path / "stack.tif", pages, photometric="minisblack")
    first, *others = (Image.fromarray(page) for page in pages)
    for name in ("film.gif", "film.png"):
        first.save(tmp_path / name, save_all=True, append_images=others)
    for name in ("stack.tif", "film.gif", "film.png"):
        with pytest.raises(InputError, match="holds 3 pages; one picture is needed"):
            read_picture(tmp_path / name)


@pytest.mark.parametrize("thumbnail_first", [True, False])
def test_thumbnail_is_no_page(tmp_path: Path, thumbnail_first: bool) -> None:
    pixels = values_of("u2", (6, 8))
    with tifffile.TiffWriter(tmp_path / "scan.tif") as writer:
        for reduced in (thumbnail_first, not thumbnail_first):
            page = pixels[::2, ::2] if reduced else pixels
            writer.write(page, photometric="minisblack", subfiletype=int(reduced), metadata=None)
    picture = read_picture(tmp_path / "scan.tif")
    np.testing.assert_array_equal(picture.array[0], pixels)
    assert picture.warnings == ()


# --- masks by their colours -----------------------------------------------------------------------


MASK = np.zeros((64, 64), bool)
MASK[20:30, 20:40] = True


def palette_picture(indices: np.ndarray, *colours: tuple[int, int, int]) -> Image.Image:
    picture = Image.fromarray(indices.astype(np.uint8))
    picture.putpalette([channel for colour in colours for channel in colour], "RGB")
    return picture


BLACK, WHITE, RED, BLUE, YELLOW = (0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 0, 128), (255, 255, 0)


@pytest.mark.parametrize("values", [{1}, {4}, {255}, None])
@pytest.mark.parametrize("ending", [".png", ".bmp", ".gif", ".tif"])
@pytest.mark.parametrize("white_first", [True, False])
def test_black_and_white_palette_is_read_by_its_colours(
    tmp_path: Path, white_first: bool, ending: str, values: set[int] | None
) -> None:
    colours = (WHITE, BLACK) if white_first else (BLACK, WHITE)
    path = tmp_path / f"mask{ending}"
    palette_picture(MASK ^ white_first, *colours).save(path)
    if ending == ".bmp" and not white_first:
        with pytest.raises(InputError, match="a BMP of two colours in more than one bit"):
            read_labels(path, values=values)
        return
    found = read_labels(path, values=values)
    if values:
        np.testing.assert_array_equal(found, MASK * max(values))
    np.testing.assert_array_equal(np.asarray(found) > 0, MASK)
    assert black_and_white(path)


def test_slice_without_organ_in_a_white_first_palette_is_empty(tmp_path: Path) -> None:
    palette_picture(np.ones((8, 8)), WHITE, BLACK).save(tmp_path / "mask.png")
    assert not np.asarray(read_labels(tmp_path / "mask.png", values={1})).any()
    assert not np.asarray(read_labels(tmp_path / "mask.png", values=None)).any()


def test_one_bit_masks_of_either_polarity(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "inverted.tif", ~MASK, photometric="miniswhite")
    Image.fromarray(MASK).save(tmp_path / "plain.bmp")
    content = bytearray((tmp_path / "plain.bmp").read_bytes())
    start = struct.unpack_from("<I", content, 10)[0]
    content[54:62] = content[58:62] + content[54:58]  # the two colours
    content[start:] = bytes(byte ^ 255 for byte in content[start:])
    (tmp_path / "inverted.bmp").write_bytes(content)
    for name in ("inverted.tif", "plain.bmp", "inverted.bmp"):
        np.testing.assert_array_equal(read_labels(tmp_path / name, values={3}), MASK * 3)


@pytest.mark.parametrize(
    ("colours", "inverted"), [((BLACK, RED), False), ((RED, BLACK), True), ((BLUE, YELLOW), False)]
)
def test_two_colours_have_the_darker_background(
    tmp_path: Path, colours: tuple[tuple[int, int, int], ...], inverted: bool
) -> None:
    palette_picture(MASK ^ inverted, *colours).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "mask.png", values={1}), MASK)


def test_two_colours_without_a_background_are_refused(tmp_path: Path) -> None:
    palette_picture(MASK, YELLOW, BLUE).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match="which is the background"):
        read_labels(tmp_path / "mask.png", values={1})


@pytest.mark.parametrize("present", [(0, 1, 2, 3), (0, 3), (3,), (0, 2), (0,)])
def test_own_mask_comes_back_whatever_its_colours(tmp_path: Path, present: tuple[int, ...]) -> None:
    labels = [Label(1, "a", WHITE), Label(2, "b", BLACK), Label(3, "c", (90, 90, 90))]
    labelmap = np.random.default_rng(1).choice(present, (9, 9)).astype(np.uint8)
    write_mask_png(tmp_path / "mask.png", labelmap, labels)
    for values in ({1, 2, 3}, None):
        np.testing.assert_array_equal(read_labels(tmp_path / "mask.png", values=values), labelmap)


def test_label_palettes_count_by_index(tmp_path: Path) -> None:
    indices = np.arange(64).reshape(8, 8) % 4
    for first in (BLACK, (128, 64, 128)):  # as VOC, as Cityscapes
        palette_picture(indices, first, RED, BLUE, YELLOW).save(tmp_path / "mask.png")
        np.testing.assert_array_equal(read_labels(tmp_path / "mask.png", values={1, 2, 3}), indices)


# --- grey edges -----------------------------------------------------------------------------------


def disc(side: int = 128, radius: float = 40.3) -> np.ndarray:
    """A disc with edges as smooth as those of a resized mask, in 0 to 1."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    return np.clip(radius - np.hypot(y, x) + 0.5, 0, 1)


@pytest.mark.parametrize("values", [{1}, {255}, {7}, None])
@pytest.mark.parametrize("name", ["mask.png", "mask.jpg", "mask16.png", "adaptive.png"])
def test_smooth_mask_is_the_label_where_it_is_more_than_half(
    tmp_path: Path, name: str, values: set[int] | None
) -> None:
    smooth = np.round(disc() * 255).astype(np.uint8)
    picture = Image.fromarray(smooth.astype(np.uint16) * 257 if "16" in name else smooth)
    if name == "adaptive.png":
        if values is None:
            pytest.skip("its indices may be labels")
        picture = picture.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE, colors=32)
    picture.save(tmp_path / name, **({"quality": 95} if name == "mask.jpg" else {}))
    remarks: list[str] = []
    found = np.asarray(read_labels(tmp_path / name, values=values, remarks=remarks))
    wrong = (found > 0) != (disc() > 0.5)
    assert np.count_nonzero(wrong) <= (0 if name == "mask.png" else 20)
    assert set(np.unique(found).tolist()) == {0, max(values or {255})}
    (remark,) = remarks
    if name == "mask.png":
        between = np.count_nonzero((smooth > 31) & (smooth < 224))
        assert f"{between} grey pixels" in remark


def test_grey_levels_of_several_labels_are_errors(tmp_path: Path) -> None:
    Image.fromarray(np.round(disc() * 255).astype(np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match="unknown label value"):
        read_labels(tmp_path / "mask.png", values={1, 2})


def test_few_levels_and_dark_pictures_stay_labels(tmp_path: Path) -> None:
    for levels in ([0, 1, 255], [0, 63, 126, 189, 252], list(range(105))):
        pixels = np.resize(np.array(levels, np.uint8), (32, 32))
        Image.fromarray(pixels).save(tmp_path / "mask.png")
        np.testing.assert_array_equal(read_labels(tmp_path / "mask.png", values=None), pixels)
    Image.fromarray(np.resize(np.array([0, 1, 255], np.uint8), (32, 32))).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match="unknown label value 255"):
        read_labels(tmp_path / "mask.png", values={1})
