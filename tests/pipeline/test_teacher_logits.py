"""The cache of the teacher's logits: a hit gives the bits of a miss, and what is wrong never hits."""

import dataclasses
import errno

import numpy as np
import pytest
import torch
from torch.nn import functional

from kdedge.dataset import Split
from kdedge.pipeline.distill.ensemble import Ensemble
from kdedge.pipeline.distill.teacher_logits import CachedTeacher, LogitsFile, cache_name
from kdedge.pipeline.models.teacher import FeatureTap, build_teacher, hint_candidates
from kdedge.pipeline.training.augmentations import mirrored
from kdedge.pipeline.training.batches import Batch, Batches
from kdedge.pipeline.training.options import RuntimeConfig

CLASSES, IMAGES = 3, 40
AUGMENTATIONS = IMAGES * 18
TEACHER = ("weights", "stem")  # hashes of the weight file and of the description
RUNTIME = RuntimeConfig(device="cpu", threads=1, precision="fp32", isa="some")


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (IMAGES, 16, 16, 3), dtype=np.uint8), np.arange(IMAGES) % CLASSES)
    return next(Batches(split, IMAGES, seed=0, shift=1, device=torch.device("cpu")).epoch(0))


def teacher(seed=0):
    torch.manual_seed(seed)
    return build_teacher("resnet18", CLASSES, "cifar-pool").eval()


def open_file(path):
    return LogitsFile(path, classes=CLASSES, augmentations=AUGMENTATIONS)


def test_a_hit_gives_the_bits_of_a_miss_and_runs_no_teacher(tmp_path, batch):
    first = CachedTeacher(teacher(), RUNTIME, open_file(tmp_path / "a.logits"), 32)
    missed, maps = first(batch)
    assert not maps
    assert (first.take_computed(), first.take_computed()) == (IMAGES, 0)
    broken = teacher(1).requires_grad_(False)
    broken.forward = lambda pixels: pytest.fail("the teacher was run")
    again = CachedTeacher(broken, RUNTIME, open_file(tmp_path / "a.logits"), 32)
    assert torch.equal(again(batch)[0], missed)
    assert again.take_computed() == 0
    with torch.no_grad():
        torch.testing.assert_close(missed, teacher()(batch.pixels), rtol=1e-3, atol=1e-3)
    assert torch.equal(missed, missed.half().float())


def test_several_teachers_give_the_mean_of_their_logits_and_the_maps_of_the_first(tmp_path, batch):
    one, two = (CachedTeacher(teacher(seed), RUNTIME, open_file(tmp_path / f"{seed}.logits"), 32) for seed in (0, 1))
    first, second = one(batch)[0], two(batch)[0]
    assert torch.equal(Ensemble([one])(batch)[0], first)
    both = Ensemble([one, two])
    logits, maps = both(batch, ("layer4.1",))
    torch.testing.assert_close(logits, (first + second) / 2)
    assert torch.equal(maps["layer4.1"], one(batch, ("layer4.1",))[1]["layer4.1"])
    assert (both.take_computed(), both.take_computed()) == (2 * IMAGES, 0)
    both.close()


def test_the_mean_of_both_flips_takes_the_mirror_images_from_the_cache(tmp_path, batch):
    member = CachedTeacher(teacher(), RUNTIME, open_file(tmp_path / "a.logits"), 32)
    both = Ensemble([member], mirror_shift=1)
    logits, maps = both(batch, ("layer4.1",))
    mirror = batch._replace(pixels=batch.pixels.flip(-1), augmentations=mirrored(batch.augmentations, 1))
    assert both.take_computed() == 2 * IMAGES
    torch.testing.assert_close(logits, (member(batch)[0] + member(mirror)[0]) / 2)
    assert torch.equal(both(mirror)[0], logits)
    assert torch.equal(maps["layer4.1"], member(batch, ("layer4.1",))[1]["layer4.1"])
    assert both.take_computed() == 0


