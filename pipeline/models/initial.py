"""Initial weights of a student that learn faster: a whitening first convolution, identities in plain stacks behind it.

After K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv:2404.00498), sections 3.1 and 3.2; there the
first convolution stays frozen, here it is only the start. `experiments/LOG.md`, section 15, has what it is worth.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdedge.pipeline.models.student import Block

__all__ = ["initialise", "whitening_filters"]

_IMAGES = 1000  # with some 900 patches each: their covariance has settled long before
_CHUNK = 100  # images whose patches are in memory at a time: 106 MB for those of 7 x 7 pixels
# Both relative to the largest variance. CIFAR-10's 16th direction has 4.7e-4; the colours of grey images have 1e-15 and
# would become filters of norm 100, which drown the image in INT8 (experiments/LOG.md, sections 19 and 51).
_LEAST_VARIANCE = 3e-4  # directions below it are not whitened
_EPSILON = 7.7e-5  # added to each variance


def initialise(student: nn.Module, images: NDArray[np.uint8]) -> None:
    """Let the first convolution whiten patches, and let those of a plain stack pass on what comes in, in place.

    The first convolution begins with as many pairs of a whitening filter and its negative as fit (a ReLU behind them
    loses nothing); every later `Block` with as many identities as it has inputs, residual blocks of torchvision having
    their own. What is left keeps its random weights. For images without color that is everything: there this start
    brings no accuracy and costs 7 to 20 dB in INT8 (experiments/LOG.md, section 52).

    Args:
        student: A student whose modules are in the order of the data.
        images: Training images, uint8 ``[N, S, S, 3]``.
    """
    first = next(module for module in student.modules() if isinstance(module, nn.Conv2d))
    blocks = [module for module in student.modules() if isinstance(module, Block) and module.conv is not first]
    with torch.no_grad():
        # Spread over all images: those of a folder are in the order of their classes.
        spread = images[:: -(-len(images) // _IMAGES)]
        filters = whitening_filters(spread, first.kernel_size[0])
        if len(filters) <= first.kernel_size[0] ** 2:  # as many directions as the patches of one channel have
            return
        filters = filters[: first.out_channels // 2]
        first.weight[: 2 * len(filters)] = torch.cat([filters, -filters]).to(first.weight)
        for block in blocks:
            nn.init.dirac_(block.conv.weight[: block.conv.in_channels])


def whitening_filters(images: NDArray[np.uint8], side: int) -> Tensor:
    """Return filters whose responses to patches of these images are uncorrelated, with variance (almost) 1.

    They are the eigenvectors of the covariance of the patches, each divided by the root of its eigenvalue, the
    strongest direction first. Directions in which the patches hardly vary are left out, such as the colours of grey
    images. Of images above 32 pixels only every second, third, … patch is used in both axes.

    Args:
        images: uint8 ``[N, S, S, 3]``.
        side: Side length k of a patch in pixels.

    Returns:
        float32 ``[D, 3, k, k]`` with D at most ``3 * k * k``, for pixels in 0..1; D is 0 for images of one colour.
    """
    step, size = -(-images.shape[1] // 32), 3 * side * side
    count, total, products = 0, torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    for start in range(0, len(images), _CHUNK):
        pixels = torch.from_numpy(images[start : start + _CHUNK]).permute(0, 3, 1, 2).double() / 255
        patches = pixels.unfold(2, side, step).unfold(3, side, step).permute(0, 2, 3, 1, 4, 5).reshape(-1, size)
        count, total, products = count + len(patches), total + patches.sum(0), products + patches.T @ patches
    mean = total / count
    eigenvalues, eigenvectors = torch.linalg.eigh(products / count - torch.outer(mean, mean))
    largest = eigenvalues[-1]
    kept = eigenvalues > max(_LEAST_VARIANCE * largest.item(), 1e-9)
    filters: Tensor = (eigenvectors[:, kept] / (eigenvalues[kept] + _EPSILON * largest).sqrt()).T.flip(0)
    return filters.reshape(-1, 3, side, side).float()
