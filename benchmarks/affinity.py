"""Measure on some CPUs of this machine only: a smaller share of it, which is not another device.

Only what is started inside `pinned` is bound: threads that a library started before keep the CPUs that they had.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence

from kdedge.errors import InputError

__all__ = ["check_cpus", "pinned"]


def check_cpus(cpus: Sequence[int]) -> None:
    """Check that this process can be bound to these CPUs (empty: it need not be).

    Raises:
        InputError: The system cannot bind, or a CPU is not there or not for this process.
    """
    if not cpus:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise InputError("--affinity: this system cannot bind a process to CPUs", "leave --affinity out, or use Linux")
    usable = os.sched_getaffinity(0)
    if missing := sorted(set(cpus) - usable):
        raise InputError(
            f"--affinity: CPU {', '.join(map(str, missing))} is not among those that this process may use",
            f"choose from {', '.join(map(str, sorted(usable)))}",
        )


@contextlib.contextmanager
def pinned(cpus: Sequence[int]) -> Iterator[None]:
    """Bind this thread, and the threads and processes that it starts, to some CPUs; undo it at the end.

    Args:
        cpus: Numbers of the CPUs; empty: change nothing.

    Raises:
        InputError: See `check_cpus`.
    """
    check_cpus(cpus)
    if not cpus:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
