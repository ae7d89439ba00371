"""A tiny teacher, and a function that distills a tiny student from it."""

import dataclasses

import pytest

from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.stages import distill as stage
from kdedge.pipeline.stages import teacher
from kdedge.pipeline.training.device import resolve


@pytest.fixture(scope="module")
def config(folder_data):
    runtime = {"device": "cpu", "threads": 1, "precision": "fp32", "seed": 3}
    teacher = {
        "arch": "tiny_resnet",
        "stem": "cifar-pool",
        "weights": "none",
        "epochs": 8,
        "batch_size": 16,
        "lr": 0.05,
    }
    config = build_config(
        {
            "data": {"source": f"folder:{folder_data}", "image_size": 16, "val_fraction": 0.2},
            "teacher": teacher,
            "distill": {"student": "lite-xs", "epochs": 4, "batch_size": 16, "lr": 0.05, "scan_batches": 2},
            "runtime": runtime,
        }
    )
    return dataclasses.replace(config, runtime=resolve(config.runtime, None))


@pytest.fixture(scope="module")
def teacher_dir(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    teacher.run(config, {}, folder)
    return folder


@pytest.fixture
def distill(config, teacher_dir, tmp_path):
    def run(name, **settings):
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        changed = dataclasses.replace(config, distill=dataclasses.replace(config.distill, **settings))
        facts = stage.run(changed, {"teacher": teacher_dir}, out)
        return (out / "student.safetensors").read_bytes(), facts

    return run
