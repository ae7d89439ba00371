import pytest

from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.study.cells import Cell
from kdedge.pipeline.study.page import notes


def cell(method, seed=0, train_size=0):
    distill = {"method": method, "epochs": 20}
    config = build_config({"data": {"train_size": train_size}, "distill": distill, "runtime": {"seed": seed}})
    return Cell(method, config)


@pytest.fixture
def notes_of():
    def made(cells, *, train_sha256="ab", unfinished=(), train_size=45_000, val_fraction=None, **teacher):
        rows = {
            one: {
                "status": "done", "train_size": train_size, "hardware": "CPU",
                "commit": "abc, def" if index else "abc",  # the second cell was interrupted
            }
            for index, one in enumerate(cells)
        }  # fmt: skip
        metrics = {"arch": "resnet18", "train_images": 45_000, "epochs": 7, "val_top1_pct": 93.5, **teacher}
        held_out = val_fraction or cells[0].config.data.val_fraction
        manifest = {
            "facts": metrics,
            "config": {"data": {"val_fraction": held_out}},
            "inputs": {"data/train": "ab"},
        }
        found = notes(
            rows, manifest, total=len(cells), unfinished=unfinished, command="kdedge compare", data_name="cifar10",
            train_sha256=train_sha256,
        )  # fmt: skip
        return "\n".join(found)

    return made


def test_every_commit_is_named_once(notes_of):
    assert "Commit: abc, def. Hardware: CPU; " in notes_of([cell("ce"), cell("kd")])


def test_a_teacher_that_saw_more_images_than_its_students_is_named(notes_of):
    page = notes_of([cell("kd")], train_size=10_000)
    assert "Teacher: resnet18, training set of 45,000, 93.50 % on its own validation data." in page
    assert "The students have a training set of 10,000, their teacher one of 45,000." in page
    assert "The students" not in notes_of([cell("kd")])
    page = notes_of([cell("kd")], train_size=10_000, epochs=0)
    assert "Teacher: resnet18, weights as given, " in page
    assert "The students" not in page
    page = notes_of([cell("kd", train_size=10_000)], train_size=10_000, epochs=0)
    assert "The students have a training set of 10,000, their teacher one of unknown size." in page


def test_a_teacher_of_other_images_or_another_split_may_have_seen_those_of_validation(notes_of):
    note = "The teacher has another split or other data: it may have seen some of the validation data."
    assert note in notes_of([cell("kd")], train_sha256="cd")
    assert note in notes_of([cell("kd")], val_fraction=0.4)
    assert note not in notes_of([cell("kd")])


def test_cells_that_were_begun_and_not_finished_are_named(notes_of):
    assert "not in these tables" not in notes_of([cell("ce")])
    unfinished = ["e20/seed1/kd", "e20/seed0/all"]
    assert "Interrupted or diverged, so not in these tables: e20/seed1/kd, e20/seed0/all." in (
        notes_of([cell("ce")], unfinished=unfinished)
    )
