"""The checkpoint of a training: everything that the next epoch depends on, with a SHA-256 at its end."""

import hashlib
import io
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from kdedge.errors import InputError
from kdedge.files import write_atomic
from kdedge.pipeline.models.weights import DAMAGED
from kdedge.progress import warn

__all__ = ["CHECKPOINT", "CHECKPOINT_VERSION", "Stateful", "load_checkpoint", "save_checkpoint"]

CHECKPOINT = ".checkpoint.pt"  # a working file, deleted when the stage is complete
# Raised whenever the same options train otherwise: a checkpoint of another version cannot be resumed.
CHECKPOINT_VERSION = 6
_DIGEST_BYTES = 32


class Stateful(Protocol):
    """An object whose state is in the checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Restore the state."""


def save_checkpoint(path: Path, state: Mapping[str, Stateful], progress: Mapping[str, Any]) -> None:
    """Write the state of some objects and further values."""
    saved = {"version": CHECKPOINT_VERSION, "state": {name: target.state_dict() for name, target in state.items()}}
    buffer = io.BytesIO()  # on a full disk torch.save raises a RuntimeError about its own zip writer
    torch.save({**saved, **progress}, buffer)
    content = buffer.getvalue()
    write_atomic(path, content + hashlib.sha256(content).digest())


def load_checkpoint(path: Path, state: Mapping[str, Stateful], title: str) -> dict[str, Any] | None:
    """Restore the state of some objects and return the checkpoint with its further values.

    Args:
        path: The file.
        state: The objects by name.
        title: Name of the training, for warnings.

    Returns:
        None if there is no checkpoint, or if it is damaged or of another version, with a warning.

    Raises:
        InputError: The checkpoint is of another training.
    """
    if not path.exists():
        return None
    data = path.read_bytes()
    content, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        warn(f"{title}: the checkpoint {path} is damaged or of an older version: training starts over")
        return None
    try:
        saved: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if saved["version"] != CHECKPOINT_VERSION:
            warn(f"{title}: the checkpoint {path} is of another version of kdedge: training starts over")
            return None
        for name, target in state.items():
            target.load_state_dict(saved["state"][name])
    except DAMAGED as error:
        raise InputError(
            f"the checkpoint {path} does not fit this training: {error}",
            f"delete it to start the stage over: {shlex.join(['rm', str(path)])}",
        ) from error
    return saved
