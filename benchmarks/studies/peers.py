"""kdedge's INT8 beside other formats and other toolkits, on the same student, calibration images and machine.

    python benchmarks/studies/peers.py --data-dir PATH --what formats

**Formats.** The INT8 formats that onnxruntime offers, built from the reference student and run on this host. On an x86
CPU without VNNI (see `kdedge doctor`), products of 8-bit weights overflow 16-bit sums; the table shows what that costs.

Calibration images are the 512 training images that kdedge picks. The test images choose nothing here: every format is
built before they are read, and none is shipped because of what it scores on them.

Prints Markdown tables: top-1 on the 10,000 test images, the loss against the toolkit's own FP32 with its 95 % interval,
file size, and the latency on one thread as the median of all calls with the range of the window medians behind it. The
windows of all models alternate.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.gate import judge
from benchmarks.latency import measure_windows
from benchmarks.runtime import open_model, session_options
from export.calibrate import pick_stratified
from export.graph import read_model
from export.quantize import Candidate, Quantizer
from pipeline.config import build_config
from pipeline.data import Split, open_dataset, split_train_val

Pixels = npt.NDArray[np.uint8]
STUDENT = Path(__file__).resolve().parents[2] / "artifacts" / "reference" / "bundle" / "student.onnx"
LIMIT_PP = 0.5
FORMATS = {
    "U8S8 per tensor": Candidate("u8s8-tensor", per_channel=False, reduce_range=False),
    "U8S8 per channel": Candidate("u8s8-channel", reduce_range=False),
    "U8S8 per channel, 7-bit weights (kdedge)": Candidate("u8s8-channel-rr"),
    "U8U8 per tensor": Candidate("u8u8-tensor", weights="u8", per_channel=False, reduce_range=False),
}


@dataclass(frozen=True)
class Runner:
    """A model as its toolkit runs it, on one thread.

    Attributes:
        path: Its file.
        call: Binds ``[N, S, S, 3] uint8`` pixels and returns the call that computes their logits ``[N, C]``.
        fp32: Name of the runner that it is compared with, empty for a float model.
    """

    path: Path
    call: Callable[[Pixels], Callable[[], Any]]
    fp32: str = ""


def onnx_runner(path: Path, fp32: str = "", settings: Mapping[str, str] | None = None) -> Runner:
    """Open a model in onnxruntime; ``settings`` are entries of its session configuration."""
    options = session_options(1)
    for key, value in (settings or {}).items():
        options.add_session_config_entry(key, value)
    model = open_model(path, options=options)

    def call(pixels: Pixels) -> Callable[[], Any]:
        run, names, feed = model.session.run, ["logits"], {"pixels": pixels}
        return lambda: run(names, feed)[0]

    return Runner(path, call, fp32)


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


def predictions(runner: Runner, images: Pixels, batch: int = 50) -> npt.NDArray[np.int64]:
    """Return the first answer for every image, ``[N] int64``; N must be a multiple of ``batch``."""
    parts = [runner.call(images[start : start + batch])().argmax(1) for start in range(0, len(images), batch)]
    return np.concatenate(parts)


def latencies(runners: Mapping[str, Runner], batch: int, seconds: float) -> dict[str, str]:
    """Return the median of all calls in ms and the range of the medians of the windows, for every runner."""
    pixels = np.random.default_rng(0).integers(0, 256, (batch, 32, 32, 3), np.uint8)
    calls = {name: runner.call(pixels) for name, runner in runners.items()}
    cells = {}
    for name, windows in measure_windows(calls, seconds, windows=9).items():
        middle = statistics.median(ms for window in windows for ms in window.samples_ms)
        medians = [statistics.median(window.samples_ms) for window in windows]
        cells[name] = f"{middle:.3f} ({min(medians):.3f}–{max(medians):.3f})"
    return cells


def table(runners: Mapping[str, Runner], test: Split, batches: tuple[int, ...], seconds: float) -> str:
    """Measure all runners and return a Markdown table."""
    answers = {name: predictions(runner, test.images) for name, runner in runners.items()}
    times = [latencies(runners, batch, seconds) for batch in batches]
    heads = ["model", "top-1 %", "loss pp (95 %)", "other answers", "bytes", *(f"batch {n}: p50 ms" for n in batches)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, runner in runners.items():
        loss = changed = "–"
        if runner.fp32:
            gate = judge(answers[runner.fp32] == test.labels, answers[name] == test.labels, LIMIT_PP)
            loss = f"{gate['loss_pp']:+.2f} ({gate['loss_lower95_pp']:+.2f} to {gate['loss_upper95_pp']:+.2f})"
            changed = f"{np.count_nonzero(answers[runner.fp32] != answers[name]):,}"
        top1 = f"{100 * (answers[name] == test.labels).mean():.2f}"
        size = f"{runner.path.stat().st_size:,}"
        lines.append(f"| {' | '.join([name, top1, loss, changed, size, *(cells[name] for cells in times)])} |")
    return "\n".join(lines)


def formats(student: Path, calibration: Pixels, folder: Path) -> dict[str, Runner]:
    """Build all formats of onnxruntime."""
    runners = {"FP32": onnx_runner(student)}
    defaults = folder / "quantize_static.onnx"
    quantize_with_defaults(student, calibration, defaults)
    runners["S8S8 per tensor (defaults of `quantize_static`)"] = onnx_runner(defaults, "FP32")
    quantizer = Quantizer(read_model(student), calibration)
    for name, candidate in FORMATS.items():
        path = folder / f"{candidate.name}.onnx"
        path.write_bytes(quantizer.build(candidate))
        runners[name] = onnx_runner(path, "FP32")
    # onnxruntime's own remedy: at load, int8 weights become uint8 and other kernels run.
    precise = {"session.x64quantprecision": "1"}
    name = "U8S8 per channel, session option `x64quantprecision`"
    runners[name] = onnx_runner(folder / "u8s8-channel.onnx", "FP32", precise)
    return runners


def main() -> None:
    """Build and measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default="", help="folder with CIFAR-10 (default: cache or download)")
    parser.add_argument("--student", type=Path, default=STUDENT, help="FP32 model that kdedge exported")
    parser.add_argument("--seconds", type=float, default=9.0, help="latency measurement per model and batch size")
    options = parser.parse_args()

    config = build_config({"data": {"dir": options.data_dir}})
    dataset = open_dataset(config.data, config.runtime.seed)
    train, _ = split_train_val(dataset.train(), config.data.val_fraction, config.runtime.seed)
    picked = pick_stratified(train.labels, config.quantize.calibration_images, config.runtime.seed)
    calibration = train.images[picked]
    with tempfile.TemporaryDirectory(prefix="kdedge-") as name:
        runners = formats(options.student, calibration, Path(name))
        print(table(runners, dataset.test(), (1, 32), options.seconds))


if __name__ == "__main__":
    main()
