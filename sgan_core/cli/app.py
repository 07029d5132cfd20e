"""The frame around every command: options they share, exit codes, one-line errors.

Imports nothing heavy, so that ``--help`` answers at once; a command imports torch and the like when it runs.
"""

from __future__ import annotations

import argparse
import errno
import faulthandler
import io
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn, TextIO

from sgan_core import __version__
from sgan_core.errors import Cancelled, InputError

log = logging.getLogger(__name__)

DONE = 0
PARTLY_FAILED = 1  # some inputs of a batch failed, the rest were written
WRONG_INPUT = 2
CANCELLED = 3
INTERNAL_ERROR = 70

# How often a thread of PyTorch looks whether the others are done before it lets the core go (GNU's OpenMP). Its own
# 300,000 hold a core that another program wants: docs/performance.md, "Busy neighbours".
_LOOKS = "1000"

# What the user can mend when the system refuses to write.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}
# A file where a folder should be, and the like.
_WRONG_PLACE = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
_MENDABLE = _NO_ROOM | _NO_PERMISSION | _WRONG_PLACE


class Parser(argparse.ArgumentParser):
    """An argument parser whose help keeps its line breaks and whose errors are one line."""

    def __init__(self, prog: str | None = None, *, description: str = "", examples: str = "") -> None:
        epilog = f"examples:\n{examples}" if examples else None
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the options in one line; exit code 2."""
        self.exit(WRONG_INPUT, f"{self.prog}: error: {message}. See {self.prog} --help.\n")


class Subparser(Parser):
    """The parser of a subcommand; argparse hands it display options of its own, more with each Python."""

    def __init__(self, prog: str, *, description: str, examples: str = "", **_: object) -> None:
        super().__init__(prog, description=description, examples=examples)


def with_negative_values(arguments: Sequence[str] | None, *options: str) -> list[str]:
    """Join options and values such as ``--region -120,40``: argparse would take the value for an option.

    arguments: without the program's name; ``sys.argv`` when None.
    """
    joined: list[str] = []
    for argument in sys.argv[1:] if arguments is None else arguments:
        if joined and joined[-1] in options and re.match(r"-[\d.]", argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def run(
    main: Callable[[argparse.Namespace], int | None],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
) -> int:
    """Parse, call, and turn every outcome into an exit code.

    main takes the parsed options and returns an exit code (None: 0). ``--debug`` and ``--version`` are added.
    argv: the arguments without the program's name; ``sys.argv`` when left out.
    Returns 0 done, 1 partly failed, 2 wrong input (InputError, options, a place that cannot be written),
    3 cancelled (Cancelled, Ctrl-C, SIGTERM), 70 anything else; never raises.
    """
    _escape_what_cannot_be_printed()
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        os.environ["GOMP_SPINCOUNT"] = _LOOKS  # read when torch is imported, which no command has done yet
    with _stderr_of_our_own():
        return _run(main, parser, argv)


def _run(
    main: Callable[[argparse.Namespace], int | None],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
) -> int:
    _add_shared_options(parser)
    try:
        options = parser.parse_args(argv)
    except SystemExit as leaving:  # --help, --version, wrong options
        return leaving.code if isinstance(leaving.code, int) else DONE
    with _logging_to_stderr(parser.prog, debug=options.debug), _sigterm_interrupts():
        return _outcome(main, options, parser.prog)


def _escape_what_cannot_be_printed() -> None:
    """No file name costs results because the console's encoding lacks its letters."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def _stderr_of_our_own() -> Iterator[None]:
    """Our messages go past file descriptor 2, which is a file while a decoder reads (``imaging.decoder_messages``).

    So they never end there, whichever thread writes them; nor does what ``faulthandler`` says when a decoder crashes.
    """
    before = sys.stderr
    try:
        if before.fileno() != 2:
            raise OSError  # tests, embedding
        ours = open(os.dup(2), "w", buffering=1, encoding=before.encoding, errors=before.errors)  # noqa: SIM115
    except (AttributeError, OSError, ValueError):  # None, no file, or closed
        yield
        return
    watched = faulthandler.is_enabled()
    sys.stderr = ours
    faulthandler.enable(ours)
    try:
        yield
    finally:
        try:
            ours.flush()  # and left open: log handlers that libraries have made meanwhile keep it
        except OSError:  # nobody listens
            _forget(ours)
        sys.stderr = before
        faulthandler.enable(before) if watched else faulthandler.disable()


