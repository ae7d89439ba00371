import argparse
import json
import re
from collections import OrderedDict

import pytest
import torch
import torchvision
from fake_hub import CASES, published_file, published_layout, serve
from safetensors.torch import save_file
from typer.testing import CliRunner

from kdedge import download, progress
from kdedge.errors import InputError, StageError
from kdedge.inputs import image_input, signal_input
from kdedge.pipeline.cli import app
from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.models import initial_weights
from kdedge.pipeline.models.backbone import build_backbone
from kdedge.pipeline.models.initial_weights import check_start, start_teacher
from kdedge.pipeline.models.teacher import Teacher, build_teacher
from kdedge.pipeline.models.weights import load_module, save_module
from kdedge.pipeline.training.options import TeacherConfig

SMALL = "shufflenet_v2_x0_5"
OTHER_FAMILIES = (
    "densenet121", "vgg11_bn", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf",
    "convnext_tiny", "mnasnet0_5", "googlenet",
)  # fmt: skip


def start(arch="resnet18", classes=3, size=16, device="cpu", **settings):
    return start_teacher(TeacherConfig(arch=arch, **settings), classes, image_input(size), device)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of torch.hub, and no stall longer than a moment."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(download, "STALL_S", 0.5)
    monkeypatch.setattr(progress, "_PLAIN_LINE_INTERVAL_S", 0.0)
    return tmp_path / "hub" / "hub" / "checkpoints"


@pytest.fixture
def publish(hub, monkeypatch):
    """Let torchvision's weights of an architecture be these bytes, under this name, in the cache."""

    def publish(arch, name, data, address="http://127.0.0.1:9"):  # a port that nobody listens at
        weights = torchvision.models.get_model_weights(arch).DEFAULT
        monkeypatch.setattr(weights.value, "url", f"{address}/{name}")
        if data is not None:
            hub.mkdir(parents=True, exist_ok=True)
            (hub / name).write_bytes(data)

    return publish


