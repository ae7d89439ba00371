import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from kdedge.benchmarks import host
from kdedge.errors import InputError
from kdedge.machine import Cpu


class FakeRuntime:
    __version__ = "9.9"

    def __init__(self, *providers: str) -> None:
        self._providers = [*(f"{name}ExecutionProvider" for name in providers), "CPUExecutionProvider"]

    def get_available_providers(self) -> list[str]:
        return self._providers

    def get_all_providers(self) -> list[str]:
        return list(onnxruntime.get_all_providers())


def pretend(monkeypatch: pytest.MonkeyPatch, packages: set[str], gpu: str | None, *providers: str) -> None:
    monkeypatch.setattr(host, "_version", lambda name: "1.0" if name in packages else None)
    monkeypatch.setattr(host, "_gpu", lambda: gpu)
    monkeypatch.setattr(host, "import_onnxruntime", lambda: FakeRuntime(*providers))


def test_record_of_this_machine() -> None:
    record = host.host_record()
    assert record["cpu"]
    assert record["cores"] >= 1
    assert record["memory_bytes"] > 2**28
    assert "CPUExecutionProvider" in record["providers"]
    assert set(record["isa"]) <= set(host._ISA)


def test_instruction_sets_have_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = frozenset({"asimd", "asimddp", "i8mm", "avx512vnni", "sse2"})
    monkeypatch.setattr(host, "cpu_info", lambda: Cpu("Made-up", flags))
    record = host.host_record()
    assert record["cpu"] == "Made-up"
    assert record["isa"] == ["avx512_vnni", "neon", "dotprod", "i8mm"]


@pytest.mark.parametrize(
    ("setup", "reason", "fix"),
    [
        (({"onnxruntime"}, None), "no NVIDIA GPU found .*CPU build", "with a GPU: pip uninstall"),
        (({"onnxruntime"}, "H100"), "H100 is available, but .*CPU build", "pip install onnxruntime-gpu"),
        (({"onnxruntime-gpu"}, None, "CUDA"), "no NVIDIA GPU found", "with a GPU"),
        (({"onnxruntime", "onnxruntime-gpu"}, "H100", "CUDA"), "both installed", "&& pip install onnxruntime-gpu"),
        (({"onnxruntime", "onnxruntime-gpu"}, None), "both installed", "&& pip install onnxruntime"),
    ],
)
def test_why_cuda_is_missing(
    monkeypatch: pytest.MonkeyPatch, setup: tuple[set[str], str | None], reason: str, fix: str
) -> None:
    pretend(monkeypatch, *setup)
    problem = host.cuda_problem()
    assert problem is not None
    assert re.search(reason, problem["reason"])
    assert fix in problem["fix"]


def test_cuda_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"onnxruntime-gpu"}, "H100", "CUDA")
    assert host.cuda_problem() is None
    checks = {check["name"]: check for check in host.doctor()["checks"]}
    assert checks["CUDA provider"]["status"] == "ok"


@pytest.mark.parametrize(
    ("providers", "library", "problem"),
    [(("CUDA",), "libnvinfer.so.10", "has no TensorRT"), (("Tensorrt",), None, "libnvinfer"),
     (("Tensorrt",), "libnvinfer.so.10", None)],
)  # fmt: skip
def test_tensorrt_is_recognised(
    monkeypatch: pytest.MonkeyPatch, providers: tuple[str, ...], library: str | None, problem: str | None
) -> None:
    pretend(monkeypatch, {"onnxruntime-gpu"}, "H100", *providers)
    monkeypatch.setattr(host.ctypes.util, "find_library", lambda name: library if name == "nvinfer" else None)
    found = host.host_record()["tensorrt_problem"]
    assert found is None if problem is None else problem in found
    (check,) = [check for check in host.doctor()["checks"] if check["name"] == "TensorRT provider"]
    assert check["status"] == ("ok" if problem is None else "missing")


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        ("cpu,openvino", "9.9 as installed has no OpenVINOExecutionProvider; it has cpu", "onnxruntime-openvino"),
        ("cpu,coreml", "has no CoreMLExecutionProvider", "on macOS"),
        ("xnnpack", "has no XnnpackExecutionProvider", "--use_xnnpack"),
        ("dnnl", "has no DnnlExecutionProvider", "build onnxruntime with DnnlExecutionProvider"),
        ("cuda", "no NVIDIA GPU found", "onnxruntime-gpu"),
        ("openvin", "no execution provider 'openvin' .did you mean 'openvino'", "known: azure"),
    ],
)  # fmt: skip
def test_a_provider_that_was_asked_for_and_is_absent(
    monkeypatch: pytest.MonkeyPatch, text: str, message: str, fix: str
) -> None:
    pretend(monkeypatch, {"onnxruntime"}, None)
    with pytest.raises(InputError, match=message) as caught:
        host.asked_providers(text)
    assert fix in str(caught.value.hint)


def test_providers_are_named_as_onnxruntime_lists_them(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"onnxruntime-openvino"}, None, "OpenVINO")
    assert host.asked_providers("") == host.asked_providers("cpu") == []
    assert host.asked_providers("CPU,OpenVINO,openvinoexecutionprovider") == ["OpenVINOExecutionProvider"]


def test_doctor_fits_80_columns_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"onnxruntime", "onnxruntime-gpu"}, None)
    text = host.format_doctor(host.doctor())
    assert max(map(len, text.splitlines())) <= 80
    assert "broken" in text
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in " ".join(text.split())


