"""`kdedge gate` on prediction files: the verdict, what it prints, and what it refuses."""

import csv
import json

import numpy as np
import pytest
from typer.testing import CliRunner

import kdedge
from kdedge.pipeline.cli import app

N = 1200


def invoke(*arguments):
    return CliRunner().invoke(app, ["gate", *map(str, arguments)], env={"COLUMNS": "80"})


def write_csv(path, rows, columns=("image", "label", "prediction")):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def answers(only_fp32=2, only_int8=1):
    """Return labels and the answers of both models: three classes of 400 images, a tenth wrong in both."""
    labels = np.arange(N) % 3
    fp32 = np.where(np.arange(N) % 10 == 9, (labels + 1) % 3, labels)
    int8 = fp32.copy()
    right = np.flatnonzero(fp32 == labels)
    int8[right[:only_fp32]] = (labels[right[:only_fp32]] + 1) % 3
    gained = right[only_fp32 : only_fp32 + only_int8]
    fp32[gained] = (labels[gained] + 2) % 3
    return labels, fp32, int8


@pytest.fixture
def files(tmp_path):
    labels, fp32, int8 = answers()
    names = [f"{index}.png" for index in range(N)]
    order = np.random.default_rng(0).permutation(N)
    return (
        write_csv(tmp_path / "fp32.csv", zip(names, labels, fp32, strict=True)),
        write_csv(tmp_path / "int8.csv", [(names[i], labels[i], int8[i]) for i in order]),
    )


@pytest.mark.parametrize("option", [(), ("--markdown",)])
def test_a_class_that_is_never_recognised_is_named_although_the_gate_passes(option, tmp_path):
    rows = [(index, "defect" if index < 161 else "good", "good") for index in range(10_000)]
    rows += [(10_000 + index, name, name) for index, name in enumerate(["other"] * 1_839)]
    file = write_csv(tmp_path / "predictions.csv", rows)
    result = invoke(file, file, *option)
    assert (result.exit_code, "Hardly ever recognised: defect (0 of 161)" in result.stdout) == (0, True)


