"""Classifiers of torchvision by name, with stems for small images, and their blocks for hints.

Teachers (`kdedge.pipeline.models.teacher`) and students (`kdedge.pipeline.models.student`) are built from them.
"""

from typing import Any

from torch import nn

from kdedge.errors import InputError

__all__ = ["STEMS", "backbone_blocks", "build_backbone"]

STEMS = ("imagenet", "cifar", "cifar-pool")


def build_backbone(arch: str, num_classes: int, stem: str) -> nn.Module:
    """Build a torchvision classifier with random weights.

    Args:
        arch: Name in ``torchvision.models``.
        num_classes: Number of classes.
        stem: ``imagenet``: as in torchvision. ``cifar``: a 3x3 convolution without pooling for ResNets (555 MMAC for
            ResNet-18 at 32 pixels), no stride before the third stage for MobileNetV2. ``cifar-pool``, only for ResNets:
            a 3x3 convolution and a 2x2 max-pool (140 MMAC).

    Raises:
        InputError: The architecture does not support the stem.
    """
    import torchvision

    options: dict[str, Any] = {"num_classes": num_classes}
    if arch in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    backbone: nn.Module = torchvision.models.get_model(arch, weights=None, **options)
    if stem != "imagenet":
        _replace_stem(backbone, arch, stem)
    return backbone


def _replace_stem(backbone: Any, arch: str, stem: str) -> None:
    """Replace the stem of a classifier by one for small images, in place."""
    import torchvision

    if isinstance(backbone, torchvision.models.ResNet):
        backbone.conv1 = nn.Conv2d(3, backbone.conv1.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
        backbone.maxpool = nn.MaxPool2d(2) if stem == "cifar-pool" else nn.Identity()
    elif isinstance(backbone, torchvision.models.MobileNetV2) and stem == "cifar":
        convolutions = [module for module in backbone.features.modules() if isinstance(module, nn.Conv2d)]
        for convolution in [module for module in convolutions if module.stride == (2, 2)][:2]:
            convolution.stride = (1, 1)
    else:
        fits = "ResNets and mobilenet_v2" if stem == "cifar" else "ResNets"
        raise InputError(f"--teacher-stem {stem} is for {fits}, not for {arch}", "use --teacher-stem imagenet")


def backbone_blocks(backbone: nn.Module) -> dict[str, nn.Module]:
    """Return the blocks of a classifier in depth order, by name.

    They are the residual blocks of a ResNet (``layer1.0`` … ``layer4.1`` for ResNet-18), else the top-level children
    of ``features``. Empty for classifiers with neither and for those with channels-last maps.
    """
    import torchvision

    if isinstance(backbone, torchvision.models.ResNet):
        return {
            f"layer{stage}.{index}": block
            for stage in range(1, 5)
            for index, block in enumerate(getattr(backbone, f"layer{stage}"))
        }
    features = getattr(backbone, "features", None)
    channels_last = isinstance(backbone, torchvision.models.SwinTransformer)
    if channels_last or not isinstance(features, nn.Sequential):
        return {}
    return {f"features.{name}": module for name, module in features.named_children()}
