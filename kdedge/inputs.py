"""The input of a model: images or windows of a signal, and how they become the numbers that a network computes on.

An `InputSpec` is in the metadata of the ONNX model and in the bundle's ``preprocessing.json``. Everything that reads,
normalises, exports, quantizes or makes up inputs asks it. Inside, every network computes on ``[N, C, H, W]``: an image
has H = W, a signal has H = 1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdedge.errors import InputError
from kdedge.preprocessing import RESIZE_MODES, is_grey, preprocessing, resize_mode_of

__all__ = ["RATE_TOLERANCE", "InputSpec", "image_input", "image_input_of", "inputs_at_once", "signal_input", "to_grey"]

Array = NDArray[Any]
RATE_TOLERANCE = 0.02
"""Largest relative difference of two sampling rates that count as equal."""
_RGB, _GREY = ("red", "green", "blue"), ("grey",)


@dataclass(frozen=True)
class InputSpec:
    """The input of a model.

    A network computes on ``(value - mean) * scale``, by channel.

    Attributes:
        kind: ``image`` (uint8, ``[S, S, 3]`` RGB or ``[S, S, 1]`` grey) or ``signal`` (float32 windows in the user's
            units, ``[L, C]``).
        name: Name of the tensor.
        shape: Shape of one input, channels last.
        mean: Mean of each channel; one value is for all channels.
        scale: Scale of each channel; one value is for all channels.
        channels: Names of the channels.
        rate_hz: Samples of a signal per second; 0: unknown, or an image.
        resize_mode: How an image of another shape becomes square.
    """

    kind: Literal["image", "signal"]
    name: str
    shape: tuple[int, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    channels: tuple[str, ...]
    rate_hz: float = 0.0
    resize_mode: str = RESIZE_MODES[0]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the values."""
        return np.dtype(np.uint8 if self.kind == "image" else np.float32)

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width inside the network."""
        return (self.shape[0], self.shape[1]) if self.kind == "image" else (1, self.shape[0])

    @property
    def size(self) -> int:
        """Side length of an image, or length of a window."""
        return self.shape[0]

    @property
    def dimensions(self) -> int:
        """Number of axes that the network pools: 2 for images, 1 for signals."""
        return 2 if self.kind == "image" else 1

    @property
    def grey(self) -> bool:
        """Whether the images have one channel."""
        return self.kind == "image" and self.channels == _GREY

    @property
    def color(self) -> Literal["grey", "RGB"]:
        """The color of images, as in ``preprocessing.json``."""
        return "grey" if self.grey else "RGB"

    def of_rgb(self, pixels: Array) -> Array:
        """Return images, uint8 RGB ``[..., 3]``, as inputs of an image model, and grey ones ``[..., 1]`` unchanged."""
        return to_grey(pixels) if self.grey and pixels.shape[-1] == len(_RGB) else pixels

    @property
    def core_shape(self) -> tuple[int, int, int]:
        """Shape ``[C, H, W]`` of one input inside the network."""
        return (len(self.channels), *self.sides)

    def resized(self, side: int) -> tuple[int, ...]:
        """Return the shape of one input for a network that resizes images to ``side`` pixels (0: it does not)."""
        return (side, side, len(self.channels)) if side > self.size else self.shape

    @property
    def window_s(self) -> float:
        """Duration of a window in seconds; 0: unknown."""
        return self.size / self.rate_hz if self.rate_hz else 0.0

    @property
    def unit(self) -> Literal["image", "window"]:
        """The noun for one input, in messages."""
        return "image" if self.kind == "image" else "window"

    @property
    def words(self) -> str:
        """The inputs in words, as in ``takes images of 32x32 pixels``."""
        if self.kind == "image":
            return f"{'grey ' * self.grey}images of {self.size}x{self.size} pixels"
        return f"windows of {self.size} samples with the channels {', '.join(self.channels)}"

    @property
    def type_text(self) -> str:
        """Name, type and shape of the tensor, as in ``pixels uint8 [N, 32, 32, 3]``."""
        return f"{self.name} {self.dtype} [N, {', '.join(map(str, self.shape))}]"

    def accepts(self, batch: Array) -> bool:
        """Return whether an array is a batch of at least one input, ``[N, *shape]``."""
        return len(batch) > 0 and batch.dtype == self.dtype and batch.shape[1:] == self.shape

    def zeros(self, count: int) -> Array:
        """Return ``count`` inputs of zeros."""
        return np.zeros((count, *self.shape), self.dtype)

    def random(self, count: int, rng: np.random.Generator) -> Array:
        """Return ``count`` inputs of noise: uniform pixels, or values with the mean and scale of each channel."""
        if self.kind == "image":
            return rng.integers(0, 256, (count, *self.shape), np.uint8)
        return self._in_units(rng.standard_normal((count, *self.shape)))

    def smooth(self, count: int, rng: np.random.Generator) -> Array:
        """Return ``count`` inputs of a few random levels each, with some noise."""
        if self.kind == "image":
            blocks = rng.integers(0, 256, (count, 4, 4, len(self.channels)))
            index = np.arange(self.size) * 4 // self.size
            noise = rng.normal(0, 20, (count, *self.shape))
            return np.clip(blocks[:, index][:, :, index] + noise, 0, 255).astype(np.uint8)
        index = np.arange(self.size) * 8 // self.size
        values = rng.normal(0, 1, (count, 8, len(self.channels)))[:, index] + rng.normal(0, 0.1, (count, *self.shape))
        return self._in_units(values)

    def _in_units(self, values: Array) -> Array:
        """Return normalised values in the user's units."""
        return np.asarray(values / np.array(self.scale) + np.array(self.mean), np.float32)

    def normalised(self, batch: Array) -> NDArray[np.float32]:
        """Return what the network computes on, ``[N, C, H, W]``, from ``[N, *shape]``."""
        if self.kind == "image":
            scaled = batch.astype(np.float32) * np.float32(self.scale[0])
            return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))
        values = (batch - np.array(self.mean, np.float32)) * np.array(self.scale, np.float32)
        return np.ascontiguousarray(values[:, None].transpose(0, 3, 1, 2))

    def as_json(self) -> dict[str, Any]:
        """Return the specification for users of the model: ``preprocessing.json``, and metadata of the ONNX model."""
        if self.kind == "image":
            return preprocessing(self.size, self.resize_mode, self.color)
        return {
            "input": self.name,
            "kind": self.kind,
            "layout": "NLC",
            "dtype": "float32",
            "window": self.size,
            "channels": list(self.channels),
            "rate_hz": self.rate_hz,
            "mean": list(self.mean),
            "scale": list(self.scale),
            "normalisation": "in the model",
            "output": "logits",
        }

    @property
    def record(self) -> dict[str, Any]:
        """The specification in ``student.json`` and ``report.json``.

        ``image_size`` and ``resize_mode``, with ``color`` of grey images; or ``input`` of a signal.
        """
        if self.kind == "signal":
            return {"input": self.as_json()}
        color = {"color": self.color} if self.grey else {}
        return {"image_size": self.size, **color, "resize_mode": self.resize_mode}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "InputSpec":
        """Return the specification of `record`, which may be among other keys.

        Raises:
            InputError: The record is damaged.
        """
        try:
            return cls.from_json(record["input"] if "input" in record else {**record, "size": record["image_size"]})
        except (ValueError, KeyError, TypeError, OverflowError, AttributeError) as error:
            raise InputError(
                "a record of kdedge has neither a valid image_size nor a valid input",
                "the file is damaged: run the stage that wrote it again with --force",
            ) from error

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "InputSpec":
        """Return the specification of `as_json`.

        Raises:
            ValueError, KeyError, TypeError, OverflowError: The record is damaged.
        """
        if record.get("kind") != "signal":
            return image_input(int(record["size"]), resize_mode_of(record), grey=is_grey(record))
        spec = signal_input(
            int(record["window"]), record["channels"], record["mean"], record["scale"], float(record["rate_hz"])
        )
        if not len(spec.mean) == len(spec.scale) == len(spec.channels):
            raise ValueError("the channels, means and scales differ in number")
        return spec