def test_doctor_shows_brackets_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = host.doctor()
    facts["checks"].append({"name": "x", "status": "missing", "detail": "y", "fix": "pip install 'kdedge[train]'"})
    facts["host"]["cpu"] = "CPU [red] 9"
    text = host.format_doctor(facts)
    assert "pip install 'kdedge[train]'" in text
    assert "CPU [red] 9" in text


def test_doctor_works_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise InputError("onnxruntime cannot be imported: no module", "pip install onnxruntime")

    monkeypatch.setattr(host, "import_onnxruntime", missing)
    facts = host.doctor()
    assert facts["host"] is None
    assert facts["checks"][0] == {
        "name": "onnxruntime",
        "status": "broken",
        "detail": "onnxruntime cannot be imported: no module",
        "fix": "pip install onnxruntime",
    }
    assert "pip install onnxruntime" in host.format_doctor(facts)


def test_a_mixture_that_does_not_even_import_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise InputError("onnxruntime cannot be imported: undefined symbol", "pip install onnxruntime")

    pretend(monkeypatch, {"onnxruntime", "onnxruntime-gpu"}, None)
    monkeypatch.setattr(host, "import_onnxruntime", broken)
    (check,) = [check for check in host.doctor()["checks"] if check["name"] == "onnxruntime"]
    assert "undefined symbol; onnxruntime and onnxruntime-gpu are both installed" in check["detail"]
    assert check["fix"].startswith("pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime")


def test_a_cpu_without_dot_products_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cpu_info", lambda: Cpu("Haswell", frozenset({"avx2"})))
    checks = {check["name"]: check for check in host.doctor()["checks"]}
    assert checks["INT8 instructions"]["status"] == "missing"
    assert "saturate on AVX2" in checks["INT8 instructions"]["detail"]


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [("x86_64", {"avx2", "avx512_vnni"}, "x64-vnni"), ("AMD64", {"avx2", "avxvnni"}, "x64-vnni"),
     ("x86_64", {"avx2"}, "x64-avx2"), ("aarch64", {"asimd"}, "arm64"), ("riscv64", set(), "")],
)  # fmt: skip
def test_kind_of_host(monkeypatch: pytest.MonkeyPatch, machine: str, flags: set[str], expected: str) -> None:
    monkeypatch.setattr(host.platform, "machine", lambda: machine)
    monkeypatch.setattr(host, "cpu_info", lambda: Cpu("", frozenset(flags)))
    assert host.host_kind() == expected


@pytest.mark.parametrize(
    ("target", "warns"), [(None, False), ("portable", False), ("arm64", False), ("x64-vnni", True)]
)
def test_a_model_for_other_cpus_is_told(monkeypatch: pytest.MonkeyPatch, target: str | None, warns: bool) -> None:
    monkeypatch.setattr(host, "host_kind", lambda: "arm64")
    found = SimpleNamespace(custom_metadata_map={"kdedge.target": target} if target else {})
    model: Any = SimpleNamespace(path=Path("m.onnx"), session=SimpleNamespace(get_modelmeta=lambda: found))
    assert ("m.onnx was made for x64-vnni and this host is arm64" in host.wrong_host(model)) is warns


@pytest.mark.parametrize(
    ("target", "status", "detail"),
    [
        (None, "ok", "m.onnx has no target CPU in its metadata"),
        ("portable", "ok", "m.onnx was made for every CPU"),
        ("arm64", "ok", "m.onnx was made for arm64, and this host is of that kind"),
        ("x64-vnni", "broken", "m.onnx was made for x64-vnni and this host is arm64: its predictions may differ here"),
    ],
)
def test_what_an_artifact_was_made_for_is_a_check(
    monkeypatch: pytest.MonkeyPatch, target: str | None, status: str, detail: str
) -> None:
    monkeypatch.setattr(host, "host_kind", lambda: "arm64")
    found = SimpleNamespace(custom_metadata_map={"kdedge.target": target} if target else {})
    model: Any = SimpleNamespace(path=Path("m.onnx"), session=SimpleNamespace(get_modelmeta=lambda: found))
    monkeypatch.setattr(host, "open_model", lambda path: model)
    check = host.artifact_check(Path("m.onnx"))
    assert (check["name"], check["status"], check["detail"]) == ("artifact", status, detail)
    assert ("--target portable" in check["fix"]) is (status != "ok")


def test_a_device_misses_nothing_that_only_training_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    find = host.importlib.util.find_spec
    lacking = {"torch", "torchvision", "onnx", "matplotlib"}
    monkeypatch.setattr(host.importlib.util, "find_spec", lambda name: None if name in lacking else find(name))
    checks = {check["name"]: check for check in host.doctor()["checks"]}
    assert not lacking & checks.keys()
    assert checks["training"]["status"] == "ok"
    assert "not needed on a device" in checks["training"]["detail"]
    lacking.discard("torch")
    checks = {check["name"]: check for check in host.doctor()["checks"]}
    assert checks["onnx"]["status"] == "missing"


def test_a_mixture_is_broken_whatever_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = {"provider": "CUDA", "kind": "mixture", "reason": "other words", "fix": ""}
    monkeypatch.setattr(host, "cuda_problem", lambda: problem)
    checks = {check["name"]: check for check in host.doctor()["checks"]}
    assert checks["CUDA provider"]["status"] == "broken"
