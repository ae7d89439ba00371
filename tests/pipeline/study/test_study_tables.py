import pytest

from pipeline.study.statistics import paired_difference, student_t_975
from pipeline.study.tables import alarms, render, summarise


def row(method, seed, top1, *, epochs=20, **more):
    return {
        "method": method, "epochs": epochs, "seed": seed, "status": "done", "val_top1_pct": top1, "val_ce": 0.5,
        "teacher_gap_pp": 95 - top1, "params": 1_280_000, "trained_params": 1_480_000, "hint_map_bytes": 2_000_000,
        "scan_s": 1.0, "seconds": 90.0, "drowned_epochs": 0, "reach_epochs": 7, **more,
    }  # fmt: skip


# From a printed table of Student's t distribution.
@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (20, 2.0860), (500, 1.9647)])
def test_t_quantiles_agree_with_the_printed_table(freedom, quantile):
    assert student_t_975(freedom) == pytest.approx(quantile, abs=1e-4)


def test_a_difference_is_paired_by_seed_with_a_t_interval():
    # Differences 1, 2, 3: mean 2, standard deviation 1, so 4.3027 / sqrt(3) = 2.4842. Seed 9 has no partner.
    difference = paired_difference({0: 91.0, 1: 72.0, 2: 53.0, 9: 0.0}, {2: 50.0, 1: 70.0, 0: 90.0})
    assert difference.mean == pytest.approx(2)
    assert difference.half_width == pytest.approx(2.4842, abs=1e-3)
    assert difference.verdict == "not resolved"
    assert paired_difference({0: 12.0, 1: 12.1, 2: 11.9}, {0: 10, 1: 10, 2: 10}).verdict == "better"
    assert paired_difference({0: 8.0, 1: 8.1, 2: 7.9}, {0: 10, 1: 10, 2: 10}).verdict == "worse"


def test_one_seed_has_no_interval_and_no_common_seed_no_difference():
    one = paired_difference({3: 91.0}, {3: 90.0})
    assert (one.mean, one.half_width, one.verdict) == (1.0, None, "one seed")
    assert paired_difference({1: 91.0}, {3: 90.0}) is None


def test_a_summary_has_means_spread_and_the_difference_to_the_control_of_the_same_length():
    rows = [row("ce", seed, 90.0 + seed) for seed in (0, 1)] + [row("kd", seed, 91.0 + seed) for seed in (0, 1)]
    rows += [row("ce", 0, 95.0, epochs=40), row("kd", 0, 94.0, epochs=40)]
    rows[2]["reach_epochs"] = None
    by_key = {(entry["method"], entry["epochs"]): entry for entry in summarise(rows, "ce")}
    kd = by_key["kd", 20]
    assert (kd["val_top1_pct"], kd["seeds"], kd["difference_pp"], kd["verdict"]) == (91.5, 2, 1.0, "better")
    assert kd["sd"] == pytest.approx(0.7071, abs=1e-4)
    assert kd["reach_epochs"] is None  # one seed never got there
    assert by_key["ce", 20]["reach_epochs"] == 7
    assert by_key["ce", 20]["difference_pp"] is None
    assert (by_key["kd", 40]["difference_pp"], by_key["kd", 40]["verdict"]) == (-1.0, "one seed")


def test_a_teacher_that_is_not_better_than_the_control_is_an_alarm():
    strong, weak = row("ce", 0, 90.0), row("ce", 0, 90.0, teacher_gap_pp=-4.1)
    assert alarms(summarise([strong], "ce"), "ce") == []
    assert alarms(summarise([weak], "ce"), "ce") == ["the teacher is not better than ce, 20 epochs: 4.10 pp below."]
    equal = row("ce", 0, 90.0, teacher_gap_pp=0.0)
    assert alarms(summarise([equal], "ce"), "ce") == ["the teacher is not better than ce, 20 epochs: 0.00 pp below."]


def test_hints_that_drown_the_rest_are_an_alarm_in_every_study(monkeypatch):
    monkeypatch.setattr("pipeline.distill.stage.DROWNED_PCT", 80.0)
    rows = [row("base", 0, 90.0), row("hint-loss=raw", 0, 80.0, drowned_epochs=4)]
    rows.append(row("hint-loss=raw", 1, 81.0, drowned_epochs=5))
    assert alarms(summarise(rows, "base"), "base") == [
        "hint-loss=raw, 20 epochs: on the first batch of 4.5 of them on average, hints supplied more than 80 % "
        "of the gradient."
    ]


def test_a_page_begins_with_every_method_that_is_not_better_than_its_control():
    rows = [row("ce", 0, 90.0), row("kd", 0, 90.0), row("static", 0, 91.0)]
    rows.append({"method": "all", "epochs": 20, "seed": 0, "status": "diverged"})
    summary = summarise(rows, "ce")
    warnings = alarms(summary, "ce")
    assert warnings == ["kd, 20 epochs, is not better than its control ce: +0.00 pp (one seed)."]
    page = render("Methods", summary, warnings, ["a note"], control="ce", reach=85)
    lines = page.splitlines()
    assert lines[2] == "> **Alarm:** kd, 20 epochs, is not better than its control ce: +0.00 pp (one seed)."
    assert "| static | 91.00 | +1.00 | one seed | 0.500 | 4.00 | 1.28 M | 1.48 M | 2.0 | 1.0 | 1.5 | 7.0 |" in lines
    assert "| all | diverged |" in lines
    assert lines[-1] == "- a note"
    assert "INT8" not in page
