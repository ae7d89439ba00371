"""The C code of a student returns the logits of onnxruntime bit for bit, here and on emulated CPUs."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from command_line import invoke
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession
from small_networks import core

from experiments import cortex_m
from kdedge.errors import InputError, StageError
from kdedge.export.c99.check import check_c, code_size, run_program
from kdedge.export.c99.network import read_network
from kdedge.export.c99.source import C_FILES, c_sizes, write_c
from kdedge.export.quantize.candidates import Candidate
from kdedge.export.quantize.quantizer import Quantizer
from kdedge.inputs import image_input

BUNDLE = Path(__file__).resolve().parents[2] / "artifacts" / "reference" / "bundle"
CLASSES = ["a tree", 'quote " and \\', "größer??/", "fourth"]
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler (cc)")


def pixels(count, seed=0, size=11):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def node(kind, *inputs, name, **attributes):
    return helper.make_node(kind, inputs, [f"{name}.out"], name=name, **attributes)


def network(*, stride=2, pool=2, last="relu2", group=1, pool_stride=2):
    """Two convolutions, the first with a stride, a max-pool that drops a row, the mean and a matrix product."""
    rng = np.random.default_rng(3)
    shapes = {"conv1": (8, 3, 3, 3), "conv2": (12, 8 // group, 1, 3), "fc": (3, 12)}
    constants = [
        numpy_helper.from_array(rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype(np.float32), f"{name}.w")
        for name, shape in shapes.items()
    ]
    constants += [
        numpy_helper.from_array(rng.normal(0, 0.1, shape[0]).astype(np.float32), f"{name}.b")
        for name, shape in shapes.items()
    ]
    size = 11 if stride == 1 else 6
    pooled = (size - pool) // pool_stride + 1
    nodes = [
        node("Conv", "image", "conv1.w", "conv1.b", name="conv1", pads=[1] * 4, strides=[stride] * 2),
        node("Relu", "conv1.out", name="relu1"),
        node("MaxPool", "relu1.out", name="pool", kernel_shape=[pool] * 2, strides=[pool_stride] * 2),
        node("Conv", "pool.out", "conv2.w", "conv2.b", name="conv2", pads=[0, 1, 0, 1], group=group),
        node("Relu", "conv2.out", name="relu2"),
        node("Add", "relu2.out", "relu2.out", name="add"),
        node("AveragePool", f"{last}.out", name="mean", kernel_shape=[pooled] * 2),
        node("Flatten", "mean.out", name="flat"),
        helper.make_node("Gemm", ["flat.out", "fc.w", "fc.b"], ["logits"], name="fc", transB=1),
    ]  # fmt: skip
    if last != "add":
        del nodes[5]
    if last == "conv2":
        del nodes[4]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 11, 11])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])], constants,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def quantized(folder, model, candidate=None, **options):
    size = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    names = CLASSES[: model.graph.output[0].type.tensor_type.shape.dim[1].dim_value]
    path = folder / "student.int8.onnx"
    candidate = candidate or Candidate(calibration_images=64)
    path.write_bytes(
        Quantizer(
            model, model, image_input(size), pixels(64, size=size), {"kdedge.classes": json.dumps(names)}, 10
        ).build(candidate, **options)
    )
    return path


def logits(path, images):
    return InferenceSession(path).run(["logits"], {"pixels": images})[0]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The C files of a small network, with 1,000 images and the logits of onnxruntime."""
    folder = tmp_path_factory.mktemp("c99")
    path = quantized(folder, network())
    write_c(read_network(path), folder / "c")
    return folder / "c", pixels(1000, 1), logits(path, pixels(1000, 1))


@needs_cc
def test_1000_images_have_the_logits_of_onnxruntime(written):
    assert check_c(*written)
    folder, images, expected = written
    with pytest.raises(StageError, match="other logits than onnxruntime for 1 of 1000 images"):
        check_c(folder, images, np.concatenate([expected[:-1], np.nextafter(expected[-1:], np.float32(9))]))


@needs_cc
@pytest.mark.parametrize(
    ("candidate", "options"),
    [
        (Candidate(per_channel=False, calibration_images=64), {}),
        (Candidate(calibration_images=64), {"last": "conv2"}),
        (Candidate("s8", calibration_images=64), {}),
        (
            Candidate(weights="u8", reduce_range=False, calibration_images=64),
            {"stride": 1, "pool": 3, "pool_stride": 3},
        ),
    ],
)
def test_other_formats_and_shapes(tmp_path, candidate, options):
    path = quantized(tmp_path, network(**options), candidate)
    write_c(read_network(path), tmp_path / "c")
    assert check_c(tmp_path / "c", pixels(200, 2), logits(path, pixels(200, 2)))


