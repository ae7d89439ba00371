"""Checks, emulation and image sample that the benchmarks of a run and of a bundle share."""

from pathlib import Path
from typing import Any

from kdedge.benchmarks.affinity import check_cpus
from kdedge.benchmarks.emulate.cpus import parse_emulated
from kdedge.benchmarks.emulate.emulator import check_emulators, emulate
from kdedge.benchmarks.host import asked_providers
from kdedge.benchmarks.measure import Emulate
from kdedge.benchmarks.memory import check_limit
from kdedge.benchmarks.options import BenchmarkConfig, parse_runtimes
from kdedge.benchmarks.sampling import stratified_sample
from kdedge.dataset import Split
from kdedge.export.runtimes.registry import RUNTIMES
from kdedge.export.runtimes.runtime import check_installed
from kdedge.parsing import parse_cpus

__all__ = ["check_measurable", "emulation", "sample"]


def check_measurable(settings: BenchmarkConfig, *, to_convert: bool) -> None:
    """Refuse settings that this machine cannot measure.

    Args:
        settings: Options of the benchmark.
        to_convert: Whether the student is converted for the runtimes, not only run there.

    Raises:
        InputError: This process may not use the CPUs of ``--affinity``, the system cannot limit memory, onnxruntime
            lacks a provider, or a package of a runtime is missing.
        StageError: An emulator is missing.
    """
    check_cpus(parse_cpus(settings.affinity, "--affinity"))
    check_limit(settings.memory_limit)
    asked_providers(settings.provider)
    for name in parse_runtimes(settings.runtime):
        check_installed(RUNTIMES[name], to_convert=to_convert)
    if emulated := parse_emulated(settings.emulate, "--emulate"):
        check_emulators(emulated)


def emulation(settings: BenchmarkConfig) -> Emulate | None:
    """Return a function that runs a model on the emulated CPUs; None: there are none.

    Raises:
        StageError: An emulator is missing.
    """
    cpus = parse_emulated(settings.emulate, "--emulate")
    if not cpus:
        return None
    check_emulators(cpus)

    def run_on_all(model: Path, test: Split) -> list[dict[str, Any]]:
        numbers = sample(test, settings.emulate_images)
        rows = [emulate(model, test.images[numbers], cpu).as_dict() for cpu in cpus]
        for row in rows:
            row["flipped"] = [{**flip, "image": numbers[flip["image"]]} for flip in row["flipped"]]
        return rows

    return run_on_all


def sample(test: Split, count: int) -> list[int]:
    """Return the numbers of ``count`` test images (all if there are fewer), stratified by class, ascending.

    The sample of a data set is the same for all runs and bundles, independent of their seed.
    """
    return sorted(stratified_sample(test.labels, count, seed=0).tolist())
