"""Tables of measured results, made from the files in ``artifacts/reference``.

Each function in ``TABLES`` returns one Markdown table. `docs/generate.py` puts them into the pages.
"""

import csv
import json
import statistics
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from kdedge.pipeline.study.statistics import paired_difference

__all__ = ["REFERENCE", "TABLES"]

REFERENCE = Path(__file__).resolve().parents[1] / "artifacts" / "reference"
COMPARE = REFERENCE / "compare"
VALIDATION, INT8_TEST = "val_top1_pct", "int8_test_top1_pct"
CLAIMED = {"kd": "74.05 %", "static": "79.50 %", "adaptive": "81.37 %", "selective": "80.88 %"}
"""Top-1 after 20 epochs as the source of the method states it."""
_TAUGHT = (("kd", "20"), ("selective", "20"), ("kd", "40"), ("selective", "40"))
INGREDIENTS = (
    ("KD from one teacher", "lite-s one teacher", "lite-s labels"),
    ("its last 12 epochs without label smoothing", "lite-s one teacher", "lite-s smoothed teacher"),
    ("three teachers instead of one", "lite-s all", "lite-s one teacher"),
    ("moving average of the weights", "lite-s all", "lite-s no moving average"),
    ("moving average of the weights", "lite-xs all", "lite-xs no moving average"),
    (
        "`--mix 0.5` of before (log, section 82): 5,000 training images, 60 epochs",
        "lite-s 5,000 images mixed",
        "lite-s 5,000 images",
    ),
    (
        "`--mix 0.5`, `res` as the teacher: 5,000 training images, 42 epochs",
        "lite-s 5,000 images mixed, res teaches",
        "lite-s 5,000 images, res teaches",
    ),
)
"""Name of an ingredient, a variant of ``studies/ingredients.csv`` with it, and its control."""


def headline() -> str:
    """Return the table of the README. Latencies do not depend on the weights, so they are of ``latency.csv``."""
    report = _report("front/lite")
    accuracy, gate, size = (report[key] for key in ("accuracy", "gate", "size"))
    emulated = _json(REFERENCE / "front" / "portability.json")["emulated"]
    flips, images = max(row["flips"] for row in emulated), emulated[0]["test_images"]
    cpus = ", ".join(f"`{row['cpu']}`" for row in emulated)
    latency = _latencies()["lite"]
    return _table(
        ["CIFAR-10, 10,000 test images", "measured"],
        [
            ["INT8 top-1 (95 % interval)", f"**{accuracy['onnx_int8_top1_pct']:.2f} %** ({_interval(report, 'int8')})"],
            ["INT8 loss against FP32, limit 0.5", f"{_loss(gate)} percentage points: {gate['verdict']}"],
            [f"latency FP32 / INT8, batch 1, 1 thread, {' and '.join(latency)}", ", ".join(latency.values())],
            ["size FP32 / INT8", _size(size)],
            [f"changed predictions, emulated {cpus}", f"{flips} of {images:,} images"],
        ],
    )


def reference() -> str:
    """Return what the reference run measured."""
    report, steady = _report("benchmark"), _p50(_report("sizes-epyc/lite"))
    accuracy, teacher, proof = report["accuracy"], report["teacher"], report["int8_proof"]
    convs = proof["integer_convs"] + proof["float_convs"]
    memory = {row["model"]: row["peak_rss_bytes"] for row in report["memory"]}
    rows = [
        ["INT8 top-1 (95 %)", f"**{accuracy['onnx_int8_top1_pct']:.2f} %** ({_interval(report, 'int8')})"],
        ["FP32 top-1 (95 %)", f"{accuracy['onnx_fp32_top1_pct']:.2f} % ({_interval(report, 'fp32')})"],
        ["INT8 loss, pp (95 %)", f"{_loss(report['gate'])}: {report['gate']['verdict']} (limit 0.5)"],
        ["teacher top-1, test / validation", f"{teacher['test_top1_pct']:.2f} % / {teacher['val_top1_pct']:.2f} %"],
        ["student validation top-1, 5,000 images", f"{report['student']['val_top1_pct']:.2f} %"],
        ["size FP32 / INT8", _size(report["size"])],
        ["latency FP32 / INT8, batch 1, 1 thread, Xeon with VNNI", _report_speed(report)],
        [
            "the same on an EPYC without VNNI (a student of the same shape)",
            _speed(steady["fp32"], steady["int8"]),
        ],
        ["integer convolutions", f"{proof['integer_convs']} of {convs}"],
        ["peak memory of a process that only runs the INT8 model", f"{memory['int8'] / 1e6:.1f} MB"],
    ]
    return _table(["10,000 test images, one view per image", "measured"], rows)


