"""Batches of a training set, and the logits of a model on many images.

Nothing random has a state: the order of an epoch derives from (seed, epoch), and the augmentation of an image from
(epoch, dataset index) or (seed, epoch, place). A resumed training therefore sees the same batches.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import one_hot

from kdedge.dataset import Split
from kdedge.inputs import InputSpec, inputs_at_once
from kdedge.pipeline.training import distributed
from kdedge.pipeline.training.augmentations import augment, choose_augmentations
from kdedge.pipeline.training.balance import balanced_order, class_weights
from kdedge.pipeline.training.signal_augmentations import (
    augment_signals,
    choose_signal_augmentations,
    signal_augmentations,
)

__all__ = ["Batch", "Batches", "class_shares", "place", "predict_logits", "to_network", "top1_pct"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class _Float32Conv2d(nn.Conv2d):
    """A convolution in float32 also under autocast."""

    def forward(self, input: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, C', H', W']`` of the same type."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float()).to(input.dtype)


def place(module: ModuleT, device: torch.device) -> ModuleT:
    """Move a module to a device in the faster form, see experiments/LOG.md.

    Convolution weights are channels last. On a CPU, depthwise convolutions with a stride compute in float32, because
    their backward pass in bf16 takes 4 to 17 times as long (oneDNN 3.12).
    """
    for conv in module.modules():
        depthwise = type(conv) is nn.Conv2d and conv.groups == conv.in_channels > 1
        if depthwise and conv.stride != (1, 1) and device.type == "cpu":
            conv.__class__ = _Float32Conv2d
    return module.to(device).to(memory_format=torch.channels_last)


def to_network(inputs: Tensor, spec: InputSpec, device: torch.device) -> Tensor:
    """Normalise inputs: float32 ``[N, C, H, W]``, channels last in memory.

    Args:
        inputs: uint8 ``[N, S, S, C]``, which become 0..1, or float32 ``[N, L, C]``.
        spec: Their specification.
        device: Device of the result.
    """
    inputs = inputs.to(device, non_blocking=True)
    if spec.kind == "image":
        return inputs.permute(0, 3, 1, 2).float().div_(255)
    mean, scale = (torch.tensor(values, device=device) for values in (spec.mean, spec.scale))
    return ((inputs - mean) * scale).unsqueeze(1).permute(0, 3, 1, 2)


class Batch(NamedTuple):
    """A batch of augmented, normalised images or windows.

    Attributes:
        pixels: float32 ``[B, C, H, W]``.
        labels: int64 ``[B]``; of a mixed image, the class with the largest share.
        augmentations: int64 ``[B]``, number of each augmented image: dataset index * augmentations per image +
            augmentation; -1: it has none.
        shares: float32 ``[B, C]``, shares of the classes in mixed images; None: no image is mixed.
    """

    pixels: Tensor
    labels: Tensor
    augmentations: NDArray[np.int64]
    shares: Tensor | None = None

    @property
    def targets(self) -> Tensor:
        """The target of the cross-entropy: the shares of mixed images, else the labels."""
        return self.labels if self.shares is None else self.shares


@dataclass(frozen=True)
class Batches:
    """Shuffled, augmented batches of a training set.

    Attributes:
        split: The training images and labels.
        batch_size: Images per batch; the rest of an epoch is left out (the order changes every epoch).
        seed: Seed of the run.
        shift: Largest random shift in pixels or samples.
        device: Device of the batches.
        flip: Whether half of the images are flipped.
        augment: A level of `kdedge.pipeline.training.options.AUGMENT_LEVELS`. Only ``light`` has shifts.
        balance: ``sampler``: an epoch shows all classes equally often; ``loss``: the loss weighs them equally.
    """

    split: Split
    batch_size: int
    seed: int
    shift: int
    device: torch.device
    flip: bool = True
    augment: str = "light"
    balance: str = "none"

    def __post_init__(self) -> None:
        """Leave out the shifts of other levels than ``light``."""
        if self.augment != "light":
            object.__setattr__(self, "shift", 0)

    @property
    def numbered(self) -> bool:
        """Whether the number of an augmented image determines its pixels."""
        return self.augment in ("none", "light")

    @cached_property
    def class_weights(self) -> Tensor | None:
        """Weight of each class in the cross-entropy, float ``[C]`` on the device; None: all images weigh the same."""
        return class_weights(self.split.labels).to(self.device) if self.balance == "loss" else None

    @property
    def size(self) -> int:
        """Images per batch: ``batch_size``, or the whole set if it is smaller."""
        return min(self.batch_size, len(self.split.labels))

    @property
    def augmentations_per_image(self) -> int:
        """Number of augmentations of an image: two flips of every shift; or of a window."""
        if self.split.signal:
            return signal_augmentations(self.shift)
        return 2 * (2 * self.shift + 1) ** 2

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self.split.labels) // self.size

    def epoch(self, epoch: int, part: slice = slice(None)) -> Iterator[Batch]:
        """Yield the batches of one epoch, or the same part of each."""
        order, rounds = self._order(epoch)
        for start in range(0, len(self) * self.size, self.size):
            chosen = slice(start, start + self.size)
            yield self._batch(order[chosen][part], rounds[chosen][part], epoch, start + (part.start or 0))

    def rest(self, epoch: int) -> Batch | None:
        """Return the images that an epoch leaves out, fewer than a batch, augmented for it; None if there are none."""
        order, rounds = self._order(epoch)
        shown = len(self) * self.size
        return self._batch(order[shown:], rounds[shown:], epoch, shown) if shown < len(order) else None

    def _order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the images of an epoch in order, and how often it showed each before, both int64 ``[N]``."""
        rng = np.random.default_rng([self.seed, epoch])
        if self.balance == "sampler":
            return balanced_order(self.split.labels, rng)
        return rng.permutation(len(self.split.labels)), np.zeros(len(self.split.labels), np.int64)

    def _batch(self, indices: NDArray[np.int64], rounds: NDArray[np.int64], epoch: int, place: int) -> Batch:
        """Return the batch of some images of an epoch; the first stands at ``place`` in the order of `_order`.

        Args:
            indices: Of the images in the split, int64 ``[B]``.
            rounds: How often each was shown before in the epoch, int64 ``[B]``.
            epoch: Number of the epoch, from 0.
            place: With seed and epoch, it decides random draws that have no number.
        """
        spec, dataset_indices = self.split.spec, self.split.dataset_indices[indices]
        # An image that is shown again has another augmentation, as if it had another index.
        drawn_for = dataset_indices + (rounds << 40)
        taken = torch.from_numpy(self.split.images[indices])
        if self.device.type == "cuda":
            taken = taken.pin_memory().to(self.device, non_blocking=True)  # pinned: an asynchronous copy
        if spec.kind == "signal":
            chosen = choose_signal_augmentations(drawn_for, epoch=epoch, shift=self.shift)
            chosen = chosen if self.augment == "light" else np.zeros_like(chosen)
        else:
            flip = self.flip and self.augment == "light"
            chosen = choose_augmentations(drawn_for, epoch=epoch, shift=self.shift, flip=flip)
            taken = augment(taken, chosen, shift=self.shift)
        numbers = dataset_indices * self.augmentations_per_image + chosen
        known = torch.from_numpy(self.split.labels[indices]).to(self.device)
        if not self.numbered:
            return self._transformed(taken, known, numbers, (self.seed, epoch, place))
        pixels = to_network(taken, spec, self.device)
        if spec.kind == "signal":
            pixels = augment_signals(pixels, chosen, shift=self.shift)
        return Batch(pixels, known, numbers)

    def _transformed(self, images: Tensor, labels: Tensor, numbers: NDArray[np.int64], key: tuple[int, ...]) -> Batch:
        """Return a batch of the levels ``standard`` and ``strong``."""
        from kdedge.pipeline.training.transforms import mix_images, transform_images  # importing them takes a second

        transformed = transform_images(images, self.augment, flip=self.flip, key=key)
        pixels = to_network(transformed, self.split.spec, self.device)
        if self.augment != "strong":
            return Batch(pixels, labels, numbers)
        pixels, of_images = mix_images(pixels, key)
        shares = class_shares(labels, of_images, int(self.split.labels.max()) + 1)
        return Batch(pixels, shares.argmax(1), numbers, shares)


