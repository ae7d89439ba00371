"""The input that a deployed model expects: `preprocessing.json` of a bundle, also in the metadata of a model."""

from collections.abc import Mapping
from typing import Any

__all__ = ["RESIZE_MODES", "preprocessing", "resize_mode_of"]

RESIZE_MODES = ("squeeze", "crop", "pad")
"""How an image of another shape becomes square, see `kdedge.images.resize_image`."""


def preprocessing(size: int, resize_mode: str = RESIZE_MODES[0]) -> dict[str, Any]:
    """Return the expected input of a deployed model and the conversion of `read_image`, for users of the model.

    Args:
        size: Side length S of the images in pixels.
        resize_mode: One of `RESIZE_MODES`.
    """
    return {
        "input": "pixels",
        "layout": "NHWC",
        "dtype": "uint8",
        "color": "RGB",
        "range": [0, 255],
        "size": size,
        "resize": "bilinear",
        "antialias": True,
        "resize_mode": resize_mode,
        "keep_aspect": resize_mode != "squeeze",
        "exif_orientation": "applied",
        "transparency": "on white",
        "output": "logits",
    }


def resize_mode_of(settings: Mapping[str, Any]) -> str:
    """Return the resize mode in a `preprocessing`; of an older version, which has none, it is ``squeeze``.

    Raises:
        ValueError: The mode is unknown.
    """
    mode = settings.get("resize_mode", RESIZE_MODES[0])
    if mode not in RESIZE_MODES:
        raise ValueError(f"the resize_mode {mode!r} is unknown, expected {', '.join(RESIZE_MODES)}")
    return str(mode)
