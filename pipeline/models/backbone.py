"""Classifiers of torchvision by name, with stems for small images, and their blocks for hints.

Teachers (`kdedge.pipeline.models.teacher`) and students (`kdedge.pipeline.models.student`) are built from them.
"""

from typing import Any

from torch import nn

from kdedge.errors import InputError

__all__ = ["SIGNAL_STEM", "STEMS", "backbone_blocks", "build_backbone"]

STEMS = ("imagenet", "cifar", "cifar-pool")
SIGNAL_STEM = "signal"
_SIGNAL_KERNEL = 5


def build_backbone(arch: str, num_classes: int, stem: str, channels: int = 3) -> nn.Module:
    """Build a torchvision classifier with random weights.

    Args:
        arch: Name in ``torchvision.models``.
        num_classes: Number of classes.
        stem: ``imagenet``: as in torchvision. ``cifar``: a 3x3 convolution without pooling for ResNets (555 MMAC for
            ResNet-18 at 32 pixels), no stride before the third stage for MobileNetV2. ``cifar-pool``, only for ResNets:
            a 3x3 convolution and a 2x2 max-pool (140 MMAC). ``signal``, only for ResNets: every convolution is along
            time, see `_along_time`.
        channels: Channels of the input, other than 3 for signals only.

    Raises:
        InputError: The architecture does not support the stem.
    """
    import torchvision

    options: dict[str, Any] = {"num_classes": num_classes}
    if arch in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    backbone: nn.Module = torchvision.models.get_model(arch, weights=None, **options)
    if stem == SIGNAL_STEM:
        _along_time(backbone, arch, channels)
    elif stem != "imagenet":
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


def _along_time(backbone: Any, arch: str, channels: int) -> None:
    """Turn a ResNet into one for windows ``[N, C, 1, L]``, in place.

    Its 3x3 convolutions become 1x5, the stem a 1x7 convolution and a pool, all strides are in time.
    """
    import torchvision

    if not isinstance(backbone, torchvision.models.ResNet):
        raise InputError(f"--teacher {arch} is for images, and the data are signals", "take a ResNet such as resnet18")
    for parent in list(backbone.modules()):
        for name, old in list(parent.named_children()):
            if isinstance(old, nn.Conv2d):
                width = 7 if old is backbone.conv1 else _SIGNAL_KERNEL if old.kernel_size[1] > 1 else 1
                stride = 1 if old is backbone.conv1 else old.stride[1]
                new = nn.Conv2d(
                    channels if old is backbone.conv1 else old.in_channels, old.out_channels, (1, width),
                    stride=(1, stride), padding=(0, width // 2), groups=old.groups, bias=False,
                )  # fmt: skip
                nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
                setattr(parent, name, new)
    backbone.maxpool = nn.MaxPool2d((1, 2))


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
