"""What the decoders behind the readers say while they read: caught, and told as one sentence.

libjpeg, libtiff, OpenJPEG, GDCM and ITK print to file descriptor 2; Pillow, nibabel, pydicom and their like use
``warnings`` and ``logging``. Unread they tear progress lines apart, name paths and may quote a header.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from sgan_core.errors import InputError

log = logging.getLogger(__name__)

Told = TypeVar("Told", bound=Any)

SAID = "the decoder said"
_LOGGERS = ("PIL", "imageio", "tifffile", "pydicom", "highdicom", "nibabel", "nibabel.global")
_OURS = str(Path(__file__).resolve().parents[1])
_LONGEST = 160  # characters of a line that are told
_MOST_READ = 1 << 16  # bytes: a decoder may complain about every row
_listening = threading.Lock()  # held by the one that catches
_turning = threading.Lock()  # held while stdout is turned to stderr, or back
_turned: list[int] = []  # for each thread that needs it turned: where stdout leads otherwise

# Pixels may be lost, shifted or made up: words of libjpeg (jerror.h), libtiff, ITK and MetaIO. EXIF is not pixels,
# and the order of a TIFF's tags matters to nobody.
_DAMAGE = re.compile(
    r"(?!.*(\bEXIF\b|not sorted)).*"
    r"(corrupt|premature|truncat|extraneous|bogus|bad |damage|invalid|inconsistent|wrong|incomplete|missing|mismatch"
    r"|not in table|not yet in table|discard|overrun|overflow|not read|can ?not|could ?n[o']t|unable|fail|error"
    r"|instead of|checksum|crc\b|unexpected|end of (file|data|image))",
    re.IGNORECASE,
)
_HARMLESS = re.compile(
    r"unknown field with tag"  # private tags are what TIFF 6.0 has them for; no reader needs them
    r"|decompression bomb"  # Pillow's limit of size: from twice on it is an error, which is told
    r"|\biCCP\b|ICC profile",  # profiles do not count (docs/data.md)
    re.IGNORECASE,
)
_ITK_HEAD = re.compile(r"(warning|error): in .*, line \d+$", re.IGNORECASE)
_ADDRESS = re.compile(r"\s*\(0x[0-9a-f]+\)", re.IGNORECASE)
_FOLDERS = re.compile(r"""(?<![\w.])(?:[A-Za-z]:)?[\\/](?:[^\\/:"'<>|]*[\\/])*""")
_QUOTED = re.compile(r"""(?<!\w)(["'`])(.*\1|.*)""")  # to the last one: a name may hold one


class Heard:
    """What decoders said in one read; complete when the read is over."""

    def __init__(self) -> None:
        self.lines: tuple[str, ...] = ()  # distinct, as they came, fit to be shown

    def told(self, image: Told, name: str) -> Told:
        """A Volume, Picture or Series with what was said about it, as one of its doubts or warnings.

        A doubt where pixels may be damaged: who knows a decoder's words sees that it went on with made-up values.
        """
        if not self.lines:
            return image
        if any(map(_DAMAGE.match, self.lines)):
            return replace(image, doubts=(*image.doubts, *self.sentence(name)))
        return replace(image, warnings=(*image.warnings, *self.sentence(name)))

    def sentence(self, name: str) -> tuple[str, ...]:
        """What was said about the file of that name in one sentence; empty when nothing was."""
        return (f"{name}: {_quoted(self.lines)}.",) if self.lines else ()


@contextmanager
def heard() -> Iterator[Heard]:
    """Catch what decoders say in the block: on file descriptor 2, by ``warnings`` and in their loggers.

    An InputError that leaves the block says it in its message; with any other exception it goes to our log. Inside
    another ``heard``, or while another thread is in one, it does nothing: the outermost catches. Where there is no
    file descriptor 2 (a window without a console) or no temporary file, only ``warnings`` and logs are caught.

    File descriptor 2 belongs to the process: what another thread writes to it meanwhile is taken for the decoder's.
    The commands' own messages have a descriptor of their own (``cli.app``). When a decoder ends the process, what it
    has said is lost; the commands' ``faulthandler`` shows where it was.
    """
    said = Heard()
    if not _listening.acquire(blocking=False):
        yield said
        return
    texts: list[str] = []
    try:
        with _spoken(texts), _printed(texts):
            yield said
    except InputError as error:
        lines = _lines(texts)
        if lines and _worst(lines) not in error.message:
            sentence = _quoted(lines)
            error.message = f"{error.message} {sentence[0].upper()}{sentence[1:]}."
        raise
    except Exception:
        for line in _lines(texts):
            log.error("%s: %s", SAID, line)
        raise
    finally:
        said.lines = _lines(texts)
        _listening.release()


@contextmanager
def stdout_as_stderr() -> Iterator[None]:
    """For a decoder that prints to stdout by C's stdio, as the libjpeg of ITK: let ``heard`` get it. POSIX only.

    Descriptor 1 belongs to the process: while any thread is in here it is turned, and the last to leave turns it
    back, so that results are never lost. Raises OSError where there is no file descriptor 1.
    """
    flush = ctypes.CDLL(None).fflush  # stdio keeps what it prints until then
    with _turning:
        if not _turned:
            results = os.dup(1)
            with suppress(AttributeError, OSError, ValueError):
                sys.stdout.flush()
            flush(None)
            try:
                os.dup2(2, 1)
            except OSError:
                os.close(results)
                raise
        else:
            results = _turned[-1]
        _turned.append(results)
    try:
        yield
    finally:
        with _turning:
            flush(None)
            _turned.pop()
            if not _turned:
                os.dup2(results, 1)
                os.close(results)


# --- catching --------------------------------------------------------------------------------------


@contextmanager
def _printed(texts: list[str]) -> Iterator[None]:
    """Lines on file descriptor 2, which goes to a file without a name: a pipe would block when it is full."""
    try:
        terminal = os.dup(2)
    except OSError:
        yield
        return
    try:
        try:
            file = tempfile.TemporaryFile()  # noqa: SIM115
        except OSError:
            yield
            return
        with file:
            _flush()
            os.dup2(file.fileno(), 2)
            try:
                yield
            finally:
                _flush()
                os.dup2(terminal, 2)
                file.seek(0)
                texts += file.read(_MOST_READ).decode("utf-8", "replace").splitlines()
    finally:
        os.close(terminal)


def _flush() -> None:
    with suppress(AttributeError, OSError, ValueError):  # None, or a stream that is closed
        sys.stderr.flush()


@contextmanager
def _spoken(texts: list[str]) -> Iterator[None]:
    """Messages that Python libraries would show; what speaks to programmers is shown as ever."""
    collector = _Collector(texts)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [collector], False
    shown: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as shown:
            yield
    finally:
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
        for one in shown:
            if issubclass(one.category, UserWarning | RuntimeWarning) and not one.filename.startswith(_OURS):
                texts.append(str(one.message))
            else:
                warnings.showwarning(one.message, one.category, one.filename, one.lineno)


class _Collector(logging.Handler):
    """Keeps warnings and errors; what is below goes the way it would have gone."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__()
        self.texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            self.texts.append(record.getMessage())
        else:
            logging.getLogger().callHandlers(record)


# --- wording ---------------------------------------------------------------------------------------


def _lines(texts: Sequence[str]) -> tuple[str, ...]:
    """Distinct lines without what concerns our machine or quotes a file: it may be a patient's."""
    return tuple(dict.fromkeys(line for text in texts if (line := _clean(text))))


def _clean(text: str) -> str:
    """One line that may be shown, or ``""``.

    Cut are control characters, folders, addresses in memory and what stands in quotes (pydicom: Invalid value for
    VR PN: '...').
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if _ITK_HEAD.match(line) or _HARMLESS.search(line):
        return ""
    line = _FOLDERS.sub("", _QUOTED.sub("...", _ADDRESS.sub("", line)))
    line = line.removeprefix("tempfile.tif: ")  # the name that Pillow gives to libtiff
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def _worst(lines: Sequence[str]) -> str:
    """The first that tells of damage, else the first: what follows it is a consequence."""
    return next(filter(_DAMAGE.match, lines), lines[0])


def _quoted(lines: Sequence[str]) -> str:
    more = len(lines) - 1
    beside = f" ({more} more line{'s' if more > 1 else ''})" if more else ""
    worst = _worst(lines)
    return f'{SAID}: "{worst if worst.endswith("...") else worst.rstrip(".")}"{beside}'
