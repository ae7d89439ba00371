"""The quantize stage: the FP32 model as an INT8 model that is right on every CPU.

    kdedge quantize --out RUN      # reads RUN/export, writes RUN/quantize/student.int8.onnx and candidates.json

Static QDQ quantization with onnxruntime, calibrated on training images. Every candidate is built, proven to run as
integers and scored on validation images; `choose` picks one. The portable format has uint8 activations and int8
weights in 7 bits (``reduce_range``): on x86 CPUs without VNNI, 8-bit weights overflow the 16-bit sums of the integer
kernels and change the predictions.
"""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from benchmarks.runtime import check_fits, open_model
from export.calibrate import pick_stratified, tensor_ranges
from export.graph import add_pixel_front, cut_pixel_front, read_model
from export.proof import integer_proof, require_integer
from export.runtime import run_model
from pipeline.artifacts import write_atomic, write_json
from pipeline.config import Config
from pipeline.errors import StageError
from pipeline.progress import log, track
from pipeline.runtime import usable_cores

__all__ = ["INT8_NAME", "PORTABLE", "RULE", "Candidate", "Quantizer", "Score", "choose", "run", "score"]

INT8_NAME = "student.int8.onnx"
SCORED_IMAGES = 5000
SIMPLER_COSTS_DB = 1.0
RULE = (
    "Candidates are listed from the simplest. Of those whose validation top-1 is within noise of the best "
    "(paired difference in right answers at most 1.96 * sqrt(number of images that only one of the two gets right)), "
    f"the simplest whose logit SQNR is within {SIMPLER_COSTS_DB:g} dB of the highest among them."
)
_OP_TYPES = (
    "Conv", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Add", "Concat", "Reshape", "Flatten",
    "Squeeze", "Transpose", "Gemm", "MatMul",
)  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """One way to quantize.

    Attributes:
        name: Unique name.
        activations: Type of the activations, ``u8`` or ``s8``.
        weights: Type of the weights, ``u8`` or ``s8``.
        per_channel: One weight scale per output channel instead of one per tensor.
        reduce_range: Weights in 7 bits, so that no CPU's 16-bit sums overflow.
        calibrator: ``minmax`` or ``percentile``.
        percentile: Share in percent of the values inside the range (``percentile`` only).
    """

    name: str
    activations: str = "u8"
    weights: str = "s8"
    per_channel: bool = True
    reduce_range: bool = True
    calibrator: str = "minmax"
    percentile: float = 100.0


PORTABLE = (
    Candidate("u8s8-tensor-rr-minmax", per_channel=False),
    Candidate("u8s8-channel-rr-minmax"),
    Candidate("u8s8-channel-rr-p99.99", calibrator="percentile", percentile=99.99),
)


@dataclass(frozen=True)
class Score:
    """What a candidate does on the scored validation images, against the FP32 model on the same images.

    Attributes:
        top1_pct: Right answers in percent.
        loss_pp: FP32 top-1 minus this top-1, in percentage points.
        fp32_only_right: Images that only the FP32 model gets right.
        int8_only_right: Images that only this model gets right.
        flips: Images with another prediction than FP32, right or wrong.
        sqnr_db: Signal to quantization noise of the logits: 10 log10(sum fp32^2 / sum (fp32 - int8)^2).
        right: Which images it gets right, ``[N] bool``.
    """

    top1_pct: float
    loss_pp: float
    fp32_only_right: int
    int8_only_right: int
    flips: int
    sqnr_db: float
    right: npt.NDArray[np.bool_]

    def as_json(self) -> dict[str, Any]:
        """Return the numbers, rounded, without the per-image answers."""
        return {
            "top1_pct": round(self.top1_pct, 3),
            "loss_pp": round(self.loss_pp, 3),
            "fp32_only_right": self.fp32_only_right,
            "int8_only_right": self.int8_only_right,
            "flips": self.flips,
            "sqnr_db": round(self.sqnr_db, 2),
        }


