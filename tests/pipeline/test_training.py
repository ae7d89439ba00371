import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline.data import Split
from pipeline.errors import InputError, StageError
from pipeline.training import Batches, EpochLoop, learning_rate, to_pixels, views

CPU = torch.device("cpu")


def images(count=12, size=8):
    rng = np.random.default_rng(0)
    return rng.integers(1, 256, (count, size, size, 3), dtype=np.uint8)


def test_a_view_depends_on_seed_epoch_and_index_alone():
    pixels = torch.from_numpy(images())
    indices = np.arange(12)
    once = views(pixels, indices, seed=1, epoch=2, shift=2)
    assert torch.equal(once, views(pixels, indices, seed=1, epoch=2, shift=2))
    # The same image in another place of another batch looks the same.
    assert torch.equal(once[[7, 3]], views(pixels[[7, 3]], indices[[7, 3]], seed=1, epoch=2, shift=2))
    for other in ({"seed": 1, "epoch": 3}, {"seed": 2, "epoch": 2}):
        assert not torch.equal(once, views(pixels, indices, **other, shift=2))


def test_a_view_is_the_image_flipped_or_not_and_shifted_over_black():
    pixels = torch.from_numpy(images(200))
    seen = set()
    for image, view in zip(pixels, views(pixels, np.arange(200), seed=0, epoch=0, shift=1), strict=True):
        padded = functional.pad(image, (0, 0, 1, 1, 1, 1))
        flipped = functional.pad(image.flip(1), (0, 0, 1, 1, 1, 1))
        matches = [
            (flip, dy, dx)
            for flip, source in ((0, padded), (1, flipped))
            for dy in range(3)
            for dx in range(3)
            if torch.equal(view, source[dy : dy + 8, dx : dx + 8])
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) == 18  # both flips times nine shifts


def test_views_are_evenly_spread():
    pixels = torch.ones(5000, 1, 1, 3, dtype=torch.uint8)
    shifted_in = views(pixels, np.arange(5000), seed=3, epoch=1, shift=2)[:, 0, 0, 0]
    # The one pixel stays in place in 1 of 25 shifts.
    assert shifted_in.sum().item() == pytest.approx(200, abs=50)


def test_pixels_become_floats_in_0_to_1_channels_last():
    out = to_pixels(torch.from_numpy(images(2)), CPU)
    assert out.shape == (2, 3, 8, 8)
    assert out.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(out.numpy().transpose(0, 2, 3, 1) * 255, images(2), atol=1e-4)


def test_an_epoch_visits_images_once_in_an_order_of_its_own():
    split = Split(images(10), np.arange(10))
    batches = Batches(split, 4, seed=0, shift=0, device=CPU)
    epochs = [torch.cat([labels for _, labels in batches.epoch(epoch)]).tolist() for epoch in (0, 0, 1)]
    assert len(batches) == 2
    assert epochs[0] == epochs[1] != epochs[2]
    assert len(set(epochs[0])) == 8


def test_a_batch_larger_than_the_set_is_the_whole_set():
    assert len(list(Batches(Split(images(3), np.arange(3)), 64, seed=0, shift=0, device=CPU).epoch(0))) == 1


def test_one_cycle_rises_to_the_peak_and_falls_to_zero():
    assert learning_rate(0, 1, "one-cycle") == pytest.approx(0.05)
    assert learning_rate(0.2, 1, "one-cycle") == pytest.approx(1)
    assert learning_rate(0.6, 1, "one-cycle") == pytest.approx(0.5)
    assert learning_rate(1, 1, "one-cycle") == pytest.approx(0)
    assert learning_rate(0.7, 0.3, "constant") == 0.3


def make_loop(out_dir, *, epochs=4, fail_at=None, lr=0.1):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    split = Split(images(24), np.arange(24) % 3)

    def step(pixels, labels, epoch, progress):
        if epoch == fail_at:
            raise KeyboardInterrupt
        loss = functional.cross_entropy(model(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss, "ce": loss}

    state = {"model": model, "optimizer": optimizer}
    batches = Batches(split, 8, seed=0, shift=1, device=CPU)
    return model, EpochLoop("tiny", epochs, batches, state, step, lambda epoch: {"lr": lr}, out_dir, "log.csv")


def test_an_interrupted_training_ends_in_the_same_bits(tmp_path):
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    whole, loop = make_loop(tmp_path / "whole")
    rows, _ = loop.run()
    _, loop = make_loop(tmp_path / "broken", fail_at=2)
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    assert (tmp_path / "broken" / ".checkpoint.pt").exists()
    resumed, loop = make_loop(tmp_path / "broken")
    resumed_rows, earlier_s = loop.run()
    assert earlier_s > 0
    for one, other in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    timeless = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    assert timeless == [{k: v for k, v in row.items() if k != "seconds"} for row in resumed_rows]
    assert (tmp_path / "whole" / "log.csv").read_text().splitlines()[0] == "epoch,train_loss,train_ce,lr,seconds"


def test_a_damaged_checkpoint_is_refused(tmp_path):
    _, loop = make_loop(tmp_path, fail_at=2)
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    path = tmp_path / ".checkpoint.pt"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match=r"checkpoint .* is damaged") as caught:
        make_loop(tmp_path)[1].run()
    assert "--force" in caught.value.hint


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path, bad):
    _, loop = make_loop(tmp_path)
    honest = loop.step

    def step(pixels, labels, epoch, progress):
        losses = honest(pixels, labels, epoch, progress)
        return {name: loss * bad for name, loss in losses.items()} if epoch == 2 else losses

    loop.step = step
    with pytest.raises(StageError, match=r"diverged in epoch 3: a loss became (nan|inf) \(the state after epoch 2"):
        loop.run()
    saved = torch.load(tmp_path / ".checkpoint.pt", weights_only=True)
    assert len(saved["rows"]) == 2
    assert all(torch.isfinite(value.float()).all() for value in saved["state"]["model"].values())


def test_a_loss_ten_times_that_of_guessing_is_divergence(tmp_path):
    _, loop = make_loop(tmp_path)
    honest = loop.step
    loop.step = lambda p, t, epoch, g: {k: v + 100 * (epoch == 1) for k, v in honest(p, t, epoch, g).items()}
    with pytest.raises(StageError, match=r"the cross-entropy is 10\d\.\d; guessing has 1.1"):
        loop.run()
