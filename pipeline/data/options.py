"""Options of the data set."""

import os
import re
from dataclasses import dataclass

from kdedge.options import option
from kdedge.preprocessing import RESIZE_MODES, check_resize

__all__ = ["NAMES", "PATH_KINDS", "WINDOWS", "DataConfig", "without_query"]

NAMES = ("cifar10", "sample")
"""The data sets that have a name. Any other source is a kind and a path, such as ``folder:my_images``."""

PATH_KINDS = ("folder", "table", "arrays", "hf", "shards", "windows")
"""Kinds of data sets that are paths, or names on the Hugging Face hub."""

WINDOWS = "windows:"
"""With what the source of windows of a signal begins."""

_KIND_OF_FILE = {".csv": "table", ".parquet": "table", ".npz": "arrays", ".tar": "shards"}


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how the training images are split.

    ``source`` always has one form: a path without a kind gets it here, so that both ways to write it are the same run.
    """

    source: str = option(
        "cifar10",
        "Data set: cifar10, sample, the PATH of a folder, table (.csv, .parquet) or .npz of images, hf:PATH or "
        "hf:OWNER/NAME of Hugging Face, shards:PATH or shards:URL of WebDataset, or windows:PATH of recordings of a "
        "signal.",
        flag="--data",
    )
    dir: str = option(
        "",
        "Folder with CIFAR-10 in an official format. If not given, CIFAR-10 comes from the cache or a download.",
        flag="--data-dir",
    )
    image_size: int = option(32, "Side length of the images in pixels.", flag="--image-size", least=16, most=512)
    resize: str = option(
        RESIZE_MODES[0],
        "How images become square: squeeze changes the aspect ratio, crop takes the middle, pad repeats the edges. "
        "crop-SHARE and crop-SHARE-bicubic are those of torchvision and timm.",
        flag="--resize",
        parse=check_resize,
    )
    color: str = option(
        "auto", "Channels of the model: rgb, grey (one channel), or auto (grey if no image has color).",
        flag="--color", choices=("auto", "rgb", "grey"),
    )  # fmt: skip
    val_fraction: float = option(
        0.1, "Share of the training data held out for validation.", flag="--val-fraction", least=0.01, most=0.5
    )
    test_fraction: float = option(
        0.2,
        "Share of the data held out for the test, if there is no test part.",
        flag="--test-fraction",
        least=0.05,
        most=0.5,
    )
    window: int = option(
        0, "Samples of a window of a signal.", flag="--window", least=0, most=65536, auto="the whole recording"
    )
    stride: int = option(
        0, "Samples between the starts of training windows. Test windows never overlap.", flag="--stride", least=0,
        auto="half a window",
    )  # fmt: skip
    layout: str = option(
        "", "Axes of x in a .npz of windows: NLC (windows, samples, channels) or NCL.", flag="--layout",
        choices=("", "NLC", "NCL"),
    )  # fmt: skip
    rate: float = option(0.0, "Samples of a signal per second.", flag="--rate", least=0, auto="from the time column")
    groups: str = option(
        "", "Column of the groups of recordings, such as subjects, or folder (CLASS/GROUP/RECORDING.csv).",
        flag="--groups",
    )  # fmt: skip
    train_size: int = option(
        0, "Number of training images or windows, stratified by class (0 = all).", flag="--train-size", least=0
    )

    def __post_init__(self) -> None:
        """Put the kind before a path that has none."""
        object.__setattr__(self, "source", _with_kind(self.source))


def without_query(text: str) -> str:
    """Return a source or path; an address loses its query, which may be a key that expires."""
    return re.sub(r"^((?:\w+:)?https?:/[^?]*)\?.*", r"\1", text)


def _with_kind(source: str) -> str:
    """Return ``KIND:PATH`` for a path, and any other source unchanged."""
    if source in NAMES or source.partition(":")[0] in PATH_KINDS:
        return source
    is_path = any(separator in source for separator in (os.sep, os.altsep) if separator)
    path = os.path.expanduser(source)
    if (kind := _KIND_OF_FILE.get(os.path.splitext(path)[1].lower())) and not os.path.isdir(path):
        return f"{kind}:{source}"
    return f"folder:{source}" if is_path or os.path.exists(path) else source