def portability() -> str:
    """Return the predictions that change on emulated CPUs."""
    found = _json(REFERENCE / "portability" / "verify.json")["emulated"]
    rows = [
        [f"`{row['cpu']}`", row["onnxruntime"], f"{row['flips']} of {row['test_images']:,}", f"{row['max_abs_diff']:g}"]
        for row in found
    ]
    return _table(["emulated CPU", "onnxruntime", "changed predictions", "largest logit difference"], rows)


def runtimes() -> str:
    """Return the reference student in other runtimes."""
    report = _json(REFERENCE / "studies" / "runtimes.json")
    timed = {(row["provider"], row["model"]): row for row in report["latency"] if row["batch"] == 1}
    rows = []
    for row in (row for row in report["runtimes"] if row["model"] == "int8"):
        name, loss = row["provider"], row["own_loss"] or row["loss"]
        name = "onnxruntime (kdedge)" if name == "CPUExecutionProvider" else name
        pair = [timed[key] for key in ((row["provider"], model) for model in ("fp32", "int8")) if key in timed]
        latency = " / ".join(f"{one['p50_ms']:.3f}" for one in pair)
        latency += f": {pair[0]['p50_ms'] / pair[1]['p50_ms']:.2f}×" if len(pair) > 1 else ""
        steady = all(one["trust"]["verdict"] == "steady" for one in pair)
        interval = f"{loss['loss_pp']:+.2f} ({loss['loss_lower95_pp']:+.2f} to {loss['loss_upper95_pp']:+.2f})"
        low, high = row["ci95_pct"]
        rows.append([
            name,
            f"{row['top1_pct']:.2f} % ({low:.2f} to {high:.2f})",
            interval,
            str(row["changed_answers"]),
            latency if steady else f"({latency})",
            f"{row['load_ms']:.1f}",
            f"{row['bytes'] / 1e6:.2f}",
            "not shown" if row["layers"] is None else f"{row['integer_layers']} of {row['layers']}",
        ])  # fmt: skip
    header = [
        "runtime", "INT8 top-1 (95 %)", "loss pp against its FP32 (95 %)", "other predictions", "FP32 / INT8 ms",
        "load ms", "MB", "integer layers",
    ]  # fmt: skip
    return _table(header, rows)


def methods() -> str:
    """Return all methods with three seeds, 20 and 40 epochs."""
    cells = _cells("h200")
    rows = []
    for method in _methods(cells):
        row = [f"`{method}`"]
        for epochs in ("20", "40"):
            row += _measured(cells, method, epochs)
        rows.append(row)
    columns = [
        f"{epochs} epochs, {column}" for epochs in (20, 40) for column in ("validation", "INT8 test", "to `kd`, pp")
    ]
    return _table(["method", *columns], rows)


def source_recipe() -> str:
    """Return the recipe of the source with three seeds, next to the figures that the source states."""
    cells = _cells("h200-source")
    rows = [[f"`{method}`", CLAIMED.get(method, ""), *_measured(cells, method, "20")] for method in _methods(cells)]
    return _table(["method", "stated by the source", "validation", "INT8 test", "to `kd`, pp"], rows)


def teachers() -> str:
    """Return INT8 top-1 on test images by teacher."""
    xeon, better, h200 = (_cells(name) for name in ("20-epochs-lr-0.1", "teacher-41", "h200"))
    rows = [
        ["none: `ce` instead", "", _seeds(xeon, "ce", "20"), "", _seeds(h200, "ce", "40"), ""],
        ["91.0 %", "to the end", *_teacher(xeon)],
        ["94.0 %", "not in the last 12 of 41 epochs", *_teacher(better)],
        ["95.6 %", "to the end", *_teacher(h200)],
    ]
    columns = [f"`{method}`, {epochs} epochs" for method, epochs in _TAUGHT]
    return _table(["teacher", "its label smoothing", *columns], rows)


