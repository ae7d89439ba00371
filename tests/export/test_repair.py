"""Repair steps: each repairs a model that fails without it, and the first that passes is the last."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from quantized import trainable_graph_sqnr_db

from kdedge.export.quantize import qat, rounding
from kdedge.export.quantize import repair as repair_module
from kdedge.export.quantize.calibrate import tensor_runner
from kdedge.export.quantize.candidates import Candidate, Score, score
from kdedge.export.quantize.equalise import equalise
from kdedge.export.quantize.layers import Weights
from kdedge.export.quantize.qat import fine_tune
from kdedge.export.quantize.quantizer import Quantizer
from kdedge.export.quantize.repair import repair, settled
from kdedge.export.quantize.rounding import correct_biases, round_adaptively
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


PER_TENSOR = Candidate(per_channel=False, calibration_images=128)


def images(count: int, seed: int = 0) -> Any:
    """Smooth images: noise of 2 x 2 patches."""
    patches = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3))
    return np.repeat(np.repeat(patches, 2, 1), 2, 2).astype(np.uint8)


def core(*, spread: float = 0.0, balanced: bool = False) -> onnx.ModelProto:
    """Three convolutions and a matrix product with random weights.

    ``spread``: channels of the first two convolutions are scaled by factors over so many decades and scaled back in the
    next layer, which changes nothing in float. ``balanced``: no class always wins.
    """
    rng = np.random.default_rng(3)
    shapes = {"conv1": (16, 3, 3, 3), "conv2": (16, 16, 3, 3), "conv3": (16, 16, 3, 3), "fc": (4, 16)}
    weights = {
        name: rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype(np.float32) for name, shape in shapes.items()
    }
    biases = {name: rng.normal(0, 0.1, shape[0]).astype(np.float32) for name, shape in shapes.items()}
    for first, second in (("conv1", "conv2"), ("conv2", "conv3")):
        factor = (10 ** rng.uniform(-spread / 2, spread / 2, 16)).astype(np.float32)
        weights[first] *= factor[:, None, None, None]
        biases[first] *= factor
        weights[second] /= factor[None, :, None, None]
    nodes = []
    tensor = "image"
    for index in (1, 2, 3):
        name = f"conv{index}"
        inputs = [tensor, f"{name}.w", f"{name}.b"]
        nodes.append(helper.make_node("Conv", inputs, [f"{name}.out"], name=name, pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"{name}.out"], [f"relu{index}"], name=f"relu{index}"))
        tensor = f"relu{index}"
    nodes.append(helper.make_node("GlobalAveragePool", [tensor], ["pooled"], name="pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], name="flat"))
    nodes.append(helper.make_node("Gemm", ["flat", "fc.w", "fc.b"], ["logits"], name="fc", transB=1))
    constants = [numpy_helper.from_array(value, f"{name}.w") for name, value in weights.items()]
    constants += [numpy_helper.from_array(value, f"{name}.b") for name, value in biases.items()]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])], constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if not balanced:
        return model
    changed = Weights(model)
    logits = tensor_runner(model, ["logits"])(images(200, seed=4))[0]
    changed.set_bias(changed.layers[-1], changed.bias(changed.layers[-1]) - logits.mean(0))
    return changed.core


class FakeValidation(Validation):
    """Validation against a float core instead of an exported file."""

    def __init__(
        self, reference: onnx.ModelProto, count: int = 2000, limit_pp: float = 0.5, *, blue: bool = True
    ) -> None:
        self.images, self.limit_pp = images(count, seed=9), limit_pp
        self.images[..., 2] *= blue
        self.fp32 = tensor_runner(reference, ["logits"])(self.images)[0]
        self.labels = self.fp32.argmax(1)


def quantizer_of(model: onnx.ModelProto, *, blue: bool = True) -> Quantizer:
    pixels = images(256)
    pixels[..., 2] *= blue
    return Quantizer(model, model, pixels, {}, 10)


def sqnr(quantizer: Quantizer, candidate: Candidate, reference: onnx.ModelProto) -> float:
    """Return the SQNR of the logits in dB on images that nothing was fitted to."""
    unseen = images(256, seed=5)
    model = onnx.load_model_from_string(quantizer.build(candidate))
    logits = tensor_runner(model, ["logits"])(unseen)[0]
    expected = tensor_runner(reference, ["logits"])(unseen)[0]
    return score(expected, logits, expected.argmax(1)).sqnr_db


def test_equalisation_changes_nothing_in_float() -> None:
    model = core(spread=3)
    pixels = images(16)
    before, after = (tensor_runner(graph, ["logits"])(pixels)[0] for graph in (model, equalise(model)))
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4)


def test_equalised_pairs_have_equal_ranges() -> None:
    weights = Weights(equalise(core(spread=3)))
    for first, second in zip(weights.layers[:2], weights.layers[1:3], strict=True):
        made = np.abs(weights.weight(first)).max((1, 2, 3))
        used = np.abs(weights.weight(second)).max((0, 2, 3))
        np.testing.assert_allclose(made, used, rtol=0.02)


def test_equalisation_repairs_channels_over_three_decades() -> None:
    model = core(spread=3)
    broken = quantizer_of(model)
    repaired = broken.equivalent(equalise(model))
    assert sqnr(broken, PER_TENSOR, model) < 15
    assert sqnr(repaired, PER_TENSOR, model) > sqnr(broken, PER_TENSOR, model) + 10


def test_a_dead_channel_is_left_as_it_is() -> None:
    weights = Weights(core())
    first = weights.layers[0]
    values, bias = weights.weight(first), weights.bias(first)
    values[3] *= 1e-20
    bias[3] = 0.5
    weights.set_weight(first, values)
    weights.set_bias(first, bias)
    model = equalise(weights.core)
    changed = Weights(model)
    assert changed.bias(changed.layers[0])[3] == np.float32(0.5)
    before, after = (sqnr(quantizer_of(graph), PER_TENSOR, weights.core) for graph in (weights.core, model))
    assert after > before - 1


def test_a_branch_is_not_equalised() -> None:
    model = core(spread=3)
    model.graph.output.append(helper.make_tensor_value_info("relu1", TensorProto.FLOAT, None))
    weights, changed = Weights(model), Weights(equalise(model))
    np.testing.assert_array_equal(weights.weight(weights.layers[0]), changed.weight(changed.layers[0]))
    assert not np.array_equal(weights.weight(weights.layers[1]), changed.weight(changed.layers[1]))


def test_bias_correction_takes_the_mean_error_away() -> None:
    model = core(spread=1)
    before = quantizer_of(model)
    after = correct_biases(before, PER_TENSOR)

    def mean_error(quantizer: Quantizer) -> float:
        graph = onnx.load_model_from_string(quantizer.build(PER_TENSOR))
        # The images it was measured on: only there the mean is exactly what was taken away.
        got, wanted = (tensor_runner(item, ["logits"])(before.images)[0] for item in (graph, model))
        return float(np.abs((got - wanted).mean(0)).max())

    assert mean_error(after) < mean_error(before) / 5
    assert sqnr(after, PER_TENSOR, model) > sqnr(before, PER_TENSOR, model) + 1


def test_bias_correction_builds_the_model_once_and_foresees_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    model = core(spread=1)
    quantizer = quantizer_of(model)
    built = []
    build = Quantizer.build
    monkeypatch.setattr(Quantizer, "build", lambda *args, **options: built.append(1) or build(*args, **options))
    corrected = correct_biases(quantizer, PER_TENSOR)
    assert len(built) == 1
    # Corrected again, from the biases that it found: nothing is left to correct but their rounding.
    again = correct_biases(corrected, PER_TENSOR)
    first, second = Weights(corrected.core), Weights(again.core)
    for layer, same in zip(first.layers, second.layers, strict=True):
        moved = np.abs(first.bias(layer) - second.bias(same)).max()
        assert moved < 0.05 * np.abs(first.bias(layer) - Weights(model).bias(layer)).max(), layer.name


def test_adaptive_rounding_beats_rounding_to_nearest() -> None:
    model = core(spread=1)
    before = quantizer_of(model)
    after = round_adaptively(before, PER_TENSOR)
    assert sqnr(after, PER_TENSOR, model) > sqnr(before, PER_TENSOR, model) + 2
    # Every weight is one of its two neighbours, and the quantizer gives back just these integers.
    old, new = Weights(before.core), Weights(after.core)
    for layer, changed in zip(old.layers, new.layers, strict=True):
        step = np.abs(old.weight(layer)).max() / 64
        assert np.abs(old.weight(layer) - new.weight(changed)).max() <= step * 1.001
        assert np.abs(new.weight(changed) / step - np.round(new.weight(changed) / step)).max() < 1e-3


def test_adaptive_rounding_takes_the_images_of_which_it_has_inputs_and_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def optimise(layer: Any, weights: Any, scale: Any, inputs: Any, targets: Any, **options: Any) -> Any:
        seen.append((layer.name, len(inputs), len(targets)))
        return optimise_really(layer, weights, scale, inputs, targets, **options)

    optimise_really = rounding._optimise
    monkeypatch.setattr(rounding, "_optimise", optimise)
    monkeypatch.setattr(rounding, "STEPS", 5)
    monkeypatch.setattr(rounding, "batch_size", lambda size: 16)
    # Of the first layer's output this is fewer images than of the pixels that it reads.
    monkeypatch.setattr(rounding, "_MOST_VALUES", 40 * 3 * 8 * 8)
    round_adaptively(quantizer_of(core(spread=1)), PER_TENSOR)
    assert all(inputs == targets for _, inputs, targets in seen)
    assert seen[0][1] < 48, "the outputs of the first layer are larger than its inputs"


def test_fine_tuning_repairs_what_rounding_cannot() -> None:
    model = core(spread=2)
    before = quantizer_of(model)
    rounded = sqnr(round_adaptively(before, PER_TENSOR), PER_TENSOR, model)
    assert sqnr(fine_tune(before, PER_TENSOR, images(512, seed=1)), PER_TENSOR, model) > rounded + 1 > 10


def test_the_trainable_graph_computes_what_onnxruntime_does() -> None:
    for candidate in (PER_TENSOR, Candidate(calibration_images=128)):
        assert trainable_graph_sqnr_db(quantizer_of(core(spread=1)), candidate, images(32, seed=2)) > 40


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
    assert [step.name for step in steps] == ["search", "bias correction"]
    assert steps[1].trial.score.sqnr_db > steps[0].trial.score.sqnr_db + 1


def test_biases_stay_where_their_correction_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = core(spread=1)
    quantizer = quantizer_of(model)
    validation = FakeValidation(model, limit_pp=20.0)
    monkeypatch.setattr(repair_module, "correct_biases", lambda same, *_: same)
    steps = repair(quantizer, start(quantizer, validation), validation)
    assert [step.name for step in steps] == ["search", "bias correction", "search"]
    assert steps[-1] is steps[0]


def test_the_first_repair_step_that_passes_is_the_last() -> None:
    model = core(spread=3, balanced=True)
    quantizer = quantizer_of(model)
    validation = FakeValidation(model, limit_pp=8.0)
    ground = start(quantizer, validation)
    assert validation.gate(ground.score)["verdict"] == "failed"
    steps = repair(quantizer, ground, validation)
    assert [step.name for step in steps] == ["search", "bias correction", "cross-layer equalisation"]
    assert steps[-1].gate["verdict"] == "passed"


def test_layers_go_back_to_float_one_at_a_time_and_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = core(balanced=True)
    weights = Weights(model)
    values = weights.weight(weights.layers[0])
    # Weights of an input that is always zero mean nothing in float and leave the others none of the 7 bits. They are in
    # every channel of the first layer, so equalisation cannot move them, nor can rounding.
    values[:, 2, 0, 0] = 300.0
    weights.set_weight(weights.layers[0], values)
    monkeypatch.setattr(rounding, "STEPS", 20)
    quantizer = quantizer_of(weights.core, blue=False)
    validation = FakeValidation(weights.core, limit_pp=0.9, blue=False)
    steps = repair(quantizer, start(quantizer, validation), validation)
    assert [step.name for step in steps] == [
        "search", "bias correction", "cross-layer equalisation", "adaptive rounding", "1 of 4 layers in float",
    ]  # fmt: skip
    assert steps[-1].trial.float_layers == ("conv1",)
    assert [label.split(" (")[0] for label in steps[-1].trial.proof["float_convs"]] == ["conv1"]
    assert steps[-1].gate["verdict"] == "passed"


def test_the_best_is_taken_when_nothing_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = core(spread=3, balanced=True)
    quantizer = quantizer_of(model)
    validation = FakeValidation(model, count=200)
    monkeypatch.setattr(repair_module, "settled", lambda *_: False)
    monkeypatch.setattr(rounding, "STEPS", 20)
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
    monkeypatch.setattr(rounding, "STEPS", 5)
    steps = repair(quantizer, start(quantizer, validation), validation)
    assert [step.name for step in steps[1:4]] == [
        "bias correction", "cross-layer equalisation", "adaptive rounding",
    ]  # fmt: skip
    # It would have passed (see above), and is neither taken nor built upon.
    assert steps[2].gate["verdict"] == "passed"
    assert steps[2].as_json()["refused"] == "conv9 is in float"
    assert steps[3].quantizer.original is model
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
    monkeypatch.setattr(repair_module, "correct_biases", lambda same, *_: same)
    monkeypatch.setattr(repair_module, "round_adaptively", lambda same, *_: same)
    monkeypatch.setattr(repair_module, "measure_sensitivity", lambda *_: pytest.fail("layers go to float"))
    model = core(spread=1)
    quantizer = quantizer_of(model)

    def run(count: int, *scores: tuple[int, int, float]) -> list[Any]:
        validation = Scripted(model, count, list(scores))
        validation.labels[::2] = (validation.labels[::2] + 1) % 4  # FP32 is wrong there
        return repair(quantizer, start(quantizer, validation), validation)

    return run


def test_a_step_that_passes_by_chance_is_not_taken_for_a_much_lower_sqnr(scripted: Any) -> None:
    # Equalisation gains more than it loses on 1,134 images, which would pass, at 18.9 dB.
    steps = scripted(1134, (4, 2, 26.0), (3, 1, 29.0), (2, 7, 18.9), (1, 1, 32.2))
    assert steps[2].gate["verdict"] == "passed"
    assert [step.name for step in steps[2:]] == ["cross-layer equalisation", "adaptive rounding"]


def test_no_layer_goes_to_float_without_a_shown_loss(scripted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    steps = scripted(1134, (4, 1, 26.0), (3, 1, 29.0), (6, 2, 18.9), (3, 1, 29.5))
    assert all(step.gate["verdict"] == "undecided" for step in steps)
    assert (steps[-1].name, len(steps)) == ("bias correction", 5)
    err = capsys.readouterr().err
    assert "adaptive rounding: about" in err
    assert "no loss is shown on the validation images; no layer goes to float" in err
    assert "the gate does not pass" in err


def test_few_images_that_cannot_decide_end_the_repair_of_faithful_logits(
    scripted: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = scripted(143, (1, 0, 26.0), (1, 0, 31.0))
    assert [step.name for step in steps] == ["search", "bias correction"]
    assert "143 validation images are too few to show whether a repair helps" in capsys.readouterr().err


def test_few_images_that_cannot_decide_leave_the_choice_to_the_logits(scripted: Any) -> None:
    steps = scripted(143, (1, 0, 19.0), (1, 0, 24.2), (1, 0, 16.9), (2, 1, 30.9))
    assert [step.name for step in steps][2:] == ["cross-layer equalisation", "adaptive rounding"]
    steps = scripted(143, (1, 0, 19.0), (1, 0, 24.2), (1, 0, 16.9), (2, 1, 28.9))
    assert steps[-1].name == "adaptive rounding", "nothing reaches the bound: the highest SQNR is chosen"
    assert not any(step.trial.float_layers for step in steps)


@pytest.mark.parametrize(
    ("verdict", "count", "sqnr_db", "expected"),
    [("passed", 5000, 20.0, True), ("undecided", 5000, 40.0, False), ("failed", 5000, 40.0, False),
     ("undecided", 400, 30.0, True), ("undecided", 400, 29.9, False), ("failed", 400, 40.0, False)],
)  # fmt: skip
def test_when_no_repair_is_needed(verdict: str, count: int, sqnr_db: float, expected: bool) -> None:
    # 400 images cannot pass a limit of 0.5 pp: without one difference the upper end is 0.95 pp.
    assert settled({"verdict": verdict, "limit_pp": 0.5}, count, sqnr_db) is expected