@pytest.fixture
def no_init(monkeypatch):
    """Leave out the random initialisation, which takes seconds for a VGG."""
    for name in ("normal_", "kaiming_normal_", "kaiming_uniform_", "trunc_normal_", "uniform_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(1)
    return build_backbone(SMALL, 1000, "imagenet").state_dict()


@pytest.fixture(scope="module")
def resnet():
    """Weights of a trained-looking ResNet-18 with the 7x7 stem and three classes."""
    torch.manual_seed(1)
    return build_backbone("resnet18", 3, "imagenet").state_dict()


def numbered(state):
    """Give every tensor of a state dict a value of its own; the tensors take no space in a file."""
    return {name: torch.tensor(0.001 * (i + 1)).expand(value.shape) for i, (name, value) in enumerate(state.items())}


@pytest.mark.usefixtures("no_init")
@pytest.mark.parametrize(
    "arch",
    [
        "resnet18",
        SMALL,
        *(pytest.param(arch, marks=pytest.mark.slow) for arch in OTHER_FAMILIES),
    ],
)
@pytest.mark.filterwarnings("ignore:The default weight initialization")
def test_published_files_of_every_family_load_whole_but_for_the_head(arch, publish):
    state = numbered(torchvision.models.get_model(arch, weights=None).state_dict())
    publish(arch, *published_file(state, arch))
    begun = start(arch, size=64, weights="imagenet", stem="imagenet")
    own = begun.teacher.backbone.state_dict()
    head = list(own)[-1].rpartition(".")[0]
    assert begun.origin == "imagenet"
    assert [note.split()[0] for note in begun.missing] == [f"{head}.weight", f"{head}.bias"]
    for name, value in own.items():
        if name.endswith("num_batches_tracked"):
            assert value == 0
        elif not name.startswith(head):
            assert torch.equal(value, state[name]), name


def test_imagenet_weights_under_a_small_stem_leave_the_first_convolution_random(publish, resnet):
    torch.manual_seed(1)
    state = build_backbone("resnet18", 1000, "imagenet").state_dict()
    publish("resnet18", *published_file(state, "resnet18"))
    begun = start(weights="auto")
    assert begun.stem == "cifar-pool"
    assert begun.missing == (
        "conv1.weight is (64, 3, 3, 3), in the weights (64, 3, 7, 7)",
        "fc.weight is (3, 512), in the weights (1000, 512)",
        "fc.bias is (3,), in the weights (1000,)",
    )
    assert torch.equal(begun.teacher.backbone.layer3[0].conv1.weight, state["layer3.0.conv1.weight"])
    assert start(weights="auto", size=96).stem == "imagenet"


WRONG = {
    "wrong-hash": r"SHA-256 [0-9a-f]{64}, expected a SHA-256 of",
    "missing": "HTTP Error 404",
    "cut": r"the connection ended after [\d,]+ of [\d,]+ bytes",
    "slow": r"the server sent only [\d,]+ bytes in",
}


@pytest.mark.parametrize("case", CASES)
def test_a_download_succeeds_or_auto_starts_from_random_weights_and_imagenet_says_why(
    case, hub, publish, small, capsys
):
    name, data = published_file(small, SMALL)
    with serve(case, data) as address:
        publish(SMALL, name, None, address)
        torch.manual_seed(0)
        begun = start(SMALL, weights="auto")
        log = capsys.readouterr().err
        assert begun.origin == ("imagenet" if case == "right" else "none")
        assert f"downloading {address}/{name} to {hub / name}" in log
        if case == "right":
            assert re.search(rf"downloading {name} \(MB\): 2/6, \d+ s left", log)
        else:
            (warning,) = [line for line in log.splitlines() if line.startswith("warning: ")]
            assert f"unavailable: cannot download {address}/{name} to" in warning
            assert warning.endswith("; training the teacher from random weights")
            torch.manual_seed(0)
            random = start(SMALL, weights="none").teacher.backbone.state_dict()
            assert all(map(torch.equal, begun.teacher.backbone.state_dict().values(), random.values()))
            with pytest.raises(StageError, match=WRONG[case]) as caught:
                start(SMALL, weights="imagenet")
            assert caught.value.exit_code == 1
            assert "--teacher-weights FILE" in caught.value.hint
    assert [path.name for path in hub.iterdir() if path.suffix != ".lock"] == ([name] if case == "right" else [])


@pytest.mark.parametrize("case", ["right", "cut"])
def test_the_command_ends_well_or_with_one_clear_error(case, publish, small, folder_data, tmp_path):
    name, data = published_file(small, SMALL)
    command = [
        "teacher", "--data", f"folder:{folder_data}", "--image-size", "32", "--teacher", SMALL, "--device", "cpu",
        "--threads", "1", "--precision", "fp32", "--teacher-epochs", "1", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    with serve(case, data) as address:
        publish(SMALL, name, None, address)
        result = CliRunner().invoke(app, [*command, "--teacher-weights", "imagenet"])
        if case != "right":
            assert result.exit_code == 1
            assert "the connection ended after" in " ".join(result.stderr.split())
            assert isinstance(result.exception, SystemExit)
            result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    facts = json.loads((tmp_path / "run" / "teacher" / "manifest.json").read_text())["facts"]
    assert facts["weights"] == ("imagenet" if case == "right" else "none")
    rate = "0.0025" if case == "right" else "0.025"  # for 32 images per step
    assert f"peak rate {rate}," in result.stderr
    assert ("not loaded: fc.weight is (3, 1024)" in result.stderr) == (case == "right")


def test_a_damaged_file_in_the_cache_is_named_and_downloaded_again(hub, publish, small, capsys):
    name, data = published_file(small, SMALL)
    with serve("right", data) as address:
        publish(SMALL, name, data[:-1], address)
        assert start(SMALL, weights="auto").origin == "imagenet"
    assert f"{hub / name} is damaged: its SHA-256 begins with" in capsys.readouterr().err
    assert (hub / name).read_bytes() == data
    assert start(SMALL, weights="imagenet").origin == "imagenet"  # from the cache: nobody serves it any more


class Malicious:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_pickle_in_the_cache_is_not_executed(publish, small, capsys):
    publish(SMALL, *published_file({"conv1.0.weight": Malicious()}, SMALL))
    assert start(SMALL, weights="auto").origin == "none"
    with pytest.raises(StageError, match=r"has Python objects \((__builtin__|builtins)\.print\), which are never"):
        start(SMALL, weights="imagenet")
    assert "executed" not in capsys.readouterr().out


def test_auto_goes_on_from_random_weights_whatever_is_wrong(publish, small, monkeypatch, hub, capsys):
    def refused():
        for weights in ("auto", "imagenet"):
            if weights == "auto":
                assert start(SMALL, weights=weights).origin == "none"
            else:
                with pytest.raises(StageError, match=f"ImageNet weights of {SMALL} are unavailable") as caught:
                    start(SMALL, weights=weights)
        assert capsys.readouterr().err.count("warning: ImageNet weights") == 1
        return str(caught.value)

    publish(SMALL, "x-00000000.pth", None)
    assert "Connection refused" in refused()
    publish(SMALL, "x.pth", None)
    assert "has no hash in its name" in refused()
    publish(SMALL, *published_file({"conv1.weight": torch.ones(3)}, SMALL))
    assert f"does not fit a {SMALL} teacher" in refused()
    hub.rename(hub.with_name("other"))
    hub.write_text("a file where the cache should be")
    publish(SMALL, "x-00000000.pth", None)
    assert "File exists" in refused()
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda arch: argparse.Namespace())
    assert "DEFAULT" in refused()


def lightning(state):
    return {
        "epoch": 3, "global_step": 12, "pytorch-lightning_version": "2.5.0", "callbacks": {}, "optimizer_states": [{}],
        "state_dict": {f"model.{name}": value for name, value in state.items()} | {"loss.weight": torch.ones(3)},
        "hyper_parameters": {"lr": 0.1},
    }  # fmt: skip


def prefixed(prefix):
    return lambda state: {prefix + name: value for name, value in state.items()}


LAYOUTS = {
    "timm.pth": lambda state: state,
    "parallel.pth": prefixed("module."),
    "compiled.pt": prefixed("_orig_mod."),
    "lightning.ckpt": lightning,
    "net.ckpt": lambda state: {"state_dict": prefixed("net.")(state)},
    "backbone.bin": lambda state: {"model_state_dict": prefixed("backbone.")(state), "epoch": 1},
    "torchvision.pth": lambda state: {"model": prefixed("module.")(state), "optimizer": {"state": {}}, "epoch": 1},
    "mixed.pth": lambda state: {**state, "epoch": 5},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_files_of_other_programs_load(tmp_path, resnet, name):
    torch.save(LAYOUTS[name](published_layout(resnet)), tmp_path / name)
    begun = start(weights=str(tmp_path / name), epochs=0)
    assert begun.missing == ()
    assert begun.ignored == (("loss.weight",) if name == "lightning.ckpt" else ())
    assert begun.origin.startswith("file:")
    assert begun.stem == "imagenet"  # read from the file, for images of 16 pixels too
    assert all(map(torch.equal, begun.teacher.backbone.state_dict().values(), resnet.values()))


def test_a_safetensors_file_without_counters_loads(tmp_path, resnet):
    save_file(published_layout(resnet), tmp_path / "hf.safetensors")
    assert start(weights=str(tmp_path / "hf.safetensors"), epochs=0).missing == ()


def test_a_file_that_cannot_be_meant_is_refused_with_the_reason(tmp_path, resnet):
    def refused(message, state, **settings):
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(InputError, match=message):
            start(weights=str(tmp_path / "w.pth"), **settings)

    two = prefixed("student.")(resnet) | prefixed("teacher.")(resnet)
    refused("has several networks: names begin with 'student.' and with 'teacher.'", two)
    refused(r"has Python objects \(argparse.Namespace\)", {"state_dict": resnet, "args": argparse.Namespace(a=1)})
    refused("w.pth is not a state dict of tensors", {"epoch": 1})
    refused("running_var in .* has negative variances", {**resnet, "bn1.running_var": -torch.ones(64)})
    refused("values up to 1.0e", {**resnet, "bn1.running_var": torch.full((64,), 1e30)})
    refused("bn1.weight is .* torch.int8, expected", {**resnet, "bn1.weight": torch.ones(64, dtype=torch.int8)})
    five = {**resnet, "conv1.weight": torch.ones(64, 3, 5, 5)}
    refused("first convolution is 5x5 on 3 channels, expected 7x7", five)
    refused("first convolution is 5x5 on 3 channels, expected 7x7", prefixed("module.")(five), stem="cifar")
    refused("is 7x7 on 1 channels", {**resnet, "conv1.weight": torch.ones(64, 1, 7, 7)})
    refused("teacher: bn1.weight is nothing", {name: resnet[name] for name in resnet if name != "bn1.weight"})


def test_another_network_is_refused(tmp_path):
    save_module(build_teacher("resnet34", 3, "imagenet").backbone, tmp_path / "w.safetensors")
    file = str(tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"does not fit a resnet18 teacher: layer\d.* expected nothing, and \d+ more"):
        start(weights=file)
    with pytest.raises(InputError, match=r"does not fit a mobilenet_v2 teacher: features.* is nothing, expected"):
        start("mobilenet_v2", size=32, weights=file)


def test_a_kdedge_teacher_in_half_precision_loads_whole(tmp_path):
    first = build_teacher("resnet18", 3, "cifar-pool")
    first.mean += 0.1
    save_module(first, tmp_path / "t.safetensors", dtype=torch.float16)
    second = start(weights=str(tmp_path / "t.safetensors"), stem="cifar-pool", epochs=0).teacher
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value, atol=1e-3, rtol=1e-3)


def test_an_address_is_no_file():
    with pytest.raises(InputError, match=r"https://host/w\.pth: expected a local file") as caught:
        start(weights="https://host/w.pth")
    assert "download it" in caught.value.hint


def test_the_stem_of_a_teacher_is_read_from_what_lies_beside_it(tmp_path):
    save_module(build_teacher("resnet18", 3, "cifar"), tmp_path / "teacher.safetensors")
    file = str(tmp_path / "teacher.safetensors")
    with pytest.raises(InputError, match="has a 3x3 stem, and does not record whether a 2x2 pooling follows") as caught:
        start(weights=file, epochs=0)
    assert "--teacher-stem cifar (without pooling) or cifar-pool" in caught.value.hint
    assert start(weights=file, size=128).stem == "cifar-pool"
    assert start(weights=file, epochs=0, stem="cifar").stem == "cifar"
    (tmp_path / "teacher.json").write_text(json.dumps({"arch": "resnet18", "stem": "cifar"}))
    begun = start(weights=file, epochs=0)
    assert (begun.stem, begun.missing, begun.ignored) == ("cifar", (), ())


def test_what_is_not_loaded_is_named_and_without_epochs_refused(tmp_path, resnet):
    file = str(tmp_path / "w.pth")
    torch.save(resnet, file)
    begun = start(weights=file, stem="cifar", classes=4)
    assert [note.split()[0] for note in begun.missing] == ["conv1.weight", "fc.weight", "fc.bias"]
    for given in ({"stem": "cifar"}, {"classes": 4}):
        with pytest.raises(InputError, match="leave a part of the teacher untrained, and --teacher-epochs 0 trains"):
            start(weights=file, epochs=0, **given)
    torch.save({name: value for name, value in resnet.items() if not name.startswith("fc.")}, file)
    assert start(weights=file).missing[0] == "fc.weight is (3, 512), in the weights nothing"
    with pytest.raises(InputError, match=r"fc\.bias is"):
        start(weights=file, epochs=0)


def test_a_random_teacher_is_not_distilled_from(publish):
    def check(inputs=None, **settings):
        check_start(
            build_config({"teacher": {"epochs": 0, **settings}, "distill": {"method": method}}),
            3,
            inputs or image_input(32),
        )

    method = "kd"
    windows = signal_input(64, ["a"], [0.0], [1.0])
    for given in ({"arch": "kdedge/lite-s"}, {"inputs": windows}, {"inputs": windows, "arch": "kdedge/signal"}):
        with pytest.raises(InputError, match="with --teacher-weights auto leaves the teacher random"):
            check(**given)
    with pytest.raises(InputError, match="--teacher-epochs 0 with --teacher-weights none leaves the teacher random"):
        check(weights="none")
    publish("resnet18", "x-00000000.pth", None)
    with pytest.raises(StageError, match="ImageNet weights of resnet18 are unavailable"):
        check(weights="auto")
    method = "ce"  # learns from labels only
    check(weights="none")


@pytest.mark.parametrize("weights", ["none", "missing.pth", "damaged.pth"])
def test_a_bad_start_is_found_before_any_work(weights, folder_data, tmp_path):
    (tmp_path / "damaged.pth").write_text("not weights")
    file = weights if weights == "none" else str(tmp_path / weights)
    out = tmp_path / "run"
    options = ["--data", f"folder:{folder_data}", "--teacher-epochs", "0", "--teacher-weights", file]
    result = CliRunner().invoke(app, ["run-all", *options, "--out", str(out)])
    assert result.exit_code == 2
    assert "precision" not in result.stderr
    assert "running" not in result.stderr
    assert not (out / "config.json").exists()


def test_an_mnasnet_teacher_can_be_loaded_again(tmp_path):
    teacher = build_teacher("mnasnet0_5", 3, "imagenet")
    save_module(teacher, tmp_path / "t.safetensors")
    load_module(build_teacher("mnasnet0_5", 3, "imagenet"), tmp_path / "t.safetensors", "an mnasnet")
    assert start("mnasnet0_5", size=32, weights=str(tmp_path / "t.safetensors"), epochs=0).missing == ()


def test_the_old_names_of_a_vision_transformer_load_by_its_own_rule():
    def vit():
        return torchvision.models.VisionTransformer(16, 8, num_layers=2, num_heads=1, hidden_dim=8, mlp_dim=4)

    new = vit().state_dict()
    old = OrderedDict(
        (name.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"), new[name]) for name in new
    )
    old._metadata = OrderedDict((name, {"version": 1}) for name in new._metadata)
    begun = initial_weights.Start(Teacher(vit()), "imagenet")
    begun = initial_weights._load(begun, initial_weights._Weights("imagenet", "old weights", old), "vit_b_16")
    assert all(map(torch.equal, begun.teacher.backbone.state_dict().values(), new.values()))
