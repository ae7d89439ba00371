"""Other runtimes: the interface with a made-up one, and those that are installed."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from kdedge.benchmarks.candidate import Candidate
from kdedge.benchmarks.options import RUNTIME_NAMES
from kdedge.benchmarks.session import open_model
from kdedge.errors import InputError, StageError
from kdedge.export.graph import cut_input_adapter, read_model, read_spec
from kdedge.export.runtimes.registry import RUNTIMES
from kdedge.export.runtimes.runtime import Runtime, check_installed, convert_student, open_converted
from kdedge.inputs import InputSpec

KERNELS = {"convs": {"integer": 2}, "gemms": {"float": 1}, "nodes_by_provider": {"Made-up": 3}}


def made_up(**changed: Any) -> Runtime:
    """Return a runtime whose files are copies of the ONNX model."""

    def convert(student: Path, calibration: Any, folder: Path) -> None:
        print("progress of a converter")
        for name in ("a.model", "b.model"):
            (folder / name).write_bytes(student.read_bytes())

    def load(path: Path, spec: InputSpec, threads: int) -> Callable[..., Any]:
        model = open_model(path, threads=threads)
        return lambda batch: lambda: model.logits(batch)

    parts = {"convert": convert, "load": load, "kernels": lambda path: KERNELS, **changed}
    return Runtime("Made-up", ("a.model", "b.model"), ("json",), (), **parts)


def test_the_option_names_the_runtimes() -> None:
    assert tuple(RUNTIMES) == RUNTIME_NAMES
    files = [name for runtime in RUNTIMES.values() for name in runtime.files]
    assert len(files) == len(set(files))  # a bundle holds them side by side


def test_a_size_includes_the_weights_of_openvino_but_not_those_of_another_runtime(tmp_path: Path) -> None:
    sizes = {"student.xml": 1, "student.bin": 20, "student.tflite": 300}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(bytes(size))
    assert Candidate("fp32", tmp_path / "student.xml", "OpenVINO IR").size_bytes == 21
    assert Candidate("fp32", tmp_path / "student.tflite", "LiteRT").size_bytes == 300


def test_a_converted_student_is_measured_like_a_model_of_onnxruntime(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = exported / "student.onnx"
    found = convert_student(made_up(), student, np.zeros((4, 16, 16, 3), np.uint8), tmp_path)
    assert [(key.model, key.provider, key.path.name) for key in found] == [
        ("fp32", "Made-up", "a.model"), ("int8", "Made-up", "b.model"),
    ]  # fmt: skip
    assert list(found.values()) == [KERNELS, KERNELS]
    opened, expected = next(iter(found)).open(2), open_model(student)
    batch = expected.spec.random(3, np.random.default_rng(0))
    np.testing.assert_array_equal(opened.logits(batch), expected.logits(batch))
    assert (opened.spec, opened.classes) == (expected.spec, expected.classes)
    assert opened.load_ms > 0
    assert capsys.readouterr().out == ""  # standard output is for programs


def test_failures_of_a_runtime_name_it(exported: Path, tmp_path: Path) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("no kernel\nmore")

    student = exported / "student.onnx"
    with pytest.raises(InputError, match=r"has no a\.model for Made-up"):
        open_converted(made_up(), student, tmp_path)
    images = np.zeros((4, 16, 16, 3), np.uint8)
    for part in ("convert", "load", "kernels"):
        with pytest.raises(StageError, match=r"Made-up cannot use .*: no kernel$"):
            convert_student(made_up(**{part: fail}), student, images, tmp_path)
    with pytest.raises(StageError, match="returns logits"):
        convert_student(made_up(load=lambda *_: lambda batch: lambda: batch), student, images, tmp_path)


def test_a_missing_package_is_named_with_its_extra() -> None:
    runtime = Runtime("Made-up", (), ("json", "no_such_runtime"), ("no_such_tool",), *[lambda *_: None] * 3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"Made-up needs no_such_runtime$") as caught:
        check_installed(runtime, to_convert=False)
    assert "runtimes" in str(caught.value.hint)
    with pytest.raises(InputError, match="needs no_such_runtime and no_such_tool"):
        check_installed(runtime, to_convert=True)


def test_the_core_as_pytorch_operators(exported: Path) -> None:
    import torch

    from kdedge.export.runtimes.torch_core import TorchCore

    student = exported / "student.onnx"
    model = read_model(student)
    spec = read_spec(model)
    assert spec is not None
    core, inputs = cut_input_adapter(model, spec), spec.random(3, np.random.default_rng(1))
    logits = TorchCore(core)(torch.from_numpy(spec.normalised(inputs))).numpy()
    np.testing.assert_allclose(logits, open_model(student).logits(inputs), atol=1e-4)
    core.graph.node.append(onnx.helper.make_node("Erf", ["logits"], ["more"]))
    with pytest.raises(StageError, match="Erf is not implemented"):
        TorchCore(core)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNTIME_NAMES)
def test_a_real_runtime_follows_onnxruntime(name: str, exported: Path, tmp_path: Path) -> None:
    runtime = RUNTIMES[name]
    if missing := [part for part in (*runtime.runs, *runtime.converts) if importlib.util.find_spec(part) is None]:
        pytest.skip(f"{missing[0]} is not installed")
    student = exported / "student.onnx"
    model = open_model(student)
    images = model.spec.smooth(64, np.random.default_rng(0))
    found = convert_student(runtime, student, images[:32], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(runtime.files)
    (fp32, float_kernels), (int8, kernels) = found.items()
    expected = model.logits(images)
    np.testing.assert_allclose(fp32.open().logits(images), expected, atol=1e-4 * np.abs(expected).max())
    logits = int8.open().logits(images)
    # The default ranges of the toolkits are means over the images, which cut outliers off.
    assert 10 * np.log10(np.sum(expected**2) / np.sum((logits - expected) ** 2)) > 10
    assert np.mean(logits.argmax(1) == expected.argmax(1)) > 0.85
    assert "integer" not in float_kernels["convs"]
    assert kernels["convs"].keys() == {"integer"}
    call = int8.open().caller(images[:1])
    np.testing.assert_array_equal(np.argmax(call(), 1), int8.open().logits(images[:1]).argmax(1))
