"""Classifies images with a bundle; `kdedge.export.bundle.predict_recordings` classifies recordings of a signal.

    kdedge predict BUNDLE IMAGE…              # images of any size and mode, folders of them, .npy files of uint8 pixels
    find . -name '*.jpg' | kdedge predict BUNDLE - --json

Requires numpy, onnxruntime and Pillow. Images are decoded and resized exactly like the training images, on threads that
run ahead of the model. Paths on standard input are answered as they arrive.
"""

import itertools
import os
import stat
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.benchmarks.session import open_model, run_model
from kdedge.errors import InputError, command
from kdedge.export.bundle.answers import answers
from kdedge.export.bundle.contents import bundle_hint
from kdedge.export.bundle.predict_recordings import predict_recordings
from kdedge.export.bundle.standalone import Classifier
from kdedge.export.bundle.standalone_signal import Classifier as SignalClassifier
from kdedge.files import read_json
from kdedge.images import EXTENSIONS, HARMLESS, read_image
from kdedge.inputs import InputSpec
from kdedge.machine import usable_cores
from kdedge.progress import warn

__all__ = ["LoadedBundle", "LoadedSignalBundle", "open_bundle", "predict", "read_bundle"]

_SUFFIXES = EXTENSIONS | {".npy"}
_BATCH = 32
_AHEAD = 2 * _BATCH  # files in the queue of the decoders
_STDIN = Path("-")
_CHUNK = 1 << 20  # most bytes of paths in one read of standard input
_Image = tuple[str, npt.NDArray[np.uint8]]


