import pytest
from typer.testing import CliRunner

from kdedge.pipeline.cli import app
from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.config.shareable import as_flags, cuts_paths, shareable


@pytest.mark.parametrize(
    ("layer", "preset", "flags"),
    [
        ({}, "", []),
        ({"data": {"dir": "/private"}}, "", []),
        ({"data": {"source": "sample"}}, "", ["--data", "sample"]),
        ({"data": {"source": "sample"}}, "default", ["--preset", "default", "--data", "sample"]),
        ({"data": {"source": "windows:w.npz", "layout": "NLC"}}, "", ["--data", "windows:w.npz", "--layout", "NLC"]),
        ({"distill": {"epochs": 40}}, "reference", ["--preset", "reference"]),
        ({"data": {"source": "windows:w"}, "distill": {"student": "signal"}}, "reference",
         ["--preset", "reference", "--data", "windows:w", "--student", "signal"]),
        ({"data": {"source": "folder:a"}, "distill": {"student": "lite"}}, "windows",
         ["--preset", "windows", "--data", "folder:a", "--student", "lite"]),
        ({"teacher": {"epochs": 7}, "quantize": {"qat": True}}, "sample", None),
        ({"data": {"source": "folder:my images"}, "quantize": {"compare_formats": False}}, "", None),
        ({"distill": {"lr": 1e-05, "method": "kd"}, "runtime": {"seed": 3}}, "", None),
        ({"benchmark": {"emulate": "haswell,cortex-a76"}}, "", ["--emulate", "haswell,cortex-a76"]),
    ],
)  # fmt: skip
def test_the_flags_of_a_configuration_give_it_again(layer, preset, flags, monkeypatch):
    seen = []
    monkeypatch.setattr("kdedge.pipeline.commands.stages._run", lambda names, config, out, force: seen.append(config))
    monkeypatch.setattr("kdedge.pipeline.commands.stages._print_report", lambda folder: None)
    monkeypatch.setattr("kdedge.pipeline.commands.stages._manifest_sha256", lambda folder: "")
    config = build_config(layer, preset=preset)
    result = CliRunner().invoke(app, ["run-all", *as_flags(config)])
    assert result.exit_code == 0
    assert flags is None or as_flags(config) == flags
    (again,) = seen
    layer.get("data", {}).pop("dir", None)
    assert again == build_config(layer, preset=preset)


def test_a_command_that_others_read_has_no_place_of_this_machine(tmp_path):
    config = build_config(
        {"data": {"source": f"folder:{tmp_path / 'images'}"}, "teacher": {"weights": str(tmp_path / "w.safetensors")}}
    )
    assert as_flags(config) == ["--data", "folder:images", "--teacher-weights", "w.safetensors"]
    assert cuts_paths(config)
    assert not cuts_paths(build_config({"data": {"source": "folder:images"}}))
    home = str(tmp_path)
    typed = [
        "compare",
        "--data-dir",
        home,
        f"--data-dir={home}",
        f"--data=folder:{home}/a b/",
        f"--data=shards:{home}/0.tar",
        "--data=shards:https://host/{0..1}.tar?key=secret",
        f"--config={home}/c.toml",
    ]
    typed += [
        "--out",
        f"{home}/out",
        "--teacher-dir",
        "runs/teacher",
        "--lr",
        "0.1",
        "--data",
        "folder:/",
        "--data-dir",
    ]
    assert shareable(typed) == [
        "compare", "--data=folder:a b", "--data=shards:0.tar", "--data=shards:https://host/{0..1}.tar",
        "--config=c.toml", "--out", "out", "--teacher-dir", "runs/teacher", "--lr", "0.1", "--data", "folder:/",
    ]  # fmt: skip


def test_every_path_of_a_list_is_cut(tmp_path):
    weights = f"{tmp_path}/a/student.safetensors,b/student.safetensors, {tmp_path}/c.safetensors"
    teachers = f"runs/teacher,{tmp_path}/teacher"
    config = build_config({"distill": {"weights": weights, "more_teachers": teachers}})
    names = "student.safetensors,b/student.safetensors, c.safetensors"
    assert as_flags(config) == ["--student-weights", names, "--more-teachers", "runs/teacher,teacher"]
    assert cuts_paths(config)
    assert shareable([f"--student-weights={weights}"]) == [f"--student-weights={names}"]
