"""Picture files to pixels, as images and as masks."""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Collection
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk
from PIL import Image, ImageOps

from sgan_core.errors import InputError
from sgan_core.imaging.decoder_messages import heard, stdout_as_stderr
from sgan_core.imaging.dicom.pixels import let_libjpeg_speak
from sgan_core.imaging.guards import damaged

if TYPE_CHECKING:
    import tifffile

_WIDE = 65535
# Tags of TIFF 6.0.
_NEW_SUBFILE_TYPE, _SUBFILE_TYPE, _BITS, _PHOTOMETRIC, _PLANAR, _SAMPLE_FORMAT = 254, 255, 258, 262, 284, 339
_LENGTH = 257
_COMPRESSION, _ORIENTATION, _SAMPLES, _STRIP_BYTES = 259, 274, 277, 279
# The tags that decide what pixels are: sizes, kind, compression, where they lie, colours, alpha.
_DECISIVE = {
    *range(254, 260),
    262,
    266,
    273,
    274,
    *range(277, 280),
    284,
    317,
    320,
    *range(322, 326),
    338,
    339,
}
_WHITE_IS_ZERO, _YCBCR, _SIGNED, _JPEG = 0, 6, 2, (6, 7)
# What Pillow raises on garbage.
_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
) + (MemoryError, struct.error, zlib.error)
_MOST_BETWEEN = 0.2  # part of a mask's pixels that may be neither black nor white; of an image most are
_USUAL = (1e-10, 1e10)  # of real numbers in a picture
_NEAR_BLACK = 16  # of a palette's colour


def open_picture(path: Path) -> tuple[Image.Image, tuple[str, ...]]:
    """The one picture of a file, upright as EXIF says, black being 0; with warnings.

    Raises InputError: damaged file, several pages or frames, and pixels that Pillow does not read right.
    """
    with heard() as said:
        picture, warnings = _open(path)
    return picture, (*warnings, *said.sentence(path.name))


def _open(path: Path) -> tuple[Image.Image, tuple[str, ...]]:
    try:
        with Image.open(path) as opened:
            if opened.format == "PNG":
                opened.verify()  # all checksums, which are not looked at otherwise; then it is of no more use
        with Image.open(path) as opened:
            warnings = _only_page(opened, path)
            tags = _tiff_tags(opened)
            if reason := _misread(opened, tags):
                raise InputError(f"{path}: {reason}, which is not read. Save it as 8- or 16-bit PNG.")
            upright = ImageOps.exif_transpose(opened)  # a loaded copy
            if opened.format == "TIFF":
                _second_opinion(opened, upright, tags, path)
            _let_decoders_speak(opened, tags, path)
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: {error} Save a smaller picture.") from error
    except _ERRORS as error:
        raise damaged(path, "picture", error) from error
    if upright.mode.startswith("I;16") and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        # Pillow inverts such pictures of 1 and 8 bits, not these.
        upright = Image.fromarray(_WIDE - np.asarray(upright).astype(np.uint16))
    if upright.mode == "I" and tags.get(_SAMPLE_FORMAT) == 1 and np.asarray(upright).min() < 0:
        raise InputError(
            f"{path}: 32-bit values above 2147483647, which are not read. Save it as 16-bit PNG."
        )
    if upright.mode == "I" and _are_real(np.asarray(upright)):
        raise InputError(
            f"{path}: whole numbers by its header (SampleFormat), real numbers by their bits; it is damaged. "
            "Copy or export it again."
        )
    return upright, warnings


