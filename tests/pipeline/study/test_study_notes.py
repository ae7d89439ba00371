import pytest

from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.study.cells import Cell
from kdedge.pipeline.study.notes import study_notes


def cell(method, seed=0, epochs=20, name="", train_size=0, **distill):
    distill = {"method": method, "epochs": epochs, **distill}
    config = build_config({"data": {"train_size": train_size}, "distill": distill, "runtime": {"seed": seed}})
    return Cell(name or method, config)


def student(*blocks, choices=(), **more):
    return {"hint_pairs": [[block, "features.3"] for block in blocks], "hint_choices": list(choices), **more}


@pytest.fixture
def notes_of():
    def notes(cells, students, *, tested=(), control="ce", train_sha256="ab", begun=(), train_size=45_000, **teacher):
        rows = {
            one: {
                "method": one.name, "epochs": one.config.distill.epochs, "seed": one.config.runtime.seed,
                "status": "done" if facts else "diverged", "train_size": train_size, "hardware": "CPU",
                "commit": "abc, def" if index else "abc",  # the second cell was interrupted
                "int8_test_top1_pct": 90.0 if index in tested else None,
            }
            for index, (one, facts) in enumerate(zip(cells, students, strict=False))
        }  # fmt: skip
        facts = {"arch": "resnet18", "train_images": 45_000, "epochs": 7, "val_top1_pct": 93.5, **teacher}
        manifest = {
            "facts": facts, "config": {"data": {"val_fraction": cells[0].config.data.val_fraction}},
            "inputs": {"data/train": "ab"},
        }  # fmt: skip
        found = study_notes(
            rows, students, manifest, total=len(cells), begun=begun,
            control=control, command="kdedge compare", data_name="cifar10", train_sha256=train_sha256,
        )  # fmt: skip
        return "\n".join(found)

    return notes


def test_the_blocks_of_hints_are_listed_by_length_and_by_seed_where_seeds_differ(notes_of):
    cells = [cell("kd"), cell("static"), cell("adaptive"), cell("random3"), cell("random3", 1), cell("random3", 2)]
    cells += [cell("static", epochs=40, hint_epochs=1), cell("all", epochs=40)]
    ends = student("layer1.1", "layer2.1")
    students = [student(), ends, ends, student("layer1.0"), student("layer4.1"), student("layer1.0"), ends, {}]
    assert (
        "Blocks of the teacher that hints were at:\n"
        "  - 20 epochs, static: layer1.1, layer2.1; hints alone in the first 5 epochs\n"
        "  - 20 epochs, adaptive: layer1.1, layer2.1\n"
        "  - 20 epochs, random3: layer1.0 (seed 0, 2); layer4.1 (seed 1)\n"
        "  - 40 epochs, static: layer1.1, layer2.1; hints alone in the first epoch\n"
        "Hint maps: "
    ) in notes_of(cells, students)


def test_every_commit_is_named_once(notes_of):
    assert "Commit: abc, def. Hardware: CPU; " in notes_of([cell("ce"), cell("kd")], [student()] * 2)


def test_variations_with_the_same_blocks_share_a_line(notes_of):
    cells = [cell("selective", name="base"), cell("selective", name="lr=0.4", lr=0.4)]
    assert "  - 20 epochs, base, lr=0.4: layer3.0\n" in notes_of(cells, [student("layer3.0")] * 2)


def test_what_else_a_variation_changes_is_listed(notes_of):
    adam = {"optimizer": "adam", "lr": 1e-3, "norm_bias_lr": 1.0}
    cells = [cell("kd", name="base"), cell("kd", name="optimizer=adam", **adam), cell("kd", name="lr=0.4", lr=0.4)]
    page = notes_of(cells, [student()] * 3, control="base")
    assert "Variations of several options:\n  - optimizer=adam: optimizer adam, lr 0.001, norm_bias_lr 1.0\n" in page
    assert "lr=0.4:" not in page
    assert "Variations" not in notes_of(cells[2:], [student()], control="base")


def test_blocks_that_were_chosen_again_are_listed_with_their_epochs(notes_of):
    chosen = [(0, "layer1.0"), (5, "layer1.0"), (10, "layer4.0")]
    choices = [{"epoch": epoch, "chosen": [block]} for epoch, block in chosen]
    page = notes_of([cell("dynamic")], [student("layer4.0", choices=choices)])
    assert "  - 20 epochs, dynamic: layer1.0, from epoch 11 on layer4.0\n" in page


def test_without_hints_there_are_no_blocks(notes_of):
    assert "Blocks of the teacher" not in notes_of([cell("kd")], [student()])


def test_a_teacher_that_saw_more_images_than_its_students_is_named(notes_of):
    more = (
        "The students were trained on 10,000 images and their teacher on 45,000: gains of what learns from it contain "
        "what it alone has seen."
    )
    page = notes_of([cell("kd")], [student()], train_size=10_000)
    assert "Teacher: resnet18, trained on 45,000 images, 93.50 % on its own validation images." in page
    assert more in page
    assert "it alone has seen" not in notes_of([cell("kd")], [student()])
    page = notes_of([cell("kd")], [student()], train_size=10_000, epochs=0)
    assert "Teacher: resnet18, with weights that it was given (of images not known here), " in page
    assert "it alone has seen" not in page
    page = notes_of([cell("kd", train_size=10_000)], [student()], train_size=10_000, epochs=0)
    assert "trained on 10,000 images, their teacher perhaps on more: gains" in page


def test_a_teacher_of_other_images_may_have_seen_those_of_validation(notes_of):
    note = "The teacher was trained on other images: it may have seen some of these validation images"
    assert note in notes_of([cell("kd")], [student()], train_sha256="cd")
    assert note not in notes_of([cell("kd")], [student()])


def test_intervals_are_of_one_teacher(notes_of):
    page = notes_of([cell("kd")], [student()])
    assert "Intervals cover the seed of the students alone: all have one teacher, held-out images and views" in page


def test_what_was_begun_and_not_finished_is_named(notes_of):
    cells, students = [cell("ce")], [student()]
    assert "not finished" not in notes_of(cells, students)
    begun = ["kd, 20 epochs, seed 1", "all, 20 epochs, seed 0"]
    assert (
        "Begun and not finished (interrupted, or diverged), so not in these tables: kd, 20 epochs, seed 1; "
        "all, 20 epochs, seed 0."
    ) in notes_of(cells, students, begun=begun)


def test_cells_that_computed_logits_for_the_others_are_named(notes_of):
    cells = [cell("ce"), cell("kd"), cell("kd", seed=1)]
    students = [student(logits_computed=0), student(logits_computed=900), student(logits_computed=0)]
    page = notes_of(cells, students)
    assert "Seconds contain computing logits of the teacher" in page
    assert "found in the cache: kd, 20 epochs, seed 0." in page
    assert "Seconds contain" not in notes_of(cells, [student()] * 3)  # of an earlier version, which did not count


def test_the_cells_that_were_measured_on_test_images_are_counted(notes_of):
    cells, students = [cell("ce"), cell("kd"), cell("static")], [student(), student()]
    assert "test images" not in notes_of(cells, students)
    assert "Columns of the test images: known of 1 of 3 cells, each measured after the last training" in (
        notes_of(cells, students, tested=(1,))
    )
