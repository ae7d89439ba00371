"""What the benchmark stage hands to the report, of a run and of a bundle."""

import dataclasses
import types

import numpy as np
import pytest
import torch
from image_folders import make_tree

from kdedge.benchmarks.sampling import stratified_sample
from kdedge.dataset import Split
from kdedge.files import write_json
from kdedge.pipeline import measure_bundle
from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.models import load
from kdedge.pipeline.stages import benchmark as evaluate
from kdedge.pipeline.stages.registry import STAGES

MADE = build_config({"data": {"source": "sample"}, "distill": {"epochs": 4}})


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Return the commands that a report of a run names which was made with `MADE`."""
    inputs = {stage: tmp_path / stage for stage in STAGES["benchmark"].reads}
    for stage, folder in inputs.items():
        folder.mkdir()
        key = STAGES[stage].fingerprint(MADE)
        write_json(folder / "manifest.json", {"schema": 1, "config": key, "inputs": {}, "outputs": {}, "facts": {}})
    given = {}
    monkeypatch.setattr(evaluate, "_run_facts", lambda config, inputs: {"run": {}})
    monkeypatch.setattr(
        evaluate, "run_benchmark", lambda *_, **more: given.update(more) or dict.fromkeys(("accuracy", "gate", "size"))
    )

    def commands(**changed):
        sections = {name: dataclasses.replace(getattr(MADE, name), **values) for name, values in changed.items()}
        evaluate.run(dataclasses.replace(MADE, **sections), inputs, tmp_path)
        return given["run_facts"]["run"].get("commands")

    return commands


def test_the_command_of_a_run_is_named_if_it_would_make_the_run_again(commands):
    assert commands() == ["kdedge run-all --data sample --distill-epochs 4"]
    assert commands(benchmark={"seconds": 2.0}) == [
        "kdedge run-all --data sample --distill-epochs 4 --latency-seconds 2.0"
    ]


@pytest.mark.parametrize(
    "changed",
    [
        {"runtime": {"seed": 3}},  # a cell of a study whose teacher has another seed
        {"teacher": {"epochs": 9}},  # a teacher that was trained elsewhere
        {"data": {"train_size": 100}},
        {"distill": {"lr": 0.3}},  # given to a distillation that was interrupted
        {"quantize": {"qat": True}},
    ],
)
def test_no_command_is_named_that_would_make_another_run(commands, changed):
    assert commands(**changed) is None


def write_manifest(folder, **facts):
    manifest = {"schema": 1, "config": {"runtime": {"seed": 3}}, "inputs": {}, "outputs": {}, "facts": facts}
    write_json(folder / "manifest.json", {**manifest, "commit": "c0ffee", "wall_s": 1.5})


def test_the_report_knows_the_weights_that_a_student_began_from(tmp_path):
    inputs = {stage: tmp_path / stage for stage in ("teacher", "distill", "export", "quantize")}
    for folder in inputs.values():
        folder.mkdir()
    model = {"arch": "a", "params": 1, "epochs": 0, "val_top1_pct": 90.0}
    student = {**model, "method": "selective", "train_images": 9, "hint_pairs": [], "block_variances": {}}
    write_manifest(inputs["teacher"], **model, stem="cifar", weights="none")
    write_manifest(inputs["export"], macs=1)
    write_manifest(inputs["quantize"])
    write_json(inputs["quantize"] / "candidates.json", dict.fromkeys(("candidates", "chosen", "target", "rung")))
    write_json(inputs["quantize"] / "sensitivity.json", {"layers": []})
    (inputs["distill"] / "training_log_selective.csv").write_text("")
    write_manifest(inputs["distill"], **student, weights_sha256=["ab" * 32, "cd" * 32])
    assert evaluate._run_facts(build_config(), inputs)["student"]["weights_sha256"] == ["ab" * 32, "cd" * 32]
    assert evaluate._run_facts(build_config(), inputs)["run"]["seed"] == 3, (
        "of the student, whatever the configuration is now"
    )
    write_manifest(inputs["distill"], **student)  # as older versions wrote it
    assert evaluate._run_facts(build_config(), inputs)["student"]["weights_sha256"] is None


@pytest.fixture
def facts_of_bundle(tmp_path, monkeypatch):
    """Return what the report of a bundle is told that was judged on test images with some SHA-256 (None: unknown)."""
    here = types.SimpleNamespace(name="sample", test_sha256=lambda: "ab" * 32)
    given = {}
    monkeypatch.setattr("kdedge.pipeline.measure_bundle.verify_bundle", lambda bundle: None)
    monkeypatch.setattr(measure_bundle, "open_dataset", lambda *_: here)
    monkeypatch.setattr(measure_bundle, "run_benchmark", lambda *_, run_facts, **more: given.update(run_facts))
    made = {"preset": "fast", "data": "cifar10", "commit": "c0ffee", "wall_s": 9.0, "versions": {}, "stage_wall_s": {},
            "peak_rss_mb": 1500.0, "runtime": {"threads": 1}, "stage_commits": {"teacher": "c0ffee"}}  # fmt: skip
    write_json(tmp_path / "report.json", {"run": made, "teacher": {"arch": "r", "test_top1_pct": 88.0}, "student": {}})

    def facts(judged_on):
        write_manifest(tmp_path, history={"data": {"data/test": judged_on} if judged_on else {}})
        measure_bundle.benchmark_bundle(MADE, tmp_path, tmp_path)
        return given

    return facts


@pytest.mark.parametrize(("judged_on", "same", "top1"), [("ab", True, 88.0), ("cd", False, None), ("", None, None)])
def test_the_teachers_accuracy_is_that_of_the_same_images_or_unknown(facts_of_bundle, judged_on, same, top1):
    facts = facts_of_bundle(judged_on * 32)
    assert facts["run"].get("same_test_images") is same
    assert facts["teacher"] == {"arch": "r", "test_top1_pct": top1}


def test_what_was_measured_where_a_bundle_was_made_is_not_said_of_this_host(facts_of_bundle):
    assert facts_of_bundle("ab" * 32)["run"] == {
        "preset": "fast", "stage_commits": {"teacher": "c0ffee"}, "same_test_images": True,
    }  # fmt: skip


def test_too_few_groups_are_found_before_training(tmp_path, capsys):
    make_tree(tmp_path, {"a": 24, "b": 24})
    files = [f"{label}/{index:03d}.png,{label}" for index in range(24) for label in "ab"]
    for groups in (24, 6):
        lines = [f"{file},g{index % groups}" for index, file in enumerate(files)]
        (tmp_path / f"{groups}.csv").write_text("\n".join(["path,label,group", *lines]))
        data = {"source": str(tmp_path / f"{groups}.csv"), "image_size": 16, "test_fraction": 0.4}
        evaluate.check_data(build_config({"data": data}), tmp_path, ())
        warned = " ".join(capsys.readouterr().err.split())
        assert ("the gate needs at least 5 to pass" in warned) == (groups == 6)
    assert "the test part has 2 groups, which count as 2.0 of equal size" in warned


def test_too_few_groups_of_windows_are_found_before_training(tmp_path, capsys):
    x, y = np.random.default_rng(0).normal(size=(40, 16, 2)), np.arange(40) % 2
    for groups in (20, 4):
        group_test = [f"test {index % groups}" for index in range(40)]
        np.savez(tmp_path / f"{groups}.npz", x=x, y=y, x_test=x, y_test=y, group_test=group_test)
        data = {"source": f"windows:{tmp_path / str(groups)}.npz", "layout": "NLC"}
        evaluate.check_data(build_config({"data": data}), tmp_path, ())
        assert ("the test part has 4 groups" in " ".join(capsys.readouterr().err.split())) == (groups == 4)


def test_runtimes_get_the_calibration_images_of_the_int8_model(tmp_path, monkeypatch):
    given = {}

    def convert(runtime, student, calibration, folder):
        given.update(name=runtime.name, student=student, calibration=calibration, folder=folder)
        return {runtime.name: {}}

    images, labels = np.arange(20), np.arange(20) % 2
    train = types.SimpleNamespace(images=images, labels=labels)
    monkeypatch.setattr(evaluate, "convert_student", convert)
    monkeypatch.setattr(evaluate, "training_images", lambda *_: (train, None))
    write_json(tmp_path / "candidates.json", {"calibration_images": 6})
    config = build_config({"data": {"source": "sample"}, "benchmark": {"runtime": "openvino"}})
    inputs = {"quantize": tmp_path, "export": tmp_path}
    assert list(evaluate._converted(config, inputs, tmp_path / "runtimes")) == ["OpenVINO IR"]
    assert given["student"] == tmp_path / "student.onnx"
    assert given["folder"].is_dir()
    assert given["calibration"].tolist() == stratified_sample(labels, 6, config.runtime.seed).tolist()
    none = dataclasses.replace(config, benchmark=dataclasses.replace(config.benchmark, runtime=""))
    assert evaluate._converted(none, inputs, tmp_path / "none") == {}


def test_a_teacher_that_enlarges_its_images_sees_few_at_a_time(tmp_path, monkeypatch):
    seen = {}

    class Network(torch.nn.Module):
        def __init__(self, name, image_size=0):
            super().__init__()
            self.name, self.image_size = name, image_size

        def forward(self, pixels):
            seen[self.name] = max(seen.get(self.name, 0), len(pixels))
            return torch.zeros(len(pixels), 2)

    monkeypatch.setattr(load, "load_teacher", lambda folder: Network("teacher", 640))
    monkeypatch.setattr(load, "load_student", lambda folder: Network("student"))
    manifest = {"schema": 1, "config": {}, "inputs": {}, "outputs": {"teacher.safetensors": "of 640"}, "facts": {}}
    write_json(tmp_path / "manifest.json", manifest)
    split = Split(np.zeros((20, 16, 16, 3), np.uint8), np.zeros(20, np.int64))
    scores = evaluate._TorchScores({"teacher": tmp_path, "distill": tmp_path}, "images")(split)
    assert scores == {"teacher_test_top1_pct": 100.0, "torch_fp32_top1_pct": 100.0}
    assert seen == {"teacher": 2, "student": 20}, "memory of 250 images of 64 pixels"
