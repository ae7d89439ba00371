"""Memory of a run's data path against the number of images.

    python experiments/memory_scaling.py --images 2000 20000 60000 --csv memory_scaling.csv

For each number, class folders of PNG files of 64 x 64 pixels (copies of 2,000 different ones) are opened, hashed and
decoded, a small convolution is trained for one epoch and scored on the validation images, the samples of the
quantization are taken, and an ONNX model is scored on the test images: the code of the stages, with models too small to
matter. Each number has a process of its own, which may allocate at most ``--limit-mb`` of private writable memory after
its imports (RLIMIT_DATA; read-only maps do not count), so the kernel enforces the table. ``--in-memory-mb`` replaces
the size above which decoded images are mapped: 0 maps all, a large number none.

The columns are the largest anonymous memory (RssAnon) above that after the imports until the end of each step, in MB.
"""

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kdedge import image_cache
from kdedge.image_cache import IN_MEMORY

SIZE, DIFFERENT, CLASSES = 64, 2000, 10


def make_folder(root: Path, images: int) -> None:
    """Write class folders with ``images`` files, a tenth of them for the test."""
    rng = np.random.default_rng(0)
    for part, count in (("train", images - images // 10), ("test", images // 10)):
        for index in range(count):
            folder = root / part / f"class{index % CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            first = folder / f"{index % DIFFERENT:07}.png"
            if index >= DIFFERENT:
                (folder / f"{index:07}.png").write_bytes(first.read_bytes())
                continue
            pixels = np.full((SIZE, SIZE, 3), 25 * (index % CLASSES), np.uint8)
            pixels[8:40, 8:40] = rng.integers(0, 256, 3)
            pixels[50, 0] = (index // 256, index % 256, len(part))
            Image.fromarray(pixels).save(first)


def memory_kb(key: str) -> int:
    """Return a value of this process in KiB, as in /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


@contextmanager
def peak_mb(start_kb: int, found: dict[str, float]) -> Iterator[None]:
    """Sample the anonymous memory until the block ends and keep the largest under ``peak``, in MB above the start."""
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.005):
            found["peak"] = max(found["peak"], (memory_kb("RssAnon") - start_kb) * 1024 / 1e6)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def data_path(source: str, model: Path, found: dict[str, float]) -> Iterator[str]:
    """Use the images as a run does; yield the name of each step at its end."""
    import torch
    from torch.nn import functional

    from kdedge.benchmarks.accuracy import predict_logits
    from kdedge.benchmarks.sampling import stratified_sample
    from kdedge.benchmarks.session import open_model
    from kdedge.export.quantize.model import SCORED_IMAGES
    from kdedge.pipeline.data.options import DataConfig
    from kdedge.pipeline.data.sources import data_sha256, opened, training_images
    from kdedge.pipeline.data.summary import short_summary
    from kdedge.pipeline.training import batches as training
    from kdedge.pipeline.training.length import fit_to_images
    from kdedge.pipeline.training.options import TeacherConfig

    config = DataConfig(source=source, image_size=SIZE)
    dataset, device = opened(config), torch.device("cpu")
    for part in ("train", "test"):
        data_sha256(config, part)
    short_summary(config)  # finds duplicates
    yield "opened"
    train, val = training_images(dataset, config)
    yield "decoded"
    fit_to_images(TeacherConfig(), train, "teacher", loaded=False)
    layers = torch.nn.Conv2d(3, 8, 8, 8), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, CLASSES)
    network = torch.nn.Sequential(*layers)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    for batch in training.Batches(train, 128, 0, 2, device).epoch(0):
        loss = functional.cross_entropy(network(batch.pixels), batch.labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    training.predict_logits(network, val, device)
    yield "trained"
    for part, count in ((train, 2048), (val, SCORED_IMAGES)):
        predict_logits(open_model(model), part.images[stratified_sample(part.labels, count, 0)])
    yield "quantized"
    predict_logits(open_model(model), dataset.test().images)
    yield "tested"
    found["decoded"] = sum(part.images.nbytes for part in (train, val)) / 1e6


def write_model(path: Path) -> None:
    """Write a model of kdedge's format: the mean colour times a matrix."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).normal(size=(3, CLASSES)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["pixels"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["values", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
    ]
    known = [numpy_helper.from_array(np.array([1, 2]), "axes"), numpy_helper.from_array(weights, "weights")]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])
    graph = helper.make_graph(nodes, "mean", [pixels], [logits], known)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def measure(source: str, model: Path, limit_mb: int, in_memory_mb: float) -> dict[str, Any]:
    """Return the row of a data set; runs in a process of its own."""
    import onnxruntime  # noqa: F401
    import torch
    import torchvision  # noqa: F401

    from kdedge.pipeline.models import initial_weights  # noqa: F401

    torch.set_num_threads(1)
    image_cache.IN_MEMORY = round(in_memory_mb * 1e6)
    start_kb, began = memory_kb("RssAnon"), time.monotonic()
    most = memory_kb("VmData") * 1024 + limit_mb * 1_000_000
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    found: dict[str, float] = {"peak": 0.0}
    row: dict[str, Any] = {}
    with peak_mb(start_kb, found):
        for step in data_path(source, model, found):
            row[f"{step}_mb"] = round(found["peak"])
    return {**row, "decoded_size_mb": round(found["decoded"]), "seconds": round(time.monotonic() - began)}


def main() -> None:
    """Parse the options, measure each number of images in a process of its own, print a table and write a CSV."""
    parser = argparse.ArgumentParser(description="Memory of a run's data path against the number of images.")
    parser.add_argument("--images", type=int, nargs="+", default=[2000, 20000, 60000])
    parser.add_argument("--csv", type=Path, help="file to write")
    parser.add_argument("--limit-mb", type=int, default=512, help="private writable memory after the imports")
    parser.add_argument(
        "--in-memory-mb", type=float, default=IN_MEMORY / 1e6, help="decoded images stay in memory up to it"
    )
    parser.add_argument("--source", help=argparse.SUPPRESS)  # of the process that measures
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.source:
        print(json.dumps(measure(options.source, options.model, options.limit_mb, options.in_memory_mb)))
        return
    rows = []
    for images in options.images:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            root = Path(folder)
            make_folder(root / "images", images)
            write_model(root / "model.onnx")
            command = [sys.executable, __file__, "--source", f"folder:{root / 'images'}"]
            command += ["--model", str(root / "model.onnx"), "--limit-mb", str(options.limit_mb)]
            command += ["--in-memory-mb", str(options.in_memory_mb)]
            environment = {**os.environ, "KDEDGE_CACHE": str(root / "cache")}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
        row = {"images": images, "limit_mb": options.limit_mb, "in_memory_mb": round(options.in_memory_mb)}
        row |= json.loads(done.stdout) if done.returncode == 0 else {"failed": True}
        rows.append(row)
        print(row, flush=True)
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, max(rows, key=len), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
