"""Repair steps: each repairs a model that fails without it, and the first that passes is the last."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from small_networks import PER_TENSOR, core, images, quantizer_of

from kdedge.export.quantize import qat
from kdedge.export.quantize import repair as repair_module
from kdedge.export.quantize.calibrate import tensor_runner
from kdedge.export.quantize.candidates import Candidate, Score, score
from kdedge.export.quantize.layers import Weights
from kdedge.export.quantize.quantizer import Quantizer
from kdedge.export.quantize.repair import repair, settled, why_not_fine_tuned
from kdedge.export.quantize.search import Trial, Validation
from kdedge.export.quantize.sensitivity import measure_sensitivity


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So small a network is faster without threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class FakeValidation(Validation):
    """Validation against a float core instead of an exported file."""

    def __init__(
        self, reference: onnx.ModelProto, count: int = 2000, limit_pp: float = 0.5, *, blue: bool = True
    ) -> None:
        self.images, self.limit_pp, self.balanced, self.groups = images(count, seed=9), limit_pp, False, None
        self.images[..., 2] *= blue
        self.fp32 = tensor_runner(reference, ["logits"])(self.images)[0]
        self.labels = self.fp32.argmax(1)


def test_sensitivity_finds_the_bad_layer() -> None:
    model = core()
    weights = Weights(model)
    bad = weights.layers[1]
    values = weights.weight(bad)
    values[0, 0, 0, 0] = 60.0  # one huge weight leaves the rest of its tensor hardly any of the 7 bits
    weights.set_weight(bad, values)
    validation = FakeValidation(weights.core, count=200)
    result = measure_sensitivity(quantizer_of(weights.core), PER_TENSOR, validation)
    assert [row["layer"] for row in result["layers"]] == ["conv1", "conv2", "conv3", "fc"]
    assert result["dominant"][0] == "conv2"
    assert sum(row["noise_share"] for row in result["layers"]) == pytest.approx(1, abs=1e-3)


def start(quantizer: Quantizer, validation: FakeValidation) -> Trial:
    return validation.try_out(quantizer, PER_TENSOR)


def test_biases_are_corrected_although_the_gate_would_pass() -> None:
    model = core(spread=1)
    quantizer = quantizer_of(model)
    validation = FakeValidation(model, limit_pp=20.0)
    ground = start(quantizer, validation)
    assert validation.gate(ground.score)["verdict"] == "passed"
    steps = repair(quantizer, ground, validation)
    assert [step.name for step in steps] == ["search", "error-compensated rounding"]
    assert steps[1].trial.score.sqnr_db > steps[0].trial.score.sqnr_db + 1


def test_biases_stay_where_their_correction_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = core(spread=1)
    quantizer = quantizer_of(model)
    validation = FakeValidation(model, limit_pp=20.0)
    monkeypatch.setattr(repair_module, "round_with_compensation", lambda same, *_: same)
    steps = repair(quantizer, start(quantizer, validation), validation)
    assert [step.name for step in steps] == ["search", "error-compensated rounding", "search"]
    assert steps[-1] is steps[0]


def test_the_first_repair_step_that_passes_is_the_last() -> None:
    model = core(spread=3, balanced=True)
    quantizer = quantizer_of(model)
    validation = FakeValidation(model, limit_pp=8.0)
    ground = start(quantizer, validation)
    assert validation.gate(ground.score)["verdict"] == "failed"
    steps = repair(quantizer, ground, validation)
    assert [step.name for step in steps] == ["search", "error-compensated rounding", "cross-layer equalisation"]
    assert steps[-1].gate["verdict"] == "passed"


def test_layers_go_back_to_float_one_at_a_time_and_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = core(balanced=True)
    weights = Weights(model)
    values = weights.weight(weights.layers[0])
    # Weights of an input that is always zero mean nothing in float and leave the others none of the 7 bits. They are in
    # every channel of the first layer, so equalisation cannot move them, nor can rounding.
    values[:, 2, 0, 0] = 300.0
    weights.set_weight(weights.layers[0], values)
    quantizer = quantizer_of(weights.core, blue=False)
    validation = FakeValidation(weights.core, limit_pp=0.9, blue=False)
    steps = repair(quantizer, start(quantizer, validation), validation)
    assert [step.name for step in steps] == [
        "search", "error-compensated rounding", "cross-layer equalisation", "1 of 4 layers in float",
    ]  # fmt: skip
    assert steps[-1].trial.float_layers == ("conv1",)
    assert [label.split(" (")[0] for label in steps[-1].trial.proof["float_convs"]] == ["conv1"]
    assert steps[-1].gate["verdict"] == "passed"


def test_the_best_is_taken_when_nothing_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = core(spread=3, balanced=True)
    quantizer = quantizer_of(model)
    validation = FakeValidation(model, count=200)
    monkeypatch.setattr(repair_module, "settled", lambda *_, **__: False)
    monkeypatch.setattr(qat, "STEPS", 20)
    steps = repair(quantizer, start(quantizer, validation), validation, train_images=images(64))
    names = [step.name for step in steps[:-1]]
    assert names[-3:] == ["1 of 4 layers in float", "2 of 4 layers in float", "fine-tuning"]
    assert any(steps[-1] is step for step in steps[:-1])
    # Not the smallest loss: by the rule of the search, and a layer goes to float only where that is shown to help.
    losses = {step.name: step.gate["loss_pp"] for step in steps}
    assert losses["1 of 4 layers in float"] < losses["cross-layer equalisation"]
    assert steps[-1].name == "cross-layer equalisation"


def test_a_repair_step_that_is_unexpectedly_in_float_is_not_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(FakeValidation):
        def try_out(self, quantizer: Quantizer, candidate: Candidate, float_layers: Any = ()) -> Trial:
            trial = super().try_out(quantizer, candidate, float_layers)
            return replace(trial, rejection_reason="" if quantizer.core is model else "conv9 is in float")

    model = core(spread=3, balanced=True)
    quantizer = quantizer_of(model)
    validation = Broken(model, count=2000, limit_pp=8.0)
    steps = repair(quantizer, start(quantizer, validation), validation)
    assert [step.name for step in steps[1:3]] == [
        "error-compensated rounding", "cross-layer equalisation",
    ]  # fmt: skip
    # It would have passed (see above), and is neither taken nor built upon.
    assert steps[2].gate["verdict"] == "passed"
    assert steps[2].as_json()["refused"] == "conv9 is in float"
    assert all(step.quantizer.original is model for step in steps[3:])
    assert steps[-1].quantizer.core is model


class Scripted(FakeValidation):
    """Validation that returns made-up scores, one after the other."""

    def __init__(self, reference: onnx.ModelProto, count: int, scripted: list[tuple[int, int, float]]) -> None:
        super().__init__(reference, count)
        self.scripted = iter(scripted)

    def try_out(self, quantizer: Quantizer, candidate: Candidate, float_layers: Any = ()) -> Trial:
        lost, won, sqnr_db = next(self.scripted)
        right = self.fp32.argmax(1) == self.labels
        kept = right.copy()
        kept[np.flatnonzero(right)[:lost]] = False
        int8 = kept.copy()
        int8[np.flatnonzero(~right)[:won]] = True
        made = Score(0.0, 0.0, lost, won, lost + won, sqnr_db, 0.0, int8, kept)
        return Trial(candidate, b"", {}, made, "", tuple(float_layers))


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that climbs over made-up scores: images lost, images gained, SQNR."""
    monkeypatch.setattr(repair_module, "round_with_compensation", lambda same, *_: same)
    monkeypatch.setattr(repair_module, "measure_sensitivity", lambda *_: pytest.fail("layers go to float"))
    model = core(spread=1)
    quantizer = quantizer_of(model)

    def run(count: int, *scores: tuple[int, int, float], groups: int = 0, **options: Any) -> list[Any]:
        validation = Scripted(model, count, list(scores))
        validation.groups = (np.arange(count) % groups).astype(str) if groups else None
        validation.labels[::2] = (validation.labels[::2] + 1) % 4  # FP32 is wrong there
        return repair(quantizer, start(quantizer, validation), validation, **options)

    return run