def predict(
    bundle: Path,
    paths: Iterable[Path],
    *,
    top_k: int = 1,
    fp32: bool = False,
    failed: Callable[[InputError], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Classify images and yield the results in order, while later images are decoded.

    Args:
        bundle: Folder that ``kdedge bundle`` wrote.
        paths: Image files, ``.npy`` files of uint8 ``[S, S, 3]`` or ``[N, S, S, 3]`` (of a grey model also ``[S, S]``,
            and 1 as the last of the others), folders of these, and ``-`` for paths on standard input, one per line;
            no result waits for the next line.
        top_k: Number of classes to return per image, best first.
        fp32: Use the FP32 model instead of INT8.
        failed: Called with the error of every bad file, in order. Default: the first error is raised.

    Yields:
        ``file`` (``name[i]`` for image i of several in a ``.npy``), ``label``, ``index`` (of the class),
        ``probability``, and ``top``, a list of ``top_k`` such triples, if ``top_k`` is more than 1.

    Raises:
        InputError: The bundle or a file is missing or unreadable, or a folder has no images.
        StageError: The model fails on the images.
    """
    labels, spec = read_bundle(bundle)
    if not 1 <= top_k <= len(labels):
        raise InputError(
            f"--top {top_k} is out of range: this model has {len(labels)} classes", f"give --top 1 to {len(labels)}"
        )
    name = "student.onnx" if fp32 else "student.int8.onnx"
    model = open_model(bundle / name, hint=f"run `{command('verify', bundle)}`")
    if (model.spec.shape, model.spec.channels, model.classes) != (spec.shape, spec.channels, len(labels)):
        raise InputError(
            f"the model in {bundle} takes {model.spec.words} and has {model.classes} classes; preprocessing.json has "
            f"{spec.words} and labels.txt {len(labels)} classes",
            f"run `{command('verify', bundle)}`",
        )
    if spec.kind == "signal":
        yield from predict_recordings(model, labels, paths, top_k=top_k, failed=failed)
        return
    for batch in _batches(_images(paths, spec)):
        if isinstance(batch, InputError):
            if failed is None:
                raise batch
            failed(batch)
        else:
            names, images = zip(*batch, strict=True)
            yield from answers(names, run_model(model, np.stack(images)), labels, top_k)


class LoadedBundle(Classifier):
    """The model of a bundle, with its class names `labels` and the side length `size` of its images in pixels."""

    def predict(self, frames: Any) -> Any:
        """Return label, class index and probability of a frame, uint8 RGB ``[H, W, 3]``; a list for several frames.

        A frame for a grey model may also be ``[H, W]`` or ``[H, W, 1]``.

        Raises:
            ValueError: A frame has another type or shape, or the model returns logits that are not finite.
        """
        return self(frames)


class LoadedSignalBundle(SignalClassifier):
    """The model of a bundle for signals, with its class names `labels`."""

    def predict(self, windows: Any) -> Any:
        """Return label, class index and probability of a window, ``[L, C]`` in the user's units; a list for several.

        Raises:
            ValueError: A window has another shape, or the model returns logits that are not finite.
        """
        return self(windows)


def open_bundle(bundle: Path, *, fp32: bool = False) -> LoadedBundle | LoadedSignalBundle:
    """Open the model of a bundle to classify frames or windows in a program.

    Raises:
        InputError: There is no bundle, or it is damaged.
    """
    _, spec = read_bundle(bundle)
    model = "student.onnx" if fp32 else "student.int8.onnx"
    # It raises a kdedge error instead of one of onnxruntime.
    open_model(bundle / model, hint=f"run `{command('verify', bundle)}`")
    return LoadedBundle(bundle, model) if spec.kind == "image" else LoadedSignalBundle(bundle, model)


def read_bundle(bundle: Path) -> tuple[list[str], InputSpec]:
    """Return the labels and the input of a bundle.

    Raises:
        InputError: There is no bundle, or one of the two files is damaged.
    """
    try:
        labels = (bundle / "labels.txt").read_text(encoding="utf-8").splitlines()
        spec = InputSpec.from_json(read_json(bundle / "preprocessing.json"))
    except OSError as error:
        raise InputError(
            f"{bundle} is not a bundle: cannot read {error.filename}: {error.strerror}",
            bundle_hint(bundle),
        ) from error
    except (AttributeError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(
            f"labels.txt or preprocessing.json in {bundle} is damaged ({error})", f"run `{command('verify', bundle)}`"
        ) from error
    if not labels:
        raise InputError(f"labels.txt in {bundle} is empty", f"run `{command('verify', bundle)}`")
    return labels, spec


def _images(paths: Iterable[Path], spec: InputSpec) -> Iterator[_Image | InputError | None]:
    """Yield name and pixels, uint8 as ``spec.shape``, of every image in order, and the None of `_files`; decode ahead.

    A bad file yields its error. The last item is None.
    """
    waiting: deque[tuple[Path, Future[npt.NDArray[np.uint8]]]] = deque()
    # Pillow releases the interpreter lock while it decodes and resizes, onnxruntime while it runs.
    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        try:
            for path in itertools.chain(_files(paths), [None]):
                if path is not None:
                    waiting.append((path, pool.submit(_load, path, spec)))
                while waiting and (path is None or len(waiting) >= _AHEAD):
                    yield from _named(*waiting.popleft(), spec)
                if path is None:
                    yield None
        finally:
            for _, future in waiting:
                future.cancel()


def _named(path: Path, loaded: "Future[npt.NDArray[np.uint8]]", spec: InputSpec) -> Iterator[_Image | InputError]:
    """Yield the images of one file with their names, as inputs of the model, or its error."""
    try:
        pixels = loaded.result()
    except InputError as error:
        yield error
        return
    for number, image in enumerate(pixels):
        yield str(path) if len(pixels) == 1 else f"{path}[{number}]", spec.of_rgb(image)


def _batches(images: Iterable[_Image | InputError | None]) -> Iterator[list[_Image] | InputError]:
    """Group images; a None or an error ends the current batch."""
    batch: list[_Image] = []
    for image in images:
        if isinstance(image, tuple):
            batch.append(image)
        if batch and (not isinstance(image, tuple) or len(batch) == _BATCH):
            yield batch
            batch = []
        if isinstance(image, InputError):
            yield image


def _files(paths: Iterable[Path]) -> Iterator[Path | None]:
    """Yield the files, those of folders sorted by name; `_load` refuses other paths.

    None means that the next file may take long to arrive: the images before it are classified first.
    """
    for path in paths:
        if path == _STDIN:
            yield from _files_of_stdin()
        elif os.path.isdir(path):  # unlike Path.is_dir, it returns False for invalid paths
            yield from _images_of(path)
        else:
            yield path


def _images_of(folder: Path) -> Iterator[Path]:
    """Yield the images of a folder, or the folder if it has none; warn of what may be images and is not used.

    `_load` refuses the folders among them, which cannot be read.
    """
    left_out, found = Counter[str](), False
    for file in _files_below(folder):
        suffix = file.suffix.lower()
        if suffix in _SUFFIXES or (file.is_dir() and not file.is_symlink()):
            found = True
            yield file
        elif file.is_dir():
            left_out["link to a folder"] += 1
        elif suffix not in HARMLESS:
            left_out[suffix or "without an extension"] += 1
    if left_out:
        warn(f"{folder}: not classified: {', '.join(f'{count} {kind}' for kind, count in left_out.items())}")
    if not found:
        yield folder


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and its folders, sorted by name, without hidden ones, which training ignores too.

    Links to folders and folders that cannot be read are yielded as they are. A list of all would take a kB each.
    """
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except PermissionError:
        yield folder
        return
    for path in (folder / name for name in names):
        if path.is_dir() and not path.is_symlink():
            yield from _files_below(path)
        elif path.is_file() or path.is_dir():
            yield path


def _files_of_stdin() -> Iterator[Path | None]:
    """Yield the paths on standard input, one per line, with None before every wait for more."""
    stdin: Any = sys.stdin.buffer  # its type lacks read1
    named, rest = False, b""
    while True:
        yield None
        chunk = stdin.read1(_CHUNK)  # the available bytes; waits only if there are none
        text = rest + chunk
        end = text.rfind(b"\n") + 1 if chunk else len(text)
        names, rest = [name for name in text[:end].splitlines() if name], text[end:]
        named = named or bool(names)
        yield from _files(Path(os.fsdecode(name)) for name in names)
        if not chunk:
            break
    if not named:
        yield _STDIN


def _load(path: Path, spec: InputSpec) -> npt.NDArray[np.uint8]:
    """Load the images of one file, uint8 RGB, or of a ``.npy`` as ``[N, *spec.shape]``."""
    if path == _STDIN:
        raise InputError("standard input has no paths", "give one path per line, or the paths as arguments")
    if os.path.isdir(path):
        try:
            os.listdir(path)
        except PermissionError as error:
            raise InputError(f"cannot read the folder {path}: {error.strerror}", "check its permissions") from error
        raise InputError(f"{path} has no images", f"expected files ending in {' '.join(sorted(_SUFFIXES))}")
    try:
        kind = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or str(error)
        missing = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({reason})"
        raise InputError(f"{path} {missing}; expected an image, a .npy file or a folder", "check the path") from error
    if not stat.S_ISREG(kind):
        raise InputError(f"{path} is not a regular file; expected an image, a .npy file or a folder", "check the path")
    if path.suffix.lower() == ".npy":
        return _load_npy(path, spec)
    return read_image(path, spec.size, spec.resize_mode)[None]


def _load_npy(path: Path, spec: InputSpec) -> npt.NDArray[np.uint8]:
    """Load pixels, uint8 RGB or as ``[N, *spec.shape]``."""
    size, hint = spec.size, "save such pixels with numpy.save"
    try:
        # A memory map allocates nothing for a header that claims terabytes, and reads neither pickles nor archives.
        with np.errstate(over="ignore"):
            pixels: npt.NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError, OverflowError) as error:
        raise InputError(f"{path} is not a readable .npy file: {error}", hint) from error
    shape, shapes = pixels.shape, [f"[{size}, {size}, 3]", f"[N, {size}, {size}, 3]"]
    if spec.grey:
        shapes += [f"[{size}, {size}]", f"[N, {size}, {size}, 1]"]
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim == 3:
        pixels = pixels[None]
    if pixels.dtype != np.uint8 or pixels.shape[1:] not in (spec.shape, (size, size, 3)):
        raise InputError(
            f"{path} has {pixels.dtype} {list(shape)}; expected uint8 {', '.join(shapes[:-1])} or {shapes[-1]}", hint
        )
    if not len(pixels):
        raise InputError(f"{path} has no images: its shape is {list(pixels.shape)}", hint)
    return pixels
