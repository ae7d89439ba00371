"""Classifiers of timm as teachers (``--teacher timm/NAME``): their blocks for hints and their pretrained weights.

The weights come from the Hugging Face hub and stay in its cache (``HF_HOME``), where they are found without a network.
Needs the extra ``timm``.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdedge.errors import InputError, StageError
from kdedge.inputs import image_input
from kdedge.parsing import closest
from kdedge.pipeline.models.teacher import Teacher, taking_inputs
from kdedge.progress import log

__all__ = ["Pretrained", "build_timm_teacher", "check_timm_arch", "fetch_pretrained"]

_PREFIX = "timm/"
_FILE = "model.safetensors"


class Pretrained(NamedTuple):
    """Pretrained weights: the name of their repository on the hub, and the local file."""

    repository: str
    path: Path


def check_timm_arch(arch: str) -> None:
    """Refuse an unknown classifier of timm.

    Raises:
        InputError: The name is unknown.
    """
    import timm

    name = arch.removeprefix(_PREFIX)
    if not timm.is_model(name):
        raise InputError(
            f"unknown teacher {arch!r}{closest(name, timm.list_models())}",
            '`python -c "import timm; print(*timm.list_models())"` lists the names',
        )


def build_timm_teacher(arch: str, num_classes: int, image_size: int) -> Teacher:
    """Build a known classifier of timm with random weights.

    Args:
        arch: ``timm/NAME``, where NAME may have the tag of pretrained weights.
        num_classes: Number of classes.
        image_size: Side length in pixels to which images are resized (0: that of its pretrained weights).

    Raises:
        InputError: It does not support the image size.
    """
    import timm

    backbone = timm.create_model(arch.removeprefix(_PREFIX), num_classes=num_classes)
    config = timm.data.resolve_model_data_config(backbone)
    size = image_size or config["input_size"][-1]
    head = backbone.pretrained_cfg["classifier"]
    return Teacher(
        backbone,
        blocks=_blocks(arch, backbone, size),
        head=(head,) if isinstance(head, str) else head,
        mean=config["mean"],
        std=config["std"],
        image_size=size,
    )


def _blocks(arch: str, backbone: Any, size: int) -> tuple[str, ...]:
    """Return the modules of ``feature_info`` whose outputs are maps ``[N, C, H, W]``, in depth order.

    Transformers have tokens ``[N, T, C]`` or channels-last maps there, which hints cannot use.
    """
    shapes: dict[str, torch.Size] = {}
    channels = {entry["module"]: entry["num_chs"] for entry in getattr(backbone, "feature_info", ())}
    modules = dict(backbone.named_modules())

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            shapes[name] = getattr(output, "shape", torch.Size())

        return hook

    handles = [modules[name].register_forward_hook(note(name)) for name in channels if name in modules]
    was_training = backbone.training
    with taking_inputs(arch, image_input(size)), torch.no_grad():
        backbone.eval()(torch.zeros(1, 3, size, size))
    backbone.train(was_training)
    for handle in handles:
        handle.remove()
    return tuple(name for name, shape in shapes.items() if len(shape) == 4 and shape[1] == channels[name])


def fetch_pretrained(arch: str) -> Pretrained:
    """Return the pretrained weights of a known classifier of timm, from the hub's cache or the network.

    Raises:
        StageError: It has none, or the download fails.
    """
    import huggingface_hub as hub
    import timm
    from huggingface_hub import constants

    config = timm.get_pretrained_cfg(arch.removeprefix(_PREFIX))
    repository = config.hf_hub_id if config else None
    if not repository:
        raise StageError(f"timm lists no pretrained weights of {arch} on the Hugging Face hub")
    cached = hub.try_to_load_from_cache(repository, _FILE)
    if isinstance(cached, str):
        return Pretrained(repository, Path(cached))
    url = hub.hf_hub_url(repository, _FILE)
    try:
        hub.get_hf_file_metadata(url)  # fails now; hf_hub_download tries an unknown host for 23 seconds
        log(f"downloading {url} to {constants.HF_HUB_CACHE}")
        return Pretrained(repository, Path(hub.hf_hub_download(repository, _FILE)))
    except Exception as error:  # the errors depend on the version's HTTP library
        raise StageError(
            f"cannot download {url}: {' '.join(str(error).split()) or type(error).__name__}",
            f"check the network; on a machine with one, `hf download {repository} {_FILE}` prints the path of the file "
            "to copy here",
        ) from error
