"""Work on many images in threads, with progress."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from kdedge.machine import usable_cores
from kdedge.progress import track

__all__ = ["BLOCK", "blocks", "for_blocks", "for_each"]

# Small enough for a smooth progress bar, large enough to amortise the hand-over to a thread.
BLOCK = 32
"""Images that a thread gets at a time."""


def for_each(count: int, work: Callable[[int], None], title: str) -> None:
    """Call ``work(index)`` for every index below ``count`` on a thread pool, with progress; see `for_blocks`."""

    def all_of(block: range) -> None:
        for index in block:
            work(index)

    for_blocks(blocks(count), all_of, title)


def blocks(count: int) -> list[range]:
    """Return the indices below ``count`` in blocks for a thread."""
    return [range(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]


def for_blocks(spans: Sequence[range], work: Callable[[range], None], title: str) -> None:
    """Call ``work(block)`` for every block of indices on a thread pool, with progress in indices.

    Raises the first error in the order of the blocks and cancels the remaining calls.
    """
    # Pillow releases the interpreter lock while it decodes and resizes, so threads are enough.
    with ThreadPoolExecutor(min(8, usable_cores())) as pool, track(title, sum(map(len, spans))) as progress:
        for span, _ in zip(spans, pool.map(work, spans), strict=True):
            progress.advance(len(span))
