"""One row per data set: kdedge with its defaults, next to simpler models in the same time.

    python experiments/own_data_sets.py digits --out SETS
    python experiments/own_data.py SETS/digits --out RUNS --csv own_data.csv

A data set is a folder with ``train/CLASS/*.png`` and ``test/CLASS/*.png``. Only the image size in `SIZES` is not a
default of kdedge. All accuracies are of test images, except the teacher's, which is of validation images. Data sets in
the CSV file are skipped. The logistic regression needs scikit-learn; without it its column is empty. Training is
counted in CPU seconds of one thread, so that other work on the machine changes nothing.
"""

import argparse
import csv
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional
from torchvision.transforms import v2

SIZES = {"cifar-64px": 64}  # pixels; of the others 32, the default of kdedge
BATCH = 64
Images = tuple[NDArray[np.uint8], NDArray[np.int64]]


def read(folder: Path, classes: list[str], size: int) -> Images:
    """Return the images, uint8 ``[N, S, S, 3]``, and labels of class folders."""
    images, labels = [], []
    for label, name in enumerate(classes):
        for path in sorted((folder / name).iterdir()):
            with Image.open(path) as opened:
                rgba = opened.convert("RGBA")
            white = Image.new("RGBA", rgba.size, "white")
            picture = Image.alpha_composite(white, rgba).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
            images.append(np.asarray(picture))
            labels.append(label)
    return np.stack(images), np.array(labels)


def logistic_regression(train: Images, test: Images) -> float | None:
    """Return the test accuracy in percent of a logistic regression on pixels; None without scikit-learn."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        return None
    pixels, other_pixels = (images.reshape(len(images), -1) / 255 for images, _ in (train, test))
    model = LogisticRegression(C=0.01, max_iter=200).fit(pixels, train[1])
    return 100 * float(model.score(other_pixels, test[1]))


def plain_resnet18(train: Images, test: Images, classes: int, seconds: float, precision: str) -> float:
    """Return the test accuracy in percent of torchvision's ResNet-18, trained from random weights for a time.

    AdamW at 1e-3, falling linearly to zero over ``seconds`` of CPU time; random crops of images padded by 4 pixels; the
    precision of kdedge's run.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torchvision.models.resnet18(num_classes=classes).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    crop = v2.RandomCrop(train[0].shape[1], padding=4, padding_mode="edge")
    images, other_images = (
        torch.from_numpy(part).permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.25) for part, _ in (train, test)
    )
    labels, start = torch.from_numpy(train[1]), time.process_time()
    while (left := 1 - (time.process_time() - start) / seconds) > 0:
        optimizer.param_groups[0]["lr"] = 1e-3 * left
        chosen = torch.randint(len(labels), (BATCH,))
        pixels = torch.stack([crop(image) for image in images[chosen]])
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = functional.cross_entropy(model(pixels), labels[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()
    with torch.no_grad():
        answers = torch.cat([model(part).argmax(1) for part in other_images.split(250)]).numpy()
    return 100 * float(np.mean(answers == test[1]))


def cpu_seconds_of_children() -> float:
    """Return the CPU time of all ended child processes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def kdedge(data: Path, out: Path, size: int, *options: str) -> dict[str, object]:
    """Run kdedge with these options; return metrics of its report and stages, with the time of training by default."""
    common = ["--data", str(data), "--out", str(out), "--threads", "1", "--quiet", "--image-size", str(size)]
    start = cpu_seconds_of_children()
    if not options:
        for stage in ("teacher", "distill"):
            subprocess.run(["kdedge", stage, *common], check=False, stdout=subprocess.DEVNULL)
    training_s = cpu_seconds_of_children() - start
    command = ["kdedge", "run-all", "--allow-undecided", *common, *options]
    status = subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode
    stages = {path.parent.name: json.loads(path.read_text()) for path in out.glob("*/manifest.json")}
    path = out / "benchmark" / "report.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    accuracy = report.get("accuracy", {})
    return {
        "status": status,
        "teacher_val_pct": stages.get("teacher", {}).get("facts", {}).get("val_top1_pct"),
        "precision": json.loads((out / "config.json").read_text())["runtime"]["precision"],
        "fp32_pct": accuracy.get("onnx_fp32_top1_pct"),
        "int8_pct": accuracy.get("onnx_int8_top1_pct"),
        "majority_pct": accuracy.get("majority_pct"),
        "gate": report.get("gate", {}).get("verdict"),
        "training_cpu_s": training_s,
        "cpu_s": cpu_seconds_of_children() - start,
    }


def row(data: Path, out: Path) -> dict[str, object]:
    """Return the row of one data set."""
    classes = sorted(path.name for path in (data / "train").iterdir())
    size = SIZES.get(data.name, 32)
    train, test = (read(data / part, classes, size) for part in ("train", "test"))
    default = kdedge(data, out / data.name, size)
    teacher = out / data.name / "teacher" / "teacher.safetensors"
    options = ("--method", "ce", "--teacher-weights", str(teacher), "--teacher-epochs", "0")
    ce = kdedge(data, out / f"{data.name}-ce", size, *options)
    training_s = float(str(default["training_cpu_s"]))
    return {
        "data": data.name,
        "train_images": len(train[1]),
        "test_images": len(test[1]),
        "majority_pct": default["majority_pct"],
        "logistic_pct": logistic_regression(train, test),
        "resnet18_pct": plain_resnet18(train, test, len(classes), training_s, str(default["precision"])),
        "teacher_val_pct": default["teacher_val_pct"],
        "ce_fp32_pct": ce["fp32_pct"],
        "fp32_pct": default["fp32_pct"],
        "int8_pct": default["int8_pct"],
        "gate": default["gate"],
        "status": default["status"],
        "training_cpu_s": training_s,
        "cpu_s": default["cpu_s"],
    }


def main() -> None:
    """Add a row per data set to a CSV file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+", help="folders with train/ and test/")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--csv", type=Path, required=True)
    arguments = parser.parse_args()
    rows = list(csv.DictReader(arguments.csv.open())) if arguments.csv.exists() else []
    for data in arguments.data:
        if any(earlier["data"] == data.name for earlier in rows):
            continue
        values = row(data, arguments.out)
        new = not arguments.csv.exists()
        with arguments.csv.open("a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(values), lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(
                {key: f"{value:.2f}" if isinstance(value, float) else value for key, value in values.items()}
            )
        print(json.dumps(values), file=sys.stderr)


if __name__ == "__main__":
    main()