def class_shares(labels: Tensor, of_images: Tensor, classes: int) -> Tensor:
    """Return the shares of the classes in mixed images, float32 ``[B, C]``; rows sum to 1.

    Args:
        labels: int64 ``[B]`` of the unmixed images.
        of_images: float32 ``[B, B]``, see `kdedge.pipeline.training.transforms.mix_images`.
        classes: Number of classes C.
    """
    with torch.autocast(labels.device.type, enabled=False):  # which would multiply matrices in bf16
        return of_images @ one_hot(labels, classes).float()


def top1_pct(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the correct predictions of a batch in percent, a scalar."""
    return 100 * (logits.argmax(1) == labels).float().mean()


@torch.no_grad()
def predict_logits(model: Callable[[Tensor], Tensor], split: Split, device: torch.device, resized: int = 0) -> Tensor:
    """Return the logits of a model in eval mode.

    Args:
        model: Takes normalised float32 ``[N, C, H, W]``.
        split: Images or windows.
        device: Device of the model.
        resized: Side length in pixels to which the model resizes the images (0: it does not).

    Returns:
        float32 ``[N, C]`` on the CPU.
    """
    spec = split.spec
    step = inputs_at_once(spec.resized(resized), 250, 64)

    def predict(start: int) -> Tensor:
        part = torch.from_numpy(np.array(split.images[start : start + step]))  # a copy: the images are read-only
        return model(to_network(part, spec, device)).float().cpu()

    return torch.cat(distributed.map_parts(predict, range(0, len(split), step)))
