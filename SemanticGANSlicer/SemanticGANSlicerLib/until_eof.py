"""Runs Python in a child until our input ends, for programs such as pip that do not watch theirs.

``python until_eof.py -m pip install ...``: the child has our output and our exit code. Our input ends when the program
that started us closes it or dies; then the child, with all that it started, is asked to end, then killed.
Standard library only: it runs in Slicer's Python, whatever is installed there.
"""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

_CANCELLED = 3  # exit code, as of the engine's commands
_PATIENCE_S = 0.8  # to clear up; the panel's own patience is twice that


def main(arguments):
    """Run ``python arguments...``. Returns its exit code."""
    # A group of its own: what the child starts is ended with it, and we are not.
    apart = {} if os.name == "nt" else {"start_new_session": True}
    child = subprocess.Popen([sys.executable, *arguments], stdin=subprocess.DEVNULL, **apart)
    over, ending = threading.Event(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *unused: _endAndExit(child))

    def watch():
        try:
            while os.read(0, 4096):
                pass
        except OSError:
            pass  # an input that cannot be read has ended
        if not over.is_set():
            ending.set()
            _endAndExit(child)

    # A read that waits cannot be ended: the thread is left alone when the process ends.
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    code = child.wait()
    over.set()
    if ending.is_set():
        watcher.join()  # the child may have left children of its own
    return code if code >= 0 else 128 - code


def _endAndExit(child):
    _end(child)
    os._exit(_CANCELLED)


def _end(child):
    """End the child with its own children."""
    if os.name == "nt":  # no signals there
        command = ["taskkill", "/PID", str(child.pid), "/T", "/F"]
        subprocess.run(command, check=False, timeout=5, creationflags=subprocess.CREATE_NO_WINDOW)
        child.kill()
        return
    with suppress(ProcessLookupError, PermissionError):  # they have ended
        os.killpg(child.pid, signal.SIGINT)  # pip takes back what it was just replacing
        with suppress(subprocess.TimeoutExpired):
            child.wait(_PATIENCE_S)
        os.killpg(child.pid, signal.SIGKILL)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # at once, although the thread still reads
