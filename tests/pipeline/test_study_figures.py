import csv
import json

import pytest

from kdedge.pipeline.study import figures as study_figures
from kdedge.pipeline.study.figures import draw_study

pytest.importorskip("matplotlib")


@pytest.fixture
def study(measured, monkeypatch):
    """A study whose figures are drawn as SVG only."""
    from matplotlib.figure import Figure

    draw = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda *arguments, format, **more: format == "png" or draw(*arguments, format=format, **more)
    )
    return measured


@pytest.fixture
def measured(tmp_path):
    """Two methods, two seeds, two lengths; made-up numbers."""
    rows = []
    for epochs in (2, 3):
        for seed in (0, 1):
            for place, method in enumerate(("ce", "selective")):
                cell = tmp_path / f"e{epochs}" / f"seed{seed}" / method / "distill"
                cell.mkdir(parents=True)
                log = [
                    {
                        "epoch": epoch, "beta": 250 / epoch, "val_top1_pct": 80 + epoch + place,
                        "val_kd": (1 if place else 8) / epoch, "val_hint": 0.5, "cosine_similarity": 0.1 * epoch,
                        "train_hint": 0.3 if place else "", "train_kd": 0.5 if place else "",
                    }
                    for epoch in range(1, epochs + 1)
                ]  # fmt: skip
                write(cell / f"training_log_{method}.csv", log)
                (cell / "manifest.json").write_text(json.dumps(manifest(method, epochs, seed)))
                row = {"method": method, "epochs": epochs, "seed": seed, "status": "done"}
                rows.append({**row, "val_top1_pct": 83 + place + seed / 10})
    rows.append({"method": "all", "epochs": 2, "seed": 0, "status": "diverged", "val_top1_pct": ""})
    write(tmp_path / "evaluation_results.csv", rows)
    scan = {"method": "selective", "epochs": 2, "seed": 0}
    blocks = [{**scan, "block": f"layer{i}.0", "variance": i, "chosen": int(i > 2)} for i in range(1, 5)]
    write(tmp_path / "block_variances.csv", blocks)
    return tmp_path


def manifest(method, epochs, seed):
    distill = {"method": method, "epochs": epochs, "recipe": "kdedge", "hint_layers": 2, "temperature": 4.0}
    return {
        "schema": 1, "inputs": {}, "outputs": {},
        "config": {"data": {"source": "folder:cats"}, "distill": distill, "runtime": {"seed": seed}},
        "facts": {"train_images": 9000, "block_variances": {f"layer{i}.0": float(i) for i in range(1, 5)}},
    }  # fmt: skip


def keep(study, start):
    """Keep the rows of the table that begin so."""
    path = study / "evaluation_results.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *(line for line in lines if line.startswith(start))]) + "\n")


def svg(study, name):
    """Draw the figures again and return one as text."""
    draw_study(study)
    return (study / "figures" / f"{name}.svg").read_text()


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_every_figure_is_drawn_in_both_formats_and_the_same_twice(measured):
    names = {
        "training_curves_2",
        "training_curves_3",
        "beta_timeline",
        "feature_similarity",
        "accuracy",
        "variance_scan",
    }
    first = {path.name: path.read_bytes() for path in draw_study(measured)}
    assert first.keys() == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert {path.name: path.read_bytes() for path in draw_study(measured)} == first
    text = first["accuracy.svg"].decode()
    assert all(word in text for word in ("ce, 2 epochs", "selective, 3 epochs", "95 % interval", "84.05"))
    assert first["variance_scan.svg"].decode().count("chosen") == 2
    assert "1/2" in first["beta_timeline.svg"].decode()


def test_figures_say_what_was_trained_on_what(study):
    drawn = {path.stem: path.read_text() for path in draw_study(study) if path.suffix == ".svg"}
    for name, text in drawn.items():
        lengths = {"training_curves_3": "3", "training_curves_2": "2", "variance_scan": "2"}.get(name, "2, 3")
        seeds = "0" if name == "variance_scan" else "0, 1"
        assert f"folder:cats; training set of 9,000; {lengths} epochs; recipe kdedge; seed {seeds}<" in text
        assert "/home" not in text
    assert "features at layer2.0+layer3.0+layer4.0" in drawn["training_curves_2"]
    assert "at layer2.0+layer3.0+layer4.0" in drawn["feature_similarity"]
    assert "selective, 2 epochs, seed 0" in drawn["variance_scan"]
    assert "2 epochs; features at" in drawn["training_curves_2"]


