"""Opens data sets: CIFAR-10, the sample of it in this package, the user's own images, or windows of a signal.

`open_dataset` finds the files, downloads them if necessary, and checks them. Only `Dataset.train` and `Dataset.test`
return pixels, and only the benchmark calls the latter. Every choice uses the two parts of `split_train_val`. `opened`,
`data_sha256` and `training_images` cache their results, because listing and reading a large data set takes long.
``kdedge data --data sample`` prints the content of a source.
"""

import difflib
from functools import cache, lru_cache
from pathlib import Path

from kdedge.dataset import Dataset, Split, split_train_val
from kdedge.errors import InputError
from kdedge.files import file_stamp
from kdedge.pipeline.data.options import NAMES, PATH_KINDS, WINDOWS, DataConfig
from kdedge.pipeline.data.parts import Listed

__all__ = [
    "check_outside",
    "data_sha256",
    "find_dataset",
    "list_images",
    "open_dataset",
    "opened",
    "training_images",
]

# The last decoded training and validation images are kept for the next stage of the process.
_kept: dict[tuple[str, DataConfig], tuple[Split, Split]] = {}


def _user_path(text: str) -> Path:
    """Return a path with ``~`` expanded.

    Raises:
        InputError: It is empty, the user in it is unknown, or the operating system refuses the path.
    """
    if not text:
        raise InputError("--data has no path", "give one, as in `--data my_images` or `--data windows:my_recordings`")
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"the path {text[:80]!r} cannot be used: {error}", "give the path of a folder or file"
        ) from error
    return path


def open_dataset(config: DataConfig) -> Dataset:
    """Open the data set that ``config.source`` names and check its files, without decoding an image.

    Args:
        config: Source, folder, image size and share of test images.

    Raises:
        InputError: As `find_dataset`, or images cannot be read.
        StageError: CIFAR-10 could not be fetched or not be written to the cache.
    """
    from kdedge.pipeline.data.user_images import UserImages

    dataset = find_dataset(config)
    if isinstance(dataset, UserImages):
        dataset.check_files()
    return dataset


def check_outside(dataset: Dataset, run_dir: Path) -> None:
    """Refuse a run directory inside a folder of images or recordings, where the next command would read it as a class.

    Raises:
        InputError: It is inside one.
    """
    from kdedge.pipeline.data.user_images import UserImages
    from kdedge.pipeline.data.windows.dataset import Windows

    if isinstance(dataset, Windows):
        inside = {dataset.root.resolve()}
    elif isinstance(dataset, UserImages) and dataset.kind == "folder":
        # Folders next to a train and a test folder are ignored.
        parts = {item.path.parent.parent.resolve() for item in dataset.items}
        inside = parts if len(parts) > 1 else {dataset.root.resolve()}
    else:
        return
    if any(run_dir.resolve().is_relative_to(part) for part in inside):
        raise InputError(
            f"--out {run_dir} is inside the data folder {dataset.root}, where it would become a class",
            "give an --out outside of it",
        )


def find_dataset(config: DataConfig) -> Dataset:
    """Find the data set that ``config.source`` names: as `open_dataset`, without opening the user's images.

    Raises:
        InputError: Unknown source; a file or folder is missing, damaged or not as expected.
        StageError: CIFAR-10 cannot be downloaded or written to the cache.
    """
    if config.source == "cifar10":
        from kdedge.pipeline.data.cifar10 import open_cifar10
        from kdedge.pipeline.data.cifar10_fetch import fetch_cifar10

        folder = _user_path(config.dir) if config.dir else fetch_cifar10()
        return open_cifar10(folder, config.image_size, config.resize)
    if config.source == "sample":
        from kdedge.pipeline.data.sample import open_sample

        return open_sample(config.image_size, config.resize)
    if config.source.startswith(WINDOWS):
        path = _user_path(config.source.removeprefix(WINDOWS))
        files = [file for file in sorted([path, *path.rglob("*")]) if file.is_file()]
        return _windows(config, path, tuple((file, *file_stamp(file)) for file in files))
    from kdedge.pipeline.data.user_images import divided

    return divided(list_images(config.source), config)


def list_images(source: str) -> Listed:
    """List the user's images, see `kdedge.pipeline.data.options.PATH_KINDS`, without opening one.

    Args:
        source: Kind and path, such as ``folder:my_images``.

    Raises:
        InputError: Unknown source; a file or folder is missing, damaged or not as expected.
    """
    from kdedge.pipeline.data.arrays import list_arrays
    from kdedge.pipeline.data.folder import list_folder
    from kdedge.pipeline.data.hugging_face import list_hugging_face
    from kdedge.pipeline.data.shard_downloads import fetch_shards, is_address
    from kdedge.pipeline.data.shards import list_shards
    from kdedge.pipeline.data.table import list_table

    kind, colon, path = source.partition(":")
    if source.startswith(WINDOWS):
        raise InputError(f"--data {source} has windows of a signal, not images", "give the path of images")
    if kind in PATH_KINDS and colon:
        listers = {
            "folder": list_folder,
            "table": list_table,
            "arrays": list_arrays,
            "hf": list_hugging_face,
            "shards": list_shards,
        }
        if kind == "shards" and is_address(path):
            path = fetch_shards(path)
        return listers[kind](_user_path(path))
    match = difflib.get_close_matches(kind, [*NAMES, *PATH_KINDS], n=1)
    suggestion = f" (did you mean {match[0]!r}?)" if match else ""
    raise InputError(
        f"unknown data set --data {source}{suggestion}",
        f"expected {', '.join(NAMES)}, hf:PATH, shards:PATH, windows:PATH, or the path of a folder, table (.csv, "
        ".parquet) or .npz file; it is none of them",
    )


def opened(data: DataConfig) -> Dataset:
    """Return the result of `open_dataset`, cached per options and working directory.

    Raises:
        InputError: A file or folder is missing, damaged or not as expected.
        StageError: CIFAR-10 cannot be downloaded or written to the cache.
    """
    return _opened(data, Path.cwd())


def data_sha256(data: DataConfig, part: str) -> str:
    """Return the SHA-256 of the ``train`` or the ``test`` part, as 64 hexadecimal digits.

    Raises:
        InputError: An image cannot be read.
    """
    return _hashed(data, part, Path.cwd())


def training_images(dataset: Dataset, data: DataConfig) -> tuple[Split, Split]:
    """Return the training and the validation images that are used, read-only, decoded once per process.

    Raises:
        InputError: Images cannot be read or are too few to divide.
        StageError: The cache of decoded images cannot be written.
    """
    key = (dataset.train_sha256(), data)
    if key not in _kept:
        _kept.clear()
        train, val = map(dataset.decoded, split_train_val(dataset.undecoded(), data.val_fraction, data.train_size))
        for part in (train, val):
            part.images.flags.writeable = False
        _kept[key] = train, val
    return _kept[key]


@lru_cache(maxsize=1)
def _windows(config: DataConfig, path: Path, _: tuple[tuple[Path, int, int], ...]) -> Dataset:
    """Return the windows of a file or folder, read once per process while its files stay as they are."""
    from kdedge.pipeline.data.windows.dataset import open_windows

    return open_windows(config, path)


@cache
def _opened(data: DataConfig, _: Path) -> Dataset:
    return open_dataset(data)


@cache
def _hashed(data: DataConfig, part: str, _: Path) -> str:
    dataset = opened(data)
    return dataset.train_sha256() if part == "train" else dataset.test_sha256()
