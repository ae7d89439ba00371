"""Processor time to load a model: as exported, and as saved by onnxruntime after its optimisations.

    python experiments/load_time.py [--loads 60]

The loads of all variants alternate in ABBA order in one process, on one thread: the exported ONNX file, and the graph
saved by ``session.optimized_model_filepath`` as ONNX and as ``.ort``, optimised up to the level that is the same for
every CPU (extended) or up to all levels. Saved graphs are loaded without further optimisation, and all at the extended
level once more with all. Prints a Markdown table: median, quartiles and first decile in ms of processor time of the
process, of loading and of the first inference; bytes; and whether the logits of 64 inputs equal those of the exported
file bit by bit.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

BUNDLE = Path(__file__).resolve().parents[1] / "artifacts" / "reference" / "bundle"
LEVELS = {"extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED, "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL}


def settings(level: Any) -> Any:
    """Return session options as kdedge sets them, with a level of optimisation."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    options.graph_optimization_level = level
    return options


def variants(model: Path, folder: Path) -> dict[str, tuple[Path, Any]]:
    """Save the optimised graphs; return file and level of loading of each variant."""
    found = {"exported": (model, LEVELS["all"])}
    for level, value in LEVELS.items():
        for suffix in ("onnx", "ort"):
            path, options = folder / f"{model.stem}.{level}.{suffix}", settings(value)
            options.optimized_model_filepath = str(path)
            options.add_session_config_entry("session.save_model_format", suffix.upper())
            ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            found[f"{level}, .{suffix}"] = (path, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    found["extended, .onnx, then all"] = (folder / f"{model.stem}.extended.onnx", LEVELS["all"])
    return found


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of a call and its processor time in ms."""
    start = time.process_time_ns()
    result = call()
    return result, (time.process_time_ns() - start) / 1e6


def main() -> None:
    """Measure both models of the reference bundle."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loads", type=int, default=60, help="loads of each variant")
    count = parser.parse_args().loads
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    print("| model | variant | load p50 (quartiles) / p10, ms | first run p50, ms | bytes | same logits |")
    print("|---|---|---|---|---|---|")
    for model in (BUNDLE / "student.onnx", BUNDLE / "student.int8.onnx"):
        with tempfile.TemporaryDirectory() as name:
            found = variants(model, Path(name))
            loads: dict[str, list[float]] = {key: [] for key in found}
            firsts: dict[str, list[float]] = {key: [] for key in found}
            logits = {}
            order = list(found)
            for _ in range(count):
                for key in order:
                    path, level = found[key]
                    options = settings(level)
                    session, ms = timed(
                        lambda path=path, options=options: ort.InferenceSession(  # type: ignore[misc]
                            path, options, providers=["CPUExecutionProvider"]
                        )
                    )
                    loads[key].append(ms)
                    first = {"pixels": pixels[:1]}
                    firsts[key].append(timed(lambda s=session, f=first: s.run(None, f))[1])  # type: ignore[misc]
                    if key not in logits:
                        logits[key] = session.run(None, {"pixels": pixels})[0]
                order.reverse()
            for key, (path, _) in found.items():
                tenth, low, middle, high = np.percentile(loads[key], [10, 25, 50, 75])
                same = "yes" if np.array_equal(logits[key], logits["exported"]) else "no"
                print(
                    f"| {model.name} | {key} | {middle:.2f} ({low:.2f} to {high:.2f}) / {tenth:.2f} "
                    f"| {np.median(firsts[key]):.2f} | {path.stat().st_size:,} | {same} |"
                )


if __name__ == "__main__":
    main()
