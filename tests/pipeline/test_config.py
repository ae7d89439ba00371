import dataclasses
import math

import pytest

from pipeline.config import Config, build_config, load_config_file
from pipeline.errors import InputError


def test_later_layers_win_over_earlier_ones_and_over_the_preset():
    config = build_config({"distill": {"epochs": 3, "lr": 0.5}}, {"distill": {"epochs": 4}}, preset="reference")
    assert config.distill.epochs == 4
    assert config.distill.lr == 0.5
    assert config.teacher.epochs == 30
    assert config.preset == "reference"


def test_the_shipped_sample_gets_a_short_run_unless_a_preset_is_named():
    assert build_config({"data": {"source": "sample"}}).preset == "sample"
    assert build_config({"data": {"source": "sample"}}, preset="default").teacher.epochs == 7
    assert build_config().preset == "default"


def test_integers_are_taken_for_floats_but_not_the_reverse():
    assert build_config({"distill": {"beta": 100}}).distill.beta == 100.0
    with pytest.raises(InputError, match=r"--distill-epochs \(\[distill\] epochs\) = 2.5: expected int"):
        build_config({"distill": {"epochs": 2.5}})


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"distil": {}}, r"unknown section \[distil\] \(did you mean 'distill'\?\)"),
        ({"distill": {"epoch": 3}}, r"unknown key 'epoch' in \[distill\] \(did you mean 'epochs'\?\)"),
        ({"distill": {"lr": math.nan}}, "--lr .* = nan is out of range"),
        ({"distill": {"lr": -1.0}}, "--lr .* = -1.0 is out of range: expected between 1e-06 and 10"),
        ({"distill": {"method": "select"}}, r"did you mean 'selective'\?\): expected one of ce, kd"),
        ({"distill": 3}, r"distill = 3: expected a table \[distill\]"),
        ({"teacher": {"epochs": True}}, "expected int"),
    ],
)
def test_a_wrong_configuration_is_refused(layer, message):
    with pytest.raises(InputError, match=message):
        build_config(layer)


def test_all_problems_are_reported_at_once():
    with pytest.raises(InputError) as caught:
        build_config({"distill": {"lr": -1.0, "epoch": 2}, "nonsense": {}})
    assert str(caught.value).count("\n  - ") == 3


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
    assert flags.count("") == 1  # the instruction set is recorded, not chosen


def test_toml_and_json_files_are_read(tmp_path):
    toml, json = tmp_path / "c.toml", tmp_path / "c.json"
    toml.write_text("[distill]\nepochs = 3\n")
    json.write_text('{"distill": {"epochs": 3}}')
    assert load_config_file(toml) == load_config_file(json) == {"distill": {"epochs": 3}}


def test_a_broken_or_missing_file_is_refused(tmp_path):
    broken = tmp_path / "c.toml"
    broken.write_text("epochs = = 3")
    with pytest.raises(InputError, match="not valid TOML"):
        load_config_file(broken)
    with pytest.raises(InputError, match="cannot read the configuration"):
        load_config_file(tmp_path / "none.toml")
