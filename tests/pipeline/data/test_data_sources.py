"""The training images of a run: opened, hashed and decoded once per process."""

from pathlib import Path

import numpy as np
import pytest
from image_folders import make_tree, save

from kdedge.dataset import split_train_val
from kdedge.pipeline.data import items, sources
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.sample import Sample
from kdedge.pipeline.data.sources import open_dataset, training_images


def test_training_images_are_decoded_once_per_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(tmp_path, {"a": 20, "b": 20})
    config = DataConfig(source=str(tmp_path), image_size=16)
    first = training_images(config)
    with monkeypatch.context() as patch:
        patch.setattr(items, "read_image", lambda *_: pytest.fail("decoded an image again"))
        assert training_images(config) is first
    for name in ("000", "001", "002"):
        save(tmp_path / "a" / f"{name}.png", (0, 0, 0))
    changed = training_images(config)
    assert changed is not first
    assert any((part.images == 0).all(axis=(1, 2, 3)).any() for part in changed)
    assert sum(map(len, training_images(DataConfig(source=str(tmp_path), image_size=17)))) == 32
    monkeypatch.setattr(sources, "_MOST_KEPT_BYTES", 0)
    assert training_images(config) is not training_images(config)


def test_the_sample_is_decoded_once_too(monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(source="sample", train_size=300)
    whole = open_dataset(config).train()
    first = training_images(config)
    for part, expected in zip(first, split_train_val(whole, config.val_fraction, 300), strict=True):
        assert np.array_equal(part.images, expected.images)
        assert not part.images.flags.writeable
    monkeypatch.setattr(Sample, "train", lambda self: pytest.fail("decoded the sample again"))
    assert training_images(config) is first
