"""Run an ONNX image classifier that kdedge did not make, from uint8 RGB pixels to predicted classes.

The model has one input with three colour channels, NCHW or NHWC, of floats or uint8, and one output [N, C]. Floats are
``(pixel * scale - mean) / std``. A uint8 input gets the pixels themselves, one of a single channel their luma.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from kdedge.benchmarks.session import (
    describe,
    first_line,
    onnxruntime_errors,
    open_session,
    read_class_names,
    read_resize_mode,
    session_options,
)
from kdedge.errors import InputError, StageError
from kdedge.inputs import image_input, inputs_at_once, to_grey
from kdedge.machine import usable_cores
from kdedge.preprocessing import RESIZE_MODES
from kdedge.progress import track
from kdedge.resizing import resize_image

__all__ = ["LAYOUTS", "PREPROCESSING", "Classifier", "Preprocessing", "open_classifier", "predict_all"]

LAYOUTS = ("NCHW", "NHWC")

_TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(uint8)": np.dtype(np.uint8),
}
_CHANNEL_AXES = {"NCHW": 1, "NHWC": 3}
_EXPECTED = "expected one image input with 3 channels (of uint8 also 1), float or uint8, and one output [N, C]"


@dataclass(frozen=True)
class Preprocessing:
    """From a decoded image to the input of a model.

    Attributes:
        scale: Factor of the pixels, which are 0 to 255.
        mean: Is subtracted from the scaled pixels, for R, G and B.
        std: Divides the result.
        resize_mode: How the image becomes square, see `kdedge.resizing.resize_image`.
    """

    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    resize_mode: str = RESIZE_MODES[0]

    def pixels(self, image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
        """Resize and crop an RGB image to ``[size, size, 3] uint8``."""
        return resize_image(image, size, self.resize_mode)

    def floats(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Scale and normalise pixels ``[N, S, S, 3]``."""
        std = np.array(self.std)
        factor, shift = (self.scale / std).astype(np.float32), (np.array(self.mean) / std).astype(np.float32)
        values: npt.NDArray[np.float32] = pixels * factor - shift
        return values


_IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
PREPROCESSING = {
    "kdedge": Preprocessing(),
    "torchvision": Preprocessing(**_IMAGENET, resize_mode="crop-0.875"),
    "timm": Preprocessing(**_IMAGENET, resize_mode="crop-0.875-bicubic"),
    "keras": Preprocessing(scale=1 / 127.5, mean=(1.0, 1.0, 1.0)),
    "ultralytics": Preprocessing(resize_mode="crop-1"),
}
"""The usual preprocessing of models from these projects. ``keras`` is the mode "tf", from -1 to 1."""


