"""Calibration: the ranges that every calibrator reads from the same statistics."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from kdedge.export.quantize import calibrate
from kdedge.export.quantize.calibrate import CALIBRATORS, TensorStatistics


def core() -> onnx.ModelProto:
    """image -> Neg -> Relu: one signed tensor, one that is never negative and one that only the ReLU reads."""
    nodes = [
        helper.make_node("Neg", ["image"], ["signed"], name="neg"),
        helper.make_node("Identity", ["signed"], ["inner"], name="inner"),
        helper.make_node("Relu", ["inner"], ["positive"], name="relu"),
        helper.make_node("Add", ["signed", "image"], ["zero"], name="add"),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, 4, 4])
        for name in ("image", "positive", "zero")
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def images(count: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)


def test_extremes_and_histogram_by_hand() -> None:
    pixels = images(70)
    pixels[0, 0, 0, 0], pixels[0, 0, 0, 1] = 0, 255
    statistics = TensorStatistics.measure(core(), pixels)
    seen = statistics.tensors["signed"]
    assert (seen.lowest, seen.highest) == (-1.0, 0.0)
    assert seen.counts.sum() == pixels.size
    assert seen.counts[-1] == (pixels == 0).sum()
    assert statistics.ranges("minmax")["image"] == (0.0, 1.0)
    assert statistics.tensors["inner"] is statistics.tensors["positive"]


def test_statistics_do_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = TensorStatistics.measure(core(), images(70))
    monkeypatch.setattr(calibrate, "batch_size", lambda size: 32)  # 70 = 32 + 32 + 6
    parts = TensorStatistics.measure(core(), images(70))
    assert whole.tensors.keys() == parts.tensors.keys()
    for name in CALIBRATORS:
        assert whole.ranges(name) == parts.ranges(name)


def test_a_constant_tensor_has_a_range() -> None:
    for name in CALIBRATORS:
        assert TensorStatistics.measure(core(), images(8)).ranges(name)["zero"] == (0.0, 0.0)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", list(CALIBRATORS))
def test_a_tensor_that_does_not_come_near_zero_has_a_range(name: str, sign: int) -> None:
    low, high = CALIBRATORS[name](tensor(sign * np.linspace(3, 5, 1000)))
    assert -5.001 < low <= high < 5.001
    assert np.sign(low + high) == sign


def tensor(values: Any) -> Any:
    """Return the statistics of given values, as of one image."""
    array = np.asarray(values, np.float32)[None]
    seen = calibrate._Tensor()
    seen.see(array)
    seen.count(array)
    return seen


def test_percentiles_by_hand() -> None:
    # 10,000 values from 0 to 10 in even steps and one outlier at 100.
    positive = tensor([*np.linspace(0, 10, 10_000), 100.0])
    assert CALIBRATORS["p99.9"](positive) == (0.0, pytest.approx(10, abs=0.1))
    assert CALIBRATORS["p99.999"](positive)[1] == pytest.approx(100, abs=0.1)
    low, high = CALIBRATORS["p99.9"](tensor([-100.0, *np.linspace(-10, 10, 10_000), 100.0]))
    assert low == pytest.approx(-10, abs=0.2)
    assert high == pytest.approx(10, abs=0.2)


def test_moving_average_by_hand() -> None:
    seen = calibrate._Tensor()
    seen.see(np.array([[0.0, 1.0], [0.0, 3.0]], np.float32))
    # Starts at the first image's maximum 1, moves by a hundredth of the way to 3.
    assert CALIBRATORS["moving-average"](seen) == (0.0, pytest.approx(1.02))


def quantized_error(values: Any, limits: tuple[float, float]) -> float:
    low, high = limits
    scale = (high - low) / 255
    restored = low + np.clip(np.round((values - low) / scale), 0, 255) * scale
    return float(np.mean((values - restored) ** 2))


@pytest.mark.parametrize("name", ["mse", "entropy"])
def test_an_outlier_is_clipped(name: str) -> None:
    values = np.abs(np.random.default_rng(0).normal(0, 1, 1_000_000))
    values[0] = 12.0
    low, high = CALIBRATORS[name](tensor(values))
    assert low == pytest.approx(0, abs=1e-3)
    assert 3 < high < 8
    assert quantized_error(values, (0, high)) < quantized_error(values, (0, 12.0))


def test_mse_is_the_best_of_all_thresholds() -> None:
    values = np.random.default_rng(1).laplace(0, 1, 200_000)
    chosen = CALIBRATORS["mse"](tensor(values))
    errors = [
        quantized_error(values, (share * values.min(), share * values.max())) for share in np.linspace(0.13, 1, 60)
    ]
    assert quantized_error(values, chosen) < min(errors) * 1.02


def test_entropy_is_not_drawn_to_the_zeros_of_a_relu() -> None:
    values = np.maximum(np.random.default_rng(2).normal(-0.5, 1, 200_000), 0)
    assert CALIBRATORS["entropy"](tensor(values))[1] > 2.5
