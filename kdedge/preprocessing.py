"""The input that a deployed model expects: `preprocessing.json` of a bundle, also in the metadata of a model."""

from collections.abc import Mapping
from typing import Any

from kdedge.errors import InputError

__all__ = ["RESIZE_MODES", "check_resize", "is_grey", "preprocessing", "resize_mode_of"]

RESIZE_MODES = ("squeeze", "crop", "pad")
"""How an image of another shape becomes square; also ``crop-SHARE``, see `kdedge.resizing.resize_image`."""


def check_resize(mode: str, flag: str) -> None:
    """Check the value of an option that is a resize mode.

    Raises:
        InputError: The mode is unknown.
    """
    if not _is_mode(mode):
        expected = f"expected {', '.join(RESIZE_MODES)}, crop-SHARE or crop-SHARE-bicubic with a share up to 1"
        raise InputError(f"{flag} {mode!r} is unknown: {expected}", f"for example {flag} crop-0.875-bicubic")


def _is_mode(mode: str) -> bool:
    kind, _, share = mode.removesuffix("-bicubic").partition("-")
    if mode in RESIZE_MODES or kind != "crop":
        return mode in RESIZE_MODES
    try:
        return 0.1 <= float(share) <= 1
    except ValueError:
        return False


def preprocessing(size: int, resize_mode: str = RESIZE_MODES[0], color: str = "RGB") -> dict[str, Any]:
    """Return the expected input of a deployed model and the conversion of `read_image`, for users of the model.

    Args:
        size: Side length S of the images in pixels.
        resize_mode: As of `kdedge.resizing.resize_image`.
        color: ``RGB``, or ``grey``: one channel, the luma of the resized RGB pixels.
    """
    return {
        "input": "pixels",
        "layout": "NHWC",
        "dtype": "uint8",
        "color": color,
        "range": [0, 255],
        "size": size,
        "resize": "bicubic" if resize_mode.endswith("-bicubic") else "bilinear",
        "antialias": True,
        "resize_mode": resize_mode,
        "keep_aspect": resize_mode != "squeeze",
        "exif_orientation": "applied",
        "transparency": "on white",
        "output": "logits",
    }


def is_grey(settings: Mapping[str, Any]) -> bool:
    """Return whether the images in a `preprocessing` have one channel; an older version has no such images.

    Raises:
        ValueError: The color is unknown.
    """
    if (color := settings.get("color", "RGB")) not in ("RGB", "grey"):
        raise ValueError(f"the color {color!r} is unknown, expected RGB or grey")
    return bool(color == "grey")


def resize_mode_of(settings: Mapping[str, Any]) -> str:
    """Return the resize mode in a `preprocessing`; of an older version, which has none, it is ``squeeze``.

    Raises:
        ValueError: The mode is unknown.
    """
    mode = str(settings.get("resize_mode", RESIZE_MODES[0]))
    if not _is_mode(mode):
        raise ValueError(f"the resize_mode {mode!r} is unknown, expected {', '.join(RESIZE_MODES)} or crop-SHARE")
    return mode