class Quantizer:
    """Builds INT8 models from one FP32 model and one set of calibration images.

    The float core and the tensor ranges are computed once and shared by all candidates that need the same.

    Args:
        model: The FP32 model as exported; not modified.
        images: ``[N, S, S, 3] uint8`` calibration images.

    Raises:
        InputError: The model does not begin with the pixel front of an exported student.
        StageError: A batch norm could not be folded.
    """

    def __init__(self, model: onnx.ModelProto, images: npt.NDArray[np.uint8]) -> None:
        self._images = images
        self._metadata = {item.key: item.value for item in model.metadata_props}
        self._ir_version = model.ir_version
        self._core = _preprocess(cut_pixel_front(model))
        self._ranges: dict[tuple[str, float], Any] = {}

    def build(self, candidate: Candidate) -> bytes:
        """Return the deployed INT8 model of a candidate: uint8 pixels in, integer arithmetic, float logits out."""
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        core = onnx.ModelProto()
        core.CopyFrom(self._core)
        types = {"u8": QuantType.QUInt8, "s8": QuantType.QInt8}
        quantizer = QDQQuantizer(
            core,
            candidate.per_channel,
            candidate.reduce_range,
            types[candidate.weights],
            types[candidate.activations],
            self._ranges_of(candidate),
            [],
            [],
            _OP_TYPES,
            # The last matrix product returns float logits straight from its 32-bit sums: rounding them to 8 bits
            # would only lose accuracy and add two operators.
            {"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        model = quantizer.model.model
        add_pixel_front(model)
        quantizer.model.topological_sort()
        _finish(model, self._metadata | {"kdedge.quantization": candidate.name}, self._ir_version)
        return bytes(model.SerializeToString(deterministic=True))

    def _ranges_of(self, candidate: Candidate) -> Any:
        """Measure the ranges that a candidate needs, or take those of an earlier one."""
        key = (candidate.calibrator, candidate.percentile)
        if key not in self._ranges:
            with tempfile.TemporaryDirectory(prefix="kdedge-") as folder:
                path = Path(folder) / "core.onnx"
                onnx.save(self._core, path)
                self._ranges[key] = tensor_ranges(path, self._images, _OP_TYPES, calibrator=key[0], percentile=key[1])
        # The quantizer adjusts the ranges it is given, so each gets its own copy.
        ranges = self._ranges[key]
        return type(ranges)(ranges.calibration_method, dict(ranges.data))


def run(config: Config, inputs: Mapping[str, Path], out_dir: Path) -> dict[str, Any]:
    """Quantize ``inputs["export"]/student.onnx`` into ``out_dir/student.int8.onnx``.

    Returns:
        Facts for the manifest: the chosen candidate, its validation numbers and its proof of integers.

    Raises:
        InputError: The model is damaged, foreign, or has other classes or another image size than the data set.
        StageError: A part of an INT8 model would run in float.
    """
    from pipeline.data import open_dataset, split_train_val

    path = inputs["export"] / "student.onnx"
    model = read_model(path)
    threads = usable_cores()
    float_model = open_model(path, threads=threads)
    dataset = open_dataset(config.data, config.runtime.seed)
    check_fits(float_model, dataset.class_names, dataset.image_size)
    train, val = split_train_val(dataset.train(), config.data.val_fraction, config.runtime.seed, config.data.train_size)
    wanted = config.quantize.calibration_images
    if wanted > len(train.labels):
        log(f"quantize: only {len(train.labels)} training images are there; calibrating on all of them, not {wanted}")
    calibration = train.images[pick_stratified(train.labels, wanted, config.runtime.seed)]
    scored = pick_stratified(val.labels, SCORED_IMAGES, config.runtime.seed)
    images, labels = val.images[scored], val.labels[scored]

    fp32 = run_model(float_model, images)
    quantizer = Quantizer(model, calibration)
    models: list[bytes] = []
    scores: list[Score] = []
    proofs: list[dict[str, Any]] = []
    with track("quantize", len(PORTABLE)) as progress, tempfile.TemporaryDirectory(prefix="kdedge-") as folder:
        for candidate in PORTABLE:
            models.append(quantizer.build(candidate))
            proofs.append(integer_proof(models[-1]))
            require_integer(proofs[-1])
            tried = Path(folder) / f"{candidate.name}.onnx"
            tried.write_bytes(models[-1])
            scores.append(score(fp32, run_model(open_model(tried, threads=threads), images), labels))
            progress.advance(note=candidate.name)
    best = choose(scores)
    chosen, numbers = PORTABLE[best], scores[best].as_json()
    fp32_top1_pct = float((fp32.argmax(1) == labels).mean() * 100)
    write_atomic(out_dir / INT8_NAME, models[best])
    write_json(
        out_dir / "candidates.json",
        {
            "rule": RULE,
            "chosen": chosen.name,
            "calibration_images": len(calibration),
            "validation_images": len(val.labels),
            "scored_images": len(labels),
            "fp32_top1_pct": round(fp32_top1_pct, 3),
            "candidates": [
                {**asdict(candidate), **result.as_json(), "bytes": len(data)}
                for candidate, result, data in zip(PORTABLE, scores, models, strict=True)
            ],
        },
    )
    log(
        f"quantize: {chosen.name}: validation top-1 {scores[best].top1_pct:.2f} % (FP32 {fp32_top1_pct:.2f} %), "
        f"logit SQNR {scores[best].sqnr_db:.1f} dB, {proofs[best]['integer_convs']} integer convolutions"
    )
    return {
        "candidate": asdict(chosen),
        "validation": {"images": len(labels), **numbers},
        "calibration_images": len(calibration),
        "bytes": len(models[best]),
        "proof": proofs[best],
    }


def score(fp32: npt.NDArray[np.float32], int8: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> Score:
    """Compare INT8 with FP32 logits (both ``[N, C] float32``) of images with these labels (``[N] int64``)."""
    fp32_right, int8_right = fp32.argmax(1) == labels, int8.argmax(1) == labels
    signal = float(np.square(fp32, dtype=np.float64).sum())
    noise = float(np.square(fp32.astype(np.float64) - int8).sum())
    return Score(
        top1_pct=float(int8_right.mean() * 100),
        loss_pp=float((fp32_right.mean() - int8_right.mean()) * 100),
        fp32_only_right=int((fp32_right & ~int8_right).sum()),
        int8_only_right=int((~fp32_right & int8_right).sum()),
        flips=int((fp32.argmax(1) != int8.argmax(1)).sum()),
        # 200 dB stands for "no noise at all": JSON has no infinity.
        sqnr_db=min(200.0, 10 * math.log10(signal / noise)) if noise > 0 and signal > 0 else 200.0,
        right=int8_right,
    )


def choose(scores: Sequence[Score]) -> int:
    """Return the index of the candidate to ship, by the rule in `RULE`.

    Accuracy decides only where it is evidence: a paired difference below 1.96 standard deviations of McNemar's
    statistic is noise. The SQNR of the logits is a far sharper measure on few images, so it decides the rest, and
    simplicity (the order of the candidates) decides what is left. The same scores always give the same choice.

    Args:
        scores: In the order of the candidates, from the simplest; at least one.
    """
    best = max(scores, key=lambda item: (item.right.sum(), item.sqnr_db))
    pool = []
    for index, item in enumerate(scores):
        best_only, item_only = int((best.right & ~item.right).sum()), int((item.right & ~best.right).sum())
        if best_only - item_only <= 1.96 * math.sqrt(best_only + item_only):
            pool.append(index)
    highest_db = max(scores[index].sqnr_db for index in pool)
    return next(index for index in pool if scores[index].sqnr_db >= highest_db - SIMPLER_COSTS_DB)


def _preprocess(core: onnx.ModelProto) -> onnx.ModelProto:
    """Fold and infer shapes with onnxruntime's ``quant_pre_process``."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="kdedge-") as folder:
        source, target = Path(folder) / "core.onnx", Path(folder) / "processed.onnx"
        onnx.save(core, source)
        # As a file: given the model itself, onnxruntime 1.32 moves its weights into a file that it then loses.
        # Symbolic shape inference needs sympy and adds nothing for a convolutional network.
        quant_pre_process(source, target, skip_symbolic_shape=True)
        processed = onnx.load(target)
    # A failure of its optimizer is only logged, so the result is checked.
    if left := [node.name for node in processed.graph.node if node.op_type == "BatchNormalization"]:
        raise StageError(f"batch norm could not be folded into a convolution: {', '.join(left)}")
    return processed


def _finish(model: onnx.ModelProto, metadata: Mapping[str, str], ir_version: int) -> None:
    """Set metadata, drop what onnxruntime's tools left behind, and check the model."""
    for item in [item for item in model.opset_import if item.domain]:
        model.opset_import.remove(item)
    model.ir_version = ir_version
    model.doc_string = model.graph.doc_string = ""
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
