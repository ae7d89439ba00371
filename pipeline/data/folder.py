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
from kdedge.pipeline.data.parts import Listed

__all__ = ["list_folder"]


def list_folder(root: Path) -> Listed:
    """List the images of class folders without opening one.

    Args:
        root: The folder, with the layout of this module's description.

    Raises:
        InputError: A folder is missing or empty, or the classes of the parts differ.
    """
    if not root.is_dir():
        found = "is not a folder" if root.exists() else "does not exist"
        raise InputError(f"the data folder {root} {found}", f"{LAYOUT}, or a .csv, .parquet or .npz file")
    folders = find_parts(root)
    classes_root = folders.get("train") or folders.get("test") or root
    names, items, left_out = list_classes(classes_root, root)
    parts = {"train" if "train" in folders or not folders else "test": items}
    for part in ("val", "test"):
        if part in folders and part not in parts:
            parts[part] = list_part(folders[part], classes_root, root, names, left_out)
    warn_left_out(root, left_out)
    return Listed("folder", root, tuple(names), parts, bool(folders), LAYOUT, left_out)
