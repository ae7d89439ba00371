"""The float core of an exported student as a PyTorch module, for converters that take one."""

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from kdedge.errors import StageError
from kdedge.export import lookup
from kdedge.export.quantize.torch_graph import OPERATORS

__all__ = ["TorchCore"]


class TorchCore(nn.Module):
    """Runs the operators of a core; takes normalised ``image`` float32 ``[N, C, H, W]``.

    Args:
        core: From `kdedge.export.graph.cut_input_adapter`.

    Raises:
        StageError: The graph has an operator without an implementation here.
    """

    def __init__(self, core: onnx.ModelProto) -> None:
        super().__init__()
        nodes = list(core.graph.node)
        if unknown := {node.op_type for node in nodes} - OPERATORS.keys():
            raise StageError(
                f"the model cannot be converted: {', '.join(sorted(unknown))} is not implemented",
                "leave it out of --runtime",
            )
        self._nodes = [
            (OPERATORS[node.op_type], lookup.attributes(node), list(node.input), node.output[0]) for node in nodes
        ]
        self._input, self._output = core.graph.input[0].name, core.graph.output[0].name
        constants = {name: torch.from_numpy(np.array(array)) for name, array in lookup.arrays(core.graph).items()}
        # Shapes and axes are read while PyTorch traces, so they are no buffers.
        self._integers = {name: value for name, value in constants.items() if not value.is_floating_point()}
        self._names = [name for name in constants if name not in self._integers]
        for index, name in enumerate(self._names):
            self.register_buffer(f"constant{index}", constants[name])

    def forward(self, image: Tensor) -> Tensor:
        """Map images to logits ``[N, classes]``."""
        floats = {name: getattr(self, f"constant{index}") for index, name in enumerate(self._names)}
        values: dict[str, Tensor] = {self._input: image, **self._integers, **floats}
        for operator, attributes, inputs, output in self._nodes:
            values[output] = operator(attributes, *(values[name] if name else None for name in inputs))
        return values[self._output]
