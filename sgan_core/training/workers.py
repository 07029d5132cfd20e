"""One function applied to many things by several processes, with the results in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from itertools import islice
from types import ModuleType
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 3  # results for each process that may wait for an earlier one: what bounds the memory
# The processes share the cores already; threads of their own would only wait for each other.
_ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
}


def available_cores() -> int:
    """Number of processor cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, processes: int
) -> Generator[Result, None, None]:
    """Yield ``function(item)`` of each item, in their order, computed by fresh processes of one thread each.

    function, items and results travel between processes, so they must be picklable. Closing the iterator
    ends the processes at once. Raises what the function raises, at its item's turn, and BrokenProcessPool
    when a process dies. (Executor.map of Python 3.11 to 3.13 would take all items at once.)
    """
    remaining = iter(items)
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_begin)
    waiting: deque[Future[Result]] = deque()
    try:
        with _without_script():  # the pool starts a process with each of its first tasks
            waiting.extend(pool.submit(function, item) for item in islice(remaining, processes))
        waiting.extend(pool.submit(function, item) for item in islice(remaining, (_AHEAD - 1) * processes))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in islice(remaining, 1))
    except BaseException:  # do not wait for the tasks under way: a large scan takes many seconds
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """First act of a process, before it loads any library that counts cores.

    Ctrl-C is the parent's business, and without a parent there is no work.
    """
    os.environ.update(_ONE_THREAD)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # the parent was killed: nobody else would ever end this process


@contextmanager
def _without_script() -> Iterator[None]:
    """Keep the caller's script from the processes that are started here.

    A new process imports the script that it was started from, and ``multiprocessing`` has no switch for it.
    Ours need nothing of the script, and one that trains without the guard ``if __name__ == "__main__"``
    would begin to train in each of them.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script
