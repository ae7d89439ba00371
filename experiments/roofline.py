"""The speed of the INT8 student's convolutions compared with the peak of onnxruntime on this core.

    python experiments/roofline.py [--seconds 20]

**Peak** is the highest rate, in multiply-accumulates per second on one thread, of any probe: single operators of
several sizes (MatMulInteger, QLinearMatMul and QLinearConv for INT8, MatMul and Conv for FP32), large enough to be
bound by arithmetic, run by the same onnxruntime. It is the peak of its kernels on this core, not of the
instructions. INT8 probes have the student's types, uint8 activations and int8 weights.

onnxruntime profiles probes and models and reports the time of every kernel. They take turns in windows, and the first
tenth of the calls is dropped. Times are first deciles (nine tenths of the calls took longer), because other load only
adds time; medians are next to them. Images are random.

Prints a Markdown table of the probes, then one per batch size with a row per convolution.
"""

import argparse
import itertools
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kdedge.benchmarks.session import import_onnxruntime, session_options

BUNDLE = Path(__file__).resolve().parents[1] / "artifacts" / "reference" / "bundle"
MODELS = {"FP32": "student.onnx", "INT8": "student.int8.onnx"}
WINDOWS = 10
MATRICES = ((1024, 256, 256), (1024, 1152, 128), (256, 2304, 384), (512, 512, 512), (1024, 1024, 1024))
# Channels in and out, side of the map, side of the kernel.
CONVOLUTIONS = ((128, 128, 32, 3), (256, 256, 16, 3), (512, 512, 16, 1), (256, 256, 32, 1))


@dataclass
class Kernel:
    """One operator as it ran.

    Attributes:
        op: Operator type.
        outputs: Elements of its first output.
        times_us: Duration of every call in microseconds.
    """

    op: str
    outputs: int
    times_us: list[float]


