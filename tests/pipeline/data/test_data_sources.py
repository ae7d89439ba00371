"""The training images of a run: opened, hashed and decoded once per process."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from image_folders import make_tree, save

from kdedge import image_cache
from kdedge.dataset import Split, split_train_val
from kdedge.pipeline.data import items, sources
from kdedge.pipeline.data.mirroring import mirrored_keep_class
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.sample import Sample
from kdedge.pipeline.data.sources import open_dataset, training_images
from kdedge.pipeline.models.initial import start_filters
from kdedge.pipeline.training.batches import Batches, predict_logits


def images_of(config: DataConfig) -> tuple[Split, Split]:
    return training_images(open_dataset(config), config)


def test_training_images_are_decoded_once_per_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(tmp_path, {"a": 20, "b": 20})
    config = DataConfig(source=str(tmp_path), image_size=16)
    first = images_of(config)
    with monkeypatch.context() as patch:
        patch.setattr(items, "convert_image", lambda *_: pytest.fail("decoded an image again"))
        again = images_of(config)
    assert all(np.array_equal(one.images, other.images) for one, other in zip(again, first, strict=True))
    with pytest.raises(ValueError, match="read-only"):
        again[0].images[:] = 7  # the next stage has the same images
    assert np.array_equal(images_of(config)[0].images, first[0].images)
    for name in ("000", "001", "002"):
        save(tmp_path / "a" / f"{name}.png", (0, 0, 0))
    changed = images_of(config)
    assert any((part.images == 0).all(axis=(1, 2, 3)).any() for part in changed)
    assert sum(map(len, images_of(DataConfig(source=str(tmp_path), image_size=17)))) == 32


def test_the_sample_is_decoded_once_too(monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(source="sample", train_size=300)
    whole = open_dataset(config).train()
    first = images_of(config)
    for part, expected in zip(first, split_train_val(whole, config.val_fraction, 300), strict=True):
        assert np.array_equal(part.images, expected.images)
    monkeypatch.setattr(Sample, "decoded", lambda *self: pytest.fail("decoded the sample again"))
    assert np.array_equal(images_of(config)[1].images, first[1].images)


def test_mapped_images_train_as_images_in_memory_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDEDGE_CACHE", str(tmp_path))
    config, device, found = DataConfig(source="sample", train_size=1500, image_size=40), torch.device("cpu"), []
    dataset = open_dataset(config)
    for limit in (1 << 30, 1000):
        monkeypatch.setattr(image_cache, "IN_MEMORY", limit)
        monkeypatch.setattr(sources, "_kept", {})
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # PyTorch warns of read-only arrays
            train, val = training_images(dataset, config)
            assert isinstance(train.images, np.memmap) == (limit == 1000)
            batches = [next(Batches(train, 64, 0, 2, device, augment=level).epoch(1)) for level in ("light", "strong")]
            seen = [batch.pixels for batch in batches]
            seen += [start_filters(train.images, 3), predict_logits(lambda pixels: pixels.mean((2, 3)), val, device)]
            found.append([*seen, torch.tensor(mirrored_keep_class(train))])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