def test_files_in_another_order_get_the_verdict_of_the_python_function(files):
    result = invoke(*files, "--limit-pp", 1, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    labels, fp32, int8 = answers()
    expected = kdedge.gate(fp32 == labels, int8 == labels, 1)
    same = ("verdict", "loss_pp", "loss_lower95_pp", "loss_upper95_pp", "fp32_only_right", "int8_only_right", "reason")
    assert {key: found["gate"][key] for key in same} == {key: expected[key] for key in same}
    assert found["gate"]["changed_answers"] == 3
    assert found["accuracy"]["fp32_top1_pct"] == pytest.approx(100 * (fp32 == labels).mean(), abs=1e-4)
    losses = [row["fp32_top1_pct"] - row["int8_top1_pct"] for row in found["per_class"]]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 0


def test_names_of_images_are_not_needed(tmp_path, files):
    labels, fp32, int8 = answers()
    logits = np.eye(3, dtype=np.float32)[int8]
    np.savez(tmp_path / "int8.npz", labels=labels, logits=logits)
    rows = [(label, *row) for label, row in zip(labels, np.eye(3)[fp32], strict=True)]
    by_logits = write_csv(tmp_path / "logits.csv", rows, ("label", "logit_0", "logit_1", "logit_2"))
    np.savez(tmp_path / "fp32.npz", labels=labels, predictions=fp32)
    expected = json.loads(invoke(*files, "--limit-pp", 1, "--json").stdout)
    for fp32_file in (by_logits, tmp_path / "fp32.npz"):
        found = json.loads(invoke(fp32_file, tmp_path / "int8.npz", "--limit-pp", 1, "--json").stdout)
        assert found == expected


def test_undecided_names_the_command_that_plans(files):
    result = invoke(*files, "--limit-pp", 0.3)
    assert result.exit_code == 3
    assert "gate: undecided" in result.stdout
    assert "kdedge gate --plan --limit-pp 0.3 --discordance 0.0025" in result.stderr
    result = invoke(*files, "--limit-pp", 0.3, "--metric", "balanced")
    assert result.exit_code == 3
    assert "add test images, most of all of the smallest class" in result.stderr
    assert "--plan" not in result.stderr


def test_groups_of_either_file_widen_the_interval_and_are_named(files, tmp_path):
    labels, fp32, int8 = answers()
    groups = [f"farm {index // 30}" for index in range(N)]
    narrow = json.loads(invoke(*files, "--limit-pp", 5, "--json").stdout)
    np.savez(tmp_path / "fp32.npz", labels=labels, predictions=fp32)
    np.savez(tmp_path / "int8.npz", labels=labels, predictions=int8, groups=groups)
    columns = ("group", "label", "prediction")
    write_csv(tmp_path / "groups.csv", zip(groups, labels, fp32, strict=True), columns)
    found = json.loads(invoke(tmp_path / "fp32.npz", tmp_path / "int8.npz", "--limit-pp", 5, "--json").stdout)
    both = json.loads(invoke(tmp_path / "groups.csv", tmp_path / "int8.npz", "--limit-pp", 5, "--json").stdout)
    assert found == both
    assert (found["gate"]["groups"], len(found["per_group"]), narrow["per_group"]) == (40, 40, [])
    assert found["gate"]["loss_upper95_pp"] > narrow["gate"]["loss_upper95_pp"]
    low, high = found["accuracy"]["int8_ci95_pct"]
    assert low <= narrow["accuracy"]["int8_ci95_pct"][0]
    assert high >= narrow["accuracy"]["int8_ci95_pct"][1]
    result = invoke(tmp_path / "fp32.npz", tmp_path / "int8.npz", "--limit-pp", 0.3)
    assert result.exit_code == 3
    assert "add test images of other groups" in result.stderr
    assert f"worst: {found['per_group'][0]['group']}, INT8" in " ".join(result.stdout.split())
    write_csv(tmp_path / "other.csv", zip(["farm 9", *groups[1:]], labels, fp32, strict=True), columns)
    result = invoke(tmp_path / "other.csv", tmp_path / "int8.npz")
    assert result.exit_code == 2
    assert "line 2 has the group 'farm 9'" in result.stderr


def test_failed(tmp_path):
    labels, fp32, int8 = answers(60, 0)
    for name, predictions in (("fp32", fp32), ("int8", int8)):
        np.savez(tmp_path / name, labels=labels, predictions=predictions)
    result = invoke(tmp_path / "fp32.npz", tmp_path / "int8.npz", "--markdown")
    assert result.exit_code == 3
    assert result.stdout.startswith("**INT8 gate: failed.** ")
    assert "| class | images | FP32 % |" in result.stdout


def test_a_model_that_knows_nothing_may_have_other_preprocessing(tmp_path):
    labels = np.arange(300) % 3
    np.savez(tmp_path / "answers", labels=labels, predictions=np.zeros_like(labels))
    result = invoke(tmp_path / "answers.npz", tmp_path / "answers.npz")
    assert result.exit_code == 3
    assert "check the order of the classes and, of models, --preprocessing" in result.stderr


def test_balanced_accuracy_counts_a_rare_class_as_much_as_a_frequent_one(tmp_path):
    labels = np.array(["common"] * 3000 + ["rare"] * 60)
    int8 = labels.copy()
    int8[-6:] = "common"
    np.savez(tmp_path / "fp32.npz", labels=labels, predictions=labels)
    np.savez(tmp_path / "int8.npz", labels=labels, predictions=int8)
    models = tmp_path / "fp32.npz", tmp_path / "int8.npz"
    assert invoke(*models).exit_code == 0
    result = invoke(*models, "--metric", "balanced", "--json")
    assert result.exit_code == 3
    gate = json.loads(result.stdout)["gate"]
    assert gate["loss_pp"] == 5.0
    assert (gate["verdict"], gate["cause"]) == ("failed", "loss")
    assert "of balanced accuracy" in gate["reason"]


def test_classes_without_images_are_named(tmp_path):
    for name in ("fp32", "int8"):
        np.savez(tmp_path / name, labels=[0, 1], logits=np.eye(3)[:2], classes=["cat", "dog", "owl"])
    result = invoke(tmp_path / "fp32.npz", tmp_path / "int8.npz")
    assert result.exit_code == 2  # labels are numbers, the classes have names
    assert "labels[0]: the label '0' has no logit" in result.stderr
    for name in ("fp32", "int8"):
        np.savez(tmp_path / name, labels=["cat", "dog"], logits=np.eye(3)[:2], classes=["cat", "dog", "owl"])
    result = invoke(tmp_path / "fp32.npz", tmp_path / "int8.npz")
    assert "classes without test images, not part of any number: owl" in result.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the columns are missing"),
        ("image,label\n", "line 1: the columns are image, label"),
        ("image,label,prediction\n", "has no predictions"),
        ("label,prediction\n0,1\n0\n", "line 3: 1 values for 2 columns"),
        ("label,prediction\n0,\n", "line 2: the value of prediction is empty"),
        ("image,label,prediction\na,0,0\nb,0,0\na,0,0\n", "line 4: the image 'a' is already in line 2"),
        ("label,logit_0,logit_1\n0,1,nan\n", "line 2: logit_1 is 'nan'"),
        ("label,logit_0,logit_1\n0,1,x\n", "line 2: logit_1 is 'x'"),
        ("label,logit_0,logit_1\n2,1,0\n", "line 2: the label '2' has no logit"),
        ("image,label,prediction\n0.png,0,0\nx.png,0,0\n", "the image '1.png' is not in"),
        ("image,label,prediction\n0.png,0,0\n", "line 3: the image '1.png' is not in"),
        ("image,label,prediction\n1.png,0,0\n0.png,0,0\n", "for the same image"),
        ("label,prediction\n0,0\n", "good.csv has 2 images"),
        ('label,prediction\n"0,0\n', "is not a CSV file"),
        ("label,prediction\n0,0.0\n1,1.0\n", "first label is '0', the first prediction '0.0'"),
    ],
)
def test_a_bad_csv_file_is_refused_with_the_line(text, message, tmp_path):
    good = write_csv(tmp_path / "good.csv", [("0.png", 0, 0), ("1.png", 1, 1)])
    bad = tmp_path / "bad.csv"
    bad.write_text(text)
    result = invoke(good, bad)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": [0, 1]}, "has the keys labels"),
        ({"labels": [0, 1], "logits": np.eye(2), "predictions": [0, 1]}, "one of logits and predictions"),
        ({"labels": [0, 1], "predictions": [0]}, "predictions is int64 [1]"),
        ({"labels": [0.5, 1], "predictions": [0, 1]}, "labels is float64"),
        ({"labels": [0, 1], "logits": np.eye(3)}, "logits is float64 [3, 3]"),
        ({"labels": [0, 1], "logits": np.full((2, 2), np.nan)}, "logits[0] is not finite"),
        ({"labels": ["a", "b"], "logits": np.eye(2), "classes": ["a", "a"]}, "classes has 'a' twice"),
        ({"labels": np.array([{}, 1], object), "predictions": [0, 1]}, "not a readable .npz file"),
    ],
)
def test_a_bad_npz_file_is_refused_with_the_key(arrays, message, tmp_path):
    np.savez(tmp_path / "bad.npz", **arrays)
    result = invoke(tmp_path / "bad.npz", tmp_path / "bad.npz")
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_what_is_no_npz_file_is_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 not a zip")
    np.save(tmp_path / "b.npy", [1])
    (tmp_path / "b.npy").rename(tmp_path / "b.npz")
    for name in ("a.npz", "b.npz"):
        result = invoke(tmp_path / name, tmp_path / name)
        assert result.exit_code == 2, result.output
        assert "is not a readable .npz file" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "two models are compared"),
        (("a.csv",), "two models are compared"),
        (("a.csv", "b.csv"), "no file of predictions at a.csv"),
        (("a.csv", "b.txt"), "neither two models nor two prediction files"),
        (("a.csv", "b.csv", "--limit-pp", "0"), "--limit-pp 0"),
        (("a.csv", "b.csv", "--metric", "f1"), "--metric 'f1'"),
        (("a.csv", "b.csv", "--json", "--markdown"), "exclude each other"),
        (("--plan", "--markdown"), "--plan takes no files"),
        (("--plan", "--discordance", "nan"), "--discordance nan"),
    ],
)
def test_wrong_usage_is_refused(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_plan_states_what_it_assumes():
    result = invoke("--plan", "--limit-pp", 0.5, "--discordance", 0)
    assert result.exit_code == 0
    assert "INT8 in truth loses nothing" in result.stdout
    assert "With a probability of 80 %, about 765 images" in result.stdout
    found = json.loads(invoke("--plan", "--json").stdout)
    assert [row["power"] for row in found["plan"]] == [0.8, 0.95]
    assert found["plan"][0]["images"] < found["plan"][1]["images"]
    assert "no number of images" in invoke("--plan", "--discordance", 0.2).stdout
    balanced = invoke("--plan", "--limit-pp", 0.5, "--discordance", 0, "--metric", "balanced").stdout
    assert balanced.startswith(result.stdout)
    assert "All classes need equally many of them" in balanced
