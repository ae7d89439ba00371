"""Students of kdedge as teachers: their weights, inputs and maps, and a run with one."""

import pytest
import torch
from command_line import invoke

from kdedge.errors import InputError
from kdedge.files import load_json, write_json
from kdedge.inputs import image_input, signal_input
from kdedge.pipeline.distill.frozen_teacher import check_fits
from kdedge.pipeline.models.initial_weights import start_teacher
from kdedge.pipeline.models.load import load_student, load_teacher
from kdedge.pipeline.models.student import build_student
from kdedge.pipeline.models.teacher import FeatureTap, check_arch, fold_batch_norms, hint_candidates
from kdedge.pipeline.models.weights import save_module
from kdedge.pipeline.training.options import TeacherConfig


def start(arch="kdedge/res-s", inputs=None, **settings):
    return start_teacher(TeacherConfig(arch=arch, **settings), 3, inputs or image_input(16), "cpu")


@pytest.mark.parametrize("grey", [False, True])
def test_a_student_with_its_weights_gives_the_same_logits_as_a_teacher(tmp_path, grey):
    inputs = image_input(16, grey=grey)
    student = build_student("res-s", 3, inputs).eval()
    save_module(student, tmp_path / "student.safetensors")
    begun = start(inputs=inputs, weights=str(tmp_path / "student.safetensors"), epochs=0)
    assert begun.origin.startswith("file:")
    teacher, x = begun.teacher.eval(), torch.rand(2, len(inputs.channels), 16, 16)
    assert torch.equal(teacher(x), student(x))
    folded = fold_batch_norms(teacher, inputs)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())


def test_larger_images_are_resized_and_every_block_can_have_hints():
    teacher = start(image_size=16, inputs=image_input(32)).teacher.eval()
    with torch.no_grad(), FeatureTap(teacher, tuple(hint_candidates(teacher))) as tap:
        teacher(torch.rand(2, 3, 32, 32))
        shapes = {name: tuple(tap.maps[name].shape[1:]) for name in tap.maps}
    sides, widths = [16, 16, 8, 8, 4, 4], [16, 16, 48, 48, 80, 80]
    assert list(shapes.values()) == [(width, side, side) for width, side in zip(widths, sides, strict=True)]


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"unknown teacher 'kdedge/rus' \(did you mean 'res'\?\)"):
        check_arch("kdedge/rus")
    windows = signal_input(64, ["a"], [0.0], [1.0])
    with pytest.raises(InputError, match="--teacher kdedge/res-s is not for signals"):
        start(inputs=windows)
    with pytest.raises(InputError, match="--teacher kdedge/signal is not for images"):
        start("kdedge/signal")
    for given in ({"stem": "cifar"}, {"weights": "imagenet"}):
        with pytest.raises(InputError, match=r"--teacher-(stem cifar|weights imagenet) is not for kdedge/res-s"):
            start(**given)
    assert start("kdedge/signal-s", windows).teacher.eval()(torch.rand(2, 1, 1, 64)).shape == (2, 3)


@pytest.mark.parametrize(
    ("arch", "own", "data", "fits"),
    [
        ("kdedge/signal", signal_input(64, ["a"], [0.0], [1.0]), signal_input(64, ["b"], [1.0], [2.0]), True),
        ("kdedge/signal", signal_input(64, ["a"], [0.0], [1.0]), signal_input(128, ["a"], [0.0], [1.0]), False),
        ("kdedge/res", image_input(16), image_input(32), True),  # it resizes them
        ("kdedge/res", image_input(16, grey=True), image_input(16), False),
        ("kdedge/res", image_input(16), image_input(16, grey=True), False),
    ],
)
def test_a_student_as_a_further_teacher_needs_its_own_inputs(tmp_path, arch, own, data, fits):
    description = {"arch": arch, "num_classes": 3, **own.record}
    if own.kind == "signal":
        description["channels"] = len(own.channels)
    write_json(tmp_path / "teacher.json", description)
    if fits:
        check_fits(tmp_path, ("x", "y", "z"), data)
        return
    with pytest.raises(InputError, match="cannot take"):
        check_fits(tmp_path, ("x", "y", "z"), data)


def test_the_student_of_one_run_teaches_that_of_another(tmp_path, folder_data):
    first, second = tmp_path / "first", tmp_path / "second"

    common = ["--data", f"folder:{folder_data}", "--image-size", "16", "--threads", "1", "--device", "cpu"]

    def run(out, *of_teacher, more=()):
        teacher = ["teacher", *common, "--precision", "fp32", *of_teacher]
        student = ["distill", "--method", "kd", "--student", "lite-xs", "--distill-epochs", "2", *more]
        for command in (teacher, student):
            result = invoke(*command, "--out", out)
            assert result.exit_code == 0, result.output

    run(first, "--teacher", "kdedge/lite-s", "--teacher-weights", "none", "--teacher-epochs", "2")
    weights = ("--teacher-weights", first / "distill" / "student.safetensors", "--teacher-epochs", "0")
    run(second, "--teacher", "kdedge/lite-xs", *weights, more=("--more-teachers", first / "teacher"))
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(load_teacher(second / "teacher")(x), load_student(first / "distill")(x))
    facts = load_json(second / "distill" / "manifest.json", ("facts",))["facts"]
    assert facts["teacher_val_top1_pct"] >= 0
