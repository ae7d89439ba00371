"""Write the weights of a bundle's student as a weight file, to prune it or to train it on.

    python experiments/bundle_weights.py OUT.safetensors [--bundle DIR]

The ONNX model has its batch norms folded into the convolutions. Each gets its batch norm back: with the statistics of
2,000 training images of CIFAR-10, and the scale and bias that undo them. So the student computes what the bundle does,
and its batch norms see the same distribution when it is trained. Prints the largest difference from the golden logits.
"""

import argparse
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from kdedge.benchmarks.report.file import load_report
from kdedge.inputs import InputSpec
from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.data.sources import open_dataset
from kdedge.pipeline.models.student import Student, build_student
from kdedge.pipeline.models.weights import save_module

BUNDLE = Path(__file__).resolve().parents[1] / "artifacts" / "reference" / "bundle"
_IMAGES = 2_000


def main() -> None:
    """Write the weight file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    options = parser.parse_args()
    dataset = open_dataset(build_config({"data": {"source": "cifar10"}}).data)
    student = rebuilt(options.bundle, dataset.train().images[:_IMAGES], dataset.spec)
    save_module(student, options.out)
    print(f"{options.out}: largest difference from the golden logits {largest_difference(student, options.bundle):.1e}")


@torch.no_grad()
def rebuilt(bundle: Path, images: NDArray[np.uint8], spec: InputSpec) -> Student:
    """Return the student of a bundle in evaluation mode.

    Args:
        bundle: The bundle.
        images: Training images, uint8 ``[N, S, S, C]``.
        spec: Their specification.
    """
    classes = (bundle / "labels.txt").read_text().splitlines()
    student = build_student(load_report(bundle)["student"]["arch"], len(classes), spec).eval()
    constants = onnx.load(bundle / "student.onnx").graph.initializer
    tensors = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in constants}
    hooks = []
    leaves = [(name, module) for name, module in student.named_modules() if not list(module.children())]
    for (name, conv), (_, norm) in pairwise(leaves):
        if isinstance(conv, nn.Conv2d):
            conv.weight.copy_(tensors[f"student.{name}.weight"])
        if isinstance(norm, nn.BatchNorm2d):
            unfold = partial(_unfold, norm, tensors[f"student.{name}.weight_bias"])
            hooks.append(conv.register_forward_hook(unfold))
    student.classifier.weight.copy_(tensors["student.classifier.weight"])
    student.classifier.bias.copy_(tensors["student.classifier.bias"])
    student(_pixels(images))
    for hook in hooks:
        hook.remove()
    return student


@torch.no_grad()
def largest_difference(student: Student, bundle: Path) -> float:
    """Return the largest difference between the logits of a student and the golden ones of its bundle."""
    logits = student(_pixels(np.load(bundle / "golden_inputs.npy"))).numpy()
    return float(np.abs(logits - np.load(bundle / "golden_fp32_logits.npy")).max())


def _unfold(norm: nn.BatchNorm2d, bias: Tensor, conv: nn.Conv2d, _: tuple[Tensor, ...], maps: Tensor) -> Tensor:
    """Give a convolution its batch norm back, as a hook that sees its maps ``[N, C, H, W]``; return the new ones.

    Divided by its standard deviation, a channel has a variance of one, and the deviation is the scale of its norm.
    """
    mean, deviation = maps.mean((0, 2, 3)), maps.std((0, 2, 3), correction=0).clamp_min(1e-6)
    conv.weight.div_(deviation[:, None, None, None])
    norm.load_state_dict(
        {
            "running_mean": mean / deviation,
            "running_var": torch.full_like(mean, 1 - norm.eps),
            "weight": deviation,
            "bias": mean + bias,
            "num_batches_tracked": torch.tensor(1),
        }
    )
    return maps / deviation[:, None, None]


def _pixels(images: NDArray[np.uint8]) -> Tensor:
    """Return uint8 ``[N, S, S, C]`` as the student takes them."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255)


if __name__ == "__main__":
    main()
