"""What runs inside the emulator: a model over images, with numpy and onnxruntime alone.

`kdedge.benchmarks.emulate.emulator` starts it under qemu, without the user's ``site``, so the folders to import from
are arguments:

    qemu-x86_64 -cpu Haswell python -I -S -B emulated.py MODEL PIXELS.npy LOGITS.npy BATCH FOLDER...

It prints lines that begin with ``@``, each a JSON object: first the versions and the instruction sets of the CPU that
it sees, then how many images are done.
"""

import json
import sys
from pathlib import Path

__all__ = ["main"]


def main(model: str, pixels_file: str, logits_file: str, batch: int) -> None:
    """Write the logits of all images to ``logits_file``."""
    import numpy as np
    import onnxruntime

    # Private, but the only thing here that asks the CPU itself: /proc/cpuinfo is that of the host.
    known: dict[str, bool] = np._core._multiarray_umath.__cpu_features__  # type: ignore[attr-defined]
    features = sorted(name for name, there in known.items() if there)
    _say({"onnxruntime": onnxruntime.__version__, "numpy": np.__version__, "features": features})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(Path(model).read_bytes(), options, providers=["CPUExecutionProvider"])
    pixels = np.load(pixels_file, allow_pickle=False)
    parts = []
    for start in range(0, len(pixels), batch):
        parts.append(session.run(["logits"], {"pixels": pixels[start : start + batch]})[0])
        _say({"images": start + len(parts[-1])})
    np.save(logits_file, np.concatenate(parts))


def _say(fact: dict[str, object]) -> None:
    print(f"@{json.dumps(fact)}", flush=True)


if __name__ == "__main__":
    sys.path[:0] = sys.argv[5:]
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
