import math

import pytest
import torch

from kdedge.inputs import image_input
from kdedge.pipeline.models.registry import STUDENTS, LiteSpec, ResidualSpec
from kdedge.pipeline.models.residual import ResidualBlock
from kdedge.pipeline.models.student import Block, build_student

LITE = sorted(name for name, spec in STUDENTS.items() if isinstance(spec, LiteSpec) and not spec.signal)
RESIDUAL = sorted(name for name, spec in STUDENTS.items() if isinstance(spec, ResidualSpec))
BUDGETS = {"lite": (1.35e6, 120), "res": (1.35e6, 120), "res-s": (0.3e6, 45)}
BUDGETS |= {"lite-xs": (0.1e6, 15), "res-xs": (0.1e6, 15)}


@pytest.mark.parametrize("name", LITE)
@pytest.mark.parametrize("size", [16, 32, 48, 64, 224])
def test_lite_students_have_five_convolutions_and_take_any_image_size(name, size):
    student = build_student(name, 7, image_input(size)).eval()
    assert sum(isinstance(module, torch.nn.Conv2d) for module in student.modules()) == 5
    with torch.no_grad():
        assert student(torch.rand(2, 3, size, size)).shape == (2, 7)


@pytest.mark.parametrize("name", RESIDUAL)
@pytest.mark.parametrize("size", [16, 33, 64, 224])
def test_residual_students_take_any_image_size_and_halve_the_map_twice(name, size):
    student = build_student(name, 7, image_input(size)).eval()
    with torch.no_grad():
        maps = student.features(torch.rand(2, 3, size, size))
        assert student.classify(maps[-1]).shape == (2, 7)
    first = {16: 16, 33: 33, 64: 32, 224: 56}[size]
    assert list(dict.fromkeys(one.shape[-1] for one in maps)) == [first, -(-first // 2), -(-first // 4)]
    assert all(width % 16 == 0 for width in STUDENTS[name].widths)


@pytest.mark.parametrize("layer", ["full", "blueprint", "depthwise"])
def test_a_residual_block_adds_its_input_or_a_projection_of_it(layer):
    for block, name in (
        (ResidualBlock(8, 8, stride=1, layer=layer), None),
        (ResidualBlock(8, 16, stride=2, layer=layer), "shortcut"),
    ):
        torch.nn.init.zeros_(block.eval().second[-1].weight)  # only the shortcut is left
        x = torch.rand(2, 8, 6, 6)
        expected = block.get_submodule(name)(x).relu() if name else x
        torch.testing.assert_close(block(x), expected)


def macs(student):
    """Count the multiplications of a student's convolutions and of its classifier for one 32x32 image."""
    counts = []

    def count(layer, _, output):
        counts.append(layer.weight.numel() * math.prod(output.shape[2:]))

    layers = (layer for layer in student.modules() if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear))
    handles = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        student.eval()(torch.zeros(1, 3, 32, 32))
    for handle in handles:
        handle.remove()
    return sum(counts)


def test_students_keep_to_their_budgets_and_their_notes_tell_it():
    for name in LITE + RESIDUAL:
        student = build_student(name, 10, image_input(32))
        params, mmac = sum(p.numel() for p in student.parameters()), macs(student) / 1e6
        assert STUDENTS[name].note == f"{params / 1e6:.2f} M parameters, {mmac:.0f} MMAC"
        most_params, most_mmac = BUDGETS.get(name, (params, mmac))
        assert params <= most_params
        assert mmac <= most_mmac


def test_a_block_pools_before_it_rectifies_only_while_training_and_computes_the_same():
    torch.manual_seed(0)
    block = Block(3, 8, stride=1, residual=False, pool=2).train()
    x = torch.randn(4, 3, 8, 8, requires_grad=True)
    plain = torch.nn.functional.max_pool2d(torch.relu(block.norm(block.conv(x))), 2)
    weights = torch.randn_like(plain)
    expected = torch.autograd.grad((plain * weights).sum(), [x, block.conv.weight, block.norm.weight])
    found = block(x)
    assert torch.equal(found, plain)
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), [x, block.conv.weight, block.norm.weight]), expected, strict=True
    ):
        assert torch.equal(one, other)
    assert "MaxPool" in type(block.eval()(x).grad_fn).__name__, "the exported graph needs the ReLU at the convolution"


def test_the_weights_of_lite_keep_their_names():
    names = [name for name in build_student("lite", 10, image_input(32)).state_dict() if not name.startswith("blocks.")]
    assert names == ["classifier.weight", "classifier.bias"]


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("mobilenet_v2", {16: [16, 8, 4, 2], 32: [32, 16, 8, 4], 64: [32, 16, 8, 4, 2], 80: [40, 20, 10, 5, 3]}),
        ("resnet18", {16: [8, 4, 2, 1], 32: [16, 8, 4, 2], 64: [16, 8, 4, 2], 80: [20, 10, 5, 3]}),
    ],
)
def test_torchvision_students_halve_small_images_less_often(name, sides):
    for size, expected in sides.items():
        student = build_student(name, 7, image_input(size)).eval()
        with torch.no_grad():
            maps = student.features(torch.rand(2, 3, size, size))
            assert student.classify(maps[-1]).shape == (2, 7)
        assert list(dict.fromkeys(one.shape[-1] for one in maps)) == expected
        # What holds a random state or exports as ReduceMean must not be there.
        kinds = {type(module) for module in student.modules()}
        assert not kinds & {torch.nn.Dropout, torch.nn.AdaptiveAvgPool2d}


def test_a_torchvision_student_computes_what_torchvision_computes():
    import torchvision

    for name in ("mobilenet_v2", "resnet18"):
        torch.manual_seed(0)
        whole = torchvision.models.get_model(name, num_classes=7).eval()
        torch.manual_seed(0)
        student = build_student(name, 7, image_input(96)).eval()
        pixels = torch.rand(2, 3, 96, 96)
        with torch.no_grad():
            torch.testing.assert_close(student(pixels), whole(pixels))


@pytest.mark.parametrize("name", ["lite-xs", "res-xs", "mobilenet_v2"])
def test_students_of_grey_images_take_one_channel(name):
    torch.manual_seed(0)
    grey = build_student(name, 7, image_input(32, grey=True)).eval()
    torch.manual_seed(0)
    rgb = build_student(name, 7, image_input(32)).eval()
    x = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        answers = grey(x)
        assert answers.shape == (2, 7)
        if name == "mobilenet_v2":  # the filters are those of torchvision, summed
            torch.testing.assert_close(answers, rgb(x.repeat(1, 3, 1, 1)))
