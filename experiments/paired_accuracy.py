"""How much better one student is than another on the same test images, paired by image.

    python experiments/paired_accuracy.py A/quantize/student.int8.onnx B/quantize/student.int8.onnx

The interval is Tango's for paired proportions (see `kdedge.benchmarks.gate`). It covers the choice of the images, not
the seed of the training. To be run when everything is chosen, for it reads test images. Prints Markdown.
"""

import argparse
from pathlib import Path

from kdedge.benchmarks.accuracy import predict_logits, top1_pct
from kdedge.benchmarks.gate import tango_interval
from kdedge.benchmarks.session import open_model
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.sources import open_dataset


def main() -> None:
    """Score both models and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("a", type=Path, help="ONNX model with uint8 pixels as input")
    parser.add_argument("b", type=Path, help="the model that it is compared with")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-dir", default="")
    options = parser.parse_args()

    test = open_dataset(DataConfig(source=options.data, dir=options.data_dir)).test()
    right_a, right_b = (
        predict_logits(open_model(path), test.images, title=name).argmax(1) == test.labels
        for name, path in (("A", options.a), ("B", options.b))
    )
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    low, high = (100 * end for end in tango_interval(len(test), only_a, only_b))
    difference = top1_pct(right_a) - top1_pct(right_b)
    print("| images | A top-1 % | B top-1 % | correct only in A | correct only in B | A minus B, pp (95 %) |")
    print("|---|---|---|---|---|---|")
    print(
        f"| {len(test):,} | {top1_pct(right_a):.2f} | {top1_pct(right_b):.2f} | {only_a} | {only_b} "
        f"| {difference:+.2f} ({low:+.2f} to {high:+.2f}) |"
    )


if __name__ == "__main__":
    main()
