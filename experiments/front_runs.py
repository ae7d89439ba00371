"""Train the students of the accuracy front side by side on one GPU: teachers, their logits of all views, students.

`train` makes every run of the plan with the commands of kdedge, a process each; a step of a small student leaves most
of a GPU idle. Start NVIDIA's Multi-Process Service before it, without which the processes take turns. Runs that do not
end in time are stopped, and the same command resumes them. `train` prints seconds per epoch, and what the plan takes.

    python experiments/front_runs.py train OUT --data cifar10 --epochs 120 --teacher-epochs 40 --seconds 550
    python experiments/front_runs.py fill OUT/teacher-0/teacher --data cifar10
    python experiments/front_runs.py kdedge distill --student resnet20 ...

`kdedge` runs one command with the further students that this file adds.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdedge.pipeline.models.registry import STUDENTS, LiteSpec, ResidualSpec

# Not students of kdedge: He et al. (arXiv:1512.03385), section 4.2, and five wider convolutions.
FURTHER: dict[str, LiteSpec | ResidualSpec] = {
    "resnet20": ResidualSpec((16, 32, 64), (3, 3, 3), "full", "0.27 M parameters, 41 MMAC"),
    "lite-w": LiteSpec((48, 96, 160, 256, 320), (1, 2, 3), (), "1.29 M parameters, 115 MMAC"),
}

_SELF = Path(__file__).resolve()
_BATCH_SIZE = 256  # of the students: the logits of the teacher are cached for it


@dataclass
class Run:
    """A training of the plan, with the arguments of ``kdedge distill``."""

    name: str
    arguments: list[str]
    process: "subprocess.Popen[bytes] | None" = None


def plan(epochs: int, study_epochs: int, pruned_from: str, teachers: list[Path]) -> tuple[list[Run], list[Run]]:
    """Return the long runs and the short ones of the ablation."""
    ensemble = ["--more-teachers", ",".join(str(folder) for folder in teachers[1:3])]

    def run(name: str, student: str, seed: int, length: int, *options: str) -> Run:
        common = ["--student", student, "--seed", str(seed), "--distill-epochs", str(length)]
        return Run(f"{name}-{seed}", [*common, *options])

    seeds = {"lite": 3, "res": 2, "res-s": 2, "res-xs": 2, "resnet20": 1, "mobilenet_v2": 1, "lite-w": 1, "lite-s": 1}
    long = [run(name, name, seed, epochs, *ensemble) for name, count in seeds.items() for seed in range(count)]
    if pruned_from:
        long.append(run("pruned", "lite-s", 0, epochs, *ensemble, "--student-weights", pruned_from))
    short = []
    for seed in range(3):
        for name, options in {
            "all": ensemble,
            "ema": [*ensemble, "--ema", "0.999"],
            "one-teacher": [],
            "smoothed": [],
            "labels": ["--method", "ce"],
        }.items():
            short.append(run(f"study-{name}", "lite-s", seed, study_epochs, *options))
    return long, short


def train(arguments: argparse.Namespace) -> None:
    """Train teachers, compute their logits, then train the students, as many in parallel as there are slots."""
    start, out = time.monotonic(), arguments.out.resolve()
    (out / "logs").mkdir(parents=True, exist_ok=True)
    here = ["--data", arguments.data, "--device", arguments.device, "--threads", "1", "--precision", "bf16"]
    folders = [out / f"teacher-{name}" / "teacher" for name in ("0", "1", "2", "smoothed")]
    teachers = []
    for index, folder in enumerate(folders):
        smoothed = ["--teacher-hard-epochs", "0"] if index == 3 else []
        length = ["--teacher-epochs", str(arguments.teacher_epochs), "--teacher-batch-size", "512"]
        options = ["--preset", "best", "--teacher-weights", "none", "--teacher-stem", "cifar", "--teacher-flip"]
        seed = str(index % 3)
        command = ["teacher", "--out", str(folder.parent), *here, *options, *length, "--seed", seed, *smoothed]
        if not (folder / "manifest.json").exists():
            teachers.append(_start(command, out / "logs" / f"{folder.parent.name}.log"))
    _wait(teachers)
    _report(out, start, "teachers")
    filled = out / "logs" / "logits-complete"
    if not filled.exists():
        _wait([
            _start(["fill", str(folder), *here[:4]], out / "logs" / f"fill-{index}.log", kdedge=False)
            for index, folder in enumerate(folders[:3])
        ])  # fmt: skip
        filled.touch()
    _report(out, start, "logits")

    long, short = plan(arguments.epochs, arguments.study_epochs, arguments.pruned_from, folders)
    skipped = arguments.skip.split(",")
    waiting = [run for run in long + short if run.name not in skipped and run.name.rsplit("-", 1)[0] not in skipped]
    runs = list(waiting)
    begun = time.monotonic()
    while True:
        active = [run for run in runs if run.process and run.process.poll() is None]
        while waiting and len(active) < arguments.slots:
            run = waiting.pop(0)
            source = folders[3] if "smoothed" in run.name else folders[0]
            if not (out / run.name).exists():
                shutil.copytree(source, out / run.name / "teacher", copy_function=os.link)
                shutil.copy(source.parent / "config.json", out / run.name)
            options = ["distill", "--out", str(out / run.name), *here, "--flip"]
            options += ["--distill-batch-size", str(_BATCH_SIZE), *run.arguments]
            run.process = _start(options, out / "logs" / f"{run.name}.log")
            active.append(run)
        if not active or time.monotonic() - start > arguments.seconds:
            break
        time.sleep(0.2)
    for run in active:
        assert run.process
        run.process.terminate()
        run.process.wait()
    _summarise(out, runs, arguments.slots, time.monotonic() - begun)
    _report(out, start, "students")


def fill(arguments: argparse.Namespace) -> None:
    """Compute the logits of a teacher for every view of every training image, in batches of the students' size."""
    import dataclasses

    import numpy as np
    import torch

    from kdedge.pipeline.config.build import build_config
    from kdedge.pipeline.data.sources import open_dataset, training_images
    from kdedge.pipeline.stages.distill import cached_teachers, frozen_teacher
    from kdedge.pipeline.training.augmentations import augment
    from kdedge.pipeline.training.batches import Batch, Batches, to_network
    from kdedge.pipeline.training.device import prepare, resolve

    given = {"device": arguments.device, "threads": 1, "precision": "bf16"}
    config = build_config({"data": {"source": arguments.data}, "runtime": given}, preset="best")
    config = dataclasses.replace(config, runtime=resolve(config.runtime, None))
    device = prepare(config.runtime)
    dataset = open_dataset(config.data)
    train, _ = training_images(dataset, config.data)
    batches = Batches(train, _BATCH_SIZE, 0, config.distill.shift, device)
    teacher = frozen_teacher(arguments.teacher, dataset.class_names, dataset.spec, config, device)
    cached = cached_teachers(config, [teacher], [arguments.teacher], dataset, train=train, batches=batches)
    views = batches.augmentations_per_image
    labels = torch.from_numpy(train.labels).to(device)
    for first in range(0, len(train.labels), _BATCH_SIZE):
        images = torch.from_numpy(np.array(train.images[first : first + _BATCH_SIZE])).to(device)
        indices = train.dataset_indices[first : first + _BATCH_SIZE]
        for view in range(views):
            chosen = np.full(len(images), view)
            pixels = to_network(augment(images, chosen, shift=config.distill.shift), train.spec, device)
            cached(Batch(pixels, labels[first : first + _BATCH_SIZE], indices * views + chosen))
    print(f"{cached.take_computed()} logits computed")
    cached.close()


