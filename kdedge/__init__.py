"""kdedge: from labelled images or sensor windows to a small, verified INT8 classifier with one command.

For programs there are three functions, which need only numpy and onnxruntime:

    classifier = kdedge.load("artifacts/run/bundle")
    classifier.predict(frame)                          # {"label": "cat", "index": 3, "probability": 0.98}
    kdedge.read_report("artifacts/run")["gate"]["verdict"]
    kdedge.gate(fp32_correct, int8_correct, limit_pp=0.5)["reason"]
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from kdedge.export.bundle.predict import LoadedBundle, LoadedSignalBundle

__all__ = ["__version__", "gate", "load", "read_report"]

__version__ = "0.1.0"


def load(bundle: str | Path, *, fp32: bool = False) -> "LoadedBundle | LoadedSignalBundle":
    """Open the model of a bundle once, to classify many images.

    Args:
        bundle: Folder that ``kdedge bundle`` wrote.
        fp32: Use the FP32 model instead of INT8.

    Returns:
        A classifier whose ``predict`` takes a frame, uint8 RGB ``[H, W, 3]``, or several, ``[N, H, W, 3]``; of signals,
        a window, float ``[L, C]``, or several.

    Raises:
        InputError: The bundle is missing or damaged.
    """
    from kdedge.export.bundle.predict import open_bundle

    return open_bundle(Path(bundle), fp32=fp32)


def read_report(path: str | Path) -> dict[str, Any]:
    """Read the ``report.json`` of a run, a benchmark or a bundle.

    Raises:
        InputError: The report is missing or damaged.
    """
    from kdedge.benchmarks.report.file import read_report as read

    return read(Path(path))


def gate(
    fp32_correct: "npt.NDArray[np.bool_]",
    int8_correct: "npt.NDArray[np.bool_]",
    limit_pp: float,
    groups: "npt.NDArray[np.str_] | None" = None,
) -> dict[str, Any]:
    """Decide whether an INT8 model loses less accuracy than a limit, with a 95 % interval of the paired loss.

    Args:
        fp32_correct: ``[N]`` bool, whether the FP32 model is correct, image by image.
        int8_correct: ``[N]`` bool, the same images in the same order for INT8.
        limit_pp: The maximum accepted loss, in percentage points, greater than 0.
        groups: ``[N]`` str, the group of each image (a patient, a recording); None: the images are independent.

    Returns:
        The ``gate`` section of ``report.json``: ``verdict`` (``passed``, ``failed`` or ``undecided``), ``loss_pp``, the
        ends of its interval ``loss_lower95_pp`` and ``loss_upper95_pp``, ``reason`` and more; see
        `kdedge.benchmarks.gate.judge`.

    Raises:
        ValueError: The arrays differ in shape, or are empty.
    """
    from kdedge.benchmarks.gate import judge

    return judge(fp32_correct, int8_correct, limit_pp, groups=groups)
