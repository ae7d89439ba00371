"""Predictions of any two ONNX classifiers for the images of a data set, paired for the gate.

The images are those of a folder, a table or a NumPy file: all of them, or the test images if the user divided them. The
classes are in the order of the data set; the class names in the metadata of kdedge's own models come first.
"""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdedge.benchmarks.input_adapter import Classifier, Preprocessing, predict_all
from kdedge.benchmarks.prediction_files import Pairs
from kdedge.errors import InputError
from kdedge.images import UnreadableImageError
from kdedge.pipeline.data.items import Item, for_all, groups_of, labels_of
from kdedge.pipeline.data.options import NAMES, DataConfig
from kdedge.pipeline.data.sources import find_dataset, list_images
from kdedge.pipeline.data.user_images import PART_IS
from kdedge.progress import warn

__all__ = ["pair_models"]

_Convert = Callable[[Image.Image], NDArray[np.uint8]]


@dataclass(frozen=True)
class _Images:
    """Test images that are not decoded yet.

    Attributes:
        class_names: Names of the classes.
        labels: ``[N] int64``.
        read: Decodes image ``index`` and converts it.
        items: The images, if they are the user's.
    """

    class_names: tuple[str, ...]
    labels: NDArray[np.int64]
    read: Callable[[int, _Convert], NDArray[np.uint8]]
    items: Sequence[Item] = ()


def pair_models(fp32: Classifier, int8: Classifier, source: str, preprocessing: Preprocessing) -> Pairs:
    """Run both models on the images.

    Args:
        fp32: The FP32 model.
        int8: The INT8 model.
        source: As ``--data``.
        preprocessing: For models that take floats; its resize and crop are for both.

    Raises:
        InputError: Models and images differ in classes or size, or an image cannot be read.
        StageError: A model fails.
    """
    if fp32.image_size != int8.image_size:
        raise InputError(
            f"{fp32.path} takes images of {fp32.image_size} pixels, {int8.path} of {int8.image_size}",
            "compare models of one image size",
        )
    if len({fp32.resize_mode, int8.resize_mode} - {None}) > 1:
        raise InputError(
            f"{fp32.path} was trained with --resize {fp32.resize_mode}, {int8.path} with --resize {int8.resize_mode}",
            "compare an INT8 model with the FP32 model that it was made from",
        )
    images = _with_classes(_open_images(source), (fp32, int8))
    size = fp32.image_size
    try:
        of_fp32, of_int8 = predict_all(
            (fp32, int8),
            preprocessing,
            lambda index: images.read(index, lambda image: preprocessing.pixels(image, size)),
            len(images.labels),
            len(images.class_names),
        )
    except UnreadableImageError:  # name the others too
        for_all(images.items, lambda index: images.items[index].check_pixels(), "checking images")
        raise
    return Pairs(images.class_names, images.labels, of_fp32, of_int8, groups_of(images.items))


def _open_images(source: str) -> _Images:
    config = DataConfig(source=source)
    if config.source in NAMES:
        dataset = find_dataset(config)
        test = dataset.test()
        return _Images(
            dataset.class_names, test.labels, lambda index, convert: convert(Image.fromarray(test.images[index]))
        )
    listed = list_images(config.source)
    *_, items = listed.parts.values()
    if listed.divided and "test" not in listed.parts:
        part = PART_IS[listed.kind]
        raise InputError(
            f"{listed.root} has {' and '.join(listed.parts)} but no test {part}",
            f"name the images to use: --data {shlex.quote(str(items[0].path.parents[1]))}"
            if part == "folder"
            else f"add test {part}",
        )
    items = listed.parts.get("test", items)
    if not listed.divided:
        warn(
            f"{listed.root} has no test {PART_IS[listed.kind]}: all {len(items):,} images are used, so the verdict is "
            "only valid if none of them was used in training"
        )
    return _Images(listed.class_names, labels_of(items), lambda index, convert: items[index].convert(convert), items)


def _with_classes(images: _Images, models: Sequence[Classifier]) -> _Images:
    """Return the images with the classes of the models, of which some may have no images."""
    named = [model for model in models if model.class_names]
    for model in named:
        names = model.class_names or ()
        if names != named[0].class_names:
            raise InputError(f"{named[0].path} and {model.path} have different class names", "compare the same classes")
        if unknown := sorted(set(images.class_names) - set(names)):
            raise InputError(
                f"the images have the class {unknown[0]!r}, {model.path} has {', '.join(names[:8])}"
                f"{' …' if len(names) > 8 else ''}",
                "use images of the classes that the model was trained on",
            )
        positions = np.array([names.index(name) for name in images.class_names])
        images = replace(images, class_names=names, labels=positions[images.labels])
    for model in models:
        if model.classes not in (None, len(images.class_names)):
            raise InputError(
                f"{model.path} returns {model.classes} logits, the images have {len(images.class_names)} classes: "
                f"{', '.join(images.class_names[:8])}{' …' if len(images.class_names) > 8 else ''}",
                "the classes of the images, sorted, must be the classes of the model in the order of its logits",
            )
    return images