def _start(command: list[str], log: Path, *, kdedge: bool = True) -> "subprocess.Popen[bytes]":
    arguments = [sys.executable, str(_SELF), *(["kdedge"] if kdedge else []), *command]
    with log.open("wb") as stream:
        return subprocess.Popen(arguments, stdout=stream, stderr=subprocess.STDOUT)


def _wait(processes: "list[subprocess.Popen[bytes]]") -> None:
    if failed := [process.args for process in processes if process.wait()]:
        raise SystemExit(f"failed: {failed}")


def _rows(run_dir: Path) -> list[dict[str, str]]:
    """Return the epochs so far of a finished or unfinished training."""
    for folder in (run_dir / "distill", run_dir / ".distill.partial"):
        for path in folder.glob("training_log_*.csv"):
            return list(csv.DictReader(path.open()))
    return []


def _summarise(out: Path, runs: list[Run], slots: int, seconds: float) -> None:
    """Print and write a row per run: epochs, seconds of the median epoch, validation accuracy."""
    table, work = [], 0.0
    for run in runs:
        ended, log = (out / run.name / "distill").is_dir(), _rows(out / run.name)
        times = sorted(float(row["seconds"]) for row in log[1:]) or [0.0]
        row: dict[str, Any] = {"run": run.name, "ended": ended, "epochs": len(log)}
        row |= {"median_s": times[len(times) // 2], "val_pct": log[-1]["val_top1_pct"] if log else None}
        work += row["median_s"] if not run.name.startswith("study-") else 0.0
        table.append(row)
        print(f"{run.name:22} ended {ended!s:5} {row['epochs']:4} epochs {row['median_s']:6.2f} s {row['val_pct']}")
    print(f"students: {seconds:.1f} s; an epoch of all long runs takes {work:.2f} s in turn, {work / slots:.2f} s")
    (out / "summary.json").write_text(json.dumps(table, indent=1))


def _report(out: Path, start: float, what: str) -> None:
    line = f"{time.monotonic() - start:7.1f} s {what}"
    print(line, flush=True)
    with (out / "logs" / "times.txt").open("a") as stream:
        stream.write(line + "\n")


def main() -> None:
    """Run `train`, `fill` or one command of kdedge."""
    if sys.argv[1:2] == ["kdedge"]:
        STUDENTS.update(FURTHER)  # before the options are made from them
        from kdedge.pipeline.cli import app

        del sys.argv[1]
        app()
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train")
    training.add_argument("out", type=Path)
    training.add_argument("--epochs", type=int, required=True)
    training.add_argument("--teacher-epochs", type=int, required=True)
    training.add_argument("--study-epochs", type=int, default=40)
    training.add_argument("--seconds", type=float, required=True)
    training.add_argument("--slots", type=int, default=14)
    training.add_argument("--skip", default="", help="runs that are left out, such as lite-w-0 or lite-w")
    training.add_argument("--pruned-from", default="", help="weights of a wider student, from which one is pruned")
    training.set_defaults(function=train)
    filling = commands.add_parser("fill")
    filling.add_argument("teacher", type=Path)
    filling.set_defaults(function=fill)
    for command in (training, filling):
        command.add_argument("--data", required=True)
        command.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    arguments.function(arguments)


if __name__ == "__main__":
    main()
