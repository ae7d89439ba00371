"""`kdedge gate` on two ONNX models: kdedge's own, and classifiers with other inputs."""

import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torchvision import transforms
from torchvision.models import ResNet18_Weights
from typer.testing import CliRunner

import kdedge
from kdedge.benchmarks.input_adapter import PREPROCESSING, open_classifier
from kdedge.benchmarks.session import open_model, run_model
from kdedge.pipeline.cli import app
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.sources import open_dataset
from kdedge.preprocessing import preprocessing
from tests.tiny import make_folder

BUNDLE = Path(__file__).resolve().parents[2] / "artifacts" / "reference" / "bundle"
FLOAT, HALF, UINT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8


def invoke(*arguments):
    return CliRunner().invoke(app, ["gate", *map(str, arguments)], env={"COLUMNS": "80"})


def colour_model(path, *, shape=("N", 3, 16, 16), kind=FLOAT, order=(2, 1, 0), classes=3):
    """Write a classifier whose logits are the mean blue, green and red of the image (`order`: of the channels)."""
    axes = [2, 3] if shape[1] == 3 else [1, 2]
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["mean"], axes=axes, keepdims=0),
        helper.make_node("Gather", ["mean", "order"], ["scores"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("image", kind, shape)],
        [helper.make_tensor_value_info("scores", FLOAT, [shape[0], classes])],
        [numpy_helper.from_array(np.array(order), "order")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("gate") / "images", train=3, test=10)


def gate(fp32, int8, data, *options):
    result = invoke(fp32, int8, "--data", data, "--limit-pp", 20, "--json", *options)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_reference_models_need_no_option_and_agree_with_the_python_function():
    found = gate(BUNDLE / "student.onnx", BUNDLE / "student.int8.onnx", "sample")
    test = open_dataset(DataConfig(source="sample")).test()
    fp32, int8 = (run_model(open_model(BUNDLE / name), test.images) for name in ("student.onnx", "student.int8.onnx"))
    expected = kdedge.gate(fp32.argmax(1) == test.labels, int8.argmax(1) == test.labels, 20)
    same = ("verdict", "loss_pp", "loss_lower95_pp", "loss_upper95_pp", "fp32_only_right", "int8_only_right")
    assert {key: found["gate"][key] for key in same} == {key: expected[key] for key in same}
    assert found["gate"]["changed_answers"] == (fp32.argmax(1) != int8.argmax(1)).sum()
    assert found["images"] == 1000
    assert {row["class"] for row in found["per_class"]} == set(test.class_names)


@pytest.mark.parametrize(
    ("shape", "kind", "options"),
    [
        (("N", 3, 16, 16), FLOAT, ("--preprocessing", "torchvision")),
        (("N", 16, 16, 3), FLOAT, ("--preprocessing", "keras")),
        ((4, 3, 16, 16), HALF, ("--scale", 1, "--mean", "120,121,122")),
        (("N", 16, 16, 3), UINT8, ()),
        ((1, 3, 16, 16), UINT8, ()),
        (("N", 3, "H", "W"), UINT8, ("--image-size", 16)),
        (("N", "C", 16, 16), FLOAT, ("--layout", "nchw", "--std", 0.5)),
    ],
)
def test_models_with_other_inputs(shape, kind, options, folder, tmp_path):
    channels = tuple(3 if axis == "C" else axis for axis in shape)
    model = colour_model(tmp_path / "model.onnx", shape=channels, kind=kind)
    if channels != shape:  # the channels are dynamic
        proto = onnx.load(model)
        proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "C"
        onnx.save(proto, model)
    found = gate(model, model, folder, *options)
    assert found["images"] == 30  # of the test folder only
    assert found["accuracy"]["fp32_top1_pct"] == 100
    assert found["gate"]["changed_answers"] == 0


def test_swapped_models_are_refused():
    fp32, int8 = BUNDLE / "student.onnx", BUNDLE / "student.int8.onnx"
    result = invoke(int8, fp32, "--data", "sample")
    assert result.exit_code == 2
    error = " ".join(result.stderr.split())
    assert f"{int8} is quantized and {fp32} is not -> swap them: kdedge gate {fp32} {int8}" in error


def test_a_folder_without_parts_is_used_whole(folder, tmp_path):
    model = colour_model(tmp_path / "model.onnx", kind=UINT8)
    assert gate(model, model, f"folder:{folder / 'train'}", "--limit-pp", 50)["images"] == 9
    warned = " ".join(invoke(model, model, "--data", folder / "train").stderr.split())
    assert "no test folder: all 9 images are used, so the verdict is only valid if none of them was used" in warned
    assert "no test folder" not in invoke(model, model, "--data", folder).stderr


def test_models_of_kdedge_get_images_as_in_training(tmp_path):
    """The middle third of each image, which is what a crop sees, has the color of its class; the rest has another."""
    for name, stripes in (("blue", (1, 2, 1)), ("green", (0, 1, 0)), ("red", (1, 0, 1))):
        pixels = np.zeros((16, 48, 3), np.uint8)
        for number, channel in enumerate(stripes):
            pixels[:, 16 * number : 16 * (number + 1), channel] = 255
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "images" / name / "0.png")
    model = onnx.load(colour_model(tmp_path / "model.onnx", kind=UINT8))
    onnx.helper.set_model_props(model, {"kdedge.preprocessing": json.dumps(preprocessing(16, "crop"))})
    onnx.save(model, tmp_path / "crop.onnx")
    paths = tmp_path / "crop.onnx", tmp_path / "model.onnx"
    for path, expected in zip(paths, (100, 0), strict=True):
        found = json.loads(invoke(path, path, "--data", tmp_path / "images", "--json").stdout)
        assert found["accuracy"]["fp32_top1_pct"] == expected
    result = invoke(*paths, "--data", tmp_path / "images")
    assert result.exit_code == 2
    assert "crop.onnx was trained with --resize crop" in " ".join(result.stderr.split()).replace(
        " crop.onnx", "crop.onnx"
    )


