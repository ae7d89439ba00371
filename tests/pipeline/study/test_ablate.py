import shutil

import pytest
from studies import kdedge, read, small

from kdedge.errors import InputError
from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.study import ablate as module
from kdedge.pipeline.study.compare import StudyOptions

OPTIONS = StudyOptions(
    epochs="20",
    seeds="0",
    teacher_dir=None,
    target_accuracy=85,
    jobs=1,
    launcher="local",
    shard="1/1",
    slurm=(),
    test=False,
    command="kdedge ablate",
    force=False,
)


SAMPLE = {"source": "sample"}  # 64 images per step


@pytest.fixture
def cells_of(tmp_path, monkeypatch):
    monkeypatch.setattr(
        module,
        "run_study",
        lambda study, names, config, out, options: {
            name: study.make(config, name, *options.grid()[0]).config for name in names
        },
    )

    def cells(distill, factors="", options=OPTIONS, data=SAMPLE):
        return module.ablate(build_config({"data": data, "distill": distill}), tmp_path, factors, options)

    return cells


def changed(cells, name):
    base, other = vars(cells["base"].distill), vars(cells[name].distill)
    return {key: other[key] for key in base if base[key] != other[key]}


def test_each_cell_differs_from_the_base_in_one_factor(cells_of):
    cells = cells_of({})
    assert list(cells) == [
        "base", "optimizer=adam", "lr=0.025", "lr=0.1", "temperature=2.0", "beta=250", "beta=25000",
        "beta-patience=1", "hint-blocks=2", "hint-loss=raw", "recipe=source",
    ]  # fmt: skip
    assert changed(cells, "optimizer=adam") == {"optimizer": "adam", "lr": 1e-3, "norm_bias_lr": 1.0}
    assert changed(cells, "lr=0.025") == {"lr": 0.025}
    assert changed(cells, "beta=250") == {"beta": 250.0}
    assert changed(cells, "hint-blocks=2") == {"hint_blocks": 2}
    assert changed(cells, "hint-loss=raw") == {"hint_loss": "raw", "beta": 250.0}
    assert changed(cells, "recipe=source")["batch_size"] == 64


def test_learning_rates_are_half_and_twice_that_of_the_base(cells_of):
    few = {**SAMPLE, "train_size": 1000}
    assert list(cells_of({}, "lr", data=few)) == ["base", "lr=0.0125", "lr=0.05"]
    assert list(cells_of({"batch_size": 256}, "lr")) == ["base", "lr=0.1", "lr=0.4"]
    assert list(cells_of({"lr": 0.3}, "lr", data={"source": "folder:missing"})) == ["base", "lr=0.15", "lr=0.6"]


def test_the_old_name_of_a_factor_still_works(cells_of, capsys):
    assert list(cells_of({}, "hint-layers")) == ["base", "hint-blocks=2"]
    assert "--factors hint-layers is now hint-blocks" in capsys.readouterr().err


def test_the_learning_rates_of_the_source_are_those_of_its_table(cells_of):
    cells = cells_of({"recipe": "source"}, "lr,beta,recipe")
    assert list(cells) == ["base", "lr=0.0005", "lr=0.002", "beta=25", "beta=2500", "recipe=kdedge"]
    assert cells["recipe=kdedge"].distill == build_config({"distill": {"epochs": 20}}).distill
    every = cells_of({"recipe": "source"})
    assert changed(every, "hint-loss=normalised") == {"hint_loss": "normalised", "beta": 2500.0}
    assert changed(every, "optimizer=sgd") == {"optimizer": "sgd", "lr": 0.0}


def test_a_factor_without_effect_is_left_out_and_refused_when_named(cells_of):
    assert list(cells_of({"method": "kd"})) == [
        "base",
        "optimizer=adam",
        "lr=0.025",
        "lr=0.1",
        "temperature=2.0",
        "recipe=source",
    ]
    with pytest.raises(InputError, match="--factors hint-blocks has no effect on --method kd, which lacks a number of"):
        cells_of({"method": "kd"}, "hint-blocks")
    with pytest.raises(InputError, match="--factors beta has no effect on --method kd, which lacks hints"):
        cells_of({"method": "kd"}, "beta")
    with pytest.raises(InputError, match="no effect on --method static, which lacks an adaptive beta"):
        cells_of({"method": "static"}, "beta-patience")
    with pytest.raises(InputError, match="--factors 'hints': unknown name 'hints'"):
        cells_of({}, "hints")


def test_a_later_command_keeps_finished_variations_and_leaves_out_what_is_none(study, compared, tmp_path):
    command = [part for part in small(study, tmp_path) if part not in ("--methods", "kd")]
    command = ["ablate", *command[1:], "--method", "kd"]
    kdedge(*command, "--factors", "temperature")
    shutil.copytree(study[0] / "e2" / "seed0" / "ce", tmp_path / "e2" / "seed0" / "ce")
    result = kdedge(*command, "--factors", "optimizer")
    rows = [row["method"] for row in read(tmp_path / "evaluation_results.csv")]
    assert rows == ["base", "optimizer=adam", "temperature=2.0"]
    assert "ce is left out of the tables: it is of another kind of study" in " ".join(result.stderr.split())
