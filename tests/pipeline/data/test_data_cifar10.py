"""CIFAR-10 from folders in both official formats, with small batches and their MD5s in place of the official ones."""

import hashlib
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdedge.errors import InputError
from kdedge.pipeline.data import cifar10
from kdedge.pipeline.data.cifar10 import BINARY, PICKLE, open_cifar10
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.sources import open_dataset

ROWS = 20


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes text and bytes as Python 2 did, the way the official batches are."""

    dispatch = pickle._Pickler.dispatch.copy()  # type: ignore[attr-defined]

    def save_string(self, value: "str | bytes") -> None:
        data = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + len(data).to_bytes(4, "little") + data)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string


def python2_pickle(batch: object) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(batch)
    return buffer.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def batches() -> list[tuple[np.ndarray, np.ndarray]]:
    """Six batches of colour planes [ROWS, 3072] uint8 and labels [ROWS]."""
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 256, (ROWS, 3072), np.uint8), rng.permutation(ROWS) % 10) for _ in range(6)]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The same small data set in both formats; kdedge takes their MD5s for the official ones."""
    for form in (BINARY, PICKLE):
        folder = tmp_path / form.folder
        folder.mkdir()
        for name, (planes, labels) in zip(form.md5, batches(), strict=True):
            if form is BINARY:
                data = np.concatenate([labels[:, None].astype(np.uint8), planes], axis=1).tobytes()
            else:
                data = python2_pickle({"batch_label": name, "labels": labels.tolist(), "data": planes})
            (folder / name).write_bytes(data)
            table = form.test_md5 if name.startswith("test") else form.train_md5
            monkeypatch.setitem(table, name, hashlib.md5(data).hexdigest())
    return {"bin": tmp_path / BINARY.folder, "py": tmp_path / PICKLE.folder}


@pytest.mark.parametrize("kind", ["bin", "py"])
def test_both_formats_give_the_same_images(folders: dict[str, Path], kind: str) -> None:
    dataset = open_dataset(DataConfig(dir=str(folders[kind])))
    train, test = dataset.train(), dataset.test()
    assert dataset.name == "cifar10"
    assert dataset.image_size == 32
    assert dataset.class_names[3] == "cat"
    assert train.images.shape == (5 * ROWS, 32, 32, 3)
    assert test.images.shape == (ROWS, 32, 32, 3)
    assert train.images.dtype == np.uint8
    assert train.labels.dtype == np.int64
    planes, labels = batches()[1]
    # Green of the pixel in row 2, column 3 is byte 1024 + 2 * 32 + 3 of an image.
    assert train.images[ROWS + 7, 2, 3, 1] == planes[7, 1024 + 67]
    assert train.labels[ROWS + 7] == labels[7]
    assert (test.labels == batches()[5][1]).all()


def test_hashes_do_not_depend_on_the_format_but_on_part_and_size(folders: dict[str, Path]) -> None:
    binary, pickled = open_cifar10(folders["bin"], 32), open_cifar10(folders["py"], 32)
    assert binary.train_sha256() == pickled.train_sha256()
    assert len(binary.train_sha256()) == 64
    assert binary.test_sha256() == pickled.test_sha256()
    assert len({binary.train_sha256(), binary.test_sha256(), open_cifar10(folders["bin"], 40).train_sha256()}) == 3


def test_parent_folder_is_accepted(folders: dict[str, Path]) -> None:
    assert open_cifar10(folders["bin"].parent, 32).folder == folders["bin"]
    for path in folders["bin"].iterdir():
        path.unlink()
    assert open_cifar10(folders["bin"].parent, 32).folder == folders["py"]


def test_images_are_resized(folders: dict[str, Path]) -> None:
    small, large = open_cifar10(folders["bin"], 32).test(), open_cifar10(folders["bin"], 48).test()
    assert large.images.shape == (ROWS, 48, 48, 3)
    assert (large.labels == small.labels).all()
    expected = Image.fromarray(small.images[4]).resize((48, 48), Image.Resampling.BILINEAR)
    assert (large.images[4] == np.asarray(expected)).all()


def test_train_does_not_open_the_test_batch(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        dataset = open_cifar10(folder, 32)
        (folder / next(iter(dataset.format.test_md5))).unlink()
        assert len(dataset.train()) == 5 * ROWS
        assert dataset.train_sha256()


@pytest.mark.parametrize(("kind", "name"), [("bin", "data_batch_3.bin"), ("py", "test_batch")])
def test_bad_files_are_found_when_the_folder_is_opened(folders: dict[str, Path], kind: str, name: str) -> None:
    path = folders[kind] / name
    good = path.read_bytes()
    for bad in (good[:-100], good[:5000] + bytes([good[5000] ^ 1]) + good[5001:], b""):
        path.write_bytes(bad)
        with pytest.raises(InputError, match=f"{name} is truncated or altered: {len(bad):,} bytes with MD5") as caught:
            open_cifar10(folders[kind], 32)
        assert hashlib.md5(good).hexdigest() in str(caught.value)
        assert "--data-dir" in caught.value.hint
        assert caught.value.exit_code == 2
    path.unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        open_cifar10(folders[kind], 32)
    path.mkdir()
    with pytest.raises(InputError, match=f"{name} cannot be read: Is a directory"):
        open_cifar10(folders[kind], 32)


def test_files_that_change_after_opening_are_refused(folders: dict[str, Path]) -> None:
    dataset = open_cifar10(folders["py"], 32)
    (folders["py"] / "test_batch").write_bytes(python2_pickle({"labels": [], "data": np.zeros((0, 3072), np.uint8)}))
    with pytest.raises(InputError, match="test_batch is truncated or altered"):
        dataset.test()
    (folders["py"] / "data_batch_2").unlink()
    with pytest.raises(InputError, match="data_batch_2 is missing"):
        dataset.train()


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"folder .*nowhere does not exist") as caught:
        open_cifar10(tmp_path / "nowhere", 32)
    assert caught.value.exit_code == 2
    assert "--data sample" in caught.value.hint
    with pytest.raises(InputError, match=r"has no CIFAR-10 files: expected data_batch_1.bin"):
        open_cifar10(tmp_path, 32)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="file is not a folder"):
        open_cifar10(tmp_path / "file", 32)


def test_a_pickle_is_never_loaded_unchecked(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10._BatchUnpickler, "load", lambda _: pytest.fail("was loaded"))
    (folders["py"] / "data_batch_1").write_bytes(python2_pickle({"labels": [1]}))
    with pytest.raises(InputError, match="truncated or altered"):
        open_cifar10(folders["py"], 32)


@pytest.mark.parametrize("hostile", [print, eval, Path("x"), np.array([None])], ids=["print", "eval", "Path", "object"])
def test_even_a_checked_pickle_builds_nothing_but_arrays(hostile: object) -> None:
    if isinstance(hostile, np.ndarray):
        hostile = [hostile, print]
    with pytest.raises(pickle.UnpicklingError, match="has no place in a CIFAR-10 batch"):
        cifar10._decode_pickle(pickle.dumps({"data": hostile}, protocol=2))


def test_the_tables_are_the_official_ones() -> None:
    assert BINARY.md5["test_batch.bin"] == "803d5f7f4d78ea53de84dbe85f74fb6d"
    assert PICKLE.md5["test_batch"] == "40351d587109b95175f43aff81a1287e"
    for form in (BINARY, PICKLE):
        assert len(form.train_md5) == 5
        assert len(form.test_md5) == 1
        assert all(len(md5) == 32 and int(md5, 16) for md5 in form.md5.values())
