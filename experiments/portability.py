"""The same model with 8-bit instead of 7-bit weights, here and on emulated CPUs.

Quantizes the FP32 model of a bundle the way the portable format is made, but with weights in 8 bits, calibrated on the
same training images, and runs test images through it here and under qemu. Prints one JSON line per CPU.

    python experiments/portability.py artifacts/reference/bundle --data-dir FOLDER [--images 1000]
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import onnx

from kdedge.benchmarks.emulate.cpus import CPUS
from kdedge.benchmarks.emulate.emulator import emulate
from kdedge.benchmarks.sampling import stratified_sample
from kdedge.dataset import split_train_val
from kdedge.export.quantize.candidates import Candidate
from kdedge.export.quantize.quantizer import Quantizer
from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.data.sources import open_dataset
from kdedge.pipeline.measure_bundle import sample_test_images


def main() -> None:
    """Build the model and measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--cpu", action="append", choices=tuple(CPUS), help="default: all")
    args = parser.parse_args()

    config = build_config({"data": {"source": args.data, "dir": args.data_dir}})
    dataset, seed = open_dataset(config.data), 0
    train, _ = split_train_val(dataset.train(), config.data.val_fraction, config.data.train_size)
    calibration = train.images[stratified_sample(train.labels, config.quantize.calibration_images, seed)]
    numbers, pixels = sample_test_images(config, args.bundle, args.images)
    labels = dataset.test().labels[numbers]

    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "full-range.onnx"
        quantizer = Quantizer.from_model(onnx.load(args.bundle / "student.onnx"), calibration)
        model.write_bytes(quantizer.build(Candidate(reduce_range=False)))
        for cpu in args.cpu or CPUS:
            result = emulate(model, pixels, cpu)
            metrics = result.as_dict()
            del metrics["flipped"]
            for key, logits in (("native", result.native_logits), ("emulated", result.logits)):
                metrics[f"{key}_top1_pct"] = round(100 * float(np.mean(logits.argmax(1) == labels)), 2)
            print(json.dumps(metrics), flush=True)


if __name__ == "__main__":
    main()