class Profiled:
    """A model on one thread with onnxruntime's profiler on."""

    def __init__(self, model: bytes, feed: Mapping[str, Any], folder: Path) -> None:
        options = session_options(1)
        options.enable_profiling = True
        # onnxruntime adds the time in seconds only.
        options.profile_file_prefix = tempfile.mkdtemp(dir=folder) + "/profile"
        self.feed = dict(feed)
        self.session = import_onnxruntime().InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run_for(self, seconds: float) -> None:
        """Call the model until the time is over, at least once."""
        until = time.perf_counter() + seconds
        while True:
            self.session.run(None, self.feed)
            if time.perf_counter() >= until:
                return

    def kernels(self) -> dict[str, Kernel]:
        """Stop profiling and return every kernel by the name of its node, in the order of execution."""
        found: dict[str, Kernel] = {}
        for event in json.loads(Path(self.session.end_profiling()).read_text()):
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                name, details = event["name"].removesuffix("_kernel_time"), event["args"]
                shapes = [shape for kind in details["output_type_shape"] for shape in kind.values()]
                kernel = found.setdefault(name, Kernel(details["op_name"], math.prod(shapes[0]), []))
                kernel.times_us.append(float(event["dur"]))
        for kernel in found.values():
            del kernel.times_us[: len(kernel.times_us) // 10]
        return found


def one_node(
    op: str, feed: Mapping[str, Any], constants: Sequence[tuple[str, Any]], output: int, **kwargs: Any
) -> bytes:
    """Return a model of one operator that takes the arrays of ``feed`` and then the constants."""
    node = helper.make_node(op, [*feed, *(name for name, _ in constants)], ["y"], name=op, **kwargs)
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feed.items()
    ]
    outputs = [helper.make_tensor_value_info("y", output, None)]
    weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants]
    model = helper.make_model(
        helper.make_graph([node], "probe", inputs, outputs, weights),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    return bytes(model.SerializeToString())


def probes() -> dict[tuple[str, str], tuple[int, bytes, dict[str, Any]]]:
    """Return (precision, description) to (multiply-accumulates, model, feed)."""
    rng = np.random.default_rng(0)
    scale, zero_u8, zero_s8 = np.float32(0.01), np.uint8(0), np.int8(0)
    made: dict[tuple[str, str], tuple[int, bytes, dict[str, Any]]] = {}
    for m, k, n in MATRICES:
        # Weights in 7 bits, as kdedge's.
        a, b = rng.integers(0, 256, (m, k), np.uint8), rng.integers(-64, 64, (k, n), np.int8)
        size, macs, feed = f"{m}×{k}×{n}", m * k * n, {"a": a}
        zeros = [("az", zero_u8), ("bz", zero_s8)]
        made["INT8", f"MatMulInteger {size}"] = (
            macs, one_node("MatMulInteger", feed, [("b", b), *zeros], TensorProto.INT32), feed,
        )  # fmt: skip
        scales = [
            ("as", scale),
            ("az", zero_u8),
            ("b", b),
            ("bs", scale),
            ("bz", zero_s8),
            ("ys", scale),
            ("yz", zero_u8),
        ]
        made["INT8", f"QLinearMatMul {size}"] = macs, one_node("QLinearMatMul", feed, scales, TensorProto.UINT8), feed
        floats = {"a": a.astype(np.float32)}
        weights = [("b", b.astype(np.float32))]
        made["FP32", f"MatMul {size}"] = macs, one_node("MatMul", floats, weights, TensorProto.FLOAT), floats
    for cin, cout, side, kernel in CONVOLUTIONS:
        x = rng.integers(0, 256, (1, cin, side, side), np.uint8)
        w = rng.integers(-64, 64, (cout, cin, kernel, kernel), np.int8)
        size, macs, pads = f"{cin}→{cout}, {side}×{side}, {kernel}×{kernel}", w.size * side * side, [kernel // 2] * 4
        scales = [
            ("xs", scale),
            ("xz", zero_u8),
            ("w", w),
            ("ws", np.full(cout, scale)),
            ("wz", np.zeros(cout, np.int8)),
        ]
        scales += [("ys", scale), ("yz", zero_u8), ("b", np.zeros(cout, np.int32))]
        made["INT8", f"QLinearConv {size}"] = (
            macs, one_node("QLinearConv", {"x": x}, scales, TensorProto.UINT8, pads=pads), {"x": x},
        )  # fmt: skip
        weights = [("w", w.astype(np.float32)), ("b", np.zeros(cout, np.float32))]
        floats = {"x": x.astype(np.float32)}
        made["FP32", f"Conv {size}"] = macs, one_node("Conv", floats, weights, TensorProto.FLOAT, pads=pads), floats
    return made


def convolution_macs(path: Path) -> list[tuple[str, int]]:
    """Return a description and the multiply-accumulates for one image of every Conv, in the order of the graph."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in graph.value_info}
    weights = {item.name: list(item.dims) for item in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type == "Conv":
            cout, cin, height, width = weights[node.input[1]]
            rows, columns = shapes[node.output[0]][2:]
            found.append((f"{cin}→{cout}, {rows}×{columns}", cout * cin * height * width * rows * columns))
    return found


def rate(macs: float, times_us: Sequence[float], percentile: float) -> float:
    """Return 10⁹ multiply-accumulates per second at a percentile of the times."""
    return macs / float(np.percentile(times_us, percentile)) / 1e3


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="folder with student.onnx and student.int8.onnx")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 32])
    parser.add_argument("--seconds", type=float, default=20.0, help="measuring time per model and batch size")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="kdedge-") as name:
        folder = Path(name)
        rng = np.random.default_rng(0)
        made = probes()
        tried = {key: Profiled(model, feed, folder) for key, (_, model, feed) in made.items()}
        models = {}
        for batch, precision in itertools.product(options.batches, MODELS):
            pixels = rng.integers(0, 256, (batch, 32, 32, 3), np.uint8)
            models[batch, precision] = Profiled(
                (options.bundle / MODELS[precision]).read_bytes(), {"pixels": pixels}, folder
            )
        for _ in range(WINDOWS):
            for profiled in tried.values():
                profiled.run_for(options.seconds / 10 / WINDOWS)
            for profiled in models.values():
                profiled.run_for(options.seconds / WINDOWS)
        print("| probe | GMAC/s, first decile | GMAC/s, median |\n|---|---|---|")
        peaks = dict.fromkeys(MODELS, 0.0)
        for (precision, text), profiled in sorted(tried.items(), key=lambda item: item[0][0]):
            # onnxruntime may put a change of layout before and after the operator.
            kernel = max(profiled.kernels().values(), key=lambda kernel: sum(kernel.times_us))
            fast, middle = (rate(made[precision, text][0], kernel.times_us, percentile) for percentile in (10, 50))
            peaks[precision] = max(peaks[precision], fast)
            print(f"| {precision} {text} | {fast:.1f} | {middle:.1f} |")
        print("\nPeak: " + ", ".join(f"{precision} {peak:.1f} GMAC/s" for precision, peak in peaks.items()))
        layers = convolution_macs(options.bundle / MODELS["FP32"])
        for batch in options.batches:
            print_batch(batch, layers, {key: models[batch, key].kernels() for key in MODELS}, peaks)


def print_batch(
    batch: int,
    layers: Sequence[tuple[str, int]],
    kernels: Mapping[str, Mapping[str, Kernel]],
    peaks: Mapping[str, float],
) -> None:
    """Print the table of one batch size: a row per convolution, their sum, and the share of everything else."""
    print(f"\nBatch {batch}\n")
    heads = "µs | GMAC/s | share of peak | median: GMAC/s"
    print("| convolution | MMAC | " + " | ".join(f"{p} {head}" for p in peaks for head in heads.split(" | ")) + " |")
    print("|---" * (2 + 4 * len(peaks)) + "|")
    convolutions = {p: [kernel for kernel in kernels[p].values() if "Conv" in kernel.op] for p in peaks}
    for precision, found in convolutions.items():
        if len(found) != len(layers):
            raise SystemExit(f"{precision}: {len(found)} convolutions ran, the graph has {len(layers)}")
    rows = [
        (text, macs * batch, [[found[i]] for found in convolutions.values()]) for i, (text, macs) in enumerate(layers)
    ]
    rows.append(("all convolutions", sum(row[1] for row in rows), list(convolutions.values())))
    for text, macs, groups in rows:
        cells = []
        for (_, peak), group in zip(peaks.items(), groups, strict=True):
            fast, middle = (sum(float(np.percentile(k.times_us, q)) for k in group) for q in (10, 50))
            reached = macs / fast / 1e3
            cells += [f"{fast:.0f}", f"{reached:.1f}", f"{100 * reached / peak:.0f} %", f"{macs / middle / 1e3:.1f}"]
        print(f"| {text} | {macs / 1e6:.2f} | " + " | ".join(cells) + " |")
    for precision, found in kernels.items():
        times = {name: float(np.percentile(kernel.times_us, 10)) for name, kernel in found.items()}
        other = {n: us for n, us in times.items() if "Conv" not in found[n].op}
        listed = ", ".join(f"{found[n].op} {us:.0f}" for n, us in sorted(other.items(), key=lambda x: -x[1]))
        print(f"\n{precision}: other kernels {sum(other.values()):.0f} of {sum(times.values()):.0f} µs: {listed}")


if __name__ == "__main__":
    main()