def test_a_method_far_below_the_others_does_not_squeeze_them(study):
    assert "% up<" not in svg(study, "training_curves_2")
    for path in study.glob("e2/seed*/ce/distill/*.csv"):
        rows = list(csv.DictReader(path.read_text().splitlines()))
        write(path, [{**row, "val_top1_pct": 60 + int(row["epoch"])} for row in rows])
    assert "Accuracy, from 71 % up<" in svg(study, "training_curves_2")


def test_a_method_has_its_colour_in_every_study():
    both = study_figures._looks(["ce", "kd", "selective"])
    assert len({look["color"] for look in both.values()}) == 3
    assert study_figures._looks(["selective"])["selective"] == both["selective"]


def test_lengths_without_hints_have_no_panel_of_beta(study):
    assert svg(study, "beta_timeline").count(" epochs<") == 2
    keep(study, ("ce", "selective,2"))
    assert svg(study, "beta_timeline").count(" epochs<") == 1


def test_accuracy_is_also_compared_with_the_control_by_seed(study):
    draw_study(study)
    text = (study / "figures" / "accuracy.svg").read_text()
    assert "paired by seed, 95 %; open: one seed<" in text
    assert text.count("+1.00") == 2  # selective at both lengths


def test_one_seed_is_drawn_without_an_interval(study, monkeypatch):
    from matplotlib.axes import Axes

    intervals, honest = [], Axes.errorbar
    monkeypatch.setattr(Axes, "errorbar", lambda *args, **more: intervals.append(more["xerr"]) or honest(*args, **more))
    keep(study, ("ce,2,0", "selective,2,0"))
    draw_study(study)
    assert intervals == [None] * 3  # two means, one difference


def test_a_constant_beta_is_a_flat_line_and_without_hints_there_is_none(study):
    for path in study.glob("e*/seed*/selective/distill/*.csv"):
        rows = list(csv.DictReader(path.read_text().splitlines()))
        write(path, [{**row, "beta": 250} for row in rows])
    assert "beta_timeline" in {path.stem for path in draw_study(study)}
    keep(study, "ce,2,0")
    names = {path.stem for path in draw_study(study)}
    assert names == {"training_curves_2", "feature_similarity", "accuracy", "variance_scan"}
    # What an earlier call has drawn and this one has not is gone; what is not ours stays.
    assert {path.stem for path in (study / "figures").iterdir()} == names
    (study / "figures" / "mine.png").touch()
    draw_study(study)
    assert (study / "figures" / "mine.png").exists()


def test_one_epoch_is_a_point_and_a_teacher_without_blocks_has_no_features(study):
    keep(study, "ce,2,0")
    cell = study / "e2" / "seed0" / "ce" / "distill"
    rows = list(csv.DictReader((cell / "training_log_ce.csv").read_text().splitlines()))
    write(cell / "training_log_ce.csv", rows[:1])
    made = json.loads((cell / "manifest.json").read_text())
    made["facts"]["block_variances"] = {}
    (cell / "manifest.json").write_text(json.dumps(made))
    drawn = {path.stem: path.read_text() for path in draw_study(study) if path.suffix == ".svg"}
    assert "feature_similarity" not in drawn
    assert "features at" not in drawn["training_curves_2"]
    marker = drawn["training_curves_2"].count("stroke-linejoin: miter")  # of the outline of a marker
    assert marker


def test_the_end_of_the_hints_is_marked(study):
    for path in study.glob("e*/seed*/selective/distill/*.csv"):
        rows = list(csv.DictReader(path.read_text().splitlines()))
        write(path, [*rows[:-1], {**rows[-1], "beta": 0, "train_hint": ""}])
    draw_study(study)
    text = (study / "figures" / "beta_timeline.svg").read_text()
    assert text.count('id="hints_end"') == 4  # two lengths, two seeds


def test_a_study_without_a_finished_cell_has_no_figures(tmp_path):
    assert draw_study(tmp_path) == []