def image_input(size: int, resize_mode: str = RESIZE_MODES[0], *, grey: bool = False) -> InputSpec:
    """Return the input of a classifier of images with ``size`` x ``size`` pixels."""
    colors = _GREY if grey else _RGB
    shape = (size, size, len(colors))
    return InputSpec("image", "pixels", shape, (0.0,), (1 / 255,), colors, resize_mode=resize_mode)


def image_input_of(shape: Sequence[Any], resize_mode: str = RESIZE_MODES[0]) -> InputSpec | None:
    """Return the input of a classifier of images ``[S, S, 3]`` or ``[S, S, 1]``; None: the shape is another one."""
    if len(shape) != 3 or not isinstance(shape[0], int) or shape[1] != shape[0] or shape[2] not in (1, 3):
        return None
    return image_input(shape[0], resize_mode, grey=shape[2] == 1)


def to_grey(pixels: Array) -> Array:
    """Return RGB pixels, uint8 ``[..., 3]``, as grey ones, ``[..., 1]``, with the luma of Pillow's ``convert("L")``."""
    luma = pixels @ np.array([19595, 38470, 7471], np.int32) + 0x8000 >> 16
    return np.asarray(luma, np.uint8)[..., None]


def signal_input(
    length: int, channels: Sequence[str], mean: Sequence[float], scale: Sequence[float], rate_hz: float = 0.0
) -> InputSpec:
    """Return the input of a classifier of windows.

    Args:
        length: Samples of a window.
        channels: Names of the channels.
        mean: Mean of each channel, in its units.
        scale: Factor for each channel: 1 / its standard deviation.
        rate_hz: Samples per second; 0: unknown.
    """
    numbers = (tuple(map(float, mean)), tuple(map(float, scale)))
    return InputSpec("signal", "signal", (length, len(channels)), *numbers, tuple(map(str, channels)), rate_hz)


def inputs_at_once(shape: Sequence[int], most: int, full_size: int) -> int:
    """Return the batch size, 1 to ``most``, that needs no more memory than ``most`` images of ``full_size`` pixels.

    Args:
        shape: Shape of one input, channels last: ``[S, S, 3]`` or ``[L, C]``.
        most: Largest batch.
        full_size: Largest side length in pixels with that batch.
    """
    return max(1, most * full_size**2 // max(full_size**2, math.prod(shape[:-1])))
