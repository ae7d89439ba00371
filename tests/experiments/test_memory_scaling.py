"""The data path of a run within a limit on private writable memory, enforced by the kernel."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

CODE = """
import resource, sys
from pathlib import Path
from experiments import memory_scaling as scaling
from kdedge import image_cache
from kdedge.pipeline.data import arrays, sources

scaling.SIZE, model, found = 32, Path("model.onnx"), {}
scaling.write_model(model)
image_cache.IN_MEMORY = arrays.IN_MEMORY = 1 << 20
for _ in scaling.data_path("arrays:small.npz", model, found):  # imports, threads and buffers
    pass
limit = scaling.memory_kb("VmData") * 1024 + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
print(*scaling.data_path("arrays:large.npz", model, found), round(found["decoded"]))
image_cache.IN_MEMORY = 1 << 40
sources._kept.clear()
for step in scaling.data_path("arrays:large.npz", model, found):
    print(step, flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not count private memory")
def test_a_run_on_mapped_images_needs_less_memory_than_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """147 MB of training pixels within 100 MB; the same images in memory exceed the limit when they are decoded."""
    for name, count in (("small", 2000), ("large", 60_000)):
        images = np.zeros((count, 32, 32, 3), np.uint8)
        images[:, :, :16] = np.arange(count)[:, None, None, None] % 10
        images[:, 0, 0, :2] = np.arange(count)[:, None] // [256, 1] % 256
        np.savez(tmp_path / f"{name}.npz", x=images, y=np.arange(count) % 10)
    monkeypatch.setenv("KDEDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    command = [sys.executable, "-c", CODE, str(100_000_000)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout.splitlines() == ["opened decoded trained quantized tested 147", "opened"], done.stderr
    assert "MemoryError" in done.stderr
