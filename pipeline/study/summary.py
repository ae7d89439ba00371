"""The numbers of a study: mean and spread per method and length, and differences between methods."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from kdedge.pipeline.distill.methods import CONTROL, METHODS
from kdedge.pipeline.study.cells import Row
from kdedge.pipeline.study.statistics import paired_difference

__all__ = ["FP32", "INT8", "summarise"]

FP32 = "fp32_test_top1_pct"
INT8 = "int8_test_top1_pct"
_MEANS = (
    "val_top1_pct", "val_ce", "teacher_gap_pp", "params", "trained_params", "hint_map_bytes", "scan_s",
    "median_epoch_s", "drowned_epochs", "beta_halvings", "reach_epochs", FP32, INT8,
)  # fmt: skip
_OTHER_BLOCKS = ("random3", "last3", "all")  # controls of the blocks that `selective` chooses


def summarise(rows: Sequence[Row], control: str) -> list[dict[str, Any]]:
    """Return one entry per method and number of epochs, in the order of the rows.

    Args:
        rows: Rows of the tables.
        control: Name of the rows that the others of the same number of epochs are compared with.

    Returns:
        Mappings with ``method``, ``epochs``, ``seeds``, ``diverged``, the means of the row's columns over seeds, and
        ``sd`` of the validation accuracy (None with one seed). Of the ``tested_seeds`` seeds with test results:
        ``int8_test_sd``, ``int8_loss_pp`` (FP32 minus INT8) and ``int8_loss_sd``. ``compared`` lists the differences to
        the control and, for methods, to `kd`, to the method that it builds on and to its controls: ``to`` (a name),
        ``val`` (validation accuracy) and ``test`` (INT8 test accuracy), each with ``difference_pp``, ``interval_pp``
        (half width), ``verdict`` and ``common_seeds``.
    """
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["epochs"], row["method"]), []).append(row)
    entries = []
    for (epochs, method), group in groups.items():
        done = [row for row in group if row["status"] == "done"]
        fp32, int8 = _by_seed(group, FP32), _by_seed(group, INT8)
        losses = {seed: fp32[seed] - top1 for seed, top1 in int8.items() if seed in fp32}
        entry: dict[str, Any] = {
            "method": method,
            "epochs": epochs,
            "seeds": len(done),
            "diverged": len(group) - len(done),
            "sd": _spread(_by_seed(group)),
            "compared": [
                {"to": name, "val": _difference(group, others), "test": _difference(group, others, INT8)}
                for name in _partners(method, control)
                if (others := groups.get((epochs, name), [])) and _by_seed(group).keys() & _by_seed(others)
            ],
            "tested_seeds": len(int8),
            "int8_test_sd": _spread(int8),
            "int8_loss_pp": statistics.fmean(losses.values()) if losses else None,
            "int8_loss_sd": _spread(losses),
        }
        for column in _MEANS:
            values = [row[column] for row in done if row.get(column) is not None]
            # A mean over the seeds that reached the target accuracy would hide those that did not.
            complete = len(values) == len(done) or column in (FP32, INT8)
            entry[column] = statistics.fmean(values) if values and complete else None
        entries.append(entry)
    return entries


def _by_seed(rows: Sequence[Row], column: str = "val_top1_pct") -> dict[int, float]:
    return {row["seed"]: row[column] for row in rows if row["status"] == "done" and row.get(column) is not None}


def _spread(values: Mapping[int, float]) -> float | None:
    return statistics.stdev(values.values()) if len(values) > 1 else None


def _difference(rows: Sequence[Row], others: Sequence[Row], column: str = "val_top1_pct") -> dict[str, Any]:
    difference = paired_difference(_by_seed(rows, column), _by_seed(others, column))
    return {
        "difference_pp": difference.mean if difference else None,
        "interval_pp": difference.half_width if difference else None,
        "verdict": difference.verdict if difference else "",
        "common_seeds": difference.seeds if difference else 0,
    }


def _partners(method: str, control: str) -> list[str]:
    """Return the names that a method or variation is compared with."""
    names = [control]
    if control == CONTROL:
        names += ["kd"] * (METHODS[method].blocks is not None)
        names += _OTHER_BLOCKS if method == "selective" else ()
        names += [] if method in _OTHER_BLOCKS else [METHODS[method].builds_on]
    return [name for name in dict.fromkeys(names) if name not in ("", method)]