@dataclass(frozen=True)
class Classifier:
    """An open classifier.

    Attributes:
        path: The file.
        session: The onnxruntime session.
        input_name: Name of the input.
        layout: One of `LAYOUTS`.
        dtype: Type of the input.
        batch: Number of images per run, if the model fixes it.
        image_size: Side length S of the images in pixels.
        classes: Number of classes; None: the model does not state it.
        class_names: Names from the metadata of kdedge's own models, or None.
        resize_mode: How images become square, from the same metadata; None: a model of floats without them.
        grey: Whether it takes one channel.
    """

    path: Path
    session: Any
    input_name: str
    layout: str
    dtype: np.dtype[Any]
    batch: int | None
    image_size: int
    classes: int | None
    class_names: tuple[str, ...] | None
    resize_mode: str | None
    grey: bool = False

    @property
    def takes_floats(self) -> bool:
        """Whether pixels are scaled and normalised for this model."""
        return self.dtype.kind == "f"

    @property
    def quantized(self) -> bool:
        """Whether any layer of the model has integer weights or activations."""
        data = self.path.read_bytes()
        return b"uantizeLinear" in data or b"QLinear" in data  # also DequantizeLinear

    def predict(self, pixels: npt.NDArray[np.uint8], preprocessing: Preprocessing, classes: int) -> Any:
        """Return the predicted class of each image, ``[N] int64``, from `logits`."""
        return self.logits(pixels, preprocessing, classes).argmax(axis=1)

    def logits(self, pixels: npt.NDArray[np.uint8], preprocessing: Preprocessing, classes: int) -> npt.NDArray[Any]:
        """Return the logits of each image, ``[N, classes]``.

        Args:
            pixels: ``[N, S, S, 3] uint8`` RGB.
            preprocessing: Of a model that takes floats.
            classes: Number of classes of the images.

        Raises:
            InputError: The model returns another number of logits.
            StageError: onnxruntime fails, or a logit is not finite.
        """
        pixels = to_grey(pixels) if self.grey else pixels
        values: npt.NDArray[Any] = preprocessing.floats(pixels) if self.takes_floats else pixels
        values = values.astype(self.dtype)
        if self.layout == "NCHW":
            values = values.transpose(0, 3, 1, 2)
        step = self.batch or len(values)
        logits = np.concatenate([self._run(values[start : start + step]) for start in range(0, len(values), step)])
        if logits.shape != (len(values), classes):
            raise InputError(
                f"{self.path} returns {list(logits.shape)} for {len(values)} images of {classes} classes",
                f"expected logits [{len(values)}, {classes}]: the images and the model need the same classes",
            )
        if not np.isfinite(logits).all():
            raise StageError(f"{self.path} returns logits that are NaN or infinite", "check the preprocessing")
        return logits

    def _run(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the logits of at most one batch, which is filled up with its last image."""
        count = len(values)
        if self.batch and count < self.batch:
            values = np.concatenate([values, np.repeat(values[-1:], self.batch - count, axis=0)])
        try:
            output: npt.NDArray[Any] = self.session.run(None, {self.input_name: np.ascontiguousarray(values)})[0]
        except onnxruntime_errors() as error:
            raise StageError(f"{self.path} loads but does not run: {first_line(error)}", _EXPECTED) from error
        return output[:count]


def open_classifier(path: Path, *, layout: str = "", image_size: int = 0) -> Classifier:
    """Open an ONNX classifier.

    Args:
        path: The model file.
        layout: One of `LAYOUTS`, needed where the shape does not show it; empty: from the shape.
        image_size: Side length of the images in pixels, needed where the shape is dynamic; 0: from the shape.

    Raises:
        InputError: The file is not a classifier as described above, or an option is missing or contradicts it.
    """
    session, _ = open_session(path, options=session_options(usable_cores()), hint="check the path")
    inputs, outputs = session.get_inputs(), session.get_outputs()
    found = f"{path} takes {describe(inputs)} and returns {describe(outputs)}"
    if len(inputs) != 1 or len(outputs) != 1 or inputs[0].type not in _TYPES or len(inputs[0].shape) != 4:
        raise InputError(f"{found}; {_EXPECTED}", "export the model for inference, with logits as its only output")
    # A dynamic axis is a name or None.
    shape = [axis if isinstance(axis, int) else None for axis in inputs[0].shape]
    channels = (3, 1) if _TYPES[inputs[0].type] == np.uint8 else (3,)
    fitting = [name for number in channels for name, axis in _CHANNEL_AXES.items() if shape[axis] == number]
    fitting = fitting or [name for name, axis in _CHANNEL_AXES.items() if shape[axis] is None]
    if not fitting or (layout and layout not in fitting):
        raise InputError(f"{found}; {_EXPECTED}" + (f" in {layout}" if layout else ""), "check the model and --layout")
    if not layout and len(fitting) > 1:
        raise InputError(f"{found}: the layout is not clear", "give --layout NCHW or --layout NHWC")
    layout = layout or fitting[0]
    sides = {side for side in (shape[2:4] if layout == "NCHW" else shape[1:3]) if side is not None}
    if len(sides) > 1:
        raise InputError(f"{found}; expected square images", "export the model for square images")
    if not sides and not image_size:
        raise InputError(f"{found}: the size of the images is dynamic", "give --image-size")
    size = next(iter(sides), image_size)
    if image_size not in (0, size):
        raise InputError(f"--image-size {image_size} differs from the {size} pixels that {path} takes", "leave it out")
    # The ranges of dynamically quantized layers are those of the whole batch.
    dynamic = b"DynamicQuantizeLinear" in path.read_bytes()
    classes = outputs[0].shape[-1] if outputs[0].shape else None  # an unknown shape has no axes
    described = "float" not in inputs[0].type or "kdedge.preprocessing" in session.get_modelmeta().custom_metadata_map
    return Classifier(
        path, session, inputs[0].name, layout, _TYPES[inputs[0].type], shape[0] or (1 if dynamic else None), size,
        classes if isinstance(classes, int) else None, read_class_names(path, session),
        read_resize_mode(path, session) if described else None, shape[_CHANNEL_AXES[layout]] == 1,
    )  # fmt: skip


def predict_all(
    models: Sequence[Classifier],
    preprocessing: Preprocessing,
    read: Callable[[int], npt.NDArray[np.uint8]],
    count: int,
    classes: int,
) -> list[npt.NDArray[np.int64]]:
    """Return the predictions of several models for the same images, ``[N] int64`` each.

    Args:
        models: Models of one image size.
        preprocessing: For the models that take floats.
        read: Returns the pixels of an image, ``[S, S, 3] uint8``; it is called on several threads.
        count: Number of images N.
        classes: Number of classes.

    Raises:
        InputError: An image cannot be read, or a model has another number of classes.
        StageError: A model fails.
    """
    predictions = [np.empty(count, np.int64) for _ in models]
    step = inputs_at_once(image_input(models[0].image_size).shape, 256, 32)
    spans = list(pairwise([*range(0, count, step), count]))
    with ThreadPoolExecutor(min(8, usable_cores())) as pool, track("gate", count) as progress:
        ahead = pool.map(read, range(*spans[0]))
        for index, (start, stop) in enumerate(spans):
            pixels = np.stack(list(ahead))
            if index + 1 < len(spans):
                ahead = pool.map(read, range(*spans[index + 1]))  # decoded while the models run
            for model, predicted in zip(models, predictions, strict=True):
                predicted[start:stop] = model.predict(pixels, preprocessing, classes)
            progress.advance(stop - start)
    return predictions
