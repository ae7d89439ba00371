"""Copy the results of a finished run to artifacts/reference.

The bundle, the report with its figures and samples, the logs and manifests of every stage, and a trained teacher as
fp16 safetensors.

    python experiments/publish_reference.py RUN
"""

import shutil
import sys
from pathlib import Path

import torch

from kdedge.files import load_json, write_json
from kdedge.manifest import load_manifest
from kdedge.pipeline.models.load import load_teacher
from kdedge.pipeline.models.weights import save_module
from kdedge.pipeline.stages.registry import STAGES

TARGET = Path(__file__).resolve().parents[1] / "artifacts" / "reference"
# Weights that are also in the bundle's FP32 model, and the teacher's in full precision.
LEFT_OUT = shutil.ignore_patterns("*.safetensors", "student.onnx", "student.int8.onnx")


def main() -> None:
    """Replace the stage directories of the reference by those of the run named on the command line."""
    run_dir = Path(sys.argv[1])
    for stage in STAGES:
        load_manifest(run_dir / stage)  # every stage must be finished before anything is replaced
    for stage in STAGES:
        target = TARGET / stage
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(run_dir / stage, target, ignore=None if stage == "bundle" else LEFT_OUT)
    shutil.rmtree(TARGET / "quantize" / "figures")  # the report has them
    config = load_json(run_dir / "config.json", ("data",))
    config["data"]["dir"] = ""  # where the files lay on the machine that trained
    write_json(TARGET / "config.json", config)
    if load_manifest(run_dir / "teacher")["facts"]["epochs"]:
        save_module(load_teacher(run_dir / "teacher"), TARGET / "teacher" / "teacher.safetensors", dtype=torch.float16)
    for path in sorted(TARGET.rglob("*")):
        if path.is_file():
            print(f"{path.stat().st_size:>10} {path.relative_to(TARGET)}")


if __name__ == "__main__":
    main()