@needs_cc
def test_global_average_pool(tmp_path):
    path = quantized(tmp_path, core())
    images = pixels(200, 2, size=8)
    write_c(read_network(path), tmp_path / "c")
    assert check_c(tmp_path / "c", images, logits(path, images))


@needs_cc
def test_rounding_is_that_of_float32(written, tmp_path):
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "student.c"\n'
        "int main(void) { int32_t in[2]; uint32_t out[2];\n"
        "while (fread(in, 1, 8, stdin) == 8) { out[0] = requantize(in[0], (uint32_t)in[1], 7);\n"
        "out[1] = to_bits(scaled(in[0], (uint32_t)in[1])); fwrite(out, 1, 8, stdout); } return 0; }\n"
    )
    program = tmp_path / "rounding"
    subprocess.run(["cc", "-std=c99", "-O2", f"-I{written[0]}", tmp_path / "main.c", "-o", program], check=True)
    rng = np.random.default_rng(0)
    sums = np.concatenate([
        rng.integers(-(2**31), 2**31, 200_000),
        (rng.choice([-1, 1], 200_000) * 2 ** rng.uniform(0, 31, 200_000)).astype(np.int64),
        np.arange(-100_000, 100_000),  # half of them are ties with the scale 1/2
        [0, 1, -1, 2**31 - 1, -(2**31), 2**24 + 1, 2**24 + 3, -(2**25) - 2],
    ]).astype(np.int32)  # fmt: skip
    scales = (2 ** rng.uniform(-40, 4, len(sums))).astype(np.float32)
    scales[400_000:600_000] = 0.5
    scales[::7] = (rng.integers(1, 64, len(sums)) / np.float32(2048))[::7]  # exact products, often ties
    result = subprocess.run(
        [program], input=np.stack([sums, scales.view(np.int32)], 1).tobytes(), capture_output=True, check=True
    )
    got = np.frombuffer(result.stdout, np.uint32).reshape(-1, 2)
    product = sums.astype(np.float32) * scales
    assert (got[:, 1] == np.abs(product).view(np.uint32)).all()
    assert (got[:, 0] == np.clip(np.rint(product) + 7, 0, 255)).all()
    assert (np.abs(product % 1) == 0.5).sum() > 50_000


@needs_cc
def test_the_reference_bundle(tmp_path):
    result = invoke("export-c", BUNDLE, "--out", tmp_path / "c", "--json")
    assert result.exit_code == 0, result.output
    sizes = json.loads(result.stdout)
    assert sizes["golden_images"] == 16
    assert sizes["constant_bytes"] == 1_283_504
    assert sizes["table_bytes"] == 532
    assert sizes["buffer_bytes"] == 49_152
    assert sizes["code_bytes"] < 4000
    assert {path.name for path in (tmp_path / "c").iterdir()} == {*C_FILES}
    assert json.loads((tmp_path / "c" / "student.json").read_text()).items() <= sizes.items()


