"""Teachers of timm: input, blocks, weights from files and from a hub on this machine, and a run with one."""

import json
import socket

import pytest
import torch
from command_line import invoke
from fake_hub import serve
from safetensors.torch import save, save_file

timm = pytest.importorskip("timm")

from huggingface_hub import constants  # noqa: E402

from kdedge.errors import InputError, StageError  # noqa: E402
from kdedge.inputs import image_input  # noqa: E402
from kdedge.pipeline.models.initial_weights import start_teacher  # noqa: E402
from kdedge.pipeline.models.load import load_teacher  # noqa: E402
from kdedge.pipeline.models.teacher import (  # noqa: E402
    FeatureTap,
    build_teacher,
    check_arch,
    fold_batch_norms,
    hint_candidates,
)
from kdedge.pipeline.models.weights import save_module  # noqa: E402
from kdedge.pipeline.training.options import TeacherConfig  # noqa: E402

NAME = "timm/test_efficientnet"


def start(arch=NAME, classes=3, size=16, **settings):
    return start_teacher(TeacherConfig(arch=arch, **settings), classes, image_input(size), "cpu")


@pytest.fixture(scope="module")
def published():
    """Weights of NAME as its repository has them, for 1,000 classes."""
    torch.manual_seed(1)
    return timm.create_model("test_efficientnet").state_dict()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Serve content as the hub at an address of this machine; the cache is empty."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def at(address):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        at(f"http://127.0.0.1:{free.getsockname()[1]}")  # nobody listens here
    return at


def test_images_are_resized_and_normalised_as_for_the_pretrained_weights():
    teacher = build_teacher("timm/test_resnet", 3, "imagenet").eval()
    assert teacher.image_size == 160
    assert teacher.mean.flatten().tolist() == teacher.std.flatten().tolist() == [0.5] * 3
    x = torch.rand(2, 3, 32, 32)
    large = torch.nn.functional.interpolate(x, (160, 160), mode="bilinear", antialias=True)
    with torch.no_grad():
        torch.testing.assert_close(teacher(x), teacher.backbone((large - 0.5) / 0.5))
        small = build_teacher("timm/test_resnet", 3, "imagenet", 32).eval()
        torch.testing.assert_close(small(x), small.backbone((x - 0.5) / 0.5))


def test_hints_use_the_maps_of_feature_info():
    teacher = build_teacher(NAME, 3, "imagenet", 32).eval()
    expected = {entry["module"]: entry["num_chs"] for entry in teacher.backbone.feature_info}
    assert list(hint_candidates(teacher)) == list(expected)
    with torch.no_grad(), FeatureTap(teacher, tuple(expected)) as tap:
        teacher(torch.rand(2, 3, 16, 16))
        assert {name: tap.maps[name].shape[1] for name in expected} == expected
        assert [tap.maps[name].shape[2] for name in expected] == [16, 8, 4, 2, 1]


def test_transformers_have_no_maps_and_a_fixed_input():
    assert hint_candidates(build_teacher("timm/test_vit", 3, "imagenet")) == {}
    with pytest.raises(InputError, match="timm/vit_tiny_patch16_224 cannot take images of 32x32 pixels") as caught:
        build_teacher("timm/vit_tiny_patch16_224", 3, "imagenet", 32)
    assert "--teacher-image-size" in caught.value.hint


def test_batch_norms_with_activations_are_folded():
    teacher = build_teacher(NAME, 3, "imagenet", 32).train()
    teacher(torch.rand(8, 3, 32, 32))
    folded = fold_batch_norms(teacher.eval(), image_input(16))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    assert list(hint_candidates(folded)) == list(teacher.blocks)


def test_an_unknown_name_and_a_stem_are_refused():
    with pytest.raises(InputError, match=r"unknown teacher 'timm/resnet81' \(did you mean 'resnet\d+"):
        check_arch("timm/resnet81")
    with pytest.raises(InputError, match="unknown teacher 'timm/hf-hub:a/b'"):
        check_arch("timm/hf-hub:a/b")  # its configuration would come from the network
    with pytest.raises(InputError, match="--teacher-stem cifar is not for timm/test_efficientnet"):
        start(weights="none", stem="cifar")


