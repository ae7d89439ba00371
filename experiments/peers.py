"""kdedge's INT8 compared with other formats and toolkits, on the same student, calibration images and machine.

    python experiments/peers.py --data-dir PATH --what formats
    pip install -r experiments/peers-requirements.txt          # into another environment
    python experiments/peers.py --data-dir PATH --what peers [--python inc=PATH] [--emulate 500]

**formats.** The INT8 formats that onnxruntime offers, built from the reference student and run on this host. On an x86
CPU without VNNI (see `kdedge doctor`), products of 8-bit weights overflow 16-bit sums; the table shows the cost.

**peers.** onnxruntime's `quantize_static`, NNCF with OpenVINO, Intel Neural Compressor and LiteRT, each with its
defaults (`experiments/peers_build.py`) and each against its own FP32. A toolkit that is not installed or fails
is reported with the last line of its error. ``--python NAME=PATH`` names the interpreter that has a toolkit (nncf, inc,
litert) for building; OpenVINO and LiteRT must be in this one to be measured. ``--emulate N`` runs all of them on N test
images on an emulated Haswell (AVX2, no VNNI; needs qemu-user, 8 images a second).

The calibration images are the 512 training images that kdedge picks. Test images choose nothing: every model is built
before they are read.

Prints Markdown tables: top-1 on the 10,000 test images, the loss against the toolkit's own FP32 with its 95 % interval,
images with another prediction than that FP32's, file size, and the latency on one thread: median of all calls, range of
the medians of the windows, and first decile, which other work on the machine disturbs least. The windows of all models
alternate. On a shared machine, ``--clock cpu`` measures the processor time of this process: the latency without waiting
for a core, but with the effect of others on the caches. Every model starts from the uint8 pixels of a decoder; LiteRT's
models take float or int8, so their latency includes the conversion by numpy.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.benchmarks.gate import judge
from kdedge.benchmarks.latency import measure_windows
from kdedge.benchmarks.sampling import stratified_sample
from kdedge.benchmarks.session import open_model, session_options
from kdedge.dataset import Split, split_train_val
from kdedge.errors import InputError
from kdedge.export.graph import read_model
from kdedge.export.quantize.candidates import Candidate
from kdedge.export.quantize.quantizer import Quantizer
from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.data.sources import open_dataset

Pixels = npt.NDArray[np.uint8]
STUDENT = Path(__file__).resolve().parents[1] / "artifacts" / "reference" / "bundle" / "student.onnx"
LIMIT_PP = 0.5
CLOCKS: dict[str, Callable[[], int]] = {"wall": time.perf_counter_ns, "cpu": time.process_time_ns}
KDEDGE = Candidate()
FORMATS = {
    "U8S8 per tensor": Candidate(per_channel=False, reduce_range=False),
    "U8S8 per channel": Candidate(reduce_range=False),
    "U8S8 per channel, 7-bit weights (kdedge)": KDEDGE,
    "U8U8 per tensor": Candidate(weights="u8", per_channel=False, reduce_range=False),
}


@dataclass(frozen=True)
class Runner:
    """A model as its toolkit runs it, on one thread.

    Attributes:
        files: Its files.
        call: Binds ``[N, S, S, 3] uint8`` pixels and returns the call that computes their logits ``[N, C]``.
        fp32: Name of the runner that it is compared with, empty for a float model.
        batch: Images per call when accuracy is measured.
    """

    files: tuple[Path, ...]
    call: Callable[[Pixels], Callable[[], Any]]
    fp32: str = ""
    batch: int = 50


def onnx_runner(path: Path, fp32: str = "", settings: Mapping[str, str] | None = None) -> Runner:
    """Open a model in onnxruntime; ``settings`` are entries of its session configuration."""
    options = session_options(1)
    for key, value in (settings or {}).items():
        options.add_session_config_entry(key, value)
    model = open_model(path, options=options)

    def call(pixels: Pixels) -> Callable[[], Any]:
        run, names, feed = model.session.run, ["logits"], {"pixels": pixels}
        return lambda: run(names, feed)[0]

    return Runner((path,), call, fp32)


def openvino_runner(path: Path, fp32: str = "") -> Runner:
    """Open a model in OpenVINO on one thread, FP32 in full precision."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    model = openvino.Core().compile_model(path, "CPU", settings)

    def call(pixels: Pixels) -> Callable[[], Any]:
        request = model.create_infer_request()
        request.set_input_tensor(openvino.Tensor(pixels, shared_memory=True))
        return lambda: request.infer(share_outputs=True)[0]

    return Runner((path, path.with_suffix(".bin")), call, fp32)


