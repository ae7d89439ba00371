"""Other providers, on the CPU provider: all but the device is the same. No GPU is needed."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

from kdedge.benchmarks import alternatives, providers
from kdedge.benchmarks import kernels as proof
from kdedge.benchmarks import session as runtime
from kdedge.benchmarks.accuracy import predict_logits
from kdedge.benchmarks.alternatives import comparison, try_provider, write_fp16
from kdedge.benchmarks.candidate import Candidate, Runnable, onnx_candidates
from kdedge.benchmarks.kernels import kernels_run
from kdedge.benchmarks.latency import measure_latency
from kdedge.benchmarks.providers import CPU, CUDA
from kdedge.benchmarks.session import Model, open_model
from kdedge.dataset import Split
from kdedge.errors import InputError, StageError
from kdedge.inputs import image_input

AZURE = "AzureExecutionProvider"
KERNELS = {"convs": {"float": 2}, "gemms": {}, "subgraphs": 0}


def models_of(models: dict[str, Path]) -> dict[str, Path]:
    return {name: models[name] for name in ("fp32", "int8")}


def open_there(candidate: Candidate, threads: int, spinning: bool) -> Runnable:
    return open_model(candidate.path, threads=threads)


@pytest.fixture
def as_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(providers.GPUS, CPU, "cpu")


def test_a_gpu_runs_three_precisions_with_their_kernels(models: dict[str, Path], as_gpu: None, tmp_path: Path) -> None:
    ran, unavailable = try_provider(CPU, models_of(models), 2, tmp_path)
    assert unavailable == []
    kernels = {candidate.model: found for candidate, found in ran.items()}
    assert kernels["fp32"]["convs"] == {"float": 2}
    assert kernels["int8"]["convs"] == {"integer": 2}
    assert sum(kernels["fp16"]["convs"].values()) == 2
    assert all(found["nodes_by_provider"].keys() == {CPU} for found in kernels.values())
    rows, raw = measure_latency(list(ran), seconds=0.05)
    assert [row["model"] for row in rows] == ["fp32", "int8", "fp16"]
    for row, samples in zip(rows, raw, strict=True):
        assert row["on_device"]["samples"] == sum(map(len, samples["on_device_windows_ms"]))
    json.dumps(rows)


def test_without_onnx_fp16_is_unavailable_with_its_fix(
    models: dict[str, Path], as_gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alternatives.importlib.util, "find_spec", lambda name: None)
    ran, unavailable = try_provider(CPU, models_of(models), 1, tmp_path)
    assert [candidate.model for candidate in ran] == ["fp32", "int8"]
    assert unavailable[0]["provider"] == "CPU FP16"
    assert "the package onnx, which is not installed" in unavailable[0]["reason"]
    assert unavailable[0]["fix"] == "pip install onnx"


def test_a_provider_that_runs_no_node_of_the_model_is_not_measured(models: dict[str, Path], tmp_path: Path) -> None:
    if AZURE not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no provider without kernels")
    ran, unavailable = try_provider(AZURE, models_of(models), 1, tmp_path)
    assert ran == {}
    assert [row["provider"] for row in unavailable] == ["Azure FP32", "Azure INT8"]
    assert "no node of the model" in unavailable[0]["reason"]


@pytest.mark.parametrize("error", [StageError, InputError, RuntimeException])
def test_a_provider_that_does_not_start_is_unavailable_with_its_fix(
    models: dict[str, Path], as_gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(*_: Any) -> Any:
        raise error("onnxruntime fell back")

    monkeypatch.setattr(alternatives, "kernels_run", fail)
    ran, unavailable = try_provider(CPU, models_of(models), 1, tmp_path)
    assert ran == {}
    assert unavailable[1]["provider"] == "CPU INT8"
    assert unavailable[1]["reason"] == "onnxruntime fell back"
    assert unavailable[1]["fix"].startswith("pip install")


def test_answers_are_compared_with_those_of_the_cpu(models: dict[str, Path], labelled: Split) -> None:
    here = onnx_candidates(models_of(models))
    expected = {key: predict_logits(key.open(), labelled.images).argmax(1) for key in here}
    # A provider whose INT8 is another model.
    others = [
        Candidate("fp32", models["fp32"], "Other", open_there),
        Candidate("int8", models["fp32"], "Other", open_there),
    ]
    rows = comparison(expected, dict.fromkeys(others, KERNELS), labelled, balanced=False)
    assert [(row["provider"], row["model"]) for row in rows] == [
        (CPU, "fp32"), (CPU, "int8"), ("Other", "fp32"), ("Other", "int8"),
    ]  # fmt: skip
    fp32, int8, other, same = rows
    assert other["loss"]["loss_pp"] == same["own_loss"]["loss_pp"] == 0
    assert (fp32["own_loss"], fp32["loss"], other["changed_answers"]) == (None, None, 0)
    changed = np.count_nonzero(expected[here[0]] != expected[here[1]])
    assert (int8["changed_answers"], same["changed_answers"]) == (0, changed)
    assert int8["own_loss"] == int8["loss"]
    assert [(row["integer_layers"], row["layers"]) for row in rows] == [(0, 3), (3, 3), (0, 2), (0, 2)]
    assert all(row["load_ms"] > 0 and row["first_run_ms"] > 0 for row in rows)
    assert int8["bytes"] == models["int8"].stat().st_size


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
            ("TRT-subgraph_1", CUDA, "float", "float"),
        ]
        events = [
            {
                "cat": "Node",
                "name": f"{f'{provider}_{op}' if 'subgraph' in op else f'node{number}'}_kernel_time",
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
        "nodes_by_provider": {CPU: 1, CUDA: 4},
        "gemms": {},
        "copies": 1,
        "subgraphs": 1,
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
