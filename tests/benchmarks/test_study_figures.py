import csv

import pytest

from benchmarks.study_figures import draw_study

pytest.importorskip("matplotlib")


@pytest.fixture
def study(tmp_path):
    """Two methods, two seeds, two lengths; made-up numbers."""
    rows = []
    for epochs in (2, 3):
        for seed in (0, 1):
            for place, method in enumerate(("ce", "selective")):
                cell = tmp_path / f"e{epochs}" / f"seed{seed}" / method / "distill"
                cell.mkdir(parents=True)
                log = [
                    {
                        "epoch": epoch, "beta": 250 / epoch, "val_top1_pct": 80 + epoch + place, "val_kd": 1 / epoch,
                        "val_hint": 0.5, "cosine_similarity": 0.1 * epoch, "train_hint": "" if method == "ce" else 0.3,
                    }
                    for epoch in range(1, epochs + 1)
                ]  # fmt: skip
                write(cell / f"training_log_{method}.csv", log)
                row = {"method": method, "epochs": epochs, "seed": seed, "status": "done"}
                rows.append({**row, "val_top1_pct": 83 + place + seed / 10})
    rows.append({"method": "all", "epochs": 2, "seed": 0, "status": "diverged", "val_top1_pct": ""})
    write(tmp_path / "evaluation_results.csv", rows)
    scan = {"method": "selective", "epochs": 2, "seed": 0}
    blocks = [{**scan, "block": f"layer{i}.0", "variance": i, "chosen": int(i > 2)} for i in range(1, 5)]
    write(tmp_path / "block_variances.csv", blocks)
    return tmp_path


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_every_figure_is_drawn_in_both_formats_and_the_same_twice(study):
    names = {
        "training_curves_2",
        "training_curves_3",
        "beta_timeline",
        "feature_similarity",
        "accuracy",
        "variance_scan",
    }
    first = {path.name: path.read_bytes() for path in draw_study(study)}
    assert first.keys() == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert {path.name: path.read_bytes() for path in draw_study(study)} == first
    text = first["accuracy.svg"].decode()
    assert all(word in text for word in ("ce, 2 epochs", "selective, 3 epochs", "95 % interval", "84.05"))
    assert first["variance_scan.svg"].decode().count("chosen") == 2
    assert "1/2" in first["beta_timeline.svg"].decode()


def test_one_seed_is_drawn_without_an_interval_and_a_constant_beta_not_at_all(study):
    path = study / "evaluation_results.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *(line for line in lines if line.startswith("ce,2,0"))]) + "\n")
    names = {path.stem for path in draw_study(study)}
    assert names == {"training_curves_2", "feature_similarity", "accuracy", "variance_scan"}
    assert "one seed each, so no interval" in (study / "figures" / "accuracy.svg").read_text()


def test_a_study_without_a_finished_cell_has_no_figures(tmp_path):
    assert draw_study(tmp_path) == []