def small_budget() -> str:
    """Return 10,000 training images and 10 epochs, for both recipes."""
    today, source = (
        {cell["method"]: float(cell[VALIDATION]) for cell in _cells(name)}
        for name in ("10k-10epochs-all", "10k-10epochs-source")
    )
    rows = [
        [
            f"`{method}`", f"{top:.2f} %", _gain(today, method, "ce"), _gain(today, method, "kd"),
            f"{source[method]:.2f} %" if method in source else "", _gain(source, method, "ce"),
        ]
        for method, top in today.items()
    ]  # fmt: skip
    return _table(["method", "default recipe", "to `ce`", "to `kd`", "`--recipe source`", "to `ce`"], rows)


def ablations() -> str:
    """Return `selective` with one option changed at a time."""
    cells = _cells("10k-10epochs-ablations")
    base = next(float(cell[VALIDATION]) for cell in cells if cell["method"] == "base")
    rows = [
        [f"`{cell['method']}`", f"{float(cell[VALIDATION]):.2f} %", f"{float(cell[VALIDATION]) - base:+.2f}"]
        for cell in cells
    ]
    return _table(["change", "validation", "to `base`, pp"], rows)


def ingredients() -> str:
    """Return what ingredients of long trainings bring to a student."""
    tops: dict[str, dict[int, float]] = {}
    for row in _rows(REFERENCE / "studies" / "ingredients.csv"):
        tops.setdefault(row["variant"], {})[int(row["seed"])] = float(row[VALIDATION])
    rows = []
    for name, variant, control in INGREDIENTS:
        difference = paired_difference(tops[variant], tops[control])
        assert difference
        assert difference.half_width
        gain = f"{difference.mean:+.2f} ± {difference.half_width:.2f}"
        student = variant.split()[0]
        rows.append([name, f"`{student}`", _spread(tops[variant].values()), _spread(tops[control].values()), gain])
    return _table(["ingredient", "student", "with it, validation", "without", "difference, pp"], rows)


def students() -> str:
    """Return the students of the accuracy front, with their latency on several CPUs."""
    begun = _rows(REFERENCE / "studies" / "front_begun.csv")
    latencies, rows = _latencies(), []
    cpus = list(dict.fromkeys(cpu for speeds in latencies.values() for cpu in speeds))
    for name in ("res", "lite", "lite-s", "res-s", "resnet20", "res-xs"):
        report = _report(f"front/{name}")
        epochs = [row["epochs"] for row in begun if row["student"] == name]  # the report has the last training only
        speeds = [latencies[name].get(cpu, "") for cpu in cpus]
        rows.append([*_student(report, epochs), *speeds, _megabytes(report)])
    return _table([*_STUDENT, *(f"FP32 / INT8, {cpu}" for cpu in cpus), "INT8 MB"], rows)


def students_epyc() -> str:
    """Return three students on a CPU without VNNI."""
    reports = [_report(f"sizes-epyc/{name}") for name in ("lite", "lite-s", "lite-xs")]
    rows = [[*_student(report, []), _report_speed(report), _megabytes(report)] for report in reports]
    return _table([*_STUDENT, "FP32 / INT8, p50", "INT8 MB"], rows)


def weak_teachers() -> str:
    """Return students of weak teachers on the sample."""
    rows = [
        [row["teacher_epochs"], f"{float(row['teacher_top1_pct']):.2f} %", f"`{row['run']}`",
         f"{float(row['val_top1_pct']):.2f} %"]
        for row in _rows(REFERENCE / "studies" / "weak_teachers.csv")
    ]  # fmt: skip
    return _table(["epochs of the teacher", "its top-1", "run", "student, validation"], rows)


def own_data() -> str:
    """Return the test accuracy on other data sets, with default options."""
    return _table(
        ["data", "train / test", "majority", "logistic regression", "ResNet-18, same time", "`ce`", "INT8", "gate"],
        [
            [
                row["data"],
                f"{int(row['train_images']):,} / {int(row['test_images']):,}",
                *(f"{float(row[f'{name}_pct']):.1f}" for name in ("majority", "logistic", "resnet18", "ce_fp32")),
                f"**{float(row['int8_pct']):.1f}**",
                row["gate"],
            ]
            for row in _rows(REFERENCE / "studies" / "own_data.csv")
        ],
    )


TABLES: dict[str, Callable[[], str]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        headline, reference, portability, methods, source_recipe, teachers, small_budget, ablations, ingredients,
        students, students_epyc, weak_teachers, own_data, runtimes,
    )
}  # fmt: skip


_STUDENT = ("student", "parameters, MMAC", "method, epochs", "INT8 top-1 (95 %)", "loss, pp (95 %)")