def _add_shared_options(parser: argparse.ArgumentParser) -> None:
    text = "on an error, show where in the code it happened"
    parser.add_argument("--debug", action="store_true", help=text)
    version = f"{parser.prog} {__version__}"
    parser.add_argument("--version", action="version", version=version, help="show the version")
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                # No default: the subcommand's would overwrite a --debug given before its name.
                command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=text)


def _outcome(main: Callable[[argparse.Namespace], int | None], options: argparse.Namespace, prog: str) -> int:
    try:
        code = main(options) or DONE
        if sys.stdout is not None:
            sys.stdout.flush()  # what cannot be printed is said now, not when the interpreter ends
        return code
    except BrokenPipeError:  # the reader of our output left, as in "sgan-evaluate ... | head"
        _forget_stdout()
        return DONE
    except (Exception, KeyboardInterrupt) as error:
        ended = failure(error, debug=options.debug)
        if options.debug:
            traceback.print_exc(file=sys.stderr)
        word = "cancelled" if ended.code == CANCELLED else "error"
        with suppress(OSError):  # nobody listens; the exit code tells
            print(f"{prog}: {word}: {ended.message}", file=sys.stderr)
            if ended.details:
                print(ended.details, file=sys.stderr)
        if isinstance(error, OSError):  # printing itself may be what failed
            _forget_stdout()
        return ended.code


@contextmanager
def printing() -> Iterator[None]:
    """For telling what is in files already: a reader that left, or a full disk behind stdout, changes no exit code."""
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _forget_stdout()
    except OSError as error:
        log.warning("cannot print here (%s); the results are in the files", error.strerror)
        _forget_stdout()


@dataclass(frozen=True)
class Failure:
    """How a command ended that did not do its work."""

    code: int
    message: str  # one line
    details: str = ""  # lines to show below it


def failure(error: BaseException, *, debug: bool) -> Failure:
    """What to say about an exception that ended a command, and its exit code; see ``run``.

    debug: whether the traceback is shown, so that it need not be asked for.
    """
    if isinstance(error, InputError):
        return Failure(WRONG_INPUT, _one_line(error.message), error.details)
    if isinstance(error, Cancelled | KeyboardInterrupt):
        return Failure(CANCELLED, _one_line(str(error)) or "stopped; what was finished is kept")
    if isinstance(error, OSError) and error.errno in _MENDABLE:
        place = f"{error.filename}: " if error.filename else ""
        advice = "Free some space, or choose another place that can be written."
        return Failure(WRONG_INPUT, _one_line(f"{place}{error.strerror}. {advice}"))
    hint = "" if debug else " (an error of ours; run again with --debug and report what it shows)"
    return Failure(INTERNAL_ERROR, _one_line(f"{type(error).__name__}: {error}{hint}"))


# Names and texts in messages come from files: control codes but for line breaks and tabs, and marks of direction.
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def _one_line(text: str) -> str:
    return " ".join(_STEERING.sub(" ", text).split())


def _forget_stdout() -> None:
    """Let nothing be flushed into the closed pipe when the interpreter ends."""
    try:
        _forget(sys.stdout)
    except (OSError, ValueError, AttributeError):  # stdout is not a real file (tests, embedding)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def _forget(stream: TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def _logging_to_stderr(prog: str, *, debug: bool) -> Iterator[None]:
    """Our messages to stderr (from INFO; all with --debug), other libraries' from WARNING."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LineFormatter(prog))
    root, ours = logging.getLogger(), logging.getLogger("sgan_core")
    level = ours.level
    root.addHandler(handler)
    ours.setLevel(logging.DEBUG if debug else logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        ours.setLevel(level)


class _LineFormatter(logging.Formatter):
    """The bare message for information; ``prog: warning: message`` from warnings on."""

    def __init__(self, prog: str) -> None:
        super().__init__("%(message)s")
        self.prog = prog

    def format(self, record: logging.LogRecord) -> str:
        text = _STEERING.sub(" ", super().format(record))
        return (
            f"{self.prog}: {record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text
        )


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM as Ctrl-C while the command runs, so that nothing half-written stays."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
