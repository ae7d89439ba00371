"""What the benchmark stage of a run hands to the report."""

import dataclasses

import pytest

from pipeline import evaluate
from pipeline.artifacts import write_json
from pipeline.config import build_config
from pipeline.stages import STAGES

MADE = build_config({"data": {"source": "sample"}, "distill": {"epochs": 4}})


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Return the commands that a report of a run names which was made with `MADE`."""
    inputs = {stage: tmp_path / stage for stage in STAGES["benchmark"].reads}
    for stage, folder in inputs.items():
        folder.mkdir()
        key = STAGES[stage].key(MADE)
        write_json(folder / "manifest.json", {"schema": 1, "config": key, "inputs": {}, "outputs": {}, "facts": {}})
    given = {}
    monkeypatch.setattr(evaluate, "_run_facts", lambda inputs: {"run": {}})
    monkeypatch.setattr(
        evaluate, "run_benchmark", lambda *_, **more: given.update(more) or dict.fromkeys(("accuracy", "gate", "size"))
    )

    def commands(**changed):
        sections = {name: dataclasses.replace(getattr(MADE, name), **values) for name, values in changed.items()}
        evaluate.run(dataclasses.replace(MADE, **sections), inputs, tmp_path)
        return given["run_facts"]["run"].get("commands")

    return commands


def test_the_command_of_a_run_is_named_if_it_would_make_the_run_again(commands):
    assert commands() == ["kdedge run-all --data sample --distill-epochs 4"]
    assert commands(benchmark={"seconds": 2.0}) == [
        "kdedge run-all --data sample --distill-epochs 4 --latency-seconds 2.0"
    ]


@pytest.mark.parametrize(
    "changed",
    [
        {"runtime": {"seed": 3}},  # a cell of a study whose teacher has another seed
        {"teacher": {"epochs": 9}},  # a teacher that was trained elsewhere
        {"data": {"train_size": 100}},
        {"distill": {"lr": 0.1}},  # given to a distillation that was interrupted
        {"quantize": {"qat": True}},
    ],
)
def test_no_command_is_named_that_would_make_another_run(commands, changed):
    assert commands(**changed) is None