LAYOUTS = {
    "plain.pth": lambda state: state,
    "parallel.pt": lambda state: {f"module.{name}": value for name, value in state.items()},
    "lightning.ckpt": lambda state: {"epoch": 1, "state_dict": {f"model.{name}": v for name, v in state.items()}},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_file_with_another_head_leaves_a_new_head_at_zero(tmp_path, published, name):
    torch.save(LAYOUTS[name](published), tmp_path / name)
    begun = start(weights=str(tmp_path / name))
    own = begun.teacher.backbone.state_dict()
    assert begun.missing == (
        "classifier.weight is (3, 256), in the weights (1000, 256)",
        "classifier.bias is (3,), in the weights (1000,)",
    )
    assert begun.new_head
    for key, value in own.items():
        assert not value.any() if key.startswith("classifier.") else torch.equal(value, published[key])
    with pytest.raises(InputError, match="leave a part of the teacher untrained"):
        start(weights=str(tmp_path / name), epochs=0)


def test_a_file_with_this_head_loads_whole(tmp_path, published):
    save_file(published, tmp_path / "w.safetensors")
    begun = start(classes=1000, weights=str(tmp_path / "w.safetensors"), epochs=0)
    assert (begun.missing, begun.new_head) == ((), False)


def test_weights_come_from_the_hub_once_and_then_from_its_cache(hub, published, capsys):
    with serve("right", save(published)) as address:
        hub(address)
        begun = start(weights="imagenet")
        assert f"downloading {address}/timm/test_efficientnet.r160_in1k/resolve/main/model" in capsys.readouterr().err
    assert begun.origin == "hub:timm/test_efficientnet.r160_in1k"
    assert torch.equal(begun.teacher.backbone.state_dict()["conv_stem.weight"], published["conv_stem.weight"])
    assert start(weights="auto").origin == begun.origin  # nobody serves it any more
    assert "downloading" not in capsys.readouterr().err


@pytest.mark.parametrize("case", ["missing", "nobody"])
def test_without_the_hub_auto_is_random_and_imagenet_names_the_next_command(case, hub, capsys):
    with serve("missing", b"") as address:
        if case == "missing":
            hub(address)
        assert start(weights="auto").origin == "none"
        assert capsys.readouterr().err.count("; training the teacher from random weights") == 1
        with pytest.raises(
            StageError, match=f"pretrained weights of {NAME} are unavailable: cannot download"
        ) as caught:
            start(weights="imagenet")
    assert "`hf download timm/test_efficientnet.r160_in1k model.safetensors`" in caught.value.hint


def test_a_student_learns_from_a_teacher_of_timm(folder_data, tmp_path):
    common = ["--data", folder_data, "--image-size", "16", "--val-fraction", "0.2", "--out", tmp_path]
    common += ["--device", "cpu", "--threads", "1", "--precision", "fp32"]
    teacher = ["--teacher", NAME, "--teacher-weights", "none", "--teacher-image-size", "32", "--teacher-epochs", "8"]
    result = invoke("teacher", *common, *teacher, "--teacher-batch-size", "16")
    assert result.exit_code == 0, result.stderr
    student = ["--student", "lite-xs", "--distill-epochs", "3", "--distill-batch-size", "16", "--scan-batches", "2"]
    result = invoke("distill", *common, *student, "--no-adapt-to-teacher")
    assert result.exit_code == 0, result.stderr
    metrics = json.loads((tmp_path / "distill" / "manifest.json").read_text())["facts"]
    assert list(metrics["block_variances"]) == [f"blocks.{index}" for index in range(5)]
    assert len(metrics["hint_pairs"]) == 3


def test_a_teacher_without_a_recorded_size_is_not_resized(tmp_path):
    save_module(build_teacher("tiny_resnet", 3, "cifar-pool"), tmp_path / "teacher.safetensors")
    description = {"arch": "tiny_resnet", "stem": "cifar-pool", "num_classes": 3}
    (tmp_path / "teacher.json").write_text(json.dumps(description))
    assert load_teacher(tmp_path).image_size == 0
    (tmp_path / "teacher.json").write_text(json.dumps({**description, "image_size": 24}))
    assert load_teacher(tmp_path).image_size == 24
