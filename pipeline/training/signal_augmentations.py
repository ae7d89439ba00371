"""Augmentations of training windows: a shift in time, a gain per channel, and noise. Never a flip.

Like those of images they derive from a hash of (epoch, index), and there is a fixed number of them, so that the
teacher's logits of an augmented window can be cached. A window in reverse is another movement: nothing is mirrored.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdedge.pipeline.training.augmentations import draw_augmentations

__all__ = ["augment_signals", "choose_signal_augmentations", "signal_augmentations"]

_VARIANTS = 16  # pairs of gains and noise; the first is none
_GAIN, _NOISE = 0.1, 0.05  # standard deviations, of values with standard deviation 1


def signal_augmentations(shift: int) -> int:
    """Return the number of augmentations of a window."""
    return _VARIANTS * (2 * shift + 1)


def choose_signal_augmentations(dataset_indices: NDArray[np.int64], *, epoch: int, shift: int) -> NDArray[np.int64]:
    """Draw an augmentation of each window, int64 ``[N]``."""
    return draw_augmentations(dataset_indices, epoch=epoch, count=signal_augmentations(shift))


def augment_signals(windows: Tensor, chosen: NDArray[np.int64], *, shift: int) -> Tensor:
    """Shift each window in time over its repeated first or last sample, scale its channels and add noise.

    Args:
        windows: Normalised float32 ``[N, C, 1, L]``.
        chosen: int64 ``[N]``, from `choose_signal_augmentations` with the same ``shift``.
        shift: Largest shift in samples.
    """
    _, channels, _, length = windows.shape
    variants, offsets = (torch.from_numpy(part) for part in np.divmod(chosen, 2 * shift + 1))
    generator = torch.Generator().manual_seed(0)
    gains = 1 + _GAIN * torch.randn(_VARIANTS, channels, 1, 1, generator=generator)
    noise = _NOISE * torch.randn(_VARIANTS, channels, 1, length, generator=generator)
    gains[0], noise[0] = 1, 0
    places = (torch.arange(length) + offsets[:, None] - shift).clamp(0, length - 1).to(windows.device)
    shifted = windows.gather(3, places[:, None, None, :].expand(windows.shape))
    return shifted * gains[variants].to(windows.device) + noise[variants].to(windows.device)