@pytest.mark.parametrize("part", ["", "test", "val"])
def test_a_table_and_a_numpy_file_are_read_as_a_folder(part, folder, tmp_path):
    model = colour_model(tmp_path / "model.onnx", kind=UINT8)
    shown, others = (sorted((folder / name).glob("*/*.png")) for name in ("test", "train"))
    rows = [(file, part) for file in shown] + [(file, "train") for file in others if part]
    table = "\n".join(f"{file},{file.parent.name},{split}" for file, split in rows)
    (tmp_path / "images.csv").write_text(f"path,label,split\n{table}\n")
    arrays = {f"_{part}" if part else "": shown} | ({"": others} if part else {})
    np.savez(
        tmp_path / "images.npz",
        **{f"x{suffix}": np.stack([Image.open(file) for file in files]) for suffix, files in arrays.items()},
        **{f"y{suffix}": [file.parent.name for file in files] for suffix, files in arrays.items()},
    )
    for name in ("images.csv", "images.npz"):
        if part != "val":
            assert gate(model, model, tmp_path / name) == gate(model, model, folder)
            continue
        result = invoke(model, model, "--data", tmp_path / name)
        assert result.exit_code == 2
        assert re.search("has (train and val|val and train) but no test", " ".join(result.stderr.split()))


def test_all_images_that_cannot_be_read_are_named_at_once(folder, tmp_path):
    shutil.copytree(folder / "test", tmp_path / "images")
    bad = [tmp_path / "images" / name for name in ("blue/000.png", "red/000.png")]
    for file in bad:
        file.write_bytes(file.read_bytes()[:-30])
    model = colour_model(tmp_path / "model.onnx", kind=UINT8)
    result = invoke(model, model, "--data", tmp_path / "images")
    assert result.exit_code == 2
    assert all(str(file) in result.stderr for file in bad)


def test_a_worse_model_fails(folder, tmp_path):
    fp32 = colour_model(tmp_path / "fp32.onnx")
    int8 = colour_model(tmp_path / "int8.onnx", kind=UINT8, order=(2, 2, 0), shape=("N", 16, 16, 3))
    result = invoke(fp32, int8, "--data", folder, "--preprocessing", "kdedge")
    assert result.exit_code == 3
    assert "gate: failed" in result.stdout
    assert result.stdout.index("green") < result.stdout.index("blue  ")


