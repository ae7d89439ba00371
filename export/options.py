"""Options of export, quantization and bundle."""

from dataclasses import dataclass

from kdedge.options import option

__all__ = ["BundleConfig", "ExportConfig", "QuantizeConfig"]


@dataclass(frozen=True)
class ExportConfig:
    """The ONNX export."""

    opset: int = option(
        18, "ONNX opset: 18 needs onnxruntime 1.14 or newer, 20 needs 1.17.", flag="--opset", least=18, most=20
    )


@dataclass(frozen=True)
class QuantizeConfig:
    """INT8 quantization after training."""

    calibration_images: int = option(
        512,
        "Number of training images or windows for calibration.",
        flag="--calibration-images",
        least=16,
        most=100_000,
    )
    target: str = option(
        "portable",
        "CPUs to support: portable (all), x64-vnni, x64-avx2 or arm64.",
        flag="--target",
        choices=("portable", "x64-vnni", "x64-avx2", "arm64"),
    )
    compare_formats: bool = option(
        True, "Also measure formats that the target rules out, and other calibration sizes.", flag="--compare-formats"
    )
    qat: bool = option(
        False, "Fine-tune in INT8 if no cheaper repair passes the gate on the validation data.", flag="--qat"
    )


@dataclass(frozen=True)
class BundleConfig:
    """The bundle."""

    allow_undecided: bool = option(
        False,
        "Write the bundle although the test data are too few to decide the gate. Later commands need it again.",
        flag="--allow-undecided",
    )
