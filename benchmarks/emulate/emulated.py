"""The program inside the emulator: run a model over images with only numpy and onnxruntime.

`kdedge.benchmarks.emulate.emulator` starts it under qemu without the user's ``site``, so the import folders are
arguments:

    qemu-x86_64 -cpu Haswell python -I -S -B emulated.py MODEL INPUTS.npy LOGITS.npy BATCH FOLDER...

It prints lines of ``@`` and a JSON object: first versions and instruction sets of the CPU that it sees, then the number
of finished images.
"""

import json
import sys
from pathlib import Path

__all__ = ["main"]


def main(model: str, inputs_file: str, logits_file: str, batch: int) -> None:
    """Write the logits of all images to ``logits_file``."""
    import numpy as np
    import onnxruntime

    # Private, but it queries the emulated CPU: /proc/cpuinfo is that of the host.
    known: dict[str, bool] = np._core._multiarray_umath.__cpu_features__  # type: ignore[attr-defined]
    features = sorted(name for name, there in known.items() if there)
    _print({"onnxruntime": onnxruntime.__version__, "numpy": np.__version__, "features": features})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(Path(model).read_bytes(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    inputs = np.load(inputs_file, allow_pickle=False)
    parts = []
    for start in range(0, len(inputs), batch):
        parts.append(session.run(["logits"], {name: inputs[start : start + batch]})[0])
        _print({"images": start + len(parts[-1])})
    np.save(logits_file, np.concatenate(parts))


def _print(values: dict[str, object]) -> None:
    print(f"@{json.dumps(values)}", flush=True)


if __name__ == "__main__":
    sys.path[:0] = sys.argv[5:]
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