def test_inputs_without_a_number_are_computed_every_time_and_not_kept(tmp_path, batch):
    path = tmp_path / "a.logits"
    cached = CachedTeacher(teacher(), RUNTIME, open_file(path), 32)
    unnumbered = batch._replace(augmentations=np.full(IMAGES, -1))
    first, again = cached(unnumbered)[0], cached(unnumbered)[0]
    assert cached.take_computed() == 2 * IMAGES
    assert not any(path.read_bytes())
    assert torch.equal(first, again)
    assert torch.equal(first, cached(batch)[0])


def test_what_is_missing_in_part_gives_the_same_bits(tmp_path, batch):
    whole = CachedTeacher(teacher(), RUNTIME, open_file(tmp_path / "a.logits"), 32)(batch)[0]
    some = batch._replace(pixels=batch.pixels[::3], labels=batch.labels[::3], augmentations=batch.augmentations[::3])
    shared = open_file(tmp_path / "b.logits")
    CachedTeacher(teacher(), RUNTIME, shared, 32)(some)
    rest = CachedTeacher(teacher(), RUNTIME, shared, 32)
    assert torch.equal(rest(batch)[0], whole)
    assert rest.take_computed() == IMAGES - len(some.augmentations)


def test_maps_are_the_same_with_and_without_the_logits_at_hand_and_then_the_teacher_runs_no_deeper(tmp_path, batch):
    blocks = ("layer1.0", "layer2.1")
    network = teacher()
    first, again = (CachedTeacher(network, RUNTIME, open_file(tmp_path / "a.logits"), 32) for _ in range(2))
    logits, missed = first(batch, blocks)
    deeper = []
    network.backbone.layer3.register_forward_hook(lambda *_: deeper.append(True))
    found_logits, found = again(batch, blocks)
    assert not deeper
    assert again.take_computed() == 0
    assert torch.equal(found_logits, logits)
    assert found.keys() == missed.keys() == set(blocks)
    with torch.no_grad(), FeatureTap(network, blocks) as tap:
        network(batch.pixels)
        for name in blocks:
            assert torch.equal(found[name], missed[name])
            torch.testing.assert_close(found[name], tap.maps[name], rtol=1e-3, atol=1e-3)
    assert deeper, "the plain call of the teacher above was cut short"


def test_maps_of_a_densenet_are_the_same_with_and_without_the_logits_at_hand(tmp_path, batch):
    torch.manual_seed(0)
    network = build_teacher("densenet121", CLASSES, "imagenet").eval()
    deepest = list(hint_candidates(network))[-1]
    small = Batch(functional.interpolate(batch.pixels[:4], size=32), batch.labels[:4], batch.augmentations[:4])
    (_, missed), (_, found) = (
        CachedTeacher(network, RUNTIME, open_file(tmp_path / "a.logits"), 32)(small, (deepest,)) for _ in range(2)
    )
    assert (missed[deepest] < 0).any(), "the classifier behind it rectifies it in place"
    assert torch.equal(found[deepest], missed[deepest])


def test_a_torn_or_misplaced_entry_is_a_miss(tmp_path):
    path = tmp_path / "a.logits"
    file = open_file(path)
    logits = np.arange(5 * CLASSES, dtype=np.float16).reshape(5, CLASSES) + 1
    file.write(np.arange(5), logits)
    entry = 2 * CLASSES + 4
    data = bytearray(path.read_bytes())
    data[1 * entry] ^= 1  # another logit
    data[2 * entry + 2 : 3 * entry] = bytes(entry - 2)  # half written
    data[3 * entry : 4 * entry] = data[4 * entry : 5 * entry]  # in the place of another view
    path.write_bytes(data[: 5 * entry - 1])  # cut at the end
    read, found = open_file(path).read(np.arange(6))
    assert found.tolist() == [True, False, False, False, False, False]
    assert read[0].tolist() == logits[0].tolist()


