import pytest

from kdedge.benchmarks.emulate.cpus import parse_emulated
from kdedge.errors import InputError
from kdedge.parsing import parse_choices, parse_counts, parse_cpus, parse_paths
from kdedge.pipeline.config.build import build_config


def test_lists_of_names_are_checked():
    assert parse_choices("ce, kd,ce", "--methods", ("ce", "kd")) == ["ce", "kd"]
    with pytest.raises(InputError, match=r"--methods 'ce,kt': unknown name 'kt'"):
        parse_choices("ce,kt", "--methods", ("ce", "kd"))
    assert parse_counts("0,1", "--seeds", 9, least=0) == [0, 1]


def test_cpus_to_emulate_are_checked():
    assert parse_emulated("", "--emulate") == []
    assert parse_emulated("haswell, cortex-a76,haswell", "--emulate") == ["haswell", "cortex-a76"]
    with pytest.raises(InputError, match=r"--emulate 'haswel': unknown name 'haswel' \(did you mean 'haswell'"):
        build_config({"benchmark": {"emulate": "haswel"}})


def test_lists_of_cpus():
    assert parse_cpus("0, 2-4,3", "--affinity") == [0, 2, 3, 4]
    assert parse_cpus("", "--affinity") == []
    for text in (",", "0,", "a", "-1", "3-1", "0-99999999", "1.5"):
        with pytest.raises(InputError, match=r"--affinity .* is not a CPU number or range"):
            parse_cpus(text, "--affinity")
    with pytest.raises(InputError, match="'x' is not a CPU number"):
        build_config({"benchmark": {"affinity": "x"}})


def test_a_path_with_a_comma_is_one_path_if_it_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b").mkdir()
    (tmp_path / "a,b" / "x,y,z").mkdir()
    for text, paths in {
        "": [],
        "a,b": ["a,b"],
        "c, d,c": ["c", "d"],
        "c,a,b,a,b/x,y,z,d": ["c", "a,b", "a,b/x,y,z", "d"],
        "a,c": ["a", "c"],
    }.items():
        assert [str(path) for path in parse_paths(text, "--compare-with")] == paths
    for text in ("a,,b", "a,b,", ",", " "):
        with pytest.raises(InputError, match="nothing between two commas"):
            parse_paths(text, "--compare-with")
