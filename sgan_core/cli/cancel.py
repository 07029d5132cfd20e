"""The end of stdin as Ctrl-C, for programs that are started by another program."""

from __future__ import annotations

import _thread
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sgan_core.cli.app import CANCELLED

# Together at most 1.5 s.
_LOOK_EVERY_S = 0.1
_PATIENCE_S = 1.4  # for the main thread, which a library may keep busy, or which may miss the interruption


@contextmanager
def cancelled_at_eof(give_up: Callable[[], None]) -> Iterator[None]:
    """While the block runs in the main thread, the end of stdin interrupts it: it raises KeyboardInterrupt.

    stdin ends when the program that started us closes it or dies. If the block has not ended after 1.5 s,
    ``give_up`` is called, to clear up, and the process ends with exit code 3. After the block nothing is watched.
    """
    descriptor = sys.stdin.fileno()
    over, interrupted = threading.Event(), threading.Event()

    def watch() -> None:
        while not _at_end(descriptor):
            if over.wait(_LOOK_EVERY_S):
                return
        if over.is_set():
            return
        interrupted.set()
        # As SIGTERM, which ``app.run`` turns into KeyboardInterrupt: SIGINT is ignored in what a shell has started
        # in the background. Nothing is sent, so it works on Windows too.
        _thread.interrupt_main(signal.SIGTERM)
        if not over.wait(_PATIENCE_S):
            give_up()
            os._exit(CANCELLED)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    except Exception as error:
        if interrupted.is_set():  # an import that is interrupted may fail in its own way
            raise KeyboardInterrupt from error
        raise
    finally:
        over.set()
        watcher.join()  # it may be about to interrupt: then here, not in what comes later
        if interrupted.is_set():
            gc.freeze()  # or the interpreter takes a second to collect all of torch before it ends


def _at_end(descriptor: int) -> bool:
    """Whether the end is reached; reads what is there, and never waits for more.

    On Windows a read that waits would hold up every library that looks at stdin while it is loaded, such as numpy
    (numpy issue 24290).
    """
    if sys.platform == "win32":
        import _winapi
        import msvcrt

        try:
            waiting, _ = _winapi.PeekNamedPipe(msvcrt.get_osfhandle(descriptor), 0)
        except BrokenPipeError:
            return True
        except OSError:  # no pipe but a console, which has no end
            return False
        return bool(waiting) and not os.read(descriptor, waiting)
    import select

    return bool(select.select([descriptor], [], [], 0)[0]) and not os.read(descriptor, 4096)
