"""Residual students: stages of two-layer blocks with identity shortcuts, like the ResNets of He et al. for CIFAR-10.

K. He et al., "Deep Residual Learning for Image Recognition" (arXiv:1512.03385), section 4.2. A layer is a 3x3
convolution, or one of its two separable forms: `blueprint` is pointwise, then depthwise (BSConv-U of D. Haase and M.
Amthor, arXiv:2003.13549), `depthwise` the reverse (A. Howard et al., arXiv:1704.04861). Batch norms stand behind
convolutions only, so that all of them fold into weights, and every operator has an integer kernel.
"""

from torch import Tensor, nn

from kdedge.pipeline.models.registry import ResidualSpec

__all__ = ["ResidualBlock", "residual_blocks"]


class ResidualBlock(nn.Module):
    """Two layers and a shortcut, added before the last ReLU.

    The shortcut is a 1x1 convolution where width or resolution change, else the identity.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, layer: str) -> None:
        super().__init__()
        self.first = _layer(in_channels, out_channels, stride, layer)
        self.second = _layer(out_channels, out_channels, 1, layer)
        changes = stride > 1 or in_channels != out_channels
        self.shortcut = _pointwise(in_channels, out_channels, stride) if changes else nn.Identity()
        self.relu = nn.ReLU(inplace=False)  # the map before it is used elsewhere

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, in_channels, H, W]`` to ``[N, out_channels, H', W']``."""
        out: Tensor = self.relu(self.second(self.relu(self.first(x))) + self.shortcut(x))
        return out


def residual_blocks(spec: ResidualSpec) -> list[ResidualBlock]:
    """Return the blocks of a student behind its stem, which has the width of the first stage."""
    blocks, channels = [], spec.widths[0]
    for stage, (width, depth) in enumerate(zip(spec.widths, spec.depths, strict=True)):
        for index in range(depth):
            stride = 2 if stage and not index else 1
            blocks.append(ResidualBlock(channels, width, stride=stride, layer=spec.layer))
            channels = width
    return blocks


def _layer(in_channels: int, out_channels: int, stride: int, layer: str) -> nn.Sequential:
    """Return the convolutions of one layer, with a batch norm at its end."""
    if layer == "full":
        parts = [nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)]
    elif layer == "blueprint":
        parts = [nn.Conv2d(in_channels, out_channels, 1, bias=False), _depthwise(out_channels, stride)]
    else:
        parts = [_depthwise(in_channels, stride), nn.Conv2d(in_channels, out_channels, 1, bias=False)]
    return nn.Sequential(*parts, nn.BatchNorm2d(out_channels))


def _depthwise(channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)


def _pointwise(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))
