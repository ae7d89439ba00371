"""Noise has nothing to learn: the teacher and the student each stop the run at the end of their stage."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from kdedge.errors import StageError
from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.distill import evaluator
from kdedge.pipeline.stages import distill as stage
from kdedge.pipeline.stages import teacher
from kdedge.pipeline.training.device import resolve


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for part, name, count in (("train", "bad", 20), ("train", "good", 100), ("test", "bad", 2), ("test", "good", 2)):
        folder = root / part / name
        folder.mkdir(parents=True)
        for index in range(count):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{index:03}.png")
    config = build_config(
        {
            "data": {"source": f"folder:{root}", "image_size": 16, "val_fraction": 0.5},
            "teacher": {"arch": "tiny_resnet", "weights": "none", "epochs": 1, "batch_size": 16, "lr": 0.02},
            "distill": {"student": "lite-xs", "method": "ce", "epochs": 1, "batch_size": 16},
            "runtime": {"device": "cpu", "threads": 1, "precision": "fp32"},
        }
    )
    return dataclasses.replace(config, runtime=resolve(config.runtime, None))


def test_a_teacher_of_noise_stops_the_run(config, tmp_path):
    with pytest.raises(
        StageError, match=r"^the teacher has learned nothing: .* no better than always predicting `good`"
    ):
        teacher.run(config, {}, tmp_path)


def test_a_student_of_noise_stops_the_run(config, tmp_path, monkeypatch):
    predicted = []
    predict = evaluator.predict_logits
    monkeypatch.setattr(evaluator, "predict_logits", lambda *given: predicted.append(given[0]) or predict(*given))
    untrained = dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, epochs=0))
    (tmp_path / "teacher").mkdir()
    teacher.run(untrained, {}, tmp_path / "teacher")
    (tmp_path / "distill").mkdir()
    with pytest.raises(StageError, match=r"^the student has learned nothing: .* 60 validation images") as caught:
        stage.run(untrained, {"teacher": tmp_path / "teacher"}, tmp_path / "distill")
    assert len(predicted) == 3  # the teacher, the student after its epoch, and the loaded student once
    assert "--method ce" in caught.value.hint
    assert caught.value.exit_code == 1
