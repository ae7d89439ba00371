"""Registers ``tiny_resnet`` with torchvision as soon as that is imported: a teacher of four small residual blocks.

Every Python process with this folder on its PYTHONPATH has it (see sitecustomize.py), so also a command that a test
runs in a process of its own.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

NAME = "tiny_resnet"
_WIDTH = 8


def _register() -> None:
    from torch import nn
    from torchvision.models._api import register_model
    from torchvision.models.resnet import BasicBlock, ResNet

    class TinyResNet(ResNet):
        def __init__(self, num_classes: int) -> None:
            super().__init__(BasicBlock, [1, 1, 1, 1], num_classes)
            self.fc = nn.Linear(8 * _WIDTH, num_classes)

        def _make_layer(self, block: Any, planes: int, *rest: Any, **options: Any) -> nn.Sequential:
            return super()._make_layer(block, planes * _WIDTH // 64, *rest, **options)

    def tiny_resnet(*, weights: None = None, num_classes: int = 1000) -> ResNet:
        return TinyResNet(num_classes)

    tiny_resnet.__module__ = "torchvision.models.resnet"  # kdedge takes torchvision's own classifiers only
    register_model(NAME)(tiny_resnet)


class _Finder:
    """Runs `_register` after the import of ``torchvision.models``."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "torchvision.models":
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                _register()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Register the teacher now or when torchvision is imported."""
    if "torchvision.models" in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _Finder())