def litert_runner(stem: Path, fp32: str = "") -> Runner:
    """Open a model in LiteRT on one thread; there is one file per batch size, because the batch is fixed."""
    from ai_edge_litert.interpreter import Interpreter

    opened: dict[int, Any] = {}

    def call(pixels: Pixels) -> Callable[[], Any]:
        if len(pixels) not in opened:
            opened[len(pixels)] = Interpreter(f"{stem}_{len(pixels)}.tflite", num_threads=1)
            opened[len(pixels)].allocate_tensors()
        interpreter = opened[len(pixels)]
        source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]["index"]
        # The input of each of the 256 pixel values: a float in 0..1, or its quantized value.
        values = np.arange(256, dtype=np.float32) / 255
        if source["dtype"] == np.int8:
            scale, zero = source["quantization"]
            values = np.clip(np.round(values / scale) + zero, -128, 127).astype(np.int8)

        def run() -> Any:
            interpreter.set_tensor(source["index"], values[pixels])
            interpreter.invoke()
            return interpreter.get_tensor(target)

        return run

    return Runner((Path(f"{stem}_1.tflite"),), call, fp32, batch=1)


# How to open every model of the comparison from the folder where all were built.
PEERS: dict[str, Callable[[Path], Runner]] = {
    "onnxruntime FP32": lambda folder: onnx_runner(folder / "student.onnx"),
    "kdedge INT8": lambda folder: onnx_runner(folder / "kdedge.onnx", "onnxruntime FP32"),
    "`quantize_static`, defaults": lambda folder: onnx_runner(folder / "quantize_static.onnx", "onnxruntime FP32"),
    "Neural Compressor INT8 (onnxruntime)": lambda folder: onnx_runner(folder / "inc.onnx", "onnxruntime FP32"),
    "OpenVINO FP32": lambda folder: openvino_runner(folder / "ov_fp32.xml"),
    "NNCF INT8 (OpenVINO)": lambda folder: openvino_runner(folder / "ov_int8.xml", "OpenVINO FP32"),
    "LiteRT FP32": lambda folder: litert_runner(folder / "litert_fp32"),
    "LiteRT INT8": lambda folder: litert_runner(folder / "litert_int8", "LiteRT FP32"),
}


