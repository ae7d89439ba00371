"""The overhead of the latency harness, and the repeatability of its medians and verdicts.

    python experiments/harness_overhead.py [--bundle PATH] [--rounds 40] [--runs 10] [--seconds 3]

**Overhead.** Both models of the bundle at batch 1 on one thread. In every round a window of the harness and a bare loop
of as many ``session.run`` calls follow each other, in alternating order. "Per call" is the wall time of the window over
its calls, including bookkeeping between the samples, against that of the bare loop; "in the samples" is the mean sample
of the window against the bare loop, so the time that the clock adds to a reported number. Medians and quartiles over
the rounds.

**Repeatability.** The latency measurement of `kdedge benchmark` at batch 1, in several consecutive runs, each in a new
process: the p50 of every run, their range over their median, the largest difference between two neighbours, the windows
that were measured, and the share of runs whose verdict is steady for both models, with the reasons of the others.

Prints the machine and the results as Markdown. Needs a quiet machine.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from kdedge.benchmarks.candidate import onnx_candidates
from kdedge.benchmarks.host import host_record
from kdedge.benchmarks.latency import MOST_WINDOWS, WINDOWS, measure_latency, run_window
from kdedge.benchmarks.session import open_model
from kdedge.benchmarks.stability import STEADY

BUNDLE = Path(__file__).resolve().parents[1] / "artifacts" / "reference" / "bundle"
MODELS = {"fp32": "student.onnx", "int8": "student.int8.onnx"}
WINDOW_NS = 100_000_000


def bare_loop(call: Callable[[], object], count: int) -> float:
    """Return the milliseconds per call of a loop with nothing in it."""
    start = time.perf_counter_ns()
    for _ in range(count):
        call()
    return (time.perf_counter_ns() - start) / 1e6 / count


def harness_window(call: Callable[[], object]) -> tuple[float, list[float]]:
    """Return the milliseconds per call of a window of the harness, and its samples."""
    start = time.perf_counter_ns()
    samples = run_window(call, WINDOW_NS)
    return (time.perf_counter_ns() - start) / 1e6 / len(samples), samples


def overhead(call: Callable[[], object], rounds: int) -> dict[str, Any]:
    """Compare the harness with a bare loop.

    Returns:
        ``p50_ms`` of all samples; ``per_call_pct`` and ``in_samples_pct``: first quartile, median and third quartile of
        the overhead over the rounds.
    """
    count = len(run_window(call, WINDOW_NS))  # also the warm-up
    per_call, in_samples, everything = [], [], []
    for turn in range(rounds):
        if turn % 2:
            bare_ms = bare_loop(call, count)
        wall_ms, samples = harness_window(call)
        if not turn % 2:
            bare_ms = bare_loop(call, count)
        per_call.append(100 * (wall_ms / bare_ms - 1))
        in_samples.append(100 * (float(np.mean(samples)) / bare_ms - 1))
        everything += samples
    return {
        "p50_ms": float(np.median(everything)),
        "per_call_pct": np.percentile(per_call, [25, 50, 75]).tolist(),
        "in_samples_pct": np.percentile(in_samples, [25, 50, 75]).tolist(),
    }


def measure_once(bundle: Path, seconds: float) -> list[dict[str, Any]]:
    """Measure both models at batch 1 on one thread; runs in a new process."""
    paths = {name: bundle / file for name, file in MODELS.items()}
    return measure_latency(onnx_candidates(paths), seconds=seconds, most_windows=MOST_WINDOWS)[0]


def repeat(bundle: Path, runs: int, seconds: float) -> list[list[dict[str, Any]]]:
    """Return the rows of each of several runs in a row."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        return [pool.submit(measure_once, bundle, seconds).result() for _ in range(runs)]


def print_overhead(bundle: Path, rounds: int) -> None:
    """Measure and print the table of overheads."""
    print("\n| model | p50 ms | overhead per call % (quartiles) | in the samples % (quartiles) |\n|---|---|---|---|")
    for name, file in MODELS.items():
        model = open_model(bundle / file)
        size = model.spec.size
        found = overhead(model.caller(np.zeros((1, size, size, 3), np.uint8)), rounds)
        cells = []
        for key in ("per_call_pct", "in_samples_pct"):
            low, middle, high = found[key]
            cells.append(f"{middle:+.2f} ({low:+.2f} to {high:+.2f})")
        print(f"| {name} | {found['p50_ms']:.4f} | {cells[0]} | {cells[1]} |")


def print_repeatability(results: list[list[dict[str, Any]]]) -> None:
    """Print how the medians and the verdicts of several runs agree."""
    print("\n| model | p50 ms of each run | range % | largest step % | clock change % | other load % |")
    print("|---|---|---|---|---|---|")
    for index, name in enumerate(MODELS):
        rows = [run[index] for run in results]
        p50 = np.array([row["p50_ms"] for row in rows])
        spread = 100 * np.ptp(p50) / np.median(p50)
        step = 100 * np.max(np.abs(np.diff(p50)) / p50[:-1]) if len(p50) > 1 else 0.0
        evidence = [
            f"{min(known):.1f} to {max(known):.1f}" if known else "unknown"
            for known in (
                [row["trust"][key] for row in rows if row["trust"][key] is not None]
                for key in ("clock_change_pct", "other_load_pct")
            )
        ]
        listed = ", ".join(f"{ms:.4f}" for ms in p50)
        print(f"| {name} | {listed} | {spread:.1f} | {step:.1f} | {evidence[0]} | {evidence[1]} |")
    steady = [all(row["trust"]["verdict"] == STEADY for row in run) for run in results]
    windows = ", ".join(str(WINDOWS + run[0]["earlier_windows"]) for run in results)
    print(f"\nwindows per model (the last {WINDOWS} count): {windows}")
    print(f"\nsteady: {sum(steady)} of {len(steady)} runs")
    for number, run in enumerate(results, 1):
        for row in run:
            for reason in row["trust"]["reasons"]:
                print(f"- run {number}, {row['model']}: {reason}")


def main() -> None:
    """Parse the options, measure and print."""
    parser = argparse.ArgumentParser(description="Overhead and repeatability of the latency harness.")
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--rounds", type=int, default=40, help="windows of 0.1 s and bare loops per model")
    parser.add_argument("--runs", type=int, default=10, help="benchmarks in a row")
    parser.add_argument("--seconds", type=float, default=3.0, help="as --latency-seconds")
    options = parser.parse_args()
    host = host_record()
    print(f"{host['cpu']}, {host['cores']} cores, onnxruntime {host['onnxruntime']}, {host['os']}")
    print_overhead(options.bundle, options.rounds)
    print_repeatability(repeat(options.bundle, options.runs, options.seconds))


if __name__ == "__main__":
    main()
