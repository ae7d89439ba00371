"""The export stage: writes the trained student as ``student.onnx`` and compares it with PyTorch.

``kdedge export --out RUN`` reads ``RUN/distill`` and writes ``RUN/export/student.onnx``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdedge.export.onnx_export import MODEL_NAME, check_parity, export_student
from kdedge.files import load_json
from kdedge.inputs import InputSpec
from kdedge.pipeline.config import Config
from kdedge.pipeline.models.load import STUDENT_DESCRIPTION, load_student
from kdedge.progress import log

__all__ = ["run"]


def run(config: Config, inputs: Mapping[str, Path], out_dir: Path) -> dict[str, Any]:
    """Export the distilled student to ``out_dir/student.onnx`` and compare it with PyTorch.

    Returns:
        Metrics for the manifest: ``params``, ``macs``, ``conv_nodes``, ``parity_max_abs_diff``, …

    Raises:
        InputError: The student's files are missing, damaged, or of another architecture or class count.
        StageError: The exporter failed, or the exported model computes other logits.
    """
    module = load_student(inputs["distill"])
    student = load_json(inputs["distill"] / STUDENT_DESCRIPTION, ("classes",))
    path = out_dir / MODEL_NAME
    spec = InputSpec.from_record(student)
    metrics = export_student(module, spec, student["classes"], path, opset=config.export.opset)
    metrics |= check_parity(module, path)
    log(
        f"export: {metrics['params']:,} parameters, {metrics['macs'] / 1e6:.1f} MMAC, "
        f"{metrics['conv_nodes']} convolutions, largest logit difference {metrics['parity_max_abs_diff']:.1e}"
    )
    return metrics
