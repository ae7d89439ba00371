import dataclasses
import math

import pytest

from kdedge.errors import InputError
from kdedge.files import write_json
from kdedge.pipeline.commands.flags import load_config_file, resolve
from kdedge.pipeline.config import Config
from kdedge.pipeline.config.build import RECIPES, build_config
from kdedge.pipeline.distill.options import DistillConfig


def test_later_layers_win_over_earlier_ones_and_over_the_preset():
    config = build_config({"distill": {"epochs": 3, "lr": 0.5}}, {"distill": {"epochs": 4}}, preset="reference")
    assert config.distill.epochs == 4
    assert config.distill.lr == 0.5
    assert config.teacher.epochs == 30
    assert config.preset == "reference"


def test_the_shipped_sample_gets_a_short_run_unless_a_preset_is_named():
    assert build_config({"data": {"source": "sample"}}).preset == "sample"
    assert build_config({"data": {"source": "sample"}}, preset="default").teacher.epochs == -1
    assert build_config().preset == "default"


def test_integers_are_taken_for_floats_but_not_the_reverse():
    assert build_config({"distill": {"beta": 100}}).distill.beta == 100.0
    with pytest.raises(InputError, match=r"--distill-epochs \(\[distill\] epochs\) = 2.5: expected int"):
        build_config({"distill": {"epochs": 2.5}})


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"distil": {}}, r"unknown section \[distil\] \(did you mean 'distill'\?\): .*data, teacher, distill"),
        ({"distill": {"epoch": 3}}, r"unknown key 'epoch' in \[distill\] \(did you mean 'epochs'\?\)"),
        ({"export": {"version": 3}}, r"unknown key 'version' in \[export\]: expected one of opset"),
        ({"distill": {"lr": math.nan}}, "--lr .* = nan is out of range"),
        ({"distill": {"lr": -1.0}}, "--lr .* = -1.0 is out of range: expected between 0 and 10"),
        ({"distill": {"method": "select"}}, r"did you mean 'selective'\?\): expected one of ce, kd"),
        ({"distill": 3}, r"distill = 3: expected a table \[distill\]"),
        ({"teacher": {"epochs": True}}, "expected int"),
        ({"data": {"source": 5}}, r"--data \(\[data\] source\) = 5: expected str"),
        ({"data": {"source": ["a", "b"]}}, "expected str"),
    ],
)
def test_a_wrong_configuration_is_refused(layer, message):
    with pytest.raises(InputError, match=message):
        build_config(layer)


def test_all_problems_are_reported_at_once():
    with pytest.raises(InputError) as caught:
        build_config({"distill": {"lr": -1.0, "epoch": 2}, "nonsense": {}})
    assert str(caught.value).count("\n  - ") == 3


def test_a_recipe_lies_over_the_preset_and_under_what_is_named():
    config = build_config({"distill": {"recipe": "source"}}, preset="reference").distill
    assert (config.batch_size, config.optimizer, config.lr, config.schedule) == (64, "adam", 1e-3, "constant")
    assert (config.shift, config.flip, config.init, config.norm_bias_lr) == (0, False, "random", 1.0)
    assert (config.hint_loss, config.beta, config.temperature, config.weight_decay) == ("raw", 250.0, 4.0, 0.0)
    assert config.epochs == 40
    assert build_config({"distill": {"recipe": "source", "lr": 2e-3}}).distill.lr == 2e-3
    assert build_config({"distill": {"lr": 2e-3}}, {"distill": {"recipe": "source"}}).distill.lr == 1e-3


def test_a_recipe_goes_through_a_recorded_configuration_and_back():
    source = build_config({"distill": {"recipe": "source", "lr": 2e-3}})
    again = build_config(dataclasses.asdict(source), {"distill": {"epochs": 3}})
    assert again.distill == dataclasses.replace(source.distill, epochs=3)
    assert build_config(dataclasses.asdict(source), {"distill": {"recipe": "kdedge"}}).distill == DistillConfig()
    # The default, named, changes nothing that a preset or a record says.
    assert build_config({"distill": {"lr": 0.5}}, {"distill": {"recipe": "kdedge"}}).distill.lr == 0.5


