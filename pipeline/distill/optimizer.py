"""The student's optimizer: one group of parameters, and one for the batch-norm biases, which learn faster."""

import torch
from torch import nn

from kdedge.pipeline.distill.options import DistillConfig

__all__ = ["build_optimizer", "set_learning_rate"]


def build_optimizer(settings: DistillConfig, student: nn.Module, adapters: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of a student and its hint adapters.

    Batch-norm biases of the student get ``norm_bias_lr`` times the learning rate (K. Jordan, arXiv:2404.00498,
    section 3.4) and accordingly less weight decay, so that under SGD they decay as fast as the others. Adam adds the
    decay to the gradient and so scales it with everything else: there the two do not cancel.
    """
    norms = [module for module in student.modules() if isinstance(module, nn.BatchNorm2d)]
    biases = [norm.bias for norm in norms if norm.bias is not None]
    chosen = {id(bias) for bias in biases}
    others = [one for one in (*student.parameters(), *adapters.parameters()) if id(one) not in chosen]
    factor = settings.norm_bias_lr
    groups = [
        {"params": others, "lr_factor": 1.0, "weight_decay": settings.weight_decay},
        {"params": biases, "lr_factor": factor, "weight_decay": settings.weight_decay / factor},
    ]
    if settings.optimizer == "sgd":
        # Not fused on a GPU: PyTorch's fused SGD fails on weights whose first gradient comes later than others.
        return torch.optim.SGD(groups, lr=settings.lr, momentum=0.9, nesterov=True)
    # On a GPU a step is bound by its many small kernels, of which a fused Adam saves most.
    return torch.optim.Adam(groups, lr=settings.lr, fused=True if others[0].device.type == "cuda" else None)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate; a group with another factor gets that multiple of it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