def options_for(tmp_path, folder):
    model = colour_model(tmp_path / "float.onnx")
    pixels = colour_model(tmp_path / "uint8.onnx", kind=UINT8)
    small = colour_model(tmp_path / "small.onnx", shape=("N", 3, 8, 8), kind=UINT8)
    wide = colour_model(tmp_path / "wide.onnx", shape=("N", 3, 8, 16), kind=UINT8)
    dynamic = colour_model(tmp_path / "dynamic.onnx", shape=("N", 3, "H", "W"), kind=UINT8)
    unclear = colour_model(tmp_path / "unclear.onnx", shape=("N", 3, 3, 3), kind=UINT8)
    four = colour_model(tmp_path / "four.onnx", kind=UINT8, order=(2, 1, 0, 0), classes=4)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(pixels.read_bytes()[:50])
    data = ("--data", folder)
    return {
        "no preprocessing": ((model, model, *data), "takes floats, and the file does not describe the preprocessing"),
        "no data": ((pixels, pixels), "two models need test images"),
        "no folder": ((pixels, pixels, "--data", tmp_path / "none"), "does not exist"),
        "no test folder": ((pixels, pixels, "--data", tmp_path / "my parts"), f"--data '{tmp_path}/my parts/val'"),
        "unknown name": ((model, model, *data, "--preprocessing", "keers"), "did you mean 'keras'?"),
        "bad mean": ((model, model, *data, "--mean", "1,2"), "--mean '1,2' is not one number or three"),
        "zero std": ((model, model, *data, "--std", "0"), "--std '0' is not one number above 0"),
        "no scale": ((model, model, *data, "--scale", "nan"), "--scale nan is not a number above 0"),
        "no effect": ((pixels, pixels, *data, "--mean", "1"), "--mean has no effect"),
        "unknown layout": ((pixels, pixels, *data, "--layout", "CHWN"), "--layout 'CHWN' is unknown"),
        "wrong layout": ((pixels, pixels, *data, "--layout", "NHWC"), "in NHWC"),
        "unclear layout": ((unclear, unclear, *data), "the layout is not clear"),
        "not square": ((wide, wide, *data), "expected square images"),
        "dynamic size": ((dynamic, dynamic, *data), "give --image-size"),
        "another size": ((pixels, pixels, *data, "--image-size", "32"), "--image-size 32 differs from the 16 pixels"),
        "two sizes": ((pixels, small, *data), "of 16 pixels"),
        "classes": ((four, four, *data), "returns 4 logits, the images have 3 classes: blue, green, red"),
        "names": ((BUNDLE / "student.onnx", BUNDLE / "student.int8.onnx", *data), "the images have the class 'blue'"),
        "broken": ((broken, broken, *data), "is not a usable ONNX model"),
        "missing": ((tmp_path / "none.onnx", pixels, *data), "no model at"),
        "mixed": ((pixels, "b.csv", *data), "neither two models nor two prediction files"),
        "files": (("a.csv", "b.csv", *data), "--data is for two models"),
    }


def test_what_does_not_fit_is_refused(folder, tmp_path):
    for part in ("train", "val"):
        shutil.copytree(folder / "train", tmp_path / "my parts" / part)
    for name, (arguments, message) in options_for(tmp_path, folder).items():
        result = invoke(*arguments)
        assert result.exit_code == 2, (name, result.output, result.exception)
        assert message in " ".join(result.stderr.split()), name
        assert result.stdout == "", name


def test_dynamic_quantization_sees_one_image_at_a_time(tmp_path):
    model = onnx.load(colour_model(tmp_path / "model.onnx"))
    model.graph.node.append(helper.make_node("DynamicQuantizeLinear", ["scores"], ["q", "scale", "zero"]))
    onnx.save(model, tmp_path / "dynamic.onnx")
    assert open_classifier(tmp_path / "model.onnx").batch is None
    assert open_classifier(tmp_path / "dynamic.onnx").batch == 1


@pytest.mark.parametrize(("width", "height"), [(50, 40), (40, 50), (23, 97), (32, 32)])
def test_named_preprocessing_is_that_of_the_projects(width, height):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(pixels)
    projects = {
        "torchvision": ResNet18_Weights.IMAGENET1K_V1.transforms(crop_size=35, resize_size=40),  # of 224 and 256
        # As `classify_transforms` of ultralytics 8.3: mean 0, std 1, the whole of the shorter side.
        "ultralytics": transforms.Compose([transforms.Resize(35), transforms.CenterCrop(35), transforms.ToTensor()]),
    }
    if find_spec("timm"):
        from timm.data import create_transform, resolve_data_config

        # Of the architectures that name nothing else.
        projects["timm"] = create_transform(**resolve_data_config({"input_size": (3, 35, 35)}))
    for name, convert in projects.items():
        expected = convert(image).numpy().transpose(1, 2, 0)
        preprocessing = PREPROCESSING[name]
        np.testing.assert_allclose(preprocessing.floats(preprocessing.pixels(image, 35)[None])[0], expected, atol=1e-5)
    keras = PREPROCESSING["keras"].floats(np.array([0, 255], np.uint8).reshape(2, 1, 1, 1).repeat(3, axis=3))
    assert np.unique(keras).tolist() == [-1, 1]


def test_the_command_needs_no_pytorch(folder, tmp_path):
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'torchvision', 'onnx', 'matplotlib')))\n"
        "from kdedge.pipeline.cli import app; app(sys.argv[1:])"
    )
    model = str(colour_model(tmp_path / "model.onnx"))
    command = [sys.executable, "-c", code, "gate", model, model, "--data", str(folder), "--preprocessing", "timm"]
    done = subprocess.run([*command, "--limit-pp", "20"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("gate: passed")
