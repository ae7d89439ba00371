"""The benchmark stage on a tiny network: its options, what it is told, and a data set with test images only."""

from functools import partial
from typing import Any

from kdedge.benchmarks.measure import run_benchmark
from kdedge.benchmarks.options import BenchmarkConfig
from kdedge.inputs import image_input

TRAINING = [
    {"epoch": "1", "train_loss": "2.5", "train_kd": "1.9", "train_hint": "1.0", "train_ce": "2.2", "beta": "250",
     "val_top1_pct": "31.5", "cosine_similarity": "0.41"},
    {"epoch": "2", "train_loss": "1.5", "train_kd": "0.9", "train_hint": "0.7", "train_ce": "1.2", "beta": "125",
     "val_top1_pct": "55.0", "cosine_similarity": "0.52"},
    {"epoch": "3", "train_loss": "1.1", "train_kd": "", "train_hint": "nan", "train_ce": "1.0", "beta": "125",
     "val_top1_pct": "61.0", "cosine_similarity": ""},
]  # fmt: skip

FACTS = {
    "run": {"preset": "default", "data": "made-up", "seed": 3, "wall_s": 4000.0, "extra": "kept"},
    "teacher": {"arch": "resnet18", "params": 11_173_962, "weights": "none"},
    "student": {"arch": "lite", "params": 1_290_000, "macs": 115_000_000, "method": "selective", "epochs": 3},
    "training": TRAINING,
}

benchmark = partial(run_benchmark, images_sha256="1" * 64)

OPTIONS = BenchmarkConfig(seconds=0.05, batches="1,2")


class TestImages:
    """A data set with test images only; reading anything else fails."""

    __test__ = False
    name = "made-up"
    class_names = ("cat", "dog | wolf", "<b>frog</b>", "ship")
    spec = image_input(16)

    def __init__(self, images: Any, labels: Any) -> None:
        from kdedge.dataset import Split

        self._split, self.reads = Split(images, labels), 0

    def test(self) -> Any:
        self.reads += 1
        return self._split
