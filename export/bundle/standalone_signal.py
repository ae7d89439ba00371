#!/usr/bin/env python3
"""Classify recordings of a signal with the model in this folder: needs numpy and onnxruntime.

    python predict.py recording.csv        # one JSON line per window; --fp32 uses the float model

A recording has a row per instant and a column per channel, in the order of preprocessing.json. A header with the names
of the channels and a time column are optional. In a program: Classifier(folder)(window), where a window is [L, C] in
the units of the training data. Runs from Python 3.8 and numpy 1.21 on.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
TIME = re.compile(r"(?:time|t|timestamp|seconds?|secs?)(?:[ _]?[(\[]?(s|sec|seconds|ms|us|\u03bcs|ns)[)\]]?)?")
SECONDS = {"ms": 1e-3, "us": 1e-6, "\u03bcs": 1e-6, "ns": 1e-9}


class Classifier:
    """The model of a bundle, opened once."""

    def __init__(self, folder: str | Path = FOLDER, model: str = "student.int8.onnx") -> None:
        import onnxruntime

        self.labels = Path(folder, "labels.txt").read_text(encoding="utf-8").splitlines()
        settings = json.loads(Path(folder, "preprocessing.json").read_text(encoding="utf-8"))
        self.length, self.channels, self.rate = settings["window"], settings["channels"], settings["rate_hz"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        data = Path(folder, model).read_bytes()
        self.session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def __call__(self, windows: Any) -> Any:
        """Return label, class index and probability of a window [L, C]; of several windows, a list."""
        import numpy as np

        if not isinstance(windows, np.ndarray) or windows.ndim == 3:
            return [self(np.asarray(window)) for window in windows]
        if windows.shape != (self.length, len(self.channels)) or not np.isfinite(windows).all():
            expected = [self.length, len(self.channels)]
            raise ValueError(f"the window is {list(windows.shape)}; expected {expected}, finite")
        logits = self.session.run(None, {"signal": np.ascontiguousarray(windows[None], np.float32)})[0][0]
        if not np.isfinite(logits).all() or len(logits) != len(self.labels):
            raise ValueError(f"the logits are NaN or infinite, or not one for each of {len(self.labels)} labels")
        exps, index = np.exp(logits - logits.max()), int(logits.argmax())
        return {"label": self.labels[index], "index": index, "probability": round(float(exps[index] / exps.sum()), 6)}


def load(path: Path, channels: list[str], rate: float, length: int) -> Any:
    """Return the samples [T, C] of a recording and its first time and samples per second (0: unknown)."""
    import numpy as np

    with path.open(newline="", encoding="utf-8-sig") as file:
        first = file.readline()
        file.seek(0)
        mark = next((mark for mark in ",;\t" if mark in first), ",")
        rows = [[cell.strip() for cell in row] for row in csv.reader(file, delimiter=mark) if row]
    header = rows.pop(0) if rows and (rows[0] == channels or any(not number(cell) for cell in rows[0])) else []
    width = len(header) or len(channels)
    for place, row in enumerate(rows, 1 + bool(header)):
        if len(row) != width or not all(number(cell) for cell in row):
            raise ValueError(f"row {place} has {len(row)} cells, expected {width} numbers")
    times = [index for index, name in enumerate(header) if name not in channels and TIME.fullmatch(name.casefold())]
    kept = [index for index in range(width) if index not in times]
    if header and [header[index] for index in kept] != channels:
        raise ValueError(f"the channels are {', '.join(header)}; expected {', '.join(channels)}, in this order")
    if len(rows) < length:
        raise ValueError(f"{len(rows)} rows are fewer than a window of {length}")
    values = np.array(rows, dtype=np.str_).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"row {int(np.argwhere(~np.isfinite(values))[0][0]) + 1 + bool(header)} is not finite")
    if not times:
        return values[:, kept].astype(np.float32), 0.0, rate
    unit: Any = TIME.fullmatch(header[times[0]].casefold())
    seconds = values[:, times[0]] * SECONDS.get(unit[1] or "s", 1.0)
    steps = np.diff(seconds)
    gaps = np.flatnonzero(~(np.abs(steps - np.median(steps)) <= 0.5 * np.median(steps)))
    if len(gaps):
        raise ValueError(f"the time has a gap before row {int(gaps[0]) + 2 + bool(header)}")
    own = (len(rows) - 1) / (seconds[-1] - seconds[0])
    if rate and abs(own / rate - 1) > 0.02:
        raise ValueError(f"{own:g} rows per second, expected {rate:g}")
    return values[:, kept].astype(np.float32), float(seconds[0]), own


def number(cell: str) -> bool:
    """Return whether a cell is a number (also nan)."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def main() -> None:
    """Answer the files on the command line: a bad one is one line on stderr, and exit code 1 at the end."""
    parser = argparse.ArgumentParser(description="Classify recordings with the model in this folder.")
    parser.add_argument("files", nargs="+", type=Path, help="CSV files with a row per instant")
    parser.add_argument("--fp32", action="store_true", help="use the FP32 model instead of INT8")
    args = parser.parse_args()
    try:
        classify = Classifier(model="student.onnx" if args.fp32 else "student.int8.onnx")
    except Exception as error:  # onnxruntime's errors have no base of their own
        sys.exit(f"predict.py: {error}; copy the bundle again, or install a newer onnxruntime")
    code = 0
    for path in args.files:
        try:
            values, start, rate = load(path, classify.channels, classify.rate, classify.length)
            rows = range(0, len(values) - classify.length + 1, classify.length)
            answers = [(row, classify(values[row : row + classify.length])) for row in rows]
        except Exception as error:
            text, answers, code = f"predict.py: {path}: {error}", [], 1
            print("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text), file=sys.stderr)
        for row, answer in answers:
            place = {"file": str(path), "row": row, "start_s": round(start + row / rate, 6) if rate else None}
            print(json.dumps({**place, **answer}), flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
