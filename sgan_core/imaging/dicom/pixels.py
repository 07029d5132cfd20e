"""The pixels of DICOM images as values."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import get_decoder
from pydicom.pixels.decoders.base import Decoder
from pydicom.uid import UID, JPEGBaseline8Bit, RLELossless, SecondaryCaptureImageStorage
from scipy import ndimage

from sgan_core.errors import InputError
from sgan_core.imaging.dicom.attributes import named
from sgan_core.imaging.dicom.headers import Header, Plane, Slice, damaged, quiet
from sgan_core.imaging.guards import BoundedReader

AIR_HU = (
    -1000
)  # by the definition of the Hounsfield unit; scanners store the padding of CT far below or above


def is_whole(plane: Plane) -> bool:
    """Whether integers stay integers under the rescale of a frame."""
    return plane.slope == 1.0 and plane.intercept.is_integer() and abs(plane.intercept) < 2**31


def keeps_units(header: Header) -> bool:
    """Whether MONOCHROME1 is left alone: HU mean density however they are shown."""
    return header.photometric == "MONOCHROME1" and header.modality == "CT"


def says_hu(one: Slice) -> bool:
    """Whether the header says how its values become HU."""
    is_ct = one.header.modality == "CT"
    return is_ct and (one.header.lut is not None or "RescaleIntercept" not in one.plane.unsaid)


class Frame(NamedTuple):
    """(rows, columns) of a slice in its unit: int64, or float64 where the rescale asks for it."""

    values: np.ndarray  # padding is air in CT, else the lowest value of the rest
    padded: np.ndarray | None  # which are padding; None where none is
    doubt: str = ""


def value_frames(slices: Sequence[Slice]) -> Iterator[Frame]:
    """Each slice's values."""
    for one in slices:
        raw = _raw(one)
        stored = _stored(raw, one.header)
        values = _values(one, stored)
        padded = _padded(raw, stored, one.header)
        if padded is not None:
            rest = values[~padded]
            values[padded] = AIR_HU if says_hu(one) else rest.min() if rest.size else 0
        doubt = ""
        if _exceeds_stored_bits(raw, one.header):
            doubt = f"{named('BitsStored')} has no room for all of the compressed values; some may be wrong."
        elif _has_other_bits(raw, padded, one.header):
            doubt = f"pixels have bits that {named('BitsStored')} leaves out; taken for overlays, they are dropped."
        yield Frame(values, padded, doubt)


def _values(one: Slice, stored: np.ndarray) -> np.ndarray:
    header, plane = one.header, one.plane
    values: np.ndarray = stored.astype(np.int64)
    if header.lut is not None:
        values = header.lut.apply(values)
        turn = header.photometric == "MONOCHROME1" and not keeps_units(header)
        return header.lut.highest - values if turn else values
    if header.photometric == "MONOCHROME1" and not keeps_units(header):
        # The standard turns MONOCHROME1 round at the very end, for display (PS3.3 C.7.6.3.1.2), and viewers
        # do so after the window. A model sees what a reader sees, so it is done here, on the stored range:
        # brightness is all that such values mean. HU mean density however they are shown.
        values = _mirror(header) - values
    if is_whole(plane):
        return values + int(plane.intercept)
    return values * plane.slope + plane.intercept


def _mirror(header: Header) -> int:
    """The lowest plus the highest stored value."""
    return -1 if header.signed else (1 << header.bits_stored) - 1


def stored_frames(slices: Sequence[Slice]) -> Iterator[np.ndarray]:
    """The decoded pixels of each slice: (rows, columns) integers, (rows, columns, 3) RGB for colour."""
    for one in slices:
        raw = _raw(one)
        yield raw if one.header.samples == 3 else _stored(raw, one.header)


def _raw(one: Slice) -> np.ndarray:
    """The words of a frame as they are stored, or the numbers of its codestream."""
    header = one.header
    frame = _decoded(header, one.frame)
    if frame is None:
        frame = _read_by_itk(header, one.frame)
    if frame.shape != (header.rows, header.columns) + ((3,) if header.samples == 3 else ()):
        raise damaged(header.path)
    return frame


