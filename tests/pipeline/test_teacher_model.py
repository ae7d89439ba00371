import pytest
import torch
from safetensors.torch import save_file

from kdedge.errors import InputError
from kdedge.inputs import image_input
from kdedge.pipeline.models.teacher import (
    FeatureTap,
    build_teacher,
    check_input,
    fold_batch_norms,
    hint_candidates,
)
from kdedge.pipeline.models.weights import load_module, load_weights, save_module


def test_normalisation_is_part_of_the_teacher():
    teacher = build_teacher("resnet18", 3, "cifar-pool").eval()
    x = torch.rand(1, 3, 16, 16)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    by_hand = (x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(teacher(x), teacher.backbone(by_hand))


def test_a_teacher_repeats_a_grey_channel():
    teacher, x = build_teacher("resnet18", 3, "cifar-pool").eval(), torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(teacher(x), teacher(x.repeat(1, 3, 1, 1)))
        folded = fold_batch_norms(teacher, image_input(16, grey=True))
        torch.testing.assert_close(folded(x), teacher(x), rtol=1e-3, atol=1e-3)
    assert folded is not teacher


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v3_small", "alexnet"])
def test_folding_batch_norms_keeps_the_outputs_and_the_features(arch):
    torch.manual_seed(0)
    teacher = build_teacher(arch, 3, "imagenet")
    teacher.train()
    if arch != "alexnet":
        teacher(torch.rand(8, 3, 64, 64))  # running statistics other than 0 and 1
    teacher.eval()
    folded = fold_batch_norms(teacher, image_input(64))
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), teacher(x), rtol=1e-3, atol=1e-3)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    assert list(hint_candidates(folded)) == list(hint_candidates(teacher))
    assert arch == "alexnet" or any(isinstance(module, torch.nn.BatchNorm2d) for module in teacher.modules())


class NormFirst(torch.nn.Module):
    """Registers a norm after a convolution and calls it before."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(64, 64, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(64)
        self.norm.running_mean += 1

    def forward(self, x):
        return self.conv(self.norm(x))


def test_a_teacher_that_cannot_be_folded_is_used_as_it_is():
    teacher = build_teacher("resnet18", 3, "cifar-pool")
    teacher.backbone.layer1 = NormFirst()
    teacher.eval()
    assert fold_batch_norms(teacher, image_input(32)) is teacher


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 8), ("cifar", 32), ("cifar-pool", 16)])
def test_stems_differ_in_resolution(stem, side):
    backbone = build_teacher("resnet18", 3, stem).backbone.eval()
    shapes = []
    backbone.layer1.register_forward_hook(lambda module, args, out: shapes.append(out.shape[-1]))
    with torch.no_grad():
        backbone(torch.rand(1, 3, 32, 32))
    assert shapes == [side]


def test_the_map_of_a_densenets_transition_is_its_output():
    teacher = build_teacher("densenet121", 3, "imagenet").eval()
    with torch.no_grad(), FeatureTap(teacher, ("features.transition1", "features.denseblock2")) as tap:
        teacher(torch.rand(1, 3, 64, 64))
        assert tap.maps["features.transition1"].shape == (1, 128, 8, 8)
        assert tap.maps["features.denseblock2"].shape == (1, 512, 8, 8)


def test_any_classifier_by_name_and_a_clear_error_for_a_wrong_one():
    assert build_teacher("mobilenet_v3_small", 4, "imagenet")(torch.rand(2, 3, 32, 32)).shape == (2, 4)
    with pytest.raises(InputError, match=r"unknown teacher 'resnet81' \(did you mean 'resnet\d+'"):
        build_teacher("resnet81", 4, "imagenet")
    with pytest.raises(InputError, match="--teacher-stem cifar-pool is for ResNets, not for mobilenet_v2"):
        build_teacher("mobilenet_v2", 4, "cifar-pool")
    with pytest.raises(InputError, match="cifar is for ResNets and mobilenet_v2, not for shufflenet_v2_x0_5"):
        build_teacher("shufflenet_v2_x0_5", 4, "cifar")


class Malicious:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "garbage", "pickle"])
def test_bad_weight_files_are_refused(tmp_path, name, damage, capsys):
    path = tmp_path / name
    if damage == "truncated":
        good = {"a": torch.ones(100)}
        (save_file if name.endswith("safetensors") else torch.save)(good, path)
        path.write_bytes(path.read_bytes()[:-50])
    elif damage == "garbage":
        path.write_bytes(b"\x00\x01 not weights")
    elif damage == "pickle":
        torch.save({"a": Malicious()}, path)
    with pytest.raises(InputError, match=str(path)) as caught:
        load_weights(path)
    assert caught.value.exit_code == 2
    assert "executed" not in capsys.readouterr().out


def test_a_text_file_and_values_that_no_network_has_are_refused(tmp_path):
    (tmp_path / "notes.pth").write_text("notes about the weights\n" * 20)
    save_file({"a": torch.tensor([1.0, float("nan")])}, tmp_path / "nan.safetensors")
    torch.save({"a": torch.ones(2, dtype=torch.complex64)}, tmp_path / "complex.pth")
    torch.save({1: torch.ones(2)}, tmp_path / "keys.pth")
    for name in ("notes.pth", "nan.safetensors", "complex.pth", "keys.pth"):
        with pytest.raises(InputError, match=name):
            load_weights(tmp_path / name)


def test_a_teacher_that_cannot_take_the_images_is_refused():
    teacher = build_teacher("vit_b_32", 3, "imagenet")
    with pytest.raises(InputError, match="vit_b_32 cannot take images of 32x32 pixels"):
        check_input(teacher, "vit_b_32", image_input(32))
    check_input(build_teacher("resnet18", 3, "cifar-pool"), "resnet18", image_input(16))


def test_weights_of_another_class_count_are_refused(tmp_path):
    save_module(build_teacher("resnet18", 3, "cifar"), tmp_path / "t.safetensors")
    with pytest.raises(InputError, match=r"fc.bias is \(3,\), expected \(5,\)"):
        load_module(build_teacher("resnet18", 5, "cifar"), tmp_path / "t.safetensors", "a resnet18 with 5 classes")
