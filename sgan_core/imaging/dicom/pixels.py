"""The pixels of DICOM images as values."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk
from pydicom.pixels import get_decoder
from pydicom.pixels.decoders.base import Decoder
from pydicom.uid import (
    UID,
    RLELossless,
)

from sgan_core.errors import InputError
from sgan_core.imaging.dicom.headers import Header, Plane, Slice, damaged, quiet
from sgan_core.imaging.guards import BoundedReader


def is_whole(plane: Plane) -> bool:
    """Whether integers stay integers under the rescale of a frame."""
    return plane.slope == 1.0 and plane.intercept.is_integer() and abs(plane.intercept) < 2**31


def keeps_units(header: Header) -> bool:
    """Whether MONOCHROME1 is left alone: HU mean density however they are shown."""
    return header.photometric == "MONOCHROME1" and header.modality == "CT"


def value_frames(slices: Sequence[Slice]) -> Iterator[np.ndarray]:
    """(rows, columns) of each slice in its unit: int64, or float64 where the rescale asks for it."""
    for one, stored in zip(slices, stored_frames(slices), strict=True):
        header, plane = one.header, one.plane
        values: np.ndarray = stored.astype(np.int64)
        if header.photometric == "MONOCHROME1" and not keeps_units(header):
            # The standard turns MONOCHROME1 round at the very end, for display (PS3.3 C.7.6.3.1.2), and viewers
            # do so after the window. A model sees what a reader sees, so it is done here, on the stored range:
            # brightness is all that such values mean. HU mean density however they are shown.
            values = _mirror(header) - values
        if is_whole(plane):
            yield values + int(plane.intercept)
        else:
            yield values * plane.slope + plane.intercept


def _mirror(header: Header) -> int:
    """The lowest plus the highest stored value."""
    return -1 if header.signed else (1 << header.bits_stored) - 1


def stored_frames(slices: Sequence[Slice]) -> Iterator[np.ndarray]:
    """The decoded pixels of each slice: (rows, columns) integers, (rows, columns, 3) RGB for colour."""
    for header, run in itertools.groupby(slices, key=lambda one: one.header):
        itk_frames: np.ndarray | None = None
        for one in run:
            frame = None if itk_frames is not None else _decoded(header, one.frame)
            if frame is None:
                itk_frames = _read_by_itk(header) if itk_frames is None else itk_frames
                frame = itk_frames[one.frame]
            wanted = (header.rows, header.columns) + ((3,) if header.samples == 3 else ())
            if frame.shape != wanted:
                raise damaged(header.path)
            yield frame if header.samples == 3 else _without_unused_bits(frame, header)


def _decoded(header: Header, frame: int) -> np.ndarray | None:
    """One frame decoded by pydicom; None where it has no decoder that can."""
    decoder = _decoder(header.syntax)
    if decoder is None:
        return None
    options: dict[str, Any] = {
        "rows": header.rows,
        "columns": header.columns,
        "number_of_frames": header.frames,
        "samples_per_pixel": header.samples,
        "photometric_interpretation": header.photometric,
        "planar_configuration": header.planar,
        "bits_allocated": header.bits_allocated,
        "bits_stored": header.bits_stored,
        "pixel_representation": int(header.signed),
        "pixel_keyword": "PixelData",
        "pixel_vr": "OW",
        "correct_unused_bits": False,  # done here: pydicom does not know about the high bit
    }
    if header.offsets:
        options["extended_offsets"] = header.offsets
    try:
        with quiet(header.path), BoundedReader(header.path) as stream:
            stream.seek(header.pixel_offset)
            return decoder.as_array(stream, index=frame, raw=False, **options)[0]
    except InputError:
        # Pillow reads no JPEG of 12 bits, for one.
        if header.syntax.is_encapsulated:
            return None
        raise


def _decoder(syntax: UID) -> Decoder | None:
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        return None
    return decoder if decoder.is_available else None


def _read_by_itk(header: Header) -> np.ndarray:
    """All stored frames (frames, rows, columns[, 3]) by SimpleITK's GDCM.

    It rescales and turns MONOCHROME1 round by itself; both are taken back.
    """
    plane = header.planes[0]
    if any((other.slope, other.intercept) != (plane.slope, plane.intercept) for other in header.planes):
        raise cannot_decode(header)
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # warnings may quote the header
    try:
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(header.path))
        image = reader.Execute()
    except RuntimeError:
        raise cannot_decode(header) from None
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
    array = sitk.GetArrayFromImage(image)
    array = array.reshape(header.frames, *array.shape[-3 if header.samples == 3 else -2 :])
    if header.samples == 3:
        return array
    array = np.round((array.astype(np.float64) - plane.intercept) / plane.slope).astype(np.int64)
    return _mirror(header) - array if header.photometric == "MONOCHROME1" else array


def cannot_decode(header: Header) -> InputError:
    name = header.syntax.name if header.syntax.name != header.syntax else "an unknown compression"
    return InputError(
        f"{header.path}: damaged, or compressed in a way that cannot be read ({name}). "
        "Copy the file again, or convert it to Explicit VR Little Endian."
    )


def _without_unused_bits(stored: np.ndarray, header: Header) -> np.ndarray:
    """The stored bits as a number: what lies above and below them (old overlays) is not part of the image."""
    native = not header.syntax.is_encapsulated or header.syntax == RLELossless
    high_bit = header.high_bit if native else header.bits_stored - 1  # codecs give numbers, not bit fields
    width = 8 * stored.dtype.itemsize
    container = np.dtype(f"{'i' if header.signed else 'u'}{stored.dtype.itemsize}")
    lifted = stored.astype(container) << (width - 1 - high_bit)
    return lifted >> (width - header.bits_stored)