def _padded(raw: np.ndarray, stored: np.ndarray, header: Header) -> np.ndarray | None:
    """(rows, columns): which pixels are padding; None where none is.

    raw: words, stored: their bits that are stored; a padding value may need more bits than are stored.
    """
    padding = header.padding
    if padding is None:
        return None
    lowest = -(1 << (header.bits_stored - 1)) if header.signed else 0
    fits = lowest <= padding.low and padding.high < lowest + (1 << header.bits_stored)
    words = stored if fits else raw.astype(f"{'i' if header.signed else 'u'}{raw.dtype.itemsize}")
    padded: np.ndarray = (padding.low <= words) & (words <= padding.high)
    if not padded.any():
        return None
    rest = words[~padded]
    if rest.size and rest.min() < padding.low and padding.high < rest.max():
        # Values of the image lie on both sides: inside the image they are its own, as 0 HU where a converter
        # left a padding value of 0.
        regions, _ = ndimage.label(padded, structure=np.ones((3, 3)))
        edges = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
        padded &= np.isin(regions, edges)
    return padded if padded.any() else None


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
        "pixel_vr": header.pixel_vr,
        "correct_unused_bits": False,  # done here: pydicom does not know about the high bit
    }
    if header.codestream is not None and header.samples == 1:
        options["bits_stored"] = header.codestream.bits
        options["pixel_representation"] = int(bool(header.codestream.signed))
    if header.offsets:
        options["extended_offsets"] = header.offsets
    try:
        with quiet(header.path), BoundedReader(header.path) as stream:
            stream.seek(header.pixel_offset)
            decoded = decoder.as_array(stream, index=frame, raw=False, **options)[0]
            if header.syntax == JPEGBaseline8Bit:
                content = _codestream(stream, header, frame)
                let_libjpeg_speak(content, header.rows, header.columns, header.samples)
            return decoded
    except InputError:
        # Pillow reads no JPEG of 12 bits, for one.
        if header.syntax.is_encapsulated:
            return None
        raise


def _codestream(stream: BoundedReader, header: Header, frame: int) -> bytes:
    stream.seek(header.pixel_offset)
    return get_frame(stream, frame, number_of_frames=header.frames, extended_offsets=header.offsets)


def _decoder(syntax: UID) -> Decoder | None:
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        return None
    return decoder if decoder.is_available else None


def _read_by_itk(header: Header, frame: int) -> np.ndarray:
    """A frame (rows, columns[, 3]) decoded by SimpleITK's GDCM.

    From a file with the frame and its sizes alone: GDCM would rescale and turn MONOCHROME1 round by rules of
    its own.
    """
    alone = _image_alone(header.syntax, header.rows, header.columns, header.samples)
    if header.samples == 3:
        alone.PhotometricInterpretation, alone.PlanarConfiguration = header.photometric, header.planar
    alone.BitsAllocated, alone.BitsStored = header.bits_allocated, header.bits_stored
    alone.HighBit, alone.PixelRepresentation = header.bits_stored - 1, int(header.signed)
    try:
        with quiet(header.path):
            with BoundedReader(header.path) as stream:
                content = _codestream(stream, header, frame)
            array = _decoded_by_gdcm(alone, content)
    except InputError:
        raise cannot_decode(header) from None
    return array.reshape(array.shape[-3 if header.samples == 3 else -2 :])  # one frame: (1, ...) -> (...)


def let_libjpeg_speak(content: bytes, rows: int, columns: int, samples: int) -> None:
    """Decode a JPEG of 8 bits once more, for what ``decoder_messages.heard`` gets of it.

    Pillow makes libjpeg mute, which goes on with made-up pixels where data are damaged. That of GDCM speaks (that of
    ITK too, but on stdout). What it refuses may still be read by Pillow, so that it counts for nothing.
    """
    if samples in (1, 3):
        with suppress(RuntimeError):
            _decoded_by_gdcm(_image_alone(JPEGBaseline8Bit, rows, columns, samples), content)


