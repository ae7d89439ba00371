"""A tiny trained-looking student, its exports and bundles, and a data set that refuses to show test images."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import MANIFEST_OF_BENCHMARK, REPORT
from shared import made_once

from kdedge.dataset import Split
from kdedge.inputs import image_input
from kdedge.pipeline.config import Config
from kdedge.pipeline.config.build import build_config

SIZE = 16
CLASSES = ("ant", "bee", "cat", "dog")


class FakeDataset:
    """Coloured noise: each class has its own mean colour."""

    name, class_names, spec = "fake", CLASSES, image_input(SIZE)

    def train(self) -> Split:
        rng = np.random.default_rng(1)
        labels = np.arange(240, dtype=np.int64) % len(CLASSES)
        means = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [150, 150, 150]])
        images = np.clip(means[labels][:, None, None] + rng.normal(0, 60, (240, SIZE, SIZE, 3)), 0, 255)
        return Split(images.astype(np.uint8), labels)

    def test(self) -> Split:
        raise AssertionError("the test images were read")


def split(data: Split, *_: object) -> tuple[Split, Split]:
    return Split(data.images[:160], data.labels[:160]), Split(data.images[160:], data.labels[160:])


def build_tiny(num_classes: int = len(CLASSES), image_size: int = SIZE, width: int = 8) -> Any:
    """Five convolutions, pools and a residual add, trained for a moment on the fake data."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, ins: int, outs: int, *, pool: bool = False, residual: bool = False) -> None:
            super().__init__()
            self.conv = nn.Conv2d(ins, outs, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(outs)
            self.relu = nn.ReLU(inplace=True)
            self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
            self.residual = residual

        def forward(self, x: Any) -> Any:
            out = self.relu(self.norm(self.conv(x)))
            return self.pool(out + x if self.residual else out)

    torch.manual_seed(0)
    return nn.Sequential(
        Block(3, width, pool=True), Block(width, width, residual=True), Block(width, 2 * width, pool=True),
        Block(2 * width, 2 * width), Block(2 * width, 3 * width), nn.AvgPool2d(image_size // 4), nn.Flatten(),
        nn.Linear(3 * width, num_classes),
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Any]:
    """Builds the tiny student with random weights."""
    return build_tiny


@pytest.fixture(scope="session")
def student() -> Any:
    import torch

    module = build_tiny()
    data, _ = split(FakeDataset().train())
    images = torch.from_numpy(data.images).permute(0, 3, 1, 2).float() / 255
    labels = torch.from_numpy(data.labels)
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(module(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # So few steps leave the running statistics far behind: take those of the data as they are.
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
    with torch.no_grad():
        module(images)
    return module.eval()


@pytest.fixture(scope="session")
def exported(student: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with student.onnx, made once (the exporter takes seconds)."""
    from kdedge.export.onnx_export import export_student

    def make(folder: Path) -> None:
        folder.mkdir()
        export_student(student, image_input(SIZE), CLASSES, folder / "student.onnx")
        write_manifest(folder, "export", {"distill/student.safetensors": "ab" * 32})

    return made_once(tmp_path_factory, "export", make)


@pytest.fixture
def config() -> Config:
    return build_config({"data": {"image_size": SIZE}, "quantize": {"calibration_images": 64}})


@pytest.fixture
def dataset(monkeypatch: pytest.MonkeyPatch) -> FakeDataset:
    """Let the stages read the fake data set."""
    fake = FakeDataset()
    use_dataset(monkeypatch, fake)
    return fake


def use_dataset(patch: pytest.MonkeyPatch, fake: FakeDataset) -> None:
    """Let the stages after distillation read a fake data set."""
    from kdedge.pipeline.stages import bundle, quantize

    for stage in (bundle, quantize):
        patch.setattr(stage, "opened", lambda *_: fake)
        patch.setattr(stage, "training_images", lambda *_: split(fake.train()))


@pytest.fixture(scope="session")
def quantized(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with student.int8.onnx and candidates.json, made once by the stage."""
    from kdedge.pipeline.stages.quantize import run

    def make(folder: Path) -> None:
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            use_dataset(patch, FakeDataset())
            patch.setattr("kdedge.export.quantize.search._LATENCY_SECONDS", 0.01)
            run(build_config({"quantize": {"calibration_images": 64}}), {"export": exported}, folder)
        write_manifest(folder, "quantize", {"data/train": "cd" * 32})

    return made_once(tmp_path_factory, "quantize", make)


@pytest.fixture
def make_bundle(exported: Path, quantized: Path, tmp_path: Path, dataset: Any) -> Callable[..., Path]:
    """Build a bundle as `kdedge bundle` does, from a report."""
    from kdedge.files import file_sha256
    from kdedge.pipeline.run_dir import StageSpec, run_stage
    from kdedge.pipeline.stages.bundle import run

    def make(report: dict[str, Any] = REPORT, allow_undecided: bool = False, others: tuple[str, ...] = ()) -> Path:
        run_dir = tmp_path / "run"
        shutil.copytree(exported, run_dir / "export")
        shutil.copytree(quantized, run_dir / "quantize")
        benchmark = run_dir / "benchmark"
        benchmark.mkdir()
        (benchmark / "report.json").write_text(json.dumps(report))
        for name in others:
            (benchmark / "runtimes").mkdir(exist_ok=True)
            (benchmark / "runtimes" / name).write_text(name)
        files = [benchmark / "report.json", *benchmark.glob("runtimes/*")]
        outputs = {file.relative_to(benchmark).as_posix(): file_sha256(file) for file in files}
        (benchmark / "manifest.json").write_text(json.dumps(MANIFEST_OF_BENCHMARK | {"outputs": outputs}))
        reads = ("export", "quantize", "benchmark")
        spec = StageSpec("bundle", reads, run, lambda config: {}, lambda config: {})
        run_stage(spec, build_config({"bundle": {"allow_undecided": allow_undecided}}), run_dir)
        return run_dir / "bundle"

    return make


def write_manifest(folder: Path, stage: str, inputs: dict[str, str]) -> None:
    from kdedge.files import file_sha256

    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json"]
    outputs = {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
    manifest = {"schema": 1, "stage": stage, "config": {}, "inputs": inputs, "outputs": outputs, "facts": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
