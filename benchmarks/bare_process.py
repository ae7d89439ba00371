"""Load and run a model in a process with only numpy and onnxruntime; print its peak memory as one JSON line.

`kdedge.benchmarks.memory` runs this file by its path, so the process imports nothing else of kdedge. Arguments: the
model, intra-op threads, and the memory limit in MiB (0: none).

    python -P benchmarks/bare_process.py student.int8.onnx 1 0
"""

import json
import sys

__all__ = ["main"]

# The allocator reaches its size in the first run; the others show that it stays there.
_RUNS = 20


def main(path: str, threads: int, limit_mib: int) -> None:
    """Load and run a model at batch 1 with the session options of the latency measurement.

    Args:
        path: A model of kdedge.
        threads: Intra-op threads.
        limit_mib: Limit of private writable memory (heap, stacks, buffers) in MiB; 0: none.
    """
    if limit_mib:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (limit_mib << 20, limit_mib << 20))
    import numpy as np
    import onnxruntime as ort

    baseline = _peak_rss_bytes()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    taken = session.get_inputs()[0]
    inputs = np.zeros((1, *taken.shape[1:]), np.uint8 if taken.type == "tensor(uint8)" else np.float32)
    for _ in range(_RUNS):
        session.run(None, {taken.name: inputs})
    print(json.dumps({"peak_rss_bytes": _peak_rss_bytes(), "baseline_bytes": baseline}))


def _peak_rss_bytes() -> int | None:
    """Return the peak resident memory of this program; None without Linux's ``/proc``.

    Not ``ru_maxrss``: a process inherits it from its parent through fork and exec.
    """
    try:
        with open("/proc/self/status") as file:
            lines = [line for line in file if line.startswith("VmHWM:")]
    except OSError:
        return None
    return int(lines[0].split()[1]) * 1024 if lines else None


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