def build_peers(student: Path, calibration: Pixels, folder: Path, pythons: Mapping[str, str]) -> dict[str, Runner]:
    """Build all models of the comparison, print failures, and open the others."""
    shutil.copy(student, folder / "student.onnx")
    np.save(folder / "calibration.npy", calibration)
    (folder / "kdedge.onnx").write_bytes(Quantizer.from_model(read_model(student), calibration).build(KDEDGE))
    quantize_with_defaults(student, calibration, folder / "quantize_static.onnx")
    script = Path(__file__).with_name("peers_build.py")
    for toolkit in ("nncf", "inc", "litert"):
        command = [pythons.get(toolkit, sys.executable), str(script), toolkit, str(folder)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            print(f"{toolkit} failed: {(result.stderr.strip().splitlines() or ['no message'])[-1]}\n")
    runners = {}
    for name, opener in PEERS.items():
        try:
            runners[name] = opener(folder)
        except (ImportError, InputError, RuntimeError) as error:
            print(f"{name} is left out: {error}\n")
    return runners


def emulated(runners: Mapping[str, Runner], test: Split, folder: Path) -> str:
    """Run every model on some images on an emulated Haswell, in a new process; return a table."""
    np.save(folder / "images.npy", test.images)
    lines = ["| model | here: top-1 % | Haswell: top-1 % | predictions that differ |", "|---|---|---|---|"]
    for name, runner in runners.items():
        here = predictions(runner, test.images)
        command = ["qemu-x86_64", "-cpu", "Haswell", sys.executable, __file__]
        result = subprocess.run(
            [*command, "--answer", name, "--folder", str(folder)], capture_output=True, text=True, check=False
        )
        if result.returncode:
            last = (result.stderr.strip().splitlines() or ["no message"])[-1]
            reason = f"exit code {result.returncode}, {last}"
            lines.append(f"| {name} | {100 * (here == test.labels).mean():.1f} | failed: {reason} | – |")
            continue
        there = np.load(folder / "answers.npy")
        shares = " | ".join(f"{100 * (answers == test.labels).mean():.1f}" for answers in (here, there))
        lines.append(f"| {name} | {shares} | {np.count_nonzero(here != there)} |")
    return "\n".join(lines)


def quantize_with_defaults(student: Path, calibration: Pixels, target: Path) -> None:
    """Quantize as onnxruntime's documentation shows: pre-process, then ``quantize_static`` with its defaults."""
    from onnxruntime.quantization import quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader:
        def __init__(self) -> None:
            self.batches: Iterator[Pixels] = iter(np.array_split(calibration, max(1, len(calibration) // 64)))

        def get_next(self) -> dict[str, Pixels] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"pixels": batch}

    processed = target.with_suffix(".processed.onnx")
    quant_pre_process(student, processed, skip_symbolic_shape=True)
    quantize_static(processed, target, Reader())
    processed.unlink()


def predictions(runner: Runner, images: Pixels) -> npt.NDArray[np.int64]:
    """Return the first answer for every image, ``[N] int64``."""
    starts = range(0, len(images), runner.batch)
    return np.concatenate([runner.call(images[start : start + runner.batch])().argmax(1) for start in starts])


def latencies(runners: Mapping[str, Runner], batch: int, seconds: float, clock: str) -> dict[str, str]:
    """Return median, range of the medians of the windows, and first decile of all calls in ms, for every runner."""
    pixels = np.random.default_rng(0).integers(0, 256, (batch, 32, 32, 3), np.uint8)
    calls = {name: runner.call(pixels) for name, runner in runners.items()}
    cells = {}
    for name, measured in measure_windows(calls, seconds, windows=9, clock=CLOCKS[clock]).items():
        low, middle = np.percentile([ms for window in measured.windows for ms in window.samples_ms], [10, 50])
        medians = [statistics.median(window.samples_ms) for window in measured.windows]
        cells[name] = f"{middle:.3f} ({min(medians):.3f}–{max(medians):.3f}) / {low:.3f}"
    return cells


def table(runners: Mapping[str, Runner], test: Split, batches: tuple[int, ...], seconds: float, clock: str) -> str:
    """Measure all runners and return a Markdown table."""
    answers = {name: predictions(runner, test.images) for name, runner in runners.items()}
    times = [latencies(runners, batch, seconds, clock) for batch in batches]
    heads = [
        "model",
        "top-1 %",
        "loss pp (95 %)",
        "other predictions",
        "bytes",
        *(f"batch {n}: p50 (windows) / p10 ms" for n in batches),
    ]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, runner in runners.items():
        loss = changed = "–"
        if runner.fp32:
            gate = judge(answers[runner.fp32] == test.labels, answers[name] == test.labels, LIMIT_PP)
            loss = f"{gate['loss_pp']:+.2f} ({gate['loss_lower95_pp']:+.2f} to {gate['loss_upper95_pp']:+.2f})"
            changed = f"{np.count_nonzero(answers[runner.fp32] != answers[name]):,}"
        top1 = f"{100 * (answers[name] == test.labels).mean():.2f}"
        size = f"{sum(file.stat().st_size for file in runner.files):,}"
        lines.append(f"| {' | '.join([name, top1, loss, changed, size, *(cells[name] for cells in times)])} |")
    return "\n".join(lines)


def formats(student: Path, calibration: Pixels, folder: Path) -> dict[str, Runner]:
    """Build all formats of onnxruntime."""
    runners = {"FP32": onnx_runner(student)}
    defaults = folder / "quantize_static.onnx"
    quantize_with_defaults(student, calibration, defaults)
    runners["S8S8 per tensor (defaults of `quantize_static`)"] = onnx_runner(defaults, "FP32")
    quantizer = Quantizer.from_model(read_model(student), calibration)
    for name, candidate in FORMATS.items():
        path = folder / f"{candidate.name}.onnx"
        path.write_bytes(quantizer.build(candidate))
        runners[name] = onnx_runner(path, "FP32")
    # onnxruntime's own remedy: at load, int8 weights become uint8 and other kernels run.
    precise = {"session.x64quantprecision": "1"}
    name = "U8S8 per channel, session option `x64quantprecision`"
    runners[name] = onnx_runner(folder / f"{FORMATS['U8S8 per channel'].name}.onnx", "FP32", precise)
    return runners


def main() -> None:
    """Build and measure the selected models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default="", help="folder with CIFAR-10 (default: cache or download)")
    parser.add_argument("--what", choices=("formats", "peers"), default="formats")
    parser.add_argument("--student", type=Path, default=STUDENT, help="FP32 model that kdedge exported")
    parser.add_argument("--seconds", type=float, default=9.0, help="latency measurement per model and batch size")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="clock of the latency")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH", help="interpreter of a toolkit")
    parser.add_argument("--emulate", type=int, default=0, metavar="N", help="test images on an emulated Haswell")
    parser.add_argument("--folder", type=Path, help="keep the models here (default: a temporary folder)")
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        images = np.load(options.folder / "images.npy")
        np.save(options.folder / "answers.npy", predictions(PEERS[options.answer](options.folder), images))
        return

    config = build_config({"data": {"dir": options.data_dir}})
    dataset = open_dataset(config.data)
    train, _ = split_train_val(dataset.train(), config.data.val_fraction)
    picked = stratified_sample(train.labels, config.quantize.calibration_images, config.runtime.seed)
    calibration = train.images[picked]
    with tempfile.TemporaryDirectory(prefix="kdedge-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if options.what == "formats":
            runners = formats(options.student, calibration, folder)
        else:
            runners = build_peers(options.student, calibration, folder, dict(p.split("=", 1) for p in options.python))
        test = dataset.test()
        print(table(runners, test, (1, 32), options.seconds, options.clock), flush=True)
        if options.emulate and options.what == "peers":
            few = Split(test.images[: options.emulate], test.labels[: options.emulate])
            print(f"\n{options.emulate} test images on an emulated Haswell:\n\n{emulated(runners, few, folder)}")


if __name__ == "__main__":
    main()
