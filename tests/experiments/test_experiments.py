import math
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import pixel_front
from experiments.bundle_weights import largest_difference, rebuilt
from experiments.gate_coverage import properties, trinomial, verdict, wald_interval
from experiments.harness_overhead import bare_loop, harness_window
from experiments.pixel_front import FRONTS, caller, with_front
from experiments.roofline import BUNDLE, convolution_macs
from experiments.web_and_c import c_candidate
from kdedge.benchmarks.gate import judge, tango_interval
from kdedge.export.graph import count_macs, read_model
from kdedge.export.quantize.proof import integer_proof
from kdedge.inputs import image_input

FRONT = BUNDLE.parent / "front"


@pytest.mark.parametrize(
    ("n", "share_a", "share_b"), [(10, 0.3, 0.2), (200, 0.005, 0.0), (200, 0.0005, 0.0005), (10_000, 0.0275, 0.0225)]
)
def test_the_enumeration_leaves_nothing_out(n: int, share_a: float, share_b: float) -> None:
    a, b, probability = trinomial(n, share_a, share_b)
    assert probability.sum() == pytest.approx(1, abs=1e-8)
    assert (a * probability).sum() == pytest.approx(n * share_a, rel=1e-6)
    assert (b * probability).sum() == pytest.approx(n * share_b, rel=1e-6)


def test_one_probability_by_hand() -> None:
    a, b, probability = trinomial(3, 0.2, 0.1)
    at = {(int(i), int(j)): p for i, j, p in zip(a, b, probability, strict=True)}
    assert len(at) == 10
    assert at[1, 1] == pytest.approx(6 * 0.2 * 0.1 * 0.7)
    assert at[0, 3] == pytest.approx(0.001)


def test_wald_passes_whenever_no_image_is_discordant() -> None:
    # 0.5 % of discordance all to one side is a loss of 0.5 pp. Wald's interval has no width at 0 of 200 images,
    # which has the probability 0.995**200 = 36.7 %; at one image it reaches up to 1.48 %, beyond the limit.
    found = properties(wald_interval, 200, 0.005, 0.005, 0.005)
    assert found["passed"] == pytest.approx(0.995**200)
    assert properties(tango_interval, 200, 0.005, 0.005, 0.005)["passed"] == 0


def test_wald_by_hand() -> None:
    lower, upper = wald_interval(100, 10, 4)
    half = 1.959964 * math.sqrt((0.14 - 0.06**2) / 100)
    assert (lower, upper) == (pytest.approx(0.06 - half), pytest.approx(0.06 + half))


@pytest.mark.parametrize(("only_fp32", "only_int8"), [(0, 0), (3, 1), (40, 2), (12, 7)])
def test_the_verdict_is_that_of_the_gate(only_fp32: int, only_int8: int) -> None:
    n = 1000
    fp32, int8 = np.ones(n, bool), np.ones(n, bool)
    int8[:only_fp32] = False
    fp32[only_fp32 : only_fp32 + only_int8] = False
    assert verdict(*tango_interval(n, only_fp32, only_int8), 0.005) == judge(fp32, int8, 0.5)["verdict"]


def test_macs_of_the_convolutions_are_those_of_the_model_without_its_classifier() -> None:
    layers = convolution_macs(BUNDLE / "student.onnx")
    assert len(layers) == 5
    assert layers[1] == ("32→64, 32×32", 9 * 32 * 64 * 32 * 32)
    assert sum(macs for _, macs in layers) == count_macs(read_model(BUNDLE / "student.onnx")) - 384 * 10


def test_fronts_differ_in_what_stands_before_the_first_convolution_and_in_nothing_else() -> None:
    deployed = read_model(BUNDLE / "student.int8.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    models = {front: with_front(deployed, front).SerializeToString() for front in FRONTS}
    logits = {front: caller(model, front, pixels)()[0] for front, model in models.items()}
    operators = {front: integer_proof(model)["before_first_conv"] for front, model in models.items()}
    for front in FRONTS[1:]:
        np.testing.assert_array_equal(logits[front], logits["deployed"])
    assert operators["deployed"] == []
    assert "QuantizeLinear" in operators["front in numpy"]
    # onnxruntime moves the Transpose behind the QuantizeLinear and into the convolution.
    assert operators["front in the graph"] == ["Cast", "Mul", "QuantizeLinear"]


def test_the_study_of_fronts_prints_a_row_for_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["pixel_front.py", "--batches", "1", "--seconds", "0.05"])
    pixel_front.main()
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == list(FRONTS)


def test_a_front_cannot_be_exchanged_before_a_first_layer_in_float() -> None:
    deployed = read_model(BUNDLE / "student.onnx")
    with pytest.raises(SystemExit, match="does not enter its pixels"):
        with_front(deployed, "front in numpy")


@pytest.mark.parametrize("bundle", [BUNDLE, FRONT / "res"], ids=["lite", "res"])
def test_a_student_is_rebuilt_from_its_bundle(bundle: Path) -> None:
    images = np.load(bundle / "golden_inputs.npy")
    student = rebuilt(bundle, images, image_input(32))
    assert largest_difference(student, bundle) < 1e-4
    # In training mode batch norms use the statistics of the batch, so it computes the same on these images.
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        before = student(x)
        torch.testing.assert_close(student.train()(x), before, rtol=1e-3, atol=1e-3)


def test_overhead_of_the_harness_is_told_from_the_call() -> None:
    def nothing() -> None:
        pass

    bare_ms = bare_loop(nothing, 20_000)
    wall_ms, samples = harness_window(nothing)
    assert bare_ms > 0
    assert 0 < statistics.median(samples) <= wall_ms


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler (cc)")
def test_the_c_code_is_measured_like_a_runtime(tmp_path: Path) -> None:
    ((candidate, kernels),) = c_candidate(BUNDLE / "student.int8.onnx", tmp_path).items()
    opened, pixels = candidate.open(), np.load(BUNDLE / "golden_inputs.npy")[:3]
    assert (opened.logits(pixels) == np.load(BUNDLE / "golden_int8_logits.npy")[:3]).all()
    assert (opened.caller(pixels)() == opened.logits(pixels)).all()
    assert kernels["convs"] == {"integer": 5}
