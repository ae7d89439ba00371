"""Weight files: writes safetensors, reads safetensors and PyTorch files. No pickle is executed."""

import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from kdedge.errors import InputError
from kdedge.files import write_atomic

# Errors of reading a damaged weight file; those of .pth files were found by flipping and cutting bytes.
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

# Keys of the state dict in checkpoints of Lightning, torchvision, timm and other scripts.
_NESTED = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema", "model_ema")
_LARGEST = 1e10

__all__ = ["DAMAGED", "load_mean", "load_module", "load_weights", "save_module"]


def save_module(module: nn.Module, path: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a module's state dict as safetensors, floats converted to ``dtype`` if given."""
    state = {}
    for name, tensor in module.state_dict().items():
        value = tensor.detach().cpu().contiguous()
        state[name] = value.to(dtype) if dtype is not None and value.is_floating_point() else value
    write_atomic(path, save(state))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a weight file without executing pickles.

    Args:
        path: A ``.safetensors`` file, or one of ``torch.save`` (``.pth``, ``.pt``, ``.bin``, ``.ckpt``) with a state
            dict, or with a checkpoint that has one under a usual key and other entries, which are ignored.

    Raises:
        InputError: The file is missing, damaged or has no state dict, or its values are not those of a network.
    """
    if re.match(r"\w{2,}:/", str(path)):
        raise InputError(
            f"weights {str(path).replace(':/', '://', 1)}: expected a local file, not an address",
            "download it, then give the path of the file",
        )
    if not path.is_file():
        raise InputError(f"weights {path} do not exist", "check the path")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        objects = _foreign_objects(path)
        what = (
            f"has Python objects ({objects}), which are never loaded"
            if objects
            else "is damaged or has objects other than tensors"
        )
        raise InputError(
            f"{path} ({os.path.getsize(path)} bytes) {what}",
            "give a complete .safetensors file, or a .pth file with only a state dict",
        ) from error
    state = _state_dict(content)
    if not state:
        raise InputError(f"{path} is not a state dict of tensors", "save it with torch.save(model.state_dict(), …)")
    for name, value in state.items():
        if fault := _fault(name, value):
            raise InputError(f"{name} in {path} {fault}", "give the weights of a trained network")
    return state


def _foreign_objects(path: Path) -> str:
    """Return up to three names of classes other than tensors in a file of ``torch.save``; empty if none are found."""
    try:
        return ", ".join(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))[:3])
    except DAMAGED:
        return ""


def _state_dict(content: Any) -> dict[str, Tensor]:
    """Return the tensors of a state dict, or of the state dict in a checkpoint, by name; empty if there is none."""
    if not isinstance(content, Mapping):
        return {}
    nested = next((content[key] for key in _NESTED if isinstance(content.get(key), Mapping)), content)
    state = OrderedDict((k, v.detach()) for k, v in nested.items() if isinstance(k, str) and isinstance(v, Tensor))
    if isinstance(metadata := getattr(nested, "_metadata", None), Mapping):
        state._metadata = metadata  # type: ignore[attr-defined] # versions of modules, for PyTorch
    return state


def _fault(name: str, value: Tensor) -> str:
    """Return the reason why a tensor is not the weight of a network, or an empty string."""
    if value.layout != torch.strided or value.is_complex() or value.is_meta or value.is_quantized:
        return "is not a plain tensor of real numbers"
    if not value.is_floating_point():
        return ""
    numbers = value.float()  # the type of the computation, in which larger values overflow
    if not torch.isfinite(numbers).all():
        return "has values that are not finite"
    if name.endswith("running_var") and (numbers < 0).any():
        return "has negative variances"
    largest = numbers.abs().max().item() if numbers.numel() else 0.0
    return f"has values up to {largest:.1e}, expected at most {_LARGEST:.0e}" if largest > _LARGEST else ""


def load_module(module: nn.Module, path: Path, what: str) -> None:
    """Load a safetensors file into ``module``, strictly.

    Raises:
        InputError: The file is missing or damaged, or has another architecture or class count.
    """
    state = load_weights(path)
    own = module.state_dict()
    for name in sorted(own.keys() | state.keys()):
        expected = tuple(own[name].shape) if name in own else None
        found = tuple(state[name].shape) if name in state else None
        if expected != found:
            raise InputError(
                f"{path} does not fit {what}: {name} is {found or 'missing'}, expected {expected or 'no such tensor'}",
                "it has another architecture or class count; train it again, or give the matching options",
            )
    own.update({name: value.to(own[name].dtype) for name, value in state.items()})
    module.load_state_dict(own)  # with the versions of modules that MNASNet requires


def load_mean(module: nn.Module, paths: Sequence[Path], what: str) -> None:
    """Load the mean of the weights in safetensors files into ``module``; integers are those of the last file.

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