def test_without_a_compiler(written, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert not check_c(*written)
    assert not code_size(written[0])


@needs_cc
def test_a_compiler_without_headers_does_not_measure_the_code(written, tmp_path, monkeypatch):
    broken = tmp_path / "arm-none-eabi-gcc"
    broken.write_text("#!/bin/sh\necho 'string.h: No such file or directory' >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert code_size(written[0])["code_for"] == "this machine"


@pytest.mark.parametrize("compiler", ["arm-none-eabi-gcc", "cc"])
def test_sizes_are_those_of_the_compiled_object(written, tmp_path, monkeypatch, compiler):
    if (found := shutil.which(compiler)) is None:
        pytest.skip(f"needs {compiler}")
    folder = written[0]
    sizes = c_sizes(read_network(folder.parent / "student.int8.onnx"))
    monkeypatch.setattr("kdedge.export.c99.check.shutil.which", lambda name: found if name == compiler else None)
    code = code_size(folder)
    assert code["code_for"] == ("this machine" if compiler == "cc" else "Cortex-M3")
    assert 500 < code["code_bytes"] < 4000
    flags = [] if compiler == "cc" else ["-mcpu=cortex-m3", "-mthumb"]
    options = [*flags, "-std=c99", "-Os", "-fno-asynchronous-unwind-tables", "-c", folder / "student.c"]
    subprocess.run([compiler, *options, "-o", tmp_path / "s.o"], check=True)
    shown = subprocess.run(["size", tmp_path / "s.o"], capture_output=True, text=True, check=True).stdout
    text, data, bss = map(int, shown.splitlines()[1].split()[:3])
    assert 0 <= bss - sizes["buffer_bytes"] < 64  # alignment
    pointers = 3 * 3 + len(CLASSES[:3])  # of the layers and of the labels
    wider = 4 * pointers if compiler == "cc" else 0  # as computed they have 32 bits
    flash = sizes["constant_bytes"] + sizes["table_bytes"] + code["code_bytes"] + wider
    assert 0 <= text + data - flash < 200


@needs_cc
def test_strict_c99_without_warnings_and_any_label(written, tmp_path):
    folder, images, _ = written
    strict = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Wconversion", "-Werror"]
    subprocess.run(["cc", *strict, folder / "main.c", folder / "student.c", "-o", tmp_path / "student"], check=True)
    shown = subprocess.run([tmp_path / "student"], input=images.tobytes(), capture_output=True, check=True)
    labels = {line.split(" ", 4)[4] for line in shown.stdout.decode().splitlines()}
    assert labels <= {*CLASSES[:3]}
    source = (folder / "student.c").read_text()
    assert "double" not in source
    assert "gr\\303\\266\\303\\237er\\077\\077\\057" in source


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (network(group=2), {}, r"node conv2 \(QLinearConv\): 2 groups; expected 1"),
        (network(pool=3), {}, r"node pool \(MaxPool\): the windows overlap or are padded"),
        (network(last="add"), {}, r"node add\S* \(QLinearAdd\): expected convolutions"),
        (network(), {"exclude": ["conv2"]}, r"node \S+ \(DequantizeLinear\): expected convolutions"),
    ],
    ids=["groups", "pool", "add", "float"],
)
def test_unsupported_nodes_are_named(tmp_path, model, options, message):
    with pytest.raises(InputError, match=message):
        read_network(quantized(tmp_path, model, **options))


@pytest.mark.parametrize("name", C_FILES)
def test_a_file_of_the_user_with_a_name_of_ours_is_not_replaced(tmp_path, name):
    (tmp_path / name).write_text("int mine;")
    with pytest.raises(InputError, match=f"{re.escape(str(tmp_path / name))} was not written by kdedge"):
        write_c(None, tmp_path)
    assert (tmp_path / name).read_text() == "int mine;"
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("folder", [".", "c"])
def test_a_bundle_gets_no_c_files(tmp_path, folder):
    shutil.copytree(BUNDLE, tmp_path / "bundle")
    result = invoke("export-c", tmp_path / "bundle", "--out", tmp_path / "bundle" / folder)
    assert result.exit_code == 2
    assert "is in the bundle" in result.output
    assert {path.name for path in (tmp_path / "bundle").iterdir()} == {path.name for path in BUNDLE.iterdir()}


def test_files_of_export_c_are_replaced_next_to_others(written, tmp_path):
    folder = shutil.copytree(written[0], tmp_path / "c")
    (folder / "student").write_text("a program")
    write_c(read_network(written[0].parent / "student.int8.onnx"), folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*C_FILES, "student"])


CPUS = {
    "arm64": ("aarch64-linux-gnu-gcc", "qemu-aarch64"),
    "riscv64": ("riscv64-linux-gnu-gcc", "qemu-riscv64"),
    "cortex-m3": ("arm-none-eabi-gcc", "qemu-system-arm"),
}


@pytest.mark.qemu
@pytest.mark.parametrize("cpu", CPUS)
def test_emulated_cpus_return_the_logits_of_onnxruntime(written, tmp_path, cpu):
    compiler, runner = CPUS[cpu]
    for program in CPUS[cpu]:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}, from Debian's cross compilers, newlib and qemu")
    folder, images, expected = written
    if cpu in cortex_m.BOARDS:
        command = [*cortex_m.emulator(cpu), cortex_m.build(folder, cpu, tmp_path)]
    else:
        command = [runner, tmp_path / "student"]
        sources = [folder / "main.c", folder / "student.c"]
        subprocess.run([compiler, "-static", "-std=c99", "-O2", *sources, "-o", command[1]], check=True)
    classes, bits = run_program(command, images, 3)
    assert (bits == expected.view(np.uint32)).all()
    assert (classes == expected.argmax(1)).all()
