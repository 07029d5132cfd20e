"""What a compressed frame says of its numbers, whatever the header says."""

from __future__ import annotations

import struct
from typing import NamedTuple

from pydicom.pixels.utils import get_j2k_parameters
from pydicom.uid import UID, JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, JPEGTransferSyntaxes

from sgan_core.imaging.guards import BoundedReader

LOOK_AT_BYTES = 4096  # of the first fragment: headers of pictures with a thumbnail in them are left alone
_NO_FRAME = (0xC4, 0xC8, 0xCC)  # among the frame headers SOF0 to SOF15 of JPEG: tables, a reserved one
_JPEG_LS_FRAME = 0xF7


class Codestream(NamedTuple):
    """How a codestream stores its numbers."""

    signed: bool | None  # None: JPEG and JPEG-LS cannot say
    bits: int


def first_codestream(stream: BoundedReader, syntax: UID) -> Codestream | None:
    """Of the first frame, from the position of encapsulated Pixel Data; None where there is nothing to read.

    Leaves the stream elsewhere.
    """
    if syntax not in (*JPEG2000TransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEGTransferSyntaxes):
        return None
    head = stream.read(8)  # the Basic Offset Table, which may be empty
    if len(head) < 8:
        return None
    stream.seek(struct.unpack("<I", head[4:])[0] + 8, 1)
    content = stream.read(LOOK_AT_BYTES)
    if syntax in JPEG2000TransferSyntaxes:
        said = get_j2k_parameters(content)
        return Codestream(bool(said["is_signed"]), int(said["precision"])) if "precision" in said else None
    return _jpeg_frame(content)


def _jpeg_frame(content: bytes) -> Codestream | None:
    """ITU-T T.81 B.2.2, and T.87 C.2.2: FF, marker, length (2), precision (1)."""
    at = 2
    while at + 5 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == _JPEG_LS_FRAME or (0xC0 <= marker <= 0xCF and marker not in _NO_FRAME):
            return Codestream(None, content[at + 4])
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return None
