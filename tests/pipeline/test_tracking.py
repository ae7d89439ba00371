"""What --track logs. Reads the files back where TensorBoard and MLflow are installed (extra tracking)."""

import dataclasses
from pathlib import Path

import pytest
from studies import kdedge, read
from tiny import TINY

from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.config.shareable import as_flags
from kdedge.pipeline.tracking import TrackingConfig, check_tracking, open_tracking, result_values


def scalars(folder):
    """Return {name: [(step, value)]} of the event files in a folder."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder)).Reload()
    return {name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_every_epoch_and_the_results_of_a_stage_are_in_the_event_files(folder_data, tmp_path):
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    teacher = [part for part in TINY[: TINY.index("--student")]]
    kdedge("teacher", "--data", f"folder:{folder_data}", *teacher, "--device", "cpu", "--threads", 1, "--precision",
           "fp32", "--out", run, "--track", "tensorboard")  # fmt: skip
    logged, rows = scalars(run / "tensorboard" / "teacher"), read(run / "teacher" / "metrics.csv")
    assert [step for step, _ in logged["train_loss"]] == [1, 2]
    for name in ("train_loss", "val_top1_pct"):
        assert [value for _, value in logged[name]] == pytest.approx([float(row[name]) for row in rows], rel=1e-4)
    assert all(value > 0 for _, value in logged["images_per_s"])
    assert logged["result/epochs"] == [(0, 2.0)]


def test_steps_that_begin_again_replace_the_earlier_ones(tmp_path):
    pytest.importorskip("tensorboard")
    log = open_tracking(TrackingConfig(f"{tmp_path}/all"), Path("artifacts/run"), "distill")
    for step, loss in ((1, 5.0), (2, 4.0), (1, 3.0)):
        log({"train_loss": loss}, step)
    assert scalars(tmp_path / "all" / "artifacts" / "run" / "distill") == {"train_loss": [(1, 3.0)]}


def test_a_run_elsewhere_is_logged_in_the_folder(tmp_path):
    pytest.importorskip("tensorboard")
    open_tracking(TrackingConfig(f"{tmp_path}/all"), Path("../runs/a"), "distill")({"train_loss": 1.0}, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["all"]
    assert scalars(tmp_path / "all" / "runs" / "a" / "distill") == {"train_loss": [(1, 1.0)]}


def test_a_resumed_training_continues_its_mlflow_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "store"))
    for steps in ((1, 2), (3, 0), (1,)):  # trained, resumed, trained again
        log = open_tracking(TrackingConfig("mlflow"), Path("it's a run"), "teacher")
        for step in steps:
            log({"beta": 2.0 * step, "val_hint": float("nan")}, step)
    client = mlflow.MlflowClient(str(tmp_path / "store"))
    experiment = client.get_experiment_by_name("kdedge").experiment_id
    again, first = client.search_runs([experiment])
    history = {
        run.info.run_id: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "beta")]
        for run in (first, again)
    }
    assert history == {first.info.run_id: [(1, 2.0), (2, 4.0), (3, 6.0), (0, 0.0)], again.info.run_id: [(1, 2.0)]}
    assert first.info.status == "FINISHED"


def test_results_are_the_numbers_of_the_metrics():
    metrics = {"arch": "lite", "params": 3, "flip": True, "validation": {"top1_pct": 90.5, "note": None}}
    assert dict(result_values(metrics)) == {"result/params": 3, "result/validation/top1_pct": 90.5}


def test_tracking_is_off_by_default_and_in_no_shared_command():
    config = build_config({})
    open_tracking(config.tracking, Path("nowhere"), "teacher")({"loss": 1.0}, 1)
    assert as_flags(dataclasses.replace(config, tracking=TrackingConfig("/private"))) == []


@pytest.mark.parametrize(
    ("to", "package"), [("mlflow", "mlflow"), ("tensorboard", "tensorboard"), ("./x", "tensorboard")]
)
def test_a_missing_package_is_named_before_training(to, package, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError) as caught:
        check_tracking(TrackingConfig(to))
    assert caught.value.name == package


def test_an_unknown_tracker_is_refused(tmp_path):
    result = kdedge("teacher", "--out", tmp_path / "run", "--track", "wandb", code=2)
    assert "--track wandb: expected tensorboard, mlflow or a folder, such as ./wandb" in result.output
