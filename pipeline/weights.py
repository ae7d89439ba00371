"""Weight files: safetensors for everything that is kept, ``weights_only`` for checkpoints. No pickle is executed."""

import os
import pickle
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.files import write_atomic

# What reading a damaged weight file raises. The list for .pth was found by flipping and cutting bytes.
DAMAGED = (
    SafetensorError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AssertionError,
    AttributeError,
    TypeError,
    OverflowError,
)

__all__ = ["DAMAGED", "load_mean", "load_module", "load_weights", "save_module"]


def save_module(module: nn.Module, path: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a module's state dict as safetensors, floats converted to ``dtype`` if given."""
    state = {}
    for name, tensor in module.state_dict().items():
        value = tensor.detach().cpu().contiguous()
        state[name] = value.to(dtype) if dtype is not None and value.is_floating_point() else value
    write_atomic(path, save(state))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a ``.safetensors`` file, or a ``.pth``/``.pt`` file without executing what it holds.

    Raises:
        InputError: The file is missing, truncated, or holds anything but tensors.
    """
    if not path.is_file():
        raise InputError(f"weights {path} do not exist", "check the path")
    try:
        if path.suffix == ".safetensors":
            return _usable(load_file(path), path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        raise InputError(
            f"{path} ({os.path.getsize(path)} bytes) is damaged or holds more than tensors",
            "give a complete .safetensors file, or a .pth file with a plain state dict",
        ) from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise InputError(f"{path} is not a state dict of tensors", "save it with torch.save(model.state_dict(), …)")
    return _usable(state, path)


def _usable(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Refuse tensors that no network can have: sparse, complex, without data, not finite."""
    for name, value in state.items():
        plain = value.layout == torch.strided and not value.is_complex() and not value.is_meta
        if not plain or (value.is_floating_point() and not torch.isfinite(value).all()):
            what = "has values that are not finite" if plain else "is no plain tensor of real numbers"
            raise InputError(f"{name} in {path} {what}", "give the weights of a trained network")
    return state


def load_module(module: nn.Module, path: Path, what: str) -> None:
    """Load a safetensors file into ``module``, strictly.

    Raises:
        InputError: The file is missing or damaged, or is of another architecture or class count.
    """
    state = load_weights(path)
    own = module.state_dict()
    for name in sorted(own.keys() | state.keys()):
        expected = tuple(own[name].shape) if name in own else None
        found = tuple(state[name].shape) if name in state else None
        if expected != found:
            raise InputError(
                f"{path} does not fit {what}: {name} is {found or 'missing'}, expected {expected or 'no such tensor'}",
                "it is of another architecture or class count; make it again, or give the matching options",
            )
    module.load_state_dict({name: value.to(own[name].dtype) for name, value in state.items()})


def load_mean(module: nn.Module, paths: Sequence[Path], what: str) -> None:
    """Load the mean of the weights in safetensors files into ``module``; what is no float is of the last file.

    Raises:
        InputError: As for `load_module`.
    """
    total: dict[str, Tensor] = {}
    for path in paths:
        load_module(module, path, what)
        for name, value in module.state_dict().items():
            total[name] = total.get(name, torch.zeros_like(value, dtype=torch.float64)) + value.double()
    state = module.state_dict()
    means = {name: (total[name] / len(paths)).to(value.dtype) for name, value in state.items()}
    module.load_state_dict({name: means[name] if state[name].is_floating_point() else state[name] for name in state})
