"""Images and labels: CIFAR-10, the sample of it that is shipped, or the user's own class folders.

`open_dataset` finds the files, fetches them if need be and checks them; pixels are handed out only by `Dataset.train`
and `Dataset.test`, and only the benchmark calls the latter. Everything that chooses works on the two parts
that `split_train_val` returns. Run ``kdedge data --data sample`` to see what a source holds.
"""

import difflib
from pathlib import Path

from pipeline.config import DataConfig
from pipeline.data.base import Dataset, Split, split_train_val
from pipeline.errors import InputError

__all__ = ["Dataset", "Split", "open_dataset", "split_train_val"]

_SOURCES = ("cifar10", "sample", "folder:PATH")


def _user_path(text: str) -> Path:
    """Return the path that a user wrote, ``~`` expanded.

    Raises:
        InputError: There is no such user, or the operating system refuses such a path.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"the path {text[:80]!r} cannot be used: {error}", "give the path of a folder") from error
    return path


def open_dataset(config: DataConfig) -> Dataset:
    """Open the data set that ``config.source`` names and check its files, without decoding an image.

    Args:
        config: Source, folder, image size and share of test images.

    Raises:
        InputError: Unknown source; a file or folder is missing, damaged or not as expected.
        StageError: CIFAR-10 could not be fetched or not be written to the cache.
    """
    source, colon, path = config.source.partition(":")
    if config.source == "cifar10":
        from pipeline.data.cifar10 import open_cifar10
        from pipeline.data.cifar10_fetch import fetch_cifar10

        folder = _user_path(config.dir) if config.dir else fetch_cifar10()
        return open_cifar10(folder, config.image_size, config.val_fraction, config.train_size)
    if config.source == "sample":
        from pipeline.data.sample import open_sample

        return open_sample(config.image_size, config.val_fraction, config.train_size)
    if source == "folder" and colon:
        from pipeline.data.folder import open_folder

        if not path:
            raise InputError("--data folder: names no folder", "give its path, as in `--data folder:my_images`")
        return open_folder(config, _user_path(path))
    match = difflib.get_close_matches(source, [name.partition(":")[0] for name in _SOURCES], n=1)
    suggestion = f" (did you mean {match[0]!r}?)" if match else ""
    raise InputError(f"unknown data set --data {config.source}{suggestion}", f"expected one of {', '.join(_SOURCES)}")