def test_a_step_that_passes_by_chance_is_not_taken_for_a_much_lower_sqnr(scripted: Any) -> None:
    # Equalisation gains more than it loses on 1,134 images, which would pass, at 18.9 dB.
    steps = scripted(1134, (4, 2, 26.0), (3, 1, 29.0), (2, 7, 18.9))
    assert steps[2].gate["verdict"] == "passed"
    assert [step.name for step in steps[2:]] == ["cross-layer equalisation", "error-compensated rounding"]


def test_no_layer_goes_to_float_without_a_shown_loss(scripted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    steps = scripted(1134, (4, 1, 26.0), (3, 1, 29.0), (6, 2, 18.9))
    assert all(step.gate["verdict"] == "undecided" for step in steps)
    assert (steps[-1].name, len(steps)) == ("error-compensated rounding", 4)
    err = capsys.readouterr().err
    assert "no loss is shown on the validation data; no layer goes to float" in err
    assert "the gate does not pass" in err


def test_few_images_that_cannot_decide_end_the_repair_of_faithful_logits(
    scripted: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = scripted(143, (1, 0, 26.0), (1, 0, 31.0))
    assert [step.name for step in steps] == ["search", "error-compensated rounding"]
    assert "143 validation images are too few to show whether a repair helps" in capsys.readouterr().err


def test_few_images_that_cannot_decide_leave_the_choice_to_the_logits(scripted: Any) -> None:
    steps = scripted(143, (1, 0, 19.0), (1, 0, 24.2), (2, 1, 30.9))
    assert [step.name for step in steps][2:] == ["cross-layer equalisation"]
    steps = scripted(143, (1, 0, 19.0), (1, 0, 24.2), (2, 1, 28.9))
    assert steps[-1].name == "cross-layer equalisation", "nothing reaches the bound: the highest SQNR is chosen"
    assert not any(step.trial.float_layers for step in steps)


@pytest.mark.parametrize(
    ("sqnr_db", "shipped", "reason"),
    [
        (33.0, "fine-tuning", ""),
        (31.5, "error-compensated rounding", "the rule of the search prefers error-compensated rounding (31.0 dB)"),
    ],
)
def test_few_images_leave_the_choice_of_fine_tuning_to_the_logits(
    scripted: Any, monkeypatch: pytest.MonkeyPatch, sqnr_db: float, shipped: str, reason: str
) -> None:
    monkeypatch.setattr(qat, "fine_tune", lambda quantizer, *_: quantizer)
    steps = scripted(143, (1, 0, 26.0), (1, 0, 31.0), (1, 0, 30.5), (0, 0, sqnr_db), train_images=images(4))
    assert [step.name for step in steps][2:4] == ["cross-layer equalisation", "fine-tuning"]
    assert (steps[-1].name, why_not_fine_tuned(steps)) == (shipped, reason)


def test_a_gate_that_passes_needs_no_fine_tuning(scripted: Any) -> None:
    steps = scripted(5000, (0, 0, 26.0), (0, 0, 31.0), train_images=images(4))
    assert why_not_fine_tuned(steps) == "the gate passes on the validation data after error-compensated rounding"


@pytest.mark.parametrize(
    ("verdict", "can_pass", "sqnr_db", "expected"),
    [("passed", True, 20.0, True), ("undecided", True, 40.0, False), ("failed", True, 40.0, False),
     ("undecided", False, 30.0, True), ("undecided", False, 29.9, False), ("failed", False, 40.0, False)],
)  # fmt: skip
def test_when_no_repair_is_needed(verdict: str, can_pass: bool, sqnr_db: float, expected: bool) -> None:
    assert settled(verdict, sqnr_db, can_pass=can_pass) is expected


def test_the_gate_on_validation_images_respects_groups(scripted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    # 400 images cannot pass a limit of 0.5 pp, nor can 2,000 of 8 groups: without one difference the upper ends are
    # 0.95 and above 20 pp.
    validation = FakeValidation(core(spread=1))
    assert validation.can_pass
    validation.groups = (np.arange(2000) % 8).astype(str)
    assert not validation.can_pass
    unchanged = score(validation.fp32, validation.fp32, validation.labels)
    assert validation.gate(unchanged)["groups"] == 8
    steps = scripted(2000, (1, 0, 26.0), (1, 0, 31.0), groups=8)
    assert [step.name for step in steps] == ["search", "error-compensated rounding"]
    assert "2,000 validation images of 8 groups are too few to show whether a repair" in capsys.readouterr().err
    assert not FakeValidation(core(spread=1), count=400).can_pass


def test_with_the_balanced_metric_gate_and_repair_follow_the_rare_class() -> None:
    model = core(spread=3, balanced=True)
    validation = FakeValidation(model)
    validation.labels = np.repeat([0, 1], [1900, 100])
    validation.fp32 = np.eye(2, dtype=np.float32)[validation.labels]
    int8 = validation.fp32.copy()
    int8[-6:] = int8[-6:, ::-1]  # 0.3 pp of all images, 3 pp of balanced accuracy
    verdicts = []
    for balanced in (False, True):
        validation.balanced = balanced
        result = score(validation.fp32, int8, validation.labels, balanced=balanced)
        verdicts.append((validation.gate(result)["verdict"], validation.can_pass))
    assert verdicts == [("undecided", True), ("failed", False)]
