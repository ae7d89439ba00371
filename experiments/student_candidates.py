"""Compare student architectures: validation accuracy after a short training without a teacher, and INT8 latency.

Trains every candidate on the same images in the same order (cross-entropy, the recipe of `kdedge.pipeline.config`),
exports and quantizes it as kdedge does, and measures FP32 and INT8 latency at batch 1 on one thread. Prints a Markdown
table; `experiments/LOG.md` has the tables behind the default student. Test images are not read.

    python experiments/student_candidates.py --data-dir PATH --epochs 4 [--train-size 10000] [NAME ...]
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from kdedge.benchmarks.candidate import onnx_candidates
from kdedge.benchmarks.latency import measure_latency
from kdedge.dataset import Dataset, Split, split_train_val
from kdedge.export.graph import count_macs, read_model
from kdedge.export.onnx_export import export_student
from kdedge.export.quantize.candidates import Candidate
from kdedge.export.quantize.quantizer import Quantizer
from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.data.sources import open_dataset
from kdedge.pipeline.distill.optimizer import build_optimizer, set_learning_rate
from kdedge.pipeline.distill.options import DistillConfig
from kdedge.pipeline.models.initial import initialise
from kdedge.pipeline.models.registry import LiteSpec
from kdedge.pipeline.models.student import Student, build_lite
from kdedge.pipeline.training.batches import Batches, place, predict_logits
from kdedge.pipeline.training.device import autocast, prepare, resolve
from kdedge.pipeline.training.options import RuntimeConfig
from kdedge.pipeline.training.schedule import learning_rate

# Widths of the five convolutions, blocks that end with a 2x2 max-pool, blocks with an identity shortcut.
CANDIDATES = {
    "pool 2,3,4": LiteSpec((32, 64, 128, 256, 384), (1, 2, 3), (), ""),
    "pool 1,2,4": LiteSpec((64, 128, 192, 256, 208), (0, 1, 3), (), ""),
    "pool 1,3,4 shortcut 3": LiteSpec((64, 128, 128, 256, 320), (0, 2, 3), (2,), ""),
    "pool 2,3,4 shortcut 5": LiteSpec((32, 64, 144, 288, 288), (1, 2, 3), (4,), ""),
    "pool 2,3,4 wide": LiteSpec((48, 96, 160, 256, 320), (1, 2, 3), (), ""),
}


def train(model: Student, batches: Batches, epochs: int, runtime: RuntimeConfig) -> None:
    """Train with cross-entropy and the default recipe of the distillation stage."""
    settings = DistillConfig()
    initialise(model, batches.split.images)
    optimizer = build_optimizer(settings, model, nn.Identity())
    model.train()
    for epoch in range(epochs):
        for index, (pixels, labels, _) in enumerate(batches.epoch(epoch)):
            progress = (epoch + index / len(batches)) / epochs
            set_learning_rate(
                optimizer, learning_rate(progress, settings.peak_lr(128, loaded=False), settings.schedule)
            )
            with autocast(runtime):
                logits = model(pixels)
            loss = functional.cross_entropy(logits.float(), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()


def measure(model: Student, dataset: Dataset, calibration: Split, seconds: float) -> tuple[float, list[float]]:
    """Return (million multiply-accumulates, [p50 in ms of FP32, of INT8]) at batch 1 on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.onnx" for name in ("fp32", "int8")}
        export_student(model, dataset.spec, dataset.class_names, paths["fp32"])
        quantizer = Quantizer.from_model(read_model(paths["fp32"]), calibration.images[:512])
        paths["int8"].write_bytes(quantizer.build(Candidate()))
        rows, _ = measure_latency(onnx_candidates(paths), seconds=seconds)
        macs = count_macs(read_model(paths["fp32"]))
    return macs / 1e6, [row["p50_ms"] for row in rows]


def main() -> None:
    """Parse the command line, measure every candidate and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"candidates (default: all): {', '.join(CANDIDATES)}")
    parser.add_argument("--data-dir", default="", help="folder with CIFAR-10 (default: cache or download)")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--train-size", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=6.0, help="latency measurement per model")
    options = parser.parse_args()

    data = {"dir": options.data_dir, "train_size": options.train_size}
    config = build_config({"data": data})
    runtime = resolve(config.runtime, None)
    device = prepare(runtime)
    dataset = open_dataset(config.data)
    training, val = split_train_val(dataset.train(), config.data.val_fraction, options.train_size)
    batches = Batches(training, 128, runtime.seed, DistillConfig().shift, device)
    print(f"{len(training)} training images, {options.epochs} epochs, seed {runtime.seed}, {runtime.precision}\n")
    print("| candidate | widths | params | MMAC | val top-1 % | FP32 ms | INT8 ms | ratio |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for name in options.names or CANDIDATES:
        spec = CANDIDATES[name]
        torch.manual_seed(runtime.seed)
        model = place(build_lite(spec, len(dataset.class_names), dataset.spec), device)
        train(model, batches, options.epochs, runtime)
        top1 = (predict_logits(model, val, device).argmax(1).numpy() == val.labels).mean()
        macs, (fp32_ms, int8_ms) = measure(model.cpu(), dataset, training, options.seconds)
        params = sum(parameter.numel() for parameter in model.parameters())
        print(
            f"| {name} | {'-'.join(map(str, spec.widths))} | {params / 1e6:.3f} M | {macs:.1f} | {100 * top1:.2f} "
            f"| {fp32_ms:.3f} | {int8_ms:.3f} | {fp32_ms / int8_ms:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
