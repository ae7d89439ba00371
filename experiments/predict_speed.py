"""The start-up time of `kdedge predict`, and its throughput compared with a bare decode-and-run loop.

Start-up: the whole command, ``kdedge predict BUNDLE one.png --json``, repeatedly in a new process. Throughput:
images in files, in three kinds, through `kdedge.export.bundle.predict.predict` with its answers as JSON lines, in turn
with the shortest loop that returns the same labels: Pillow opens, converts and resizes, one session runs one image.
Both use one thread for the model; kdedge decodes ahead on others. Needs the base install.

    python experiments/predict_speed.py artifacts/reference/bundle [--starts 15] [--rounds 7]

Prints the start-up and a Markdown table: median (lowest to highest); ratios per round. The labels of both
loops are compared first.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from kdedge.benchmarks.session import open_model
from kdedge.export.bundle.predict import predict

# Name, suffix, side lengths in pixels, number.
KINDS = (
    ("PNG 32x32", ".png", (32, 32), 3000),
    ("PNG 224x224", ".png", (224, 224), 500),
    ("JPEG 640x480", ".jpg", (640, 480), 300),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--starts", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kdedge-") as folder:
        kinds = {name: write_images(Path(folder), *shape) for name, *shape in KINDS}
        image = kinds["PNG 32x32"][0]
        command = [sys.executable, "-m", "kdedge", "predict", str(args.bundle), str(image), "--json"]
        # The first start fills the caches of the file system.
        times = [
            timed(partial(subprocess.run, command, check=True, capture_output=True)) for _ in range(args.starts + 1)
        ]
        print(f"start and one prediction: {spread(times[1:], '.3f')} s, {args.starts} starts\n")
        print("| images | kdedge predict, images/s | bare loop, images/s | ratio |\n|---|---|---|---|")
        for name, files in kinds.items():
            print(row(args.bundle, name, files, args.rounds), flush=True)


def row(bundle: Path, name: str, files: Sequence[Path], rounds: int) -> str:
    """Measure one kind of image; return a row of the table."""
    labels = bare_loop(bundle, files)
    assert [json.loads(line)["label"] for line in kdedge_loop(bundle, files)] == labels
    speeds: dict[str, list[float]] = {"kdedge": [], "bare": []}
    for _ in range(rounds):
        speeds["kdedge"].append(len(files) / timed(lambda: kdedge_loop(bundle, files)))
        speeds["bare"].append(len(files) / timed(lambda: bare_loop(bundle, files)))
    ratios = [a / b for a, b in zip(speeds["kdedge"], speeds["bare"], strict=True)]
    cells = [spread(speeds["kdedge"], ".0f"), spread(speeds["bare"], ".0f"), spread(ratios, ".2f")]
    return f"| {len(files)} {name} | {' | '.join(cells)} |"


def kdedge_loop(bundle: Path, files: Sequence[Path]) -> list[str]:
    """Classify the files as the command does, without printing."""
    return [json.dumps(answer) for answer in predict(bundle, files)]


def bare_loop(bundle: Path, files: Sequence[Path]) -> list[str]:
    """Classify the files with nothing but Pillow and a session; return the labels."""
    labels = (bundle / "labels.txt").read_text(encoding="utf-8").splitlines()
    model = open_model(bundle / "student.int8.onnx")
    size, run = model.spec.sides, model.session.run
    found = []
    for file in files:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR))
        found.append(labels[int(run(None, {"pixels": pixels[None]})[0].argmax())])
    return found


def write_images(folder: Path, suffix: str, size: tuple[int, int], count: int) -> list[Path]:
    """Write smooth random images, which decode like photos and not like noise."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(count):
        blocks = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        files.append(folder / f"{size[0]}x{size[1]}-{number}{suffix}")
        blocks.resize(size, Image.Resampling.BICUBIC).save(files[-1], quality=90)
    return files


def timed(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def spread(values: Sequence[float], form: str) -> str:
    """Format the median with the lowest and the highest value."""
    middle, low, high = (format(value, form) for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


if __name__ == "__main__":
    main()