def _image_alone(syntax: UID, rows: int, columns: int, samples: int) -> Dataset:
    """What GDCM needs to know of an image of 8 bits."""
    alone = Dataset()
    alone.file_meta = FileMetaDataset()
    alone.file_meta.TransferSyntaxUID = syntax
    alone.SOPClassUID, alone.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    alone.Rows, alone.Columns, alone.SamplesPerPixel = rows, columns, samples
    alone.PhotometricInterpretation = "YBR_FULL" if samples == 3 else "MONOCHROME2"
    if samples == 3:
        alone.PlanarConfiguration = 0
    alone.BitsAllocated = alone.BitsStored = 8
    alone.HighBit, alone.PixelRepresentation = 7, 0
    return alone


def _decoded_by_gdcm(alone: Dataset, content: bytes) -> np.ndarray:
    """The pixels of a codestream. Raises RuntimeError where GDCM cannot decode it."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # warnings may quote the header
    try:
        with tempfile.TemporaryDirectory() as folder:
            alone.PixelData = encapsulate([content])
            alone["PixelData"].is_undefined_length = True
            alone.save_as(Path(folder) / "frame.dcm", enforce_file_format=True)
            reader = sitk.ImageFileReader()
            reader.SetImageIO("GDCMImageIO")
            reader.SetFileName(str(Path(folder) / "frame.dcm"))
            return sitk.GetArrayFromImage(reader.Execute())
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def cannot_decode(header: Header) -> InputError:
    name = header.syntax.name if header.syntax.name != header.syntax else "an unknown compression"
    return InputError(
        f"{header.path}: damaged, or compressed in a way that cannot be read ({name}). "
        "Copy the file again, or convert it to Explicit VR Little Endian."
    )


def _stored(raw: np.ndarray, header: Header) -> np.ndarray:
    """Words or numbers of a codestream as stored values.

    Codestreams whose sign is not the header's, or that have none, are read in its bits and sign, as GDCM does.
    """
    if header.codestream is not None and header.codestream.signed == header.signed:
        return raw
    return _in_stored_bits(raw, header)


def _in_stored_bits(raw: np.ndarray, header: Header) -> np.ndarray:
    """The stored bits as a number: what lies above and below them (old overlays) is not part of the image."""
    native = not header.syntax.is_encapsulated or header.syntax == RLELossless
    high_bit = header.high_bit if native else header.bits_stored - 1  # codecs give numbers, not bit fields
    size = max(raw.dtype.itemsize, header.bits_allocated // 8)
    lifted = raw.astype(f"{'i' if header.signed else 'u'}{size}") << (8 * size - 1 - high_bit)
    return lifted >> (8 * size - header.bits_stored)


def _has_other_bits(raw: np.ndarray, padded: np.ndarray | None, header: Header) -> bool:
    """Whether uncompressed values have bits above those stored that are neither zero nor the sign's."""
    bits, size = header.bits_stored, 8 * raw.dtype.itemsize
    if (
        header.syntax.is_encapsulated
        or header.high_bit != bits - 1
        or bits >= size
        or raw.dtype.kind not in "iu"
    ):
        return False
    above = raw.astype(f"i{raw.dtype.itemsize}") >> (bits - 1 if header.signed else bits)
    odd = (above != 0) & (above != -1) if header.signed else above != 0
    if header.signed:  # without the sign carried on, negative values have a one there and zeros above
        odd &= above != 1
    return bool((odd if padded is None else odd & ~padded).any())


def _exceeds_stored_bits(raw: np.ndarray, header: Header) -> bool:
    """Whether the codestream has numbers that Bits Stored has no room for. More bits alone are usual."""
    coded = header.codestream
    if coded is None or coded.bits <= header.bits_stored:
        return False
    lost = _in_stored_bits(raw, header).astype(np.int64) - raw.astype(np.int64)
    return bool((lost & ((1 << coded.bits) - 1)).any())
