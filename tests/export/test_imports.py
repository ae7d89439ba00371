"""What runs on a device must not need the packages that train."""

import subprocess
import sys
from pathlib import Path

import pytest

import kdedge

CODE = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "onnx", "onnxscript", "safetensors", "matplotlib"}:
            raise ImportError(name)
sys.meta_path.insert(0, Blocker())
import importlib
importlib.import_module(sys.argv[1])
assert "onnxruntime" not in sys.modules, "onnxruntime is imported before it is needed"
"""


@pytest.mark.parametrize(
    "module",
    [
        "kdedge.export.bundle.verify",
        "kdedge.export.bundle.predict",
        "kdedge.export.bundle.build",
        "kdedge.benchmarks.session",
        "kdedge.benchmarks.emulate.emulator",
        "kdedge.benchmarks.emulate.emulated",
    ],
)
def test_imports_with_the_base_install(module: str) -> None:
    root = Path(kdedge.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", CODE, module], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["quantize.model", "quantize.calibrate", "graph", "quantize.proof"])
def test_quantization_does_not_need_torch(module: str) -> None:
    root = Path(kdedge.__file__).parent.parent
    code = CODE.replace('"onnx", ', "").replace("assert", "# assert")
    done = subprocess.run(
        [sys.executable, "-c", code, f"kdedge.export.{module}"], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
