import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from kdedge.dataset import Split
from kdedge.errors import DivergenceError, InputError
from kdedge.pipeline.training import checkpoint as training
from kdedge.pipeline.training.batch_norms import refresh_batch_norms
from kdedge.pipeline.training.batches import Batches
from kdedge.pipeline.training.epoch_loop import EpochLoop
from kdedge.pipeline.training.schedule import learning_rate

CPU = torch.device("cpu")


def test_one_cycle_rises_to_the_peak_and_falls_to_zero():
    assert learning_rate(0, 1, "one-cycle") == pytest.approx(0.05)
    assert learning_rate(0.2, 1, "one-cycle") == pytest.approx(1)
    assert learning_rate(0.6, 1, "one-cycle") == pytest.approx(0.5)
    assert learning_rate(1, 1, "one-cycle") == pytest.approx(0)
    assert learning_rate(0.7, 0.3, "constant") == 0.3


def make_loop(out_dir, *, epochs=4, fail_at=None, lr=0.1, top1=lambda epoch: 50.0 + epoch, val_groups=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    pixels = np.random.default_rng(0).integers(1, 256, (24, 8, 8, 3), dtype=np.uint8)
    split = Split(pixels, np.arange(24) % 3)

    def step(batch, epoch, rate):
        if epoch == fail_at:
            raise KeyboardInterrupt
        loss = functional.cross_entropy(model(batch.pixels), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss, "ce": loss}

    state = {"model": model, "optimizer": optimizer}
    batches = Batches(split, 8, seed=0, shift=1, device=CPU)
    loop = EpochLoop(
        title="tiny",
        model=model,
        epochs=epochs,
        batches=batches,
        val_labels=np.arange(300) % 3,
        state=state,
        step=step,
        finish_epoch=lambda epoch: {"val_top1_pct": top1(epoch)},
        out_dir=out_dir,
        csv_name="log.csv",
        val_groups=val_groups,
    )
    return model, loop


@pytest.mark.parametrize(("groups", "kept"), [(None, True), (300, True), (10, False), (1, False)])
def test_an_earlier_epoch_is_kept_only_if_it_is_better_on_new_groups(tmp_path, capsys, groups, kept):
    names = None if groups is None else np.array([f"recording {index % groups}" for index in range(300)])
    make_loop(tmp_path, epochs=3, top1=lambda epoch: [85.0, 70.0, 72.0][epoch], val_groups=names)[1].run()
    assert ("the weights of epoch 1 are kept" in capsys.readouterr().err) == kept


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
    assert (tmp_path / "whole" / "log.csv").read_text().splitlines()[
        0
    ] == "epoch,train_loss,train_ce,val_top1_pct,seconds"


def trained(out_dir):
    """Train to the end and return (weights, rows without times)."""
    model, loop = make_loop(out_dir)
    rows, _ = loop.run()
    return model.state_dict(), [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def checkpoint(tmp_path):
    """Interrupt a training and return its checkpoint."""
    with pytest.raises(KeyboardInterrupt):
        make_loop(tmp_path, fail_at=2)[1].run()
    return tmp_path / ".checkpoint.pt"


def _flip(place):
    def damage(data):
        changed = bytearray(data)
        changed[int(place * (len(data) - 1))] ^= 1
        return bytes(changed)

    return damage


DAMAGES = {
    **{f"flipped at {place}": _flip(place) for place in (0, 0.1, 0.3, 0.5, 0.7, 0.9, 1)},
    "truncated": lambda data: data[:500],
    "without its end": lambda data: data[:-1],
    "empty": lambda data: b"",
    "longer": lambda data: data + b"0",
    "without a hash": lambda data: data[:-32],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_training_with_a_damaged_checkpoint_starts_over(damage, checkpoint, uninterrupted, capsys):
    checkpoint.write_bytes(DAMAGES[damage](checkpoint.read_bytes()))
    weights, rows = trained(checkpoint.parent)
    assert all(torch.equal(one, other) for one, other in zip(weights.values(), uninterrupted[0].values(), strict=True))
    assert rows == uninterrupted[1]
    log = " ".join(capsys.readouterr().err.split())
    assert log.count("warning") == 1
    assert "is damaged or of an older version: training starts over" in log
    assert "resumed" not in log


def test_a_training_with_a_checkpoint_of_another_version_starts_over(checkpoint, uninterrupted, monkeypatch, capsys):
    monkeypatch.setattr(training, "CHECKPOINT_VERSION", training.CHECKPOINT_VERSION + 1)
    assert trained(checkpoint.parent)[1] == uninterrupted[1]
    log = " ".join(capsys.readouterr().err.split())
    assert "is of another version of kdedge: training starts over" in log


def test_a_checkpoint_of_another_training_is_refused(checkpoint):
    folder = checkpoint.parent / "my run"
    folder.mkdir()
    moved = checkpoint.rename(folder / checkpoint.name)
    _, loop = make_loop(folder)
    loop.state = {**loop.state, "more": nn.Linear(1, 1)}
    with pytest.raises(InputError, match="does not fit this training") as caught:
        loop.run()
    assert f"rm '{moved}'" in caught.value.hint


def test_a_training_that_diverges_starts_again_at_a_quarter_of_the_rate(tmp_path, capsys):
    model, loop = make_loop(tmp_path)
    initial = [value.clone() for value in model.state_dict().values()]
    honest, rates, starts = loop.step, [], []

    def step(batch, epoch, rate):
        if not rates or len(rates) == 4:
            starts.append([value.clone() for value in model.state_dict().values()])
        rates.append(rate)
        losses = honest(batch, epoch, rate)
        return {name: loss * float("nan") for name, loss in losses.items()} if len(rates) == 4 else losses

    loop.step = step
    rows, _ = loop.run()
    assert len(rows) == 4
    assert rates[4] == pytest.approx(rates[0] / 4)
    assert max(rates[4:]) <= 0.25 < max(rates[:4])
    assert all(torch.equal(a, b) for a, b in zip(initial, starts[0], strict=True))
    assert "diverged in epoch 2" in (message := capsys.readouterr().err)
    assert "starting again with 1/4 of the learning rate" in message


def test_a_training_that_learns_nothing_in_its_warm_up_starts_again_twice_and_then_goes_to_its_end(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("kdedge.pipeline.training.epoch_loop._FEWEST_STEPS", 3)
    _, loop = make_loop(tmp_path, epochs=5, top1=lambda epoch: 33.0)
    loop.step = lambda batch, epoch, rate: {"loss": torch.tensor(1.1), "ce": torch.tensor(1.1)}
    rows, _ = loop.run()
    assert len(rows) == 5
    shown = capsys.readouterr().err
    assert shown.count("has learned nothing after epoch 1 (33.00 % on validation data") == 2
    assert "1/16 of the learning rate" in shown


def test_an_interrupted_restart_resumes_at_its_rate(tmp_path):
    _, loop = make_loop(tmp_path)
    loop._restarts = 1
    loop.run()
    _, again = make_loop(tmp_path)
    again.run()
    assert again._restarts == 1
    assert again._best.epoch == 4


def test_an_earlier_epoch_is_kept_only_if_it_is_better_by_more_than_two_standard_errors(tmp_path):
    cases = {"noise": ((60.0, 66.0, 61.0), 2), "worse": ((60.0, 70.0, 61.0), 1), "luck": ((99.0, 100.0, 99.0), 2)}
    for name, (top1, kept) in cases.items():
        (tmp_path / name).mkdir()
        model, loop = make_loop(tmp_path / name, epochs=3, top1=top1.__getitem__)
        seen = []
        loop.finish_epoch = lambda epoch, loop=loop, model=model, top1=top1, seen=seen: (
            seen.append(model[2].weight.detach().clone()) or {"val_top1_pct": top1[epoch]}
        )
        loop.run()
        assert torch.equal(model[2].weight, seen[kept])


def test_a_training_without_a_better_accuracy_in_a_third_of_its_epochs_ends_over_half_as_many(tmp_path, capsys):
    rates = []

    def step(batch, epoch, rate):
        rates.append(rate)
        return {name: torch.tensor(1.0) for name in ("loss", "ce")}

    _, loop = make_loop(tmp_path, epochs=36, top1=lambda epoch: 100.0 if epoch >= 7 else 50.0)
    loop.step = step
    assert len(loop.run()[0]) == 30
    assert rates[60] == pytest.approx(learning_rate(20 / 36, 1, "one-cycle"))
    assert rates[-1] == pytest.approx(rates[60] / 30)
    message = "no better validation accuracy in 12 epochs: the training ends after epoch 30 instead of 36"
    assert message in capsys.readouterr().err
    _, resumed = make_loop(tmp_path, epochs=36)
    assert len(resumed.run()[0]) == 30, "an interruption after the last epoch adds none"


def test_trained_weights_may_lose_accuracy_while_the_rate_rises(tmp_path, capsys):
    accuracies = [92.0, 91.0, 90.0, 89.0, 88.0, 88.0, 88.0, 87.0, *(88.0 + 0.1 * step for step in range(28))]
    _, loop = make_loop(tmp_path, epochs=36, top1=accuracies.__getitem__)
    assert len(loop.run()[0]) == 36
    assert "no better validation accuracy" not in capsys.readouterr().err


@pytest.mark.parametrize("interrupted", [False, True])
def test_an_adaptive_training_ends_over_half_as_many_epochs_as_it_took_to_learn_the_training_images(
    tmp_path, capsys, interrupted
):
    rates = []

    def step(batch, epoch, rate):
        if interrupted and (epoch, len(rates)) == (7, 21):
            raise KeyboardInterrupt
        rates.append(rate)
        return {name: torch.tensor(1.0) for name in ("loss", "ce")} | {"top1_pct": torch.tensor(93.0 + epoch)}

    _, loop = make_loop(tmp_path, epochs=20)
    loop.step, loop.adaptive = step, True
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            loop.run()
        interrupted = False
        _, loop = make_loop(tmp_path, epochs=20)
        loop.step, loop.adaptive = step, True
    rows, _ = loop.run()
    assert [row["epoch"] for row in rows] == list(range(1, 12)), "99 % are correct in the seventh epoch"
    assert rates[:21] == [learning_rate(done / 60, 1, "one-cycle") for done in range(21)]
    falling = rates[20:]
    assert falling == sorted(falling, reverse=True)
    assert falling[1] == pytest.approx(learning_rate(7 / 20, 1, "one-cycle"))
    assert falling[-1] == pytest.approx(falling[1] / 12)
    assert "correct after epoch 7: the training ends after epoch 11 instead of 20" in capsys.readouterr().err


def test_an_adaptive_training_that_learns_late_keeps_its_schedule(tmp_path):
    rates = []
    _, loop = make_loop(tmp_path, epochs=6)
    loop.adaptive = True
    loop.step = lambda batch, epoch, rate: (
        rates.append(rate)
        or {name: torch.tensor(1.0) for name in ("loss", "ce")} | {"top1_pct": torch.tensor(95.0 + epoch)}
    )
    assert len(loop.run()[0]) == 6
    assert rates == [learning_rate(done / 18, 1, "one-cycle") for done in range(18)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(no_restarts, tmp_path, bad):
    _, loop = make_loop(tmp_path)
    honest = loop.step

    def step(batch, epoch, rate):
        losses = honest(batch, epoch, rate)
        return {name: loss * bad for name, loss in losses.items()} if epoch == 2 else losses

    loop.step = step
    with pytest.raises(
        DivergenceError, match=r"diverged in epoch 3: a loss became (nan|inf) \(the state after epoch 2"
    ):
        loop.run()
    saved = torch.load(tmp_path / ".checkpoint.pt", weights_only=True)
    assert len(saved["rows"]) == 2
    assert all(torch.isfinite(value.float()).all() for value in saved["state"]["model"].values())


def test_weights_that_the_last_step_of_an_epoch_spoilt_are_not_kept(no_restarts, tmp_path):
    model, loop = make_loop(tmp_path)
    honest = loop.step

    def step(batch, epoch, rate):
        losses = honest(batch, epoch, rate)
        if epoch == 1:
            model[2].weight.data[0, 0] = float("nan")  # as an exploding gradient of the last step would
        return {name: torch.tensor(1.0) for name in losses} if epoch == 1 else losses

    loop.step = step
    with pytest.raises(DivergenceError, match=r"in epoch 2: a weight is not finite \(the state after epoch 1 is kept"):
        loop.run()
    saved = torch.load(tmp_path / ".checkpoint.pt", weights_only=True)
    assert all(torch.isfinite(value.float()).all() for value in saved["state"]["model"].values())


@pytest.fixture
def no_restarts(monkeypatch):
    monkeypatch.setattr("kdedge.pipeline.training.epoch_loop.RESTARTS", 0)


def test_a_loss_ten_times_that_of_guessing_is_divergence(no_restarts, tmp_path):
    _, loop = make_loop(tmp_path)
    honest = loop.step
    loop.step = lambda b, epoch, g: {k: v + 100 * (epoch == 1) for k, v in honest(b, epoch, g).items()}
    with pytest.raises(DivergenceError, match=r"the cross-entropy is 10\d\.\d; guessing has 1.1"):
        loop.run()


def test_refreshed_batch_norms_have_the_means_over_the_batches_and_learn_on_as_before():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.3)).train()
    module(torch.rand(8, 3, 5, 5) + 9)  # old statistics that are far off
    batches = [torch.rand(8, 3, 5, 5) for _ in range(3)]
    refresh_batch_norms(module, batches)
    with torch.no_grad():
        outputs = [module[0](batch) for batch in batches]
    torch.testing.assert_close(module[1].running_mean, torch.stack([out.mean((0, 2, 3)) for out in outputs]).mean(0))
    torch.testing.assert_close(module[1].running_var, torch.stack([out.var((0, 2, 3)) for out in outputs]).mean(0))
    assert module[1].momentum == 0.3
