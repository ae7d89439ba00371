"""The reference student in other runtimes, with the accuracies, intervals and alternating windows of the benchmark.

    pip install -e '.[cpu,train,runtimes]'
    python experiments/runtimes.py --data-dir PATH --out build/runtimes
    python experiments/runtimes.py --data-dir PATH --models build/runtimes/models --out build/again
    npm install --prefix build/web onnxruntime-web
    python experiments/runtimes.py --web build/web --c    # also onnxruntime-web in node, and the C code on this host

Converts the FP32 model of the reference bundle with the calibration images of its INT8 model, then measures all on the
test images of CIFAR-10 as `kdedge benchmark` does. ``--models`` takes models that were converted before. Writes the
report, and the models to ``OUT/models``.
"""

import argparse
from pathlib import Path

from web_and_c import c_candidate, web_candidates

from kdedge.benchmarks.measure import run_benchmark
from kdedge.benchmarks.options import RUNTIME_NAMES, BenchmarkConfig, parse_runtimes
from kdedge.benchmarks.report.pages import print_summary
from kdedge.benchmarks.sampling import stratified_sample
from kdedge.export.runtimes.registry import RUNTIMES
from kdedge.export.runtimes.runtime import convert_student, open_converted
from kdedge.manifest import load_manifest
from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.data.sources import open_dataset, training_images

BUNDLE = Path(__file__).resolve().parents[1] / "artifacts" / "reference" / "bundle"


def main() -> None:
    """Convert and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default="", help="folder with CIFAR-10 (default: cache or download)")
    parser.add_argument("--source", default="cifar10", choices=("cifar10", "sample"))
    parser.add_argument("--runtime", default=",".join(RUNTIME_NAMES))
    parser.add_argument("--seconds", type=float, default=3.0, help="latency measurement per model and batch size")
    parser.add_argument("--batches", default="1,32")
    parser.add_argument("--models", type=Path, help="folder of converted models")
    parser.add_argument("--web", type=Path, help="folder with node_modules/onnxruntime-web: measure it, too")
    parser.add_argument("--c", action="store_true", help="measure the C code of the INT8 model, too")
    parser.add_argument("--out", type=Path, default=Path("build/runtimes"))
    options = parser.parse_args()

    student, folder = BUNDLE / "student.onnx", options.models or options.out / "models"
    config = build_config({"data": {"source": options.source, "dir": options.data_dir}})
    dataset, made = open_dataset(config.data), load_manifest(BUNDLE)["facts"]["history"]
    train, _ = training_images(dataset, config.data)
    count, seed = made["quantization"]["calibration_images"], made["run"]["seed"]
    calibration = train.images[stratified_sample(train.labels, count, seed)]
    folder.mkdir(parents=True, exist_ok=True)
    runtimes = {}
    for name in parse_runtimes(options.runtime):
        if options.models:
            runtimes |= open_converted(RUNTIMES[name], student, folder)
        else:
            runtimes |= convert_student(RUNTIMES[name], student, calibration, folder)
    models = {"fp32": student, "int8": BUNDLE / "student.int8.onnx"}
    if options.web:
        runtimes |= web_candidates(options.web, models)
    if options.c:
        runtimes |= c_candidate(models["int8"], options.out / "c")
    report = run_benchmark(
        BenchmarkConfig(seconds=options.seconds, batches=options.batches, runtime=options.runtime),
        models["fp32"],
        models["int8"],
        dataset,
        images_sha256=dataset.test_sha256(),
        run_facts={},
        torch_top1=None,
        runtimes=runtimes,
        out_dir=options.out,
    )
    print_summary(report)


if __name__ == "__main__":
    main()
