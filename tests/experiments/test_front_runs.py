import dataclasses
from pathlib import Path

from experiments.front_runs import _RUNS, FURTHER, plan
from kdedge.pipeline.distill.options import DistillConfig
from kdedge.pipeline.models.registry import STUDENTS


def test_the_runs_of_the_plan_have_names_of_their_own_and_options_of_kdedge() -> None:
    runs = plan(f"{_RUNS},lite-s:2=30", [Path(name) for name in ("t0", "t1", "t2")], "wide.safetensors")
    assert len({run.name for run in runs}) == len(runs)
    flags = {item.metadata["flag"] for item in dataclasses.fields(DistillConfig)} | {"--seed"}
    for run in runs:
        given = dict(zip(run.arguments[::2], run.arguments[1::2], strict=True))
        assert given.keys() <= flags
        assert given["--student"] in STUDENTS | FURTHER
        assert run.name == f"{given['--student']}-{given['--seed']}"
        assert given["--more-teachers"] == "t1,t2"
        assert ("--student-weights" in given) == (given["--student"] == "lite-s")
    assert [one.arguments for one in plan("lite:1=5", [Path("t0")])] == [
        ["--student", "lite", "--seed", "1", "--distill-epochs", "5"]
    ]