def test_another_teacher_or_other_data_or_arithmetic_have_another_file(monkeypatch):
    name = cache_name(TEACHER, "data", 2, 32, RUNTIME)
    assert name == cache_name(TEACHER, "data", 2, 32, dataclasses.replace(RUNTIME, seed=7))
    others = [cache_name(changed, "data", 2, 32, RUNTIME) for changed in (("other", "stem"), ("weights", "other"))]
    others += [
        cache_name(TEACHER, "other", 2, 32, RUNTIME),
        cache_name(TEACHER, "data", 1, 32, RUNTIME),
        cache_name(TEACHER, "data", 2, 64, RUNTIME),
    ]
    others += [
        cache_name(TEACHER, "data", 2, 32, dataclasses.replace(RUNTIME, **changed))
        for changed in ({"threads": 2}, {"precision": "bf16"}, {"isa": "avx2"})
    ]
    monkeypatch.setattr("kdedge.pipeline.distill.teacher_logits._VERSION", 0)
    others.append(cache_name(TEACHER, "data", 2, 32, RUNTIME))
    assert len({name, *others}) == 10


def test_a_cache_that_cannot_be_written_costs_a_warning_not_the_run(tmp_path, batch, capsys):
    (tmp_path / "file").write_text("")
    cached = CachedTeacher(teacher(), RUNTIME, open_file(tmp_path / "file" / "a.logits"), 32)
    expected, _ = CachedTeacher(teacher(), RUNTIME, open_file(tmp_path / "b.logits"), 32)(batch)
    assert torch.equal(cached(batch)[0], expected)
    assert "teacher logits are not kept" in capsys.readouterr().err


def test_a_full_disk_costs_a_warning_not_the_run(tmp_path, batch, capsys):
    class Full:
        closed = False

        def close(self):
            self.closed = True

        def seek(self, place):
            pass

        def read(self, count):
            return b""

        def write(self, data):
            raise OSError(errno.ENOSPC, "no space for logits")

    file = open_file(tmp_path / "a.logits")
    file._file = full = Full()
    cached = CachedTeacher(teacher(), RUNTIME, file, 32)
    assert torch.equal(cached(batch)[0], cached(batch)[0])
    assert "teacher logits are not kept: no space for logits" in capsys.readouterr().err
    assert full.closed


def test_a_closed_file_has_nothing_and_keeps_nothing(tmp_path):
    file, logits = open_file(tmp_path / "a.logits"), np.ones((1, CLASSES), np.float16)
    file.write(np.arange(1), logits)
    handle = file._file
    file.close()
    assert handle.closed
    assert not file.read(np.arange(1))[1].any()
    file.write(np.arange(1, 2), logits)
    assert open_file(tmp_path / "a.logits").read(np.arange(2))[1].tolist() == [True, False]
    unused = open_file(tmp_path / "b.logits")
    unused.close()
    assert not (tmp_path / "b.logits").exists()


def test_old_files_make_room_and_too_many_views_are_not_kept(tmp_path, monkeypatch):
    import os

    for age, name in enumerate("cba"):
        file = open_file(tmp_path / f"{name}.logits")
        file.write(np.arange(2000), np.ones((2000, CLASSES), np.float16))
        os.utime(tmp_path / f"{name}.logits", (1000 + age, 1000 + age))
    monkeypatch.setattr("kdedge.pipeline.distill.teacher_logits._FOLDER_LIMIT", 60_000)
    open_file(tmp_path / "d.logits").write(np.arange(1), np.ones((1, CLASSES), np.float16))
    assert {path.name for path in tmp_path.iterdir()} == {"b.logits", "a.logits", "d.logits"}
    monkeypatch.setattr("kdedge.pipeline.distill.teacher_logits._FILE_LIMIT", 100)
    file = open_file(tmp_path / "e.logits")
    file.write(np.arange(1), np.ones((1, CLASSES), np.float16))
    assert not file.read(np.arange(1))[1].any()
    assert not (tmp_path / "e.logits").exists()
