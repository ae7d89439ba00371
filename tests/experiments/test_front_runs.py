import dataclasses
from pathlib import Path

from experiments.front_runs import FURTHER, plan
from kdedge.pipeline.distill.options import DistillConfig
from kdedge.pipeline.models.registry import STUDENTS


def test_the_runs_of_the_plan_have_names_of_their_own_and_options_of_kdedge() -> None:
    long, short = plan(120, 40, "wide.safetensors", [Path(name) for name in ("t0", "t1", "t2", "smoothed")])
    names = [run.name for run in long + short]
    assert len(set(names)) == len(names)
    flags = {item.metadata["flag"] for item in dataclasses.fields(DistillConfig)} | {"--seed"}
    for run in long + short:
        given = dict(zip(run.arguments[::2], run.arguments[1::2], strict=True))
        assert given.keys() <= flags
        assert given["--student"] in STUDENTS | FURTHER
        assert given["--distill-epochs"] == ("40" if run.name.startswith("study-") else "120")
        teachers = run.name.startswith(("study-one-teacher", "study-smoothed", "study-labels"))
        assert given.get("--more-teachers") == (None if teachers else "t1,t2")
