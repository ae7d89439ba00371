"""Initial weights of a student that trains faster: a whitening first convolution, and identities in later layers.

After K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv:2404.00498), sections 3.1 and 3.2, where the
first convolution stays frozen; here it is trained. `experiments/LOG.md`, section 15, has the measured gain.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdedge.pipeline.models.student import Block

__all__ = ["initialise", "start_filters", "whitening_filters"]

_IMAGES = 1000  # with about 900 patches each, enough for a stable covariance
_CHUNK = 100  # images with patches in memory at a time: 106 MB for patches of 7 x 7 pixels
# Both relative to the largest variance. CIFAR-10's 16th direction has 4.7e-4. The colours of grey images have 1e-15 and
# would become filters of norm 100, which dominate the range in INT8 (experiments/LOG.md, sections 19 and 51).
_LEAST_VARIANCE = 3e-4  # directions below it are not whitened
_EPSILON = 7.7e-5  # added to each variance


def initialise(student: nn.Module, images: NDArray[np.uint8]) -> None:
    """Set whitening filters in the first convolution and identities in the blocks of a plain stack, in place.

    The first filters of the first convolution are pairs of a whitening filter and its negative, so that the ReLU behind
    them keeps all information. The first filters of every later `Block` are identities, one per input channel; residual
    blocks of torchvision have their own. All other weights stay random. For grey images all weights stay random:
    whitening adds no accuracy there and costs 7 to 20 dB in INT8 (experiments/LOG.md, section 52).

    Args:
        student: A student whose modules are in the order of the data.
        images: Training images, uint8 ``[N, S, S, C]``.
    """
    first = next(module for module in student.modules() if isinstance(module, nn.Conv2d))
    blocks = [module for module in student.modules() if isinstance(module, Block) and module.conv is not first]
    with torch.no_grad():
        filters = start_filters(images, first.kernel_size[0])[: first.out_channels // 2]
        if not len(filters):
            return
        first.weight[: 2 * len(filters)] = torch.cat([filters, -filters]).to(first.weight)
        for block in blocks:
            nn.init.dirac_(block.conv.weight[: block.conv.in_channels])


def start_filters(images: NDArray[np.uint8], side: int) -> Tensor:
    """Return the `whitening_filters` that a student starts with: none for images without color."""
    # Spread over all images: those of a folder are in the order of their classes.
    filters = whitening_filters(images[:: -(-len(images) // _IMAGES)], side)
    return filters if len(filters) > side**2 else filters[:0]  # as many directions as the patches of one channel have


def whitening_filters(images: NDArray[np.uint8], side: int) -> Tensor:
    """Return filters whose responses to patches of these images are uncorrelated, with variance (almost) 1.

    They are the eigenvectors of the covariance of the patches, each divided by the root of its eigenvalue, the
    largest first. Directions with almost no variance are left out, such as the colours of grey images. The stride of
    the patches grows with the image size: 1 up to 32 pixels, 2 up to 64, …

    Args:
        images: uint8 ``[N, S, S, C]``.
        side: Side length k of a patch in pixels.

    Returns:
        float32 ``[D, C, k, k]`` with D at most ``C * k * k``, for pixels in 0..1; D is 0 for images of one colour.
    """
    step, size = -(-images.shape[1] // 32), images.shape[3] * side * side
    count, total, products = 0, torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    for start in range(0, len(images), _CHUNK):
        pixels = torch.from_numpy(images[start : start + _CHUNK].copy()).permute(0, 3, 1, 2).double() / 255
        patches = pixels.unfold(2, side, step).unfold(3, side, step).permute(0, 2, 3, 1, 4, 5).reshape(-1, size)
        count, total, products = count + len(patches), total + patches.sum(0), products + patches.T @ patches
    mean = total / count
    eigenvalues, eigenvectors = torch.linalg.eigh(products / count - torch.outer(mean, mean))
    largest = eigenvalues[-1]
    kept = eigenvalues > max(_LEAST_VARIANCE * largest.item(), 1e-9)
    filters: Tensor = (eigenvectors[:, kept] / (eigenvalues[kept] + _EPSILON * largest).sqrt()).T.flip(0)
    return filters.reshape(-1, images.shape[3], side, side).float()