def _student(report: dict[str, Any], earlier_epochs: Sequence[str]) -> list[str]:
    """Return the cells of a student that do not depend on the host."""
    student, top1 = report["student"], report["accuracy"]["onnx_int8_top1_pct"]
    last = [str(student["epochs"])] if student["epochs"] else []  # none: the mean of trained weights
    return [
        f"`{student['arch']}`",
        f"{student['params'] / 1e6:.2f} M, {student['macs'] / 1e6:.0f}",
        f"`{student['method']}`, {' + '.join([*earlier_epochs, *last])}",
        f"{top1:.2f} % ({_interval(report, 'int8')})",
        _loss(report["gate"]),
    ]


def _megabytes(report: dict[str, Any]) -> str:
    return f"{report['size']['int8_bytes'] / 1e6:.2f}"


def _teacher(cells: list[dict[str, str]]) -> list[str]:
    return [_seeds(cells, method, epochs) for method, epochs in _TAUGHT]


def _measured(cells: list[dict[str, str]], method: str, epochs: str) -> list[str]:
    """Return validation, INT8 on test images, and the difference to `kd` paired by seed."""
    tops = _by_seed(cells, method, epochs)
    if not tops:
        return ["", "", ""]
    difference = paired_difference(tops, _by_seed(cells, "kd", epochs)) if method != "kd" else None
    gain = f"{difference.mean:+.2f} ± {difference.half_width:.2f}" if difference and difference.half_width else ""
    return [_seeds(cells, method, epochs, VALIDATION), _seeds(cells, method, epochs), gain]


def _by_seed(cells: list[dict[str, str]], method: str, epochs: str, column: str = INT8_TEST) -> dict[int, float]:
    chosen = [cell for cell in cells if (cell["method"], cell["epochs"]) == (method, epochs)]
    return {int(cell["seed"]): float(cell[column]) for cell in chosen if cell[column]}


def _seeds(cells: list[dict[str, str]], method: str, epochs: str, column: str = INT8_TEST) -> str:
    """Return mean ± standard deviation over seeds, or the value of the only seed that was measured."""
    values = _by_seed(cells, method, epochs, column)
    if len(values) > 1:
        return _spread(values.values())
    return "".join(f"{value:.2f} % (seed {seed})" for seed, value in values.items())


def _spread(values: Collection[float]) -> str:
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f} %"


def _methods(cells: Iterable[dict[str, str]]) -> list[str]:
    return list(dict.fromkeys(cell["method"] for cell in cells))


def _gain(tops: dict[str, float], method: str, to: str) -> str:
    return f"{tops[method] - tops[to]:+.2f} pp" if method in tops and method not in ("ce", to) else ""


def _interval(report: dict[str, Any], model: str) -> str:
    low, high = report["accuracy"][f"onnx_{model}_ci95_pct"]
    return f"{low:.2f} to {high:.2f}"


def _loss(gate: dict[str, Any]) -> str:
    return f"{gate['loss_pp']:+.2f} ({gate['loss_lower95_pp']:+.2f} to {gate['loss_upper95_pp']:+.2f})"


def _size(size: dict[str, Any]) -> str:
    return f"{size['fp32_bytes']:,} / {size['int8_bytes']:,} bytes: {size['ratio']:.2f}×"


def _p50(report: dict[str, Any]) -> dict[str, float]:
    return {row["model"]: row["p50_ms"] for row in report["latency"] if (row["batch"], row["threads"]) == (1, 1)}


def _latencies() -> dict[str, dict[str, str]]:
    """Return the latency of the students of the accuracy front, by student and CPU."""
    found: dict[str, dict[str, str]] = {}
    for row in _rows(REFERENCE / "front" / "latency.csv"):
        speed = _speed(float(row["fp32_p50_ms"]), float(row["int8_p50_ms"]))
        found.setdefault(row["student"], {})[row["cpu"]] = speed
    return found


def _report_speed(report: dict[str, Any]) -> str:
    p50 = _p50(report)
    return _speed(p50["fp32"], p50["int8"])


def _speed(fp32_ms: float, int8_ms: float) -> str:
    return f"{fp32_ms:.3f} / {int8_ms:.3f} ms: {fp32_ms / int8_ms:.2f}×"


def _report(folder: str) -> dict[str, Any]:
    return _json(REFERENCE / folder / "report.json")


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _cells(study: str) -> list[dict[str, str]]:
    return _rows(COMPARE / study / "evaluation_results.csv")


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))
