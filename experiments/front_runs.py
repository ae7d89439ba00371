"""Train the students of the accuracy front side by side on one GPU: teachers, their logits of all views, students.

`train` makes every run with the commands of kdedge, a process each; a step of a small student leaves most of a GPU
idle. Start NVIDIA's Multi-Process Service before it, without which the processes take turns. A run is NAME:SEED=EPOCHS.
Runs that do not end in time are stopped, and the same command resumes them. `train` prints the epochs of each.

    python experiments/front_runs.py train OUT --data cifar10 --teacher-epochs 34 --seconds 560 --runs lite:0=100
    python experiments/front_runs.py fill OUT/teacher-0/teacher --data cifar10 --part 0
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

# Not students of kdedge: He et al. (arXiv:1512.03385), section 4.2, and two wider ones of the kind of res-xs.
FURTHER: dict[str, LiteSpec | ResidualSpec] = {
    "resnet20": ResidualSpec((16, 32, 64), (3, 3, 3), "full", "0.27 M parameters, 41 MMAC"),
    "res-depthwise-s": ResidualSpec((48, 112, 224), (2, 2, 2), "depthwise", "0.28 M parameters, 39 MMAC"),
    "res-depthwise": ResidualSpec((64, 160, 320), (3, 3, 3), "depthwise", "0.83 M parameters, 111 MMAC"),
}

_SELF = Path(__file__).resolve()
_BATCH_SIZE = 256  # of the students: the logits of the teacher are cached for it
_FILLERS = 4  # processes that compute the logits of one teacher
_LESS_DECAY = ("res-depthwise", "res-depthwise-s", "res-xs", "mobilenet_v2")  # --weight-decay 2e-4, as in section 79
_RUNS = (
    "res-depthwise:0=100,res-depthwise-s:0=120,mobilenet_v2:0=60,res-s:0=120,resnet20:0=120,"
    "lite:0=150,lite:1=150,lite:2=150"
)


@dataclass
class Run:
    """A training, with the arguments of ``kdedge distill``."""

    name: str
    arguments: list[str]
    process: "subprocess.Popen[bytes] | None" = None


def plan(runs: str, teachers: list[Path], pruned_from: str = "") -> list[Run]:
    """Return the trainings of a list such as ``lite:0=100,res:1=80``; those of ``lite-s`` can begin pruned."""
    made = []
    for item in runs.split(","):
        name, epochs = item.split("=")
        student, seed = name.split(":")
        arguments = ["--student", student, "--seed", seed, "--distill-epochs", epochs]
        if len(teachers) > 1:
            arguments += ["--more-teachers", ",".join(map(str, teachers[1:]))]
        if student in _LESS_DECAY:
            arguments += ["--weight-decay", "2e-4"]
        if student == "lite-s" and pruned_from:
            arguments += ["--student-weights", pruned_from]
        made.append(Run(name.replace(":", "-"), arguments))
    return made


def train(arguments: argparse.Namespace) -> None:
    """Train teachers, compute their logits, then train the students, as many in parallel as there are slots."""
    start, out = time.monotonic(), arguments.out.resolve()
    (out / "logs").mkdir(parents=True, exist_ok=True)
    here = ["--data", arguments.data, "--device", arguments.device, "--threads", "1", "--precision", "bf16"]
    folders = [out / f"teacher-{index}" / "teacher" for index in range(arguments.teachers)]
    teachers = []
    for index, folder in enumerate(folders):
        length = ["--teacher-epochs", str(arguments.teacher_epochs), "--teacher-batch-size", "512"]
        options = ["--preset", "best", "--teacher-weights", "none", "--teacher-stem", "cifar", "--teacher-flip"]
        command = ["teacher", "--out", str(folder.parent), *here, *options, *length, "--seed", str(index)]
        if not (folder / "manifest.json").exists():
            teachers.append(_start(command, out / "logs" / f"{folder.parent.name}.log"))
    _wait(teachers)
    _report(out, start, "teachers")
    filled = out / "logs" / "logits-complete"
    if not filled.exists():
        _wait([
            _start(
                ["fill", str(folder), *here[:4], "--part", str(part)], out / "logs" / f"fill-{index}-{part}.log",
                kdedge=False,
            )
            for index, folder in enumerate(folders)
            for part in range(_FILLERS)
        ])  # fmt: skip
        filled.touch()
    _report(out, start, "logits")

    runs = plan(arguments.runs, folders, arguments.pruned_from)
    waiting = list(runs)
    begun = reported = time.monotonic()
    while True:
        active = [run for run in runs if run.process and run.process.poll() is None]
        while waiting and len(active) < arguments.slots:
            run = waiting.pop(0)
            if not (out / run.name).exists():
                shutil.copytree(folders[0], out / run.name / "teacher", copy_function=os.link)
                shutil.copy(folders[0].parent / "config.json", out / run.name)
            options = ["distill", "--out", str(out / run.name), *here, "--flip"]
            options += ["--distill-batch-size", str(_BATCH_SIZE), "--mix", str(arguments.mix), *run.arguments]
            run.process = _start(options, out / "logs" / f"{run.name}.log")
            active.append(run)
        if not active or time.monotonic() - start > arguments.seconds:
            break
        if time.monotonic() - reported > 60:
            reported = time.monotonic()
            _report(out, start, ", ".join(f"{run.name} {len(_rows(out / run.name))}" for run in runs))
        time.sleep(0.2)
    for run in active:
        assert run.process
        run.process.terminate()
        run.process.wait()
    _summarise(out, runs, arguments.slots, time.monotonic() - begun)
    _report(out, start, "students")


def fill(arguments: argparse.Namespace) -> None:
    """Compute a part of the logits of a teacher for every view of every training image, in the students' batches."""
    import dataclasses

    import numpy as np
    import torch

    from kdedge.pipeline.config.build import build_config
    from kdedge.pipeline.data.sources import open_dataset, training_images
    from kdedge.pipeline.distill.frozen_teacher import cached_teachers, frozen_teacher
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
    for first in range(arguments.part * _BATCH_SIZE, len(train.labels), _FILLERS * _BATCH_SIZE):
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
        work += row["median_s"]
        table.append(row)
        print(f"{run.name:22} ended {ended!s:5} {row['epochs']:4} epochs {row['median_s']:6.2f} s {row['val_pct']}")
    print(f"students: {seconds:.1f} s; an epoch of all runs takes {work:.2f} s in turn, {work / slots:.2f} s")
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
    training.add_argument("--runs", default=_RUNS, help="trainings as STUDENT:SEED=EPOCHS, comma-separated")
    training.add_argument("--teacher-epochs", type=int, required=True)
    training.add_argument("--teachers", type=int, default=3, help="the students learn from the mean of their logits")
    training.add_argument("--mix", type=float, default=0.0, help="of the students (sections 80 and 81)")
    training.add_argument("--seconds", type=float, required=True)
    training.add_argument("--slots", type=int, default=14)
    training.add_argument("--pruned-from", default="", help="weights of a wider student, from which lite-s is pruned")
    training.set_defaults(function=train)
    filling = commands.add_parser("fill")
    filling.add_argument("teacher", type=Path)
    filling.add_argument("--part", type=int, required=True, help=f"0 to {_FILLERS - 1}")
    filling.set_defaults(function=fill)
    for command in (training, filling):
        command.add_argument("--data", required=True)
        command.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    arguments.function(arguments)


if __name__ == "__main__":
    main()
