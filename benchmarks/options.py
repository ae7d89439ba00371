"""Options of the benchmark."""

from dataclasses import dataclass
from functools import partial

from kdedge.benchmarks.emulate.cpus import parse_emulated
from kdedge.options import option
from kdedge.parsing import parse_choices, parse_counts, parse_cpus, parse_paths

__all__ = ["RUNTIME_NAMES", "BenchmarkConfig", "parse_runtimes"]

RUNTIME_NAMES = ("openvino", "litert")


def parse_runtimes(text: str, flag: str = "--runtime") -> list[str]:
    """Parse a comma-separated list of runtimes; an empty text is an empty list.

    Raises:
        InputError: A part is not in `RUNTIME_NAMES`.
    """
    return parse_choices(text, flag, RUNTIME_NAMES) if text else []


@dataclass(frozen=True)
class BenchmarkConfig:
    """Accuracy, gate and latency."""

    limit_pp: float = option(
        0.5, "Gate: maximum accepted INT8 accuracy loss, in percentage points.", flag="--limit-pp", least=0.01, most=100
    )
    metric: str = option(
        "top1",
        "Gate: accuracy whose loss is judged: top1, or balanced (mean recall of the classes).",
        flag="--metric",
        choices=("top1", "balanced"),
    )
    threads: str = option(
        "1",
        "Intra-op thread counts to measure, comma-separated.",
        flag="--latency-threads",
        parse=partial(parse_counts, most=1024),
    )
    batches: str = option(
        "1,8,32",
        "Batch sizes to measure, comma-separated.",
        flag="--latency-batches",
        parse=partial(parse_counts, most=4096),
    )
    seconds: float = option(
        3.0,
        "Measuring time per model, batch and thread count, in five windows.",
        flag="--latency-seconds",
        least=0.05,
        most=600,
    )
    spinning: bool = option(False, "Let waiting threads spin.", flag="--latency-spinning")
    affinity: str = option(
        "", "Measure latency and memory only on these CPUs, such as 0,2-3.", flag="--affinity", parse=parse_cpus
    )
    memory_limit: int = option(
        0,
        "Memory limit in MiB within which a new process must load and run the model (0 = no test).",
        flag="--memory-limit",
        least=0,
    )
    provider: str = option(
        "",
        "Also measure these execution providers of onnxruntime, comma-separated, such as openvino,tensorrt.",
        flag="--provider",
        auto="cuda if it is available",
    )
    runtime: str = option(
        "",
        "Also convert the student for these runtimes and measure it there, comma-separated: openvino, litert.",
        flag="--runtime",
        parse=parse_runtimes,
    )
    emulate: str = option(
        "",
        "Also run INT8 under qemu as these CPUs, comma-separated: haswell, cortex-a76, cortex-a72.",
        flag="--emulate",
        parse=parse_emulated,
    )
    emulate_images: int = option(200, "Number of test inputs for each emulated CPU.", flag="--emulate-images", least=1)
    compare_with: str = option(
        "",
        "Other runs, benchmarks or bundles to compare with this one in the report, comma-separated.",
        flag="--compare-with",
        parse=parse_paths,
    )