def _second_opinion(opened: Image.Image, upright: Image.Image, tags: dict[int, int], path: Path) -> None:
    """Raise InputError unless tifffile finds in a TIFF page what Pillow did: a damaged directory is read in many ways.

    Of what it cannot unpack by itself (LZW, JPEG, 12 bits) only the kind of pixels is compared.
    """
    import tifffile  # takes a while to load

    reason = f"{path}: a TIFF that two readers understand differently. Save it as PNG."
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[opened.tell()]
            assert isinstance(page, tifffile.TiffPage)
            lost = _DECISIVE.intersection(_directory(file, page.offset)).difference(page.tags.keys())
            turn = int(page.tags[_ORIENTATION].value) if _ORIENTATION in page.tags else 1
            size = (page.imagewidth, page.imagelength)[:: -1 if turn > 4 else 1]
            if size != upright.size or page.dtype is None or lost:
                raise InputError(reason)
            kind, bits = page.dtype.kind, page.bitspersample
            unpacks = page.compression in (1, 8, 32946, 32773) and bits != 12
            theirs = page.asarray() if unpacks else None
    except InputError:
        raise
    except Exception as error:  # it raises many kinds
        raise InputError(reason) from error
    ours = np.asarray(upright)
    if kind == "i" and ours.dtype.kind == "u" or (kind == "f") != (ours.dtype.kind == "f"):
        raise InputError(reason)
    if theirs is None or opened.mode not in ("1", "L", "P", "I", "F", "RGB", "I;16", "I;16B"):
        return
    if tags.get(_PLANAR) == 2 and theirs.ndim == 3:
        theirs = theirs.transpose(1, 2, 0)  # (3, H, W) -> (H, W, 3)
    theirs = _turned(theirs, turn)
    if opened.mode in ("1", "L") and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # turned round by Pillow
        theirs = (1 << bits) - 1 - theirs.astype(np.int64)
    if opened.mode == "L" and bits < 8:
        theirs = theirs * (255 // ((1 << bits) - 1))  # Pillow spreads them over 8 bits
    if opened.mode == "RGB" and theirs.dtype == np.uint16:
        theirs = theirs >> 8
    if theirs.shape != ours.shape or not np.array_equal(theirs, ours, equal_nan=ours.dtype.kind == "f"):
        raise InputError(reason)


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (H, W, ...) upright, by the tag Orientation (TIFF 6.0, page 36)."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    across = orientation in (2, 3, 6, 7)
    down = orientation in (3, 4, 7, 8)
    return pixels[:: -1 if down else 1, :: -1 if across else 1]


def _directory(file: tifffile.TiffFile, offset: int) -> list[int]:
    """The tags of the directory at an offset, those too whose values cannot be read (TIFF 6.0, page 14)."""
    form, handle = file.tiff, file.filehandle
    handle.seek(offset)
    (count,) = struct.unpack(form.tagnoformat, handle.read(form.tagnosize))
    entries = handle.read(count * form.tagsize)
    return [
        struct.unpack_from(f"{form.byteorder}H", entries, start)[0]
        for start in range(0, len(entries) - form.tagsize + 1, form.tagsize)
    ]


def _are_real(pixels: np.ndarray) -> bool:
    """Whether int32 pixels are the bits of float32 numbers of usual size, all that are not 0.

    As whole numbers they would all lie between 0.8 and 1.4 thousand million, above or below 0.
    """
    numbers = np.abs(pixels.astype(np.int32).view(np.float32))
    usual = (numbers >= _USUAL[0]) & (numbers <= _USUAL[1])
    return bool((usual | (numbers == 0)).all() and usual.any())


def _let_decoders_speak(opened: Image.Image, tags: dict[int, int], path: Path) -> None:
    """Decode a JPEG or a compressed TIFF once more, for what ``heard`` gets of it; the result is not used.

    Pillow makes libjpeg and the warnings of libtiff mute; both go on with made-up pixels where data are damaged.
    """
    is_jpeg = opened.format in ("JPEG", "MPO")
    if is_jpeg and sys.platform == "win32":  # slower, but what ITK's prints may be in another C library there
        let_libjpeg_speak(path.read_bytes(), opened.height, opened.width, len(opened.getbands()))
    elif is_jpeg or (opened.format == "TIFF" and tags.get(_COMPRESSION, 1) != 1):
        reader = sitk.ImageFileReader()
        reader.SetImageIO("JPEGImageIO" if is_jpeg else "TIFFImageIO")
        # RuntimeError and so on: a kind or a file name that ITK does not know. Pillow has the say.
        with (
            suppress(OSError, RuntimeError, TypeError, ValueError),
            stdout_as_stderr() if is_jpeg else nullcontext(),
        ):
            reader.SetFileName(str(path))
            reader.Execute()


def _only_page(opened: Image.Image, path: Path) -> tuple[str, ...]:
    """Go to the only full page; thumbnails, smaller copies and transparency masks of TIFF are none."""
    frames = getattr(opened, "n_frames", 1)
    if opened.format == "MPO":  # photographs of phones and cameras: the first is the photograph
        return (f"{path.name}: holds {frames} pages; the first is used.",)
    if frames == 1:
        return ()
    full = list(range(frames))
    if opened.format == "TIFF":
        full = []
        for page in range(frames):
            opened.seek(page)
            tags = _tiff_tags(opened)
            if not int(tags.get(_NEW_SUBFILE_TYPE, 0)) & 5 and tags.get(_SUBFILE_TYPE) != 2:
                full.append(page)
    if len(full) > 1:
        raise InputError(
            f"{path}: holds {len(full)} pages; one picture is needed. Save the one that is meant, or a stack of slices "
            "as a volume (NIfTI, NRRD)."
        )
    opened.seek(full[0] if full else 0)
    return ()


def _tiff_tags(opened: Image.Image) -> dict[int, int]:
    """The numbers of a TIFF page's directory, the largest of each; empty for other files."""
    found = {}
    for tag in (
        _LENGTH,
        _NEW_SUBFILE_TYPE,
        _SUBFILE_TYPE,
        _BITS,
        _PHOTOMETRIC,
        _PLANAR,
        _SAMPLE_FORMAT,
        _COMPRESSION,
        _SAMPLES,
    ):
        value = getattr(opened, "tag_v2", {}).get(tag)
        numbers = value if isinstance(value, tuple) else (value,)
        if all(isinstance(number, int) for number in numbers) and numbers:
            found[tag] = max(numbers)
    if opened.format == "TIFF":
        found.setdefault(_SAMPLE_FORMAT, 1)
    return found


def _misread(opened: Image.Image, tags: dict[int, int]) -> str:
    """What of a picture Pillow reads wrongly or not at all, or ``""``."""
    if tags.get(_BITS) == 8 and tags.get(_SAMPLE_FORMAT) == _SIGNED:
        return "a TIFF of signed 8-bit values"
    if tags.get(_BITS) == 16 and tags.get(_PLANAR) == 2 and len(opened.getbands()) > 1:
        return "a 16-bit TIFF in colour planes"
    if opened.format == "TIFF" and max((tile[1][3] for tile in opened.tile), default=0) < tags.get(  # type: ignore[attr-defined]
        _LENGTH, opened.height
    ):
        return "a TIFF that does not say where all of its rows are"  # Pillow leaves them black
    if (
        opened.format == "TIFF"
        and tags.get(_COMPRESSION, 1) == 1
        and (stored := _stored_bytes(opened)) != (needed := _needed_bytes(opened, tags))
        and (stored >= 2 * needed or tags.get(_BITS) == 12)  # whole rows are the only check of these
    ):
        return "a TIFF that holds other bytes than its pixels need"
    if opened.format == "TIFF" and opened.tag_v2.get(_ORIENTATION, 1) not in range(1, 9):  # type: ignore[attr-defined]
        return "a TIFF whose Orientation is none of 1 to 8"
    if opened.format == "TIFF" and _PHOTOMETRIC not in tags:
        return "a TIFF that does not say what its values mean (PhotometricInterpretation)"
    if opened.format == "TIFF" and tags.get(_PHOTOMETRIC) == _YCBCR and tags.get(_COMPRESSION) not in _JPEG:
        return "a TIFF in YCbCr colours without JPEG compression"
    if tags.get(_PLANAR) == 2 and tags.get(_SAMPLES, 1) > 1 and len(opened.tile) < tags[_SAMPLES]:  # type: ignore[attr-defined]
        return "a TIFF that does not say where all of its colour planes are"
    if opened.mode == "F" and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        return "a TIFF of real numbers whose white is zero"
    if opened.mode in ("LAB", "La", "HSV"):
        return f"a picture in {opened.mode} colours"
    if opened.format == "BMP" and opened.mode == "1" and _bmp_bits(opened) > 1:
        return "a BMP of two colours in more than one bit"  # Pillow takes its bytes for bits
    if any("LA;16" in str(tile) for tile in getattr(opened, "tile", ())):
        return "a 16-bit grey picture with transparency"
    return ""


def _stored_bytes(opened: Image.Image) -> int:
    counts = getattr(opened, "tag_v2", {}).get(_STRIP_BYTES, ())
    return sum(counts if isinstance(counts, tuple) else (counts,))


def _needed_bytes(opened: Image.Image, tags: dict[int, int]) -> int:
    """Of plain rows, each of whole bytes."""
    return max(opened.height * -(-opened.width * tags.get(_BITS, 1) * tags.get(_SAMPLES, 1) // 8), 1)


def _bmp_bits(opened: Image.Image) -> int:
    """Bits a pixel of a BMP file, by its header of 12 bytes (OS/2) or more."""
    with open(opened.filename, "rb") as stream:  # type: ignore[attr-defined]
        start = stream.read(30)
    (size,) = struct.unpack_from("<I", start, 14)
    bits: int = struct.unpack_from("<H", start, 24 if size == 12 else 28)[0]
    return bits


def grey_or_rgb(picture: Image.Image) -> np.ndarray:
    """(C, H, W) of a picture: C is 1 for grey, as stored, and 3 for colour, uint8.

    16-bit colour keeps its upper 8 bits; transparent pixels blend into black; ICC profiles and gamma do not count.
    """
    if picture.mode == "1":
        return np.asarray(picture.convert("L"))[None]
    if picture.mode == "L" or picture.mode[0] in "IF":
        pixels = np.asarray(picture)
        return pixels.astype(pixels.dtype.newbyteorder("="))[None]
    if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        picture = Image.new("RGB", rgba.size)
        picture.paste(rgba, mask=rgba.getchannel("A"))
    # (H, W, 3) -> (3, H, W)
    return np.ascontiguousarray(np.asarray(picture.convert("RGB")).transpose(2, 0, 1))


# --- masks -----------------------------------------------------------------------------------------


def label_pixels(
    picture: Image.Image, path: Path, values: Collection[int] | None, remarks: list[str] | None = None
) -> np.ndarray:
    """(H, W) label values of a picture: palette indices, grey values, equal colour channels, or white.

    White of a 1-bit picture or of a black-and-white palette is the one label of ``values``, else 1. See
    ``_palette_labels`` and ``_grey_labels`` for the others. Raises InputError for colours.
    """
    if picture.mode == "1":
        return np.asarray(picture).astype(np.uint8) * _label_of_white(values)
    if picture.mode in ("P", "PA"):
        return _palette_labels(picture, path, values, remarks)
    if picture.mode in ("CMYK", "YCbCr"):
        picture = picture.convert("RGB")
    if picture.mode in ("LA", "RGBA"):  # what is transparent is black, as in images
        picture = Image.fromarray(grey_or_rgb(picture).transpose(1, 2, 0))
    pixels = np.asarray(picture)
    if pixels.ndim == 3:
        channels = pixels
        if (channels != channels[..., :1]).any():
            raise InputError(
                f"{path}: a colour picture; label values are needed. "
                "Save the label map as grey or palette PNG whose pixels are the label values."
            )
        pixels = channels[..., 0]
    return _grey_labels(pixels, path, values, remarks)


def black_and_white(path: Path) -> bool:
    """Whether a mask picture is black and white, so that it says where the organ is and no label value."""
    picture, _ = open_picture(path)
    if picture.mode[0] in "IF":
        return set(np.unique(np.asarray(picture)).tolist()) <= {0, _WIDE}
    pixels = np.asarray(picture.convert("RGB"))
    return bool(((pixels == 0) | (pixels == 255)).all() and (pixels == pixels[..., :1]).all())


def _label_of_white(values: Collection[int] | None) -> np.uint8:
    labels = set(values or ()) - {0}
    return np.uint8(labels.pop() if len(labels) == 1 else 1)


def _palette_labels(
    picture: Image.Image, path: Path, values: Collection[int] | None, remarks: list[str] | None
) -> np.ndarray:
    """Labels of a palette picture: its indices, where index 0 is black or the indices can be nothing else.

    Programs that reduce colours put white first as readily as black, so masks in black and white (or in greys, where
    the indices are no labels) count by brightness; of two colours black is the background.
    """
    indices = np.asarray(picture)
    indices = indices[..., 0] if indices.ndim == 3 else indices
    used = np.unique(indices)
    palette = np.zeros((256, 3), np.int32)
    stored = np.array(picture.getpalette("RGB"), np.int32).reshape(-1, 3)
    palette[: len(stored)] = stored
    colours = palette[used]
    black = colours.max(axis=1) <= _NEAR_BLACK
    background_first = palette[0].max() <= _NEAR_BLACK
    if background_first and (values is None or set(used.tolist()) <= {0, *values}):
        return indices
    if (np.ptp(colours, axis=1) == 0).all():
        grey = palette[:, 0].astype(np.uint8)[indices]
        if len(used) <= 2 and (black | (colours.min(axis=1) >= 255 - _NEAR_BLACK)).all():
            return (grey > 127) * _label_of_white(values)
        return _grey_labels(grey, path, values, remarks, fewest_levels=5)
    if background_first or len(used) != 2:
        return indices
    if black.any():
        return (indices == used[~black][0]) * _label_of_white(values)
    if colours[0].sum() > colours[1].sum():
        raise InputError(
            f"{path}: a palette of two colours, neither of them black, the brighter first; which is the background? "
            "Save the mask in black and white."
        )
    return indices


def _grey_labels(
    pixels: np.ndarray,
    path: Path,
    values: Collection[int] | None,
    remarks: list[str] | None,
    *,
    fewest_levels: int = 3,
) -> np.ndarray:
    """Labels of a grey picture: its values; or, of a black-and-white mask, the one label where it is white.

    A mask may have grey edges (smoothed, JPEG): more than half is the label, and a remark counts the grey pixels,
    which are few. Where no label is known such a mask has many levels, and white is 255.
    """
    levels = np.unique(pixels)
    top = _WIDE if pixels.dtype.itemsize == 2 and levels[-1] > 255 else 255
    labels = set(values or ()) - {0}
    if values is not None and (len(labels) != 1 or set(levels.tolist()) <= {0, *labels}):
        return pixels
    if values is None and top == 255 and len(levels) <= 16:
        return pixels
    label = np.uint8(labels.pop() if labels else 255)
    if set(levels.tolist()) <= {0, top}:
        return (pixels == top) * label
    margin = top // 8
    between = int(np.count_nonzero((pixels > margin) & (pixels < top - margin)))
    white = int(np.count_nonzero(pixels >= top - margin))
    few = len(levels) < (5 if label in levels and label != top else fewest_levels)
    if pixels.dtype.kind == "f" or levels[0] < 0 or levels[-1] > top or not white or few:
        return pixels
    if between > _MOST_BETWEEN * pixels.size or (values is None and between > white):
        return pixels
    if remarks is not None and between:
        remarks.append(
            f"{path.name}: a mask with {between} grey pixels between black and white; more than half counts as white."
        )
    return (pixels > top // 2) * label
