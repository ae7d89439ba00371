"""Equalisation, bias correction, adaptive rounding and fine-tuning, each on its own."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from quantized import trainable_graph_sqnr_db
from small_networks import PER_TENSOR, core, images, quantizer_of, sqnr

from kdedge.export.quantize import rounding
from kdedge.export.quantize.calibrate import tensor_runner
from kdedge.export.quantize.candidates import Candidate
from kdedge.export.quantize.equalise import equalise
from kdedge.export.quantize.layers import Weights
from kdedge.export.quantize.qat import fine_tune
from kdedge.export.quantize.quantizer import Quantizer
from kdedge.export.quantize.rounding import correct_biases, round_adaptively


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
