"""An encoded image that is not a file of its own, such as a cell of a table."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ImageSource", "StoredImage"]


@dataclass(frozen=True)
class StoredImage:
    """The bytes of an encoded image.

    Attributes:
        name: Its name in messages.
        read: Returns the bytes.
    """

    name: str
    read: Callable[[], bytes]

    def open(self, mode: str) -> io.BytesIO:
        """Return the bytes as a file."""
        return io.BytesIO(self.read())

    def __str__(self) -> str:
        return self.name


ImageSource = Path | StoredImage
