"""What decides whether a stage has to run again."""

import shutil
from pathlib import Path

import pytest

from kdedge.benchmarks.host import host_record
from kdedge.manifest import load_manifest
from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.distill.methods import METHODS
from kdedge.pipeline.stages.registry import STAGES
from tests.tiny import make_folder

REFERENCE = Path(__file__).parents[2] / "artifacts" / "reference"


@pytest.mark.parametrize("stage", ["teacher", "distill"])
def test_initial_weights_count_by_what_their_files_hold(stage, tmp_path):
    file = tmp_path / "weights.safetensors"
    config = build_config({stage: {"weights": str(file)}})
    keys = []
    for content in (b"one", b"two", b"one"):
        file.write_bytes(content)
        keys.append(STAGES[stage].fingerprint(config))
    assert keys[0] != keys[1]
    assert keys[0] == keys[2]
    assert "weights_sha256" not in STAGES[stage].fingerprint(build_config())
    moved = file.rename(tmp_path / "moved.safetensors")
    assert STAGES[stage].fingerprint(build_config({stage: {"weights": str(moved)}})) == keys[0]


def test_a_further_teacher_that_is_gone_is_no_error_of_later_stages(tmp_path):
    """The benchmark compares the fingerprint of the distillation, and needs no teacher for it."""
    gone = build_config({"distill": {"more_teachers": str(tmp_path / "gone")}})
    assert STAGES["distill"].fingerprint(gone)["distill"]["more_teachers"] == []


def test_files_called_like_a_kind_of_start_and_commas_in_paths_change_nothing(tmp_path, monkeypatch):
    def key(weights):
        return STAGES["teacher"].fingerprint(build_config({"teacher": {"weights": weights}}))

    monkeypatch.chdir(tmp_path)
    kinds = ("auto", "imagenet", "none")
    before = [key(kind) for kind in kinds]
    for name in (*kinds, "a,b.pth", "b.pth"):
        (tmp_path / name).write_text(name)
    assert [key(kind) for kind in kinds] == before
    assert len(key("a,b.pth")["weights_sha256"]) == 1
    assert "weights_sha256" in key("./none")


def test_teachers_of_earlier_versions_stay_up_to_date_where_they_would_be_made_the_same():
    def recorded(**teacher):
        return STAGES["teacher"].fingerprint(build_config({"teacher": teacher}))["teacher"]["lr"]

    assert recorded(batch_size=128) == recorded(weights="none", lr=0.1) == 0.1  # the default of then
    assert recorded() != 0.1  # the images decide their number per step, and with it the rate
    assert recorded(weights="none", lr=0.02) == 0.02
    assert recorded(weights="auto", lr=0.1) != 0.1  # was a tenth where ImageNet weights were found


def test_results_of_versions_that_could_only_squeeze_stay_up_to_date():
    for stage in STAGES.values():
        default, cropped = (stage.fingerprint(build_config({"data": data})) for data in ({}, {"resize": "crop"}))
        for section in {"data", "all data"} & default.keys():
            assert "resize" not in default[section]
            assert cropped[section]["resize"] == "crop"


def test_the_metric_of_the_gate_decides_the_repair_steps_and_its_default_is_not_recorded():
    before, after = build_config(), build_config({"benchmark": {"metric": "balanced"}})
    for stage in ("quantize", "benchmark"):
        keys = [STAGES[stage].fingerprint(config) for config in (before, after)]
        assert keys[0] != keys[1]
        assert "metric" not in str(keys[0])


@pytest.mark.parametrize(
    ("part", "value"),
    [("onnxruntime", "0.0.1"), ("providers", ["CUDAExecutionProvider"]), ("gpu", "one"), ("cores", 999)],
)
def test_another_runtime_or_gpu_is_measured_anew(part, value, monkeypatch):
    host = host_record()
    before = STAGES["benchmark"].fingerprint(build_config())
    monkeypatch.setattr("kdedge.benchmarks.host.host_record", lambda: {**host, part: value})
    assert STAGES["benchmark"].fingerprint(build_config()) != before


def test_a_relative_path_is_another_folder_in_another_working_directory(tmp_path, monkeypatch):
    hashes = []
    for name, size in (("a", 16), ("b", 12)):
        monkeypatch.chdir(make_folder(tmp_path / name, train=4, test=2, size=size))
        hashes.append(STAGES["teacher"].data(build_config({"data": {"source": "folder:."}})))
    assert hashes[0] != hashes[1]


@pytest.mark.parametrize("stage", ["teacher", "distill", "quantize"])
def test_where_a_folder_of_images_lies_and_how_its_path_is_written_is_nothing_to_training(
    stage, folder_data, tmp_path, monkeypatch
):
    def made_of(path):
        config = build_config({"data": {"source": f"folder:{path}"}})
        return STAGES[stage].fingerprint(config), STAGES[stage].data(config)

    there = shutil.copytree(folder_data, tmp_path / folder_data.name)
    monkeypatch.chdir(there)
    assert made_of(folder_data) == made_of(there) == made_of(".") == made_of(f"../{there.name}/")
    other = shutil.copytree(folder_data, tmp_path / "other")
    assert made_of(other)[0] != made_of(there)[0], "reports have the folder's name"


def test_manifests_record_renamed_options_by_their_old_names():
    recorded = STAGES["distill"].fingerprint(build_config({"distill": {"hint_blocks": 2, "adapt_to_teacher": False}}))
    assert (recorded["distill"]["hint_layers"], recorded["distill"]["drop_hints"]) == (2, False)
    assert not {"hint_blocks", "adapt_to_teacher"} & recorded["distill"].keys()


def test_options_of_later_versions_are_recorded_only_when_used():
    recorded = [STAGES["distill"].fingerprint(build_config({"distill": {"ema": ema}})) for ema in (0.0, 0.999)]
    assert [one["distill"].get("ema") for one in recorded] == [None, 0.999]
    published = load_manifest(REFERENCE / "distill")["config"]
    assert recorded[0]["distill"].keys() == published["distill"].keys(), "a later version would train it again"


@pytest.mark.parametrize(
    ("option", "value", "users"),
    [
        ("gamma", 2.0, set(METHODS) - {"ce"}),
        ("temperature", 2.0, set(METHODS)),  # the validation KD loss of the control is measured at it, too
        ("beta", 25.0, set(METHODS) - {"ce", "kd"}),
        ("hint_loss", "raw", set(METHODS) - {"ce", "kd"}),
        ("hint_epochs", 1, set(METHODS) - {"ce", "kd"}),
        ("hint_blocks", 2, {"selective", "dynamic", "random3", "last3"}),
        ("beta_patience", 3, set(METHODS) - {"ce", "kd", "static"}),
        ("rechoose_epochs", 2, {"dynamic"}),
        ("lr", 0.3, set(METHODS)),
    ],
)
def test_an_option_counts_where_the_method_uses_it(option, value, users):
    def key(method, **changed):
        return STAGES["distill"].fingerprint(build_config({"distill": {"method": method, **changed}}))

    assert {method for method in METHODS if key(method) != key(method, **{option: value})} == users
