"""The frame around every command: options they share, exit codes, one-line errors.

Imports nothing heavy, so that ``--help`` answers at once; a command imports torch and the like when it runs.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from sgan_core import __version__
from sgan_core.errors import Cancelled, InputError

DONE = 0
PARTLY_FAILED = 1  # some inputs of a batch failed, the rest were written
WRONG_INPUT = 2
CANCELLED = 3
INTERNAL_ERROR = 70

# What the user can mend when the system refuses to write.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
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
    _add_shared_options(parser)
    try:
        options = parser.parse_args(argv)
    except SystemExit as leaving:  # --help, --version, wrong options
        return leaving.code if isinstance(leaving.code, int) else DONE
    with _logging_to_stderr(parser.prog, debug=options.debug), _sigterm_interrupts():
        return _outcome(main, options, parser.prog)


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
        return main(options) or DONE
    except InputError as error:
        return _failed(prog, error.message, WRONG_INPUT, details=error.details, debug=options.debug)
    except (Cancelled, KeyboardInterrupt) as stopped:
        return _failed(
            prog, str(stopped) or "stopped; what was finished is kept", CANCELLED, word="cancelled"
        )
    except BrokenPipeError:  # the reader of our output left, as in "sgan-evaluate ... | head"
        _forget_stdout()
        return DONE
    except OSError as error:
        if error.errno not in _MENDABLE:
            return _internal(prog, error, debug=options.debug)
        place = f"{error.filename}: " if error.filename else ""
        advice = "Free some space, or choose another place that can be written."
        return _failed(prog, f"{place}{error.strerror}. {advice}", WRONG_INPUT, debug=options.debug)
    except Exception as error:
        return _internal(prog, error, debug=options.debug)


def _internal(prog: str, error: Exception, *, debug: bool) -> int:
    message = f"{type(error).__name__}: {error}"
    if not debug:
        message += " (an error of ours; run again with --debug and report what it shows)"
    return _failed(prog, message, INTERNAL_ERROR, debug=debug)


def _failed(
    prog: str, message: str, code: int, *, word: str = "error", details: str = "", debug: bool = False
) -> int:
    if debug:
        traceback.print_exc(file=sys.stderr)
    print(f"{prog}: {word}: {' '.join(message.split())}", file=sys.stderr)  # one line, whatever was raised
    if details:
        print(details, file=sys.stderr)
    return code


def _forget_stdout() -> None:
    """Let nothing be flushed into the closed pipe when the interpreter ends."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # stdout is not a real file (tests, embedding)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


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
        text = super().format(record)
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
