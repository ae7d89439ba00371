"""What `kdedge data` prints."""

import json
import shutil
from pathlib import Path

import pytest
from image_folders import make_tree
from tiny import TINY
from typer.testing import CliRunner

from kdedge.pipeline import run as stages
from kdedge.pipeline.cli import app
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.summary import print_summary, summarise


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tmp_path = make_tree(tmp_path / "images", {"[ant]": 10, "bee": 20})
    (tmp_path / "bee" / "0.heic").write_bytes(b"")
    shutil.copy(tmp_path / "bee" / "000.png", tmp_path / "[ant]" / "copy.png")
    return tmp_path


def test_json_line(tree: Path) -> None:
    done = CliRunner().invoke(app, ["data", "--data", f"folder:{tree}", "--image-size", "16"])
    assert done.exit_code == 0
    facts = json.loads(done.stdout)
    assert (facts["train"], facts["val"], facts["test"]) == (22, 3, 6)
    assert facts["per_class"][1] == {"class": "bee", "train": 14, "val": 2, "test": 4, "left_out": 1}
    assert facts["left_out"] == {".heic": 1}
    assert facts["source_sizes"] == {key: [20, 30] for key in ("smallest", "median", "largest")}
    assert facts["duplicates"]["in_two_classes"] == 2
    shown = " ".join(done.stderr.split())
    assert "images have copies in another class" in shown
    assert "1 file is not used: bee: 1 .heic (convert HEIC to JPEG)" in shown


def test_table(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(summarise(DataConfig(source=f"folder:{tree}", image_size=16)))
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["class", "training", "validation", "test", "left", "out"]
    assert ["[ant]", "8", "1", "2", "0"] in lines
    assert ["bee", "14", "2", "4", "1"] in lines
    assert ["all", "22", "3", "6", "1"] in lines
    assert "20 x 30 to 20 x 30 pixels, median 20 x 30; resized to 16 x 16 pixels" in out


def test_table_of_many_classes(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"class": str(number), "train": number, "val": 1, "test": 1, "left_out": 0} for number in range(100)]
    facts = {"per_class": rows, "train": 4950, "val": 100, "test": 100, "left_out": {}, "image_size": 16}
    print_summary(facts)
    out = capsys.readouterr().out
    assert len(out.splitlines()) < 30
    assert "20 of 100 classes" in out
    assert "4,950" in out


def test_copies_are_told_before_anything_is_measured(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "run_stage", interrupt)
    done = CliRunner().invoke(app, ["run-all", "--data", f"folder:{tree}", "--out", str(tmp_path / "run"), *TINY])
    assert "2 images have copies in another class" in " ".join(done.stderr.split())
    assert done.exit_code == 130


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt
