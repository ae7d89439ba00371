"""The runtimes by the name that ``--runtime`` takes."""

from kdedge.export.runtimes.litert import LITERT
from kdedge.export.runtimes.openvino import OPENVINO

__all__ = ["RUNTIMES"]

RUNTIMES = {"openvino": OPENVINO, "litert": LITERT}
