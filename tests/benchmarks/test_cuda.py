"""The CUDA path on the CPU provider: all but the device is the same. No GPU is needed."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kdedge.benchmarks import cuda
from kdedge.benchmarks import providers as proof
from kdedge.benchmarks import session as runtime
from kdedge.benchmarks.cuda import measure_cuda, write_fp16
from kdedge.benchmarks.providers import kernels_run
from kdedge.benchmarks.session import CPU, CUDA, Model, open_model
from kdedge.inputs import image_input


def test_three_precisions_with_their_kernels(models: dict[str, Path]) -> None:
    rows, raw, unavailable = measure_cuda(models, batches=[1], threads=[1], seconds=0.05, provider=CPU)
    assert unavailable == []
    assert [row["model"] for row in rows] == ["fp32", "int8", "fp16"]
    ran = {row["model"]: row["ran_as"] for row in rows}
    assert ran["fp32"]["convs"] == {"float": 2}
    assert ran["int8"]["convs"] == {"integer": 2}
    assert sum(ran["fp16"]["convs"].values()) == 2
    assert all(found["nodes_by_provider"].keys() == {CPU} for found in ran.values())
    for row, samples in zip(rows, raw, strict=True):
        assert row["on_device"]["samples"] == sum(map(len, samples["on_device_windows_ms"]))
    json.dumps(rows)


def test_without_onnx_fp16_is_unavailable_with_its_fix(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda name: None)
    rows, _, unavailable = measure_cuda(models, batches=[1], threads=[1], seconds=0.05, provider=CPU)
    assert [row["model"] for row in rows] == ["fp32", "int8"]
    assert unavailable[0]["provider"] == "CPU FP16"
    assert "the package onnx, which is not installed" in unavailable[0]["reason"]
    assert unavailable[0]["fix"] == "pip install onnx"


def test_fp16_halves_the_weights_and_keeps_format_and_answers(models: dict[str, Path], tmp_path: Path) -> None:
    path = write_fp16(models["fp32"], tmp_path / "fp16.onnx")
    half, whole = open_model(path), open_model(models["fp32"])
    assert half.class_names == whole.class_names
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    expected = whole.logits(pixels)
    np.testing.assert_allclose(half.logits(pixels), expected, atol=0.02 * np.abs(expected).max())
    assert path.stat().st_size < 0.75 * models["fp32"].stat().st_size


class FakeCuda:
    """A session as onnxruntime gives it for CUDA: one convolution in float on the GPU, one node on the CPU."""

    def __init__(self, folder: Path) -> None:
        self._profile = folder / "profile.json"
        self.bound: dict[str, Any] = {}
        self.runs = 0

    def run(self, names: Any, feed: Any) -> list[Any]:
        return [np.zeros((1, 4), np.float32)]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {CUDA: {"use_tf32": "1"}, CPU: {}}

    def get_modelmeta(self) -> Any:
        return SimpleNamespace(custom_metadata_map={})

    def end_profiling(self) -> str:
        nodes = [
            ("DequantizeLinear", CUDA, "uint8", "float"),
            ("Conv", CUDA, "float", "float"),
            ("MemcpyToHost", CUDA, "float", "float"),
            ("QLinearConv", CPU, "uint8", "uint8"),
        ]
        events = [
            {
                "cat": "Node",
                "name": f"node{number}_kernel_time",
                "args": {
                    "op_name": op,
                    "provider": provider,
                    "input_type_shape": [{taken: [1]}],
                    "output_type_shape": [{given: [1]}],
                },
            }
            for number, (op, provider, taken, given) in enumerate(nodes)
        ]
        self._profile.write_text(json.dumps([{"cat": "Session", "name": "model_run"}, *events]))
        return str(self._profile)

    def io_binding(self) -> Any:
        return SimpleNamespace(
            bind_ortvalue_input=lambda name, value: self.bound.update({name: value}),
            bind_output=lambda name, device, number: self.bound.update({name: (device, number)}),
        )

    def run_with_iobinding(self, binding: Any) -> None:
        self.runs += 1


@pytest.fixture
def fake(tmp_path: Path) -> tuple[FakeCuda, Model]:
    session = FakeCuda(tmp_path)
    return session, Model(tmp_path / "m.onnx", session, CUDA, 1, image_input(16), 4, None, 1.0)


def test_placement_is_read_from_the_profile(fake: tuple[FakeCuda, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "open_model", lambda *_, **__: fake[1])
    assert kernels_run(Path("m.onnx"), CUDA) == {
        "convs": {"float": 1, "integer": 1},
        "nodes_by_provider": {CPU: 1, CUDA: 3},
        "copies": 1,
        "quantize_nodes": 1,
        "tf32": True,
    }


def test_input_and_output_are_bound_to_the_device_once(
    fake: tuple[FakeCuda, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    session, model = fake
    put: Callable[..., Any] = lambda array, device, number: (array.shape, device, number)  # noqa: E731
    values = SimpleNamespace(OrtValue=SimpleNamespace(ortvalue_from_numpy=put))
    monkeypatch.setattr(runtime, "import_onnxruntime", lambda: values)
    call = model.device_caller(np.zeros((8, 16, 16, 3), np.uint8))
    assert session.bound == {"pixels": ((8, 16, 16, 3), "cuda", 0), "logits": ("cuda", 0)}
    call()
    call()
    assert session.runs == 2
