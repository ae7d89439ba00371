"""Measure on only some CPUs of this machine. A share of a machine does not simulate another device.

`pinned` binds only threads that start inside it; earlier threads of a library keep their CPUs.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence

from kdedge.errors import InputError

__all__ = ["check_cpus", "pinned"]


def check_cpus(cpus: Sequence[int]) -> None:
    """Check that this process can be bound to these CPUs. Nothing is checked if there are none.

    Raises:
        InputError: The system cannot bind processes, or this process may not use one of the CPUs.
    """
    if not cpus:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise InputError("--affinity: this system cannot bind a process to CPUs", "leave --affinity out, or use Linux")
    usable = os.sched_getaffinity(0)
    if missing := sorted(set(cpus) - usable):
        raise InputError(
            f"--affinity: CPU {', '.join(map(str, missing))} is not available to this process",
            f"choose from {', '.join(map(str, sorted(usable)))}",
        )


@contextlib.contextmanager
def pinned(cpus: Sequence[int]) -> Iterator[None]:
    """Bind this thread, with the threads and processes that it starts, to some CPUs until the block ends.

    Args:
        cpus: Numbers of the CPUs. Empty: no binding.

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
