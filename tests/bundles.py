"""What the tests of bundles share: which files one holds, and a report to make one from."""

import json
from typing import Any

FILES = {
    "student.int8.onnx", "student.onnx", "labels.txt", "preprocessing.json", "golden_inputs.npy",
    "golden_int8_logits.npy", "golden_fp32_logits.npy", "report.json", "MODEL_CARD.md", "predict.py",
    "sbom.cdx.json",
}  # fmt: skip

REPORT = {
    "schema": 1,
    "run": {"preset": "default", "data": "fake", "seed": 0, "commit": None, "wall_s": 1.0, "versions": {}},
    "teacher": {"arch": "resnet18", "params": 11, "weights": "none", "test_top1_pct": None},
    "student": {"arch": "tiny", "params": 9000, "macs": 1_500_000, "method": "selective", "epochs": 1},
    "accuracy": {"split": "test", "n": 1000, "torch_fp32_top1_pct": 90.0, "onnx_fp32_top1_pct": 90.0,
                 "onnx_int8_top1_pct": 89.9, "onnx_fp32_ci95_pct": [87.99, 91.71],
                 "onnx_int8_ci95_pct": [87.88, 91.62]},
    "gate": {"limit_pp": 0.5, "loss_pp": 0.1, "loss_lower95_pp": -0.2, "loss_upper95_pp": 0.4, "fp32_only_right": 2,
             "int8_only_right": 1, "verdict": "passed", "passed": True, "reason": "fine", "images_to_decide": None},
    "size": {"fp32_bytes": 40000, "int8_bytes": 11000, "ratio": 3.64},
    "latency": [{"provider": "CPUExecutionProvider", "model": "int8", "batch": 1, "threads": 1, "p50_ms": 0.05,
                 "p99_ms": None, "throughput_ips": 20_000.0, "samples": 500,
                 "trust": {"verdict": "steady", "reasons": []}}],
    "int8_proof": {"integer_convs": 5, "float_convs": 0, "integer_gemms": 1, "float_gemms": 0, "ops_by_type": {},
                   "providers_by_node": {}},
    "host": {"cpu": "a CPU", "cores": 2, "onnxruntime": "1.32.0", "os": "a system", "memory_bytes": 1, "isa": [],
             "governor": None, "gpu": None},
    "unavailable": [],
    "per_class": [{"class": "a|b", "n": 400, "fp32_only_right": 2, "int8_only_right": 1, "fp32_top1_pct": 95.0,
                   "int8_top1_pct": 94.75},
                  {"class": "c", "n": 600, "fp32_only_right": 0, "int8_only_right": 0, "fp32_top1_pct": 86.67,
                   "int8_top1_pct": 86.67}],
}  # fmt: skip

MANIFEST_OF_BENCHMARK = {
    "schema": 1,
    "stage": "benchmark",
    "config": {},
    "inputs": {"data/test": "ef" * 32},
    "facts": {},
}


def gate(verdict: str, **more: Any) -> dict[str, Any]:
    changed: dict[str, Any] = json.loads(json.dumps(REPORT))
    changed["gate"] |= {"verdict": verdict, "passed": verdict == "passed", **more}
    return changed