@pytest.mark.parametrize("recipe", ["kdedge", "source"])
def test_a_recipe_names_every_option_in_which_the_two_differ(recipe):
    assert RECIPES["kdedge"].keys() == RECIPES["source"].keys()
    assert set(RECIPES[recipe]) <= {item.name for item in dataclasses.fields(DistillConfig)}


@pytest.mark.parametrize(
    ("distill", "message"),
    [
        ({"recipe": "sourse"}, "did you mean 'source'"),
        ({"method": "dynamic", "epochs": 5}, "--method dynamic would never choose again: --rechoose-epochs 5 is not"),
        ({"method": "static", "epochs": 5}, "5 hint-only epochs .* leave none of 5"),
        ({"student": "res", "prune": 0.5, "weights": "w.safetensors"}, "--student res cannot be pruned"),
        ({"method": "last3", "beta": 0.0}, "--method last3 uses hints, and --beta 0 disables them"),
    ],
)
def test_options_that_contradict_each_other_are_refused(distill, message):
    with pytest.raises(InputError, match=message):
        build_config({"distill": distill})


def test_an_option_of_an_earlier_version_is_read_by_its_old_name():
    old = build_config({"distill": {"drop_hints": False}})
    assert old == build_config({"distill": {"adapt_to_teacher": False}}) != build_config()
    assert build_config({"benchmark": {"beside": "a"}}).benchmark.compare_with == "a"
    assert build_config({"distill": {"hint_layers": 2}}) == build_config({"distill": {"hint_blocks": 2}})


def test_an_unknown_preset_is_refused_with_the_closest():
    with pytest.raises(InputError, match="did you mean 'reference'"):
        build_config(preset="refrence")


def test_every_field_has_a_flag_of_its_own():
    flags = [
        item.metadata["flag"]
        for section in dataclasses.fields(Config)
        if section.name != "preset"
        for item in dataclasses.fields(section.default_factory)
    ]
    named = [flag for flag in flags if flag]
    assert len(named) == len(set(named))
    assert flags.count("") == 2  # the instruction set and the number of processes are recorded, not chosen


def test_toml_and_json_files_are_read(tmp_path):
    toml, json = tmp_path / "c.toml", tmp_path / "c.json"
    toml.write_text("[distill]\nepochs = 3\n")
    json.write_text('{"distill": {"epochs": 3}}')
    assert load_config_file(toml) == load_config_file(json) == {"distill": {"epochs": 3}}


def test_the_preset_of_a_file_begins_a_run_as_the_flag_does_and_later_stages_keep_that_of_the_run(tmp_path):
    run = build_config({"teacher": {"epochs": 5}, "data": {"source": "sample"}}, preset="default")
    write_json(tmp_path / "config.json", dataclasses.asdict(run))
    (tmp_path / "c.toml").write_text('preset = "best"\n[distill]\nlr = 0.2\n')
    later = {"config": tmp_path / "c.toml", "out": tmp_path}
    begun = resolve({**later, "preset": None}, {})
    assert (begun.preset, begun.teacher.epochs, begun.distill.epochs, begun.distill.lr) == ("best", 60, 200, 0.2)
    assert begun == resolve({**later, "preset": "best"}, {})
    kept = resolve(later, {})
    assert (kept.preset, kept.teacher.epochs, kept.distill.epochs, kept.distill.lr) == ("default", 5, -1, 0.2)
    write_json(tmp_path / "config.json", dataclasses.asdict(dataclasses.replace(run, preset="best")))
    again = resolve({**later, "preset": None}, {})
    assert (again.preset, again.teacher.epochs, again.data.source) == ("best", 5, "sample"), "the preset of the run"


def test_a_broken_or_missing_file_is_refused(tmp_path):
    broken = tmp_path / "c.toml"
    broken.write_text("epochs = = 3")
    with pytest.raises(InputError, match="not valid TOML"):
        load_config_file(broken)
    with pytest.raises(InputError, match="cannot read the configuration"):
        load_config_file(tmp_path / "none.toml")
