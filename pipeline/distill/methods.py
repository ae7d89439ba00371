"""The distillation methods by name. Imports no PyTorch, so that the command line can list them.

All minimise alpha * KD + beta * hint + gamma * CE, with the terms that the method has. ``ce`` is the control of every
other method; ``random3``, ``last3`` and ``all`` are controls of ``selective``, from which they differ in the teacher's
blocks and, as these are paired in depth order (`kdedge.pipeline.distill.hints.pair_blocks`), in the student's.
`Method.builds_on` names the method that another one changes. The rules that choose blocks are in
`kdedge.pipeline.distill.blocks`, the terms in `kdedge.pipeline.distill.losses`, adapters in
`kdedge.pipeline.distill.hints`, the new choice while training in `kdedge.pipeline.distill.dynamic`.
"""

from dataclasses import dataclass

from kdedge.pipeline.distill.blocks import (
    BlockRule,
    every_block,
    highest_variance,
    last_blocks,
    random_blocks,
    stage_ends,
)

__all__ = ["CONTROL", "METHODS", "Method"]


@dataclass(frozen=True)
class Method:
    """The terms and rules of a method.

    Attributes:
        note: Short description.
        kd: Whether it learns from the teacher's logits.
        blocks: Rule that chooses the teacher blocks to hint at (None: no hints).
        adaptive_beta: Whether beta is halved when the validation KD loss stops improving.
        hint_epochs: Hint-only epochs at the start, unless ``--hint-epochs`` is set.
        dynamic: Whether the blocks are chosen again while training.
        builds_on: The method that it extends; tables have the difference to it (or an empty string).
    """

    note: str
    kd: bool = True
    blocks: BlockRule | None = None
    adaptive_beta: bool = False
    hint_epochs: int = 0
    dynamic: bool = False
    builds_on: str = ""

    @property
    def scans(self) -> bool:
        """Whether the choice needs the scan of activation variances."""
        return self.blocks is highest_variance

    @property
    def unused(self) -> frozenset[str]:
        """Names of the distillation options that change nothing in runs of this method."""
        names: set[str] = set()
        if not self.kd:
            names |= {"alpha", "gamma"}
        if self.blocks is None:
            names |= {"beta", "hint_loss", "hint_epochs"}
        if self.blocks not in (highest_variance, random_blocks, last_blocks):
            names.add("hint_blocks")
        if not self.adaptive_beta:
            names.add("beta_patience")
        if not self.kd:
            names |= {"adapt_to_teacher", "more_teachers", "mean_of_flips"}
        if not self.dynamic:
            names.add("rechoose_epochs")
        return frozenset(names)


METHODS = {
    "ce": Method("labels only, the control", kd=False),
    "kd": Method("labels and the teacher's logits", builds_on="ce"),
    "static": Method(
        "kd and hints at stage ends, hint-only epochs first, constant beta",
        blocks=stage_ends,
        hint_epochs=5,
        builds_on="kd",
    ),
    "adaptive": Method(
        "kd and hints at stage ends, beta adapts", blocks=stage_ends, adaptive_beta=True, builds_on="static"
    ),
    "selective": Method(
        "kd and hints at the blocks of the highest variance, beta adapts",
        blocks=highest_variance,
        adaptive_beta=True,
        builds_on="adaptive",
    ),
    "random3": Method(
        "as selective, at random blocks", blocks=random_blocks, adaptive_beta=True, builds_on="selective"
    ),
    "last3": Method(
        "as selective, at the deepest blocks", blocks=last_blocks, adaptive_beta=True, builds_on="selective"
    ),
    "all": Method("as selective, at every block", blocks=every_block, adaptive_beta=True, builds_on="selective"),
    "dynamic": Method(
        "as selective, blocks chosen again while training",
        blocks=highest_variance,
        adaptive_beta=True,
        dynamic=True,
        builds_on="selective",
    ),
}

CONTROL = "ce"
