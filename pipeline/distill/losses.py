"""The terms of the distillation loss alpha * KD + beta * hint + gamma * CE."""

from torch import Tensor
from torch.nn import functional

from kdedge.pipeline.training.balance import weighted_mean

__all__ = ["hint_loss", "kd_loss"]


def kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    targets: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Return T^2 * KL(teacher || student) at temperature T, averaged over the batch.

    Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network" (arXiv:1503.02531), section 2: the factor
    T^2 keeps the size of the gradient independent of T.

    Args:
        student_logits: float ``[N, C]``.
        teacher_logits: float ``[N, C]``.
        temperature: T > 0.
        targets: As of `kdedge.pipeline.training.balance.cross_entropy`, for the weights.
        weights: float ``[C]``, as there. Without them the frequent classes would fill this term.

    Returns:
        A scalar: sum over classes, mean over images (``batchmean``).
    """
    student = functional.log_softmax(student_logits.float() / temperature, dim=1)
    teacher = functional.log_softmax(teacher_logits.float() / temperature, dim=1)
    if targets is None or weights is None:
        return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
    each = functional.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
    return weighted_mean(each, targets, weights) * temperature**2


def hint_loss(predicted: Tensor, target: Tensor, variance: Tensor | float) -> Tensor:
    """Return the mean squared error between an adapted student map and a teacher map, divided by ``variance``.

    Romero et al., "FitNets: Hints for Thin Deep Nets" (arXiv:1412.6550), eq. 3, as a mean over the elements.
    With the variance of the teacher map the result is the fraction of variance unexplained: 0 is a perfect copy, 1 is
    no better than predicting the mean. With 1.0 it is the plain MSE.

    Args:
        predicted: float ``[N, C, H, W]``.
        target: float ``[N, C, H, W]``.
        variance: Scalar > 0.

    Returns:
        A scalar, mean over all elements.
    """
    # The gradient of mse_loss is dense in the order of its axes whatever the layout of the map, and a batch norm behind
    # one of another layout than its own takes 15 times as long. Maps are channels last in memory.
    predicted, target = (one.movedim(1, -1).float() for one in (predicted, target))
    return functional.mse_loss(predicted, target) / variance
