"""The user's own images in class folders: ``--data PATH``.

`kdedge.pipeline.data.class_folders` describes the layout. Its parts decide which images are held out:

- ``train`` and ``test``: validation images are held out from ``train``.
- ``train``, ``val`` and ``test``: each is used as its name states.
- ``train`` and ``val``: ``val`` is for validation only; test images are held out from ``train``, always the same.
- no parts, or only ``train``: test and validation images are held out.
- ``test`` (with or without ``val``): enough to measure a bundle.
"""

from pathlib import Path

from kdedge.errors import InputError
from kdedge.pipeline.data.class_folders import LAYOUT, find_parts, list_classes, list_part, warn_left_out
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.user_images import UserImages, from_parts

__all__ = ["open_folder"]


def open_folder(config: DataConfig, root: Path) -> UserImages:
    """List the images of class folders and divide them into train, validation and test, without opening one.

    Args:
        config: Image size, number of training images, and the shares to hold out for parts without a folder.
        root: The folder, with the layout of this module's description.

    Raises:
        InputError: A folder is missing or empty, has fewer than two classes or too few images of a class, or the
            classes of the parts differ.
    """
    if not root.is_dir():
        found = "is not a folder" if root.exists() else "does not exist"
        raise InputError(f"the data folder {root} {found}", f"{LAYOUT}, or a .csv, .parquet or .npz file")
    folders = find_parts(root)
    classes_root = folders.get("train") or folders.get("test") or root
    names, items, left_out = list_classes(classes_root, root)
    if len(names) < 2:
        raise InputError(f"{classes_root} has one class folder ({names[0]}), expected at least two", LAYOUT)
    parts = {"train" if "train" in folders or not folders else "test": items}
    for part in ("val", "test"):
        if part in folders and part not in parts:
            parts[part] = list_part(folders[part], classes_root, root, names, left_out)
    warn_left_out(root, left_out)
    return from_parts("folder", root, names, parts, config=config, left_out=left_out)
