import pytest

from kdedge.pipeline.study.cells import count_halvings
from kdedge.pipeline.study.page import alarms, render
from kdedge.pipeline.study.statistics import paired_difference, student_t_975
from kdedge.pipeline.study.summary import summarise


def row(method, seed, top1, *, epochs=20, **more):
    return {
        "method": method, "epochs": epochs, "seed": seed, "status": "done", "val_top1_pct": top1, "val_ce": 0.5,
        "teacher_gap_pp": 95 - top1, "params": 1_280_000, "trained_params": 1_480_000, "hint_map_bytes": 2_000_000,
        "scan_s": 1.0, "median_epoch_s": 90.0, "drowned_epochs": 0, "reach_epochs": 7, **more,
    }  # fmt: skip


ONE_SEED = "a difference of one seed is not resolved; use --seeds 0,1,2 for intervals."
NO_CONTROL = "no ce of 20 epochs is finished to compare with."


def difference(entry, to):
    """Return the differences of an entry of a summary to another."""
    return next(compared for compared in entry["compared"] if compared["to"] == to)


# From a printed table of Student's t distribution.
@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.7062), (4, 2.7764), (20, 2.086), (21, 2.0796), (500, 1.9647)])
def test_t_quantiles_agree_with_the_printed_table(freedom, quantile):
    assert student_t_975(freedom) == pytest.approx(quantile, abs=1e-4)


def test_a_difference_is_paired_by_seed_with_a_t_interval():
    # Differences 1, 2, 3: mean 2, standard deviation 1, so 4.3027 / sqrt(3) = 2.4842. Seed 9 has no partner.
    difference = paired_difference({0: 91.0, 1: 72.0, 2: 53.0, 9: 0.0}, {2: 50.0, 1: 70.0, 0: 90.0})
    assert difference.mean == pytest.approx(2)
    assert difference.half_width == pytest.approx(2.4842, abs=1e-3)
    assert difference.verdict == "not resolved"
    assert paired_difference({0: 12.0, 1: 12.1, 2: 11.9}, {0: 10, 1: 10, 2: 10}).verdict == "better"
    # Two seeds of 400 images give the same difference often.
    assert paired_difference({0: 12.0, 1: 13.0}, {0: 10.0, 1: 11.0}).verdict == "not resolved"
    assert paired_difference({0: 8.0, 1: 8.1, 2: 7.9}, {0: 10, 1: 10, 2: 10}).verdict == "worse"


def test_equal_differences_resolve_nothing_whatever_their_last_bits_are():
    values, control = {0: 92.48, 1: 92.50, 2: 92.30}, {0: 92.16, 1: 92.18, 2: 91.98}
    assert len({value - control[seed] for seed, value in values.items()}) > 1, "subtracted, they are not equal"
    assert paired_difference(values, control).verdict == "not resolved"


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
    assert (kd["val_top1_pct"], kd["seeds"]) == (91.5, 2)
    gain = difference(kd, "ce")["val"]
    assert (gain["difference_pp"], gain["interval_pp"], gain["verdict"], gain["common_seeds"]) == (
        1,
        0,
        "not resolved",
        2,
    )
    assert kd["sd"] == pytest.approx(0.7071, abs=1e-4)
    assert kd["reach_epochs"] is None  # one seed never got there
    assert by_key["ce", 20]["reach_epochs"] == 7
    assert by_key["ce", 20]["compared"] == []
    loss = difference(by_key["kd", 40], "ce")["val"]
    assert (loss["difference_pp"], loss["verdict"]) == (-1.0, "one seed")


def test_a_teacher_that_is_not_better_than_the_control_is_an_alarm():
    strong, weak = row("ce", 0, 90.0), row("ce", 0, 90.0, teacher_gap_pp=-4.1)
    assert alarms(summarise([strong], "ce"), "ce") == []
    assert alarms(summarise([weak], "ce"), "ce") == ["the teacher is not better than ce, 20 epochs: 4.10 pp below."]
    equal = row("ce", 0, 90.0, teacher_gap_pp=0.0)
    assert alarms(summarise([equal], "ce"), "ce") == ["the teacher is not better than ce, 20 epochs: 0.00 pp below."]


def test_hints_that_dominate_the_gradient_are_an_alarm_in_every_study(monkeypatch):
    monkeypatch.setattr("kdedge.pipeline.stages.distill.HINT_DOMINATED_PCT", 80.0)
    rows = [row("base", 0, 90.0), row("hint-loss=raw", 0, 80.0, drowned_epochs=4)]
    rows.append(row("hint-loss=raw", 1, 81.0, drowned_epochs=5))
    assert alarms(summarise(rows, "base"), "base") == [
        ONE_SEED,
        "hint-loss=raw, 20 epochs: the hint loss dominated the gradient (> 80 %) in 4.5 epochs per seed.",
    ]


def test_a_page_begins_with_every_method_that_is_not_better_than_its_control():
    rows = [row("ce", 0, 90.0), row("kd", 0, 90.0), row("static", 0, 91.0)]
    rows.append({"method": "all", "epochs": 20, "seed": 0, "status": "diverged"})
    summary = summarise(rows, "ce")
    warnings = alarms(summary, "ce")
    assert warnings == [
        ONE_SEED,
        "kd, 20 epochs, is not better than ce: +0.00 pp (one seed).",
        "all, 20 epochs: 1 of 1 seeds diverged.",
    ]
    page = render("Methods", summary, warnings, ["a note"], target_accuracy=85)
    lines = page.splitlines()
    assert lines[2] == f"> **Alarm:** {ONE_SEED}"
    assert lines[4] == "> **Alarm:** kd, 20 epochs, is not better than ce: +0.00 pp (one seed)."
    assert "| static | 91.00 | 0.500 | 4.00 | 1.28 M | 1.48 M | 2.0 | 1.0 | 90 | 7 |" in lines
    assert "| all | diverged |" in lines
    assert lines[-1] == "- a note"
    assert "INT8" not in page


def test_a_method_is_compared_with_its_control_with_none_of_its_hints_and_with_the_one_that_it_builds_on():
    tops = {"ce": (90, 91, 92), "kd": (91, 92.1, 92.9), "adaptive": (91.5, 92.5, 93.5), "selective": (92, 93, 94)}
    rows = [row(method, seed, top) for method, values in tops.items() for seed, top in enumerate(values)]
    rows.append(row("last3", 7, 94))  # a seed that no other has
    by_name = {entry["method"]: entry for entry in summarise(rows, "ce")}
    found = {name: [compared["to"] for compared in entry["compared"]] for name, entry in by_name.items()}
    # `adaptive` builds on `static`, which is not there.
    expected = {"ce": [], "kd": ["ce"], "adaptive": ["ce", "kd"], "selective": ["ce", "kd", "adaptive"], "last3": []}
    assert found == expected
    # Differences 0.5, 0.4, 0.6.
    gain = difference(by_name["adaptive"], "kd")["val"]
    assert (gain["verdict"], gain["common_seeds"]) == ("better", 3)
    assert (gain["difference_pp"], gain["interval_pp"]) == pytest.approx((0.5, 0.2484), abs=1e-3)
    page = render("Methods", list(by_name.values()), [], [], target_accuracy=85)
    assert "Differences after 20 epochs:\n\n|  | validation, pp (95 %) |\n|---|---|\n| kd to ce | +1.00 ± 0.25" in page
    assert "| adaptive to kd | +0.50 ± 0.25 (better) |\n| selective to ce | +2.00 ± 0.00 (not resolved) |" in page


def test_variations_of_an_ablation_are_compared_with_the_base_alone():
    summary = summarise([row("base", 0, 90), row("lr=0.1", 0, 89), row("lr=0.4", 0, 91)], "base")
    assert [[compared["to"] for compared in entry["compared"]] for entry in summary] == [[], ["base"], ["base"]]
    assert alarms(summary, "base") == [ONE_SEED]


def test_without_the_control_there_are_no_differences():
    assert "Differences" not in render("Methods", summarise([row("kd", 0, 91)], "ce"), [], [], target_accuracy=85)


def test_a_difference_of_one_seed_is_an_alarm():
    rows = [row(method, seed, top + seed * seed / 9) for method, top in (("ce", 90), ("kd", 91)) for seed in (0, 1, 2)]
    rows[3]["val_top1_pct"] += 0.01
    assert alarms(summarise(rows, "ce"), "ce") == []
    rows += [row("ce", 0, 92, epochs=40), row("kd", 0, 93, epochs=40)]
    assert alarms(summarise(rows, "ce"), "ce") == [ONE_SEED]


def test_lengths_without_the_control_are_an_alarm():
    rows = [row("ce", 0, 90), row("kd", 0, 91), row("kd", 0, 92, epochs=30), row("kd", 0, 92, epochs=40)]
    rows.append({"method": "ce", "epochs": 40, "seed": 0, "status": "diverged"})
    assert "no ce of 30 and 40 epochs is finished to compare with." in (alarms(summarise(rows, "ce"), "ce"))
    assert not any("is finished" in alarm for alarm in alarms(summarise(rows[:2], "ce"), "ce"))


def test_a_gain_that_is_not_resolved_is_an_alarm():
    rows = [row("ce", seed, 90) for seed in range(3)] + [row("kd", seed, 90 + seed) for seed in range(3)]
    assert alarms(summarise(rows, "ce"), "ce") == [
        "kd, 20 epochs, is not shown to be better than ce: +1.00 ± 2.48 pp (not resolved)."
    ]


def test_a_difference_smaller_than_its_interval_is_called_not_resolved_beside_it():
    rows = [row("ce", seed, 90) for seed in range(3)] + [row("kd", seed, 90 + seed) for seed in range(3)]
    page = render("Methods", summarise(rows, "ce"), [], [], target_accuracy=85)
    assert "| kd to ce | +1.00 ± 2.48 (not resolved) |" in page


def test_halvings_of_beta_are_counted_from_the_log():
    assert count_halvings([{"beta": beta} for beta in (None, 250.0, 250.0, 125.0, 125.0, 62.5)]) == 2
    assert count_halvings([{"beta": None}] * 3) == 0
    assert count_halvings([{"beta": beta} for beta in (250.0, 125.0, 0.0, 0.0)]) == 1


def test_a_beta_that_never_adapted_is_an_alarm():
    rows = [row("base", 0, 90, beta_halvings=0), row("lr=0.1", 0, 90, beta_halvings=1), row("T=2", 0, 90)]
    assert alarms(summarise(rows, "base"), "base") == [
        ONE_SEED,
        "base, 20 epochs: beta was never halved.",
    ]


def test_seeds_that_diverged_are_an_alarm_in_every_study():
    rows = [row("base", 0, 90), row("lr=0.4", 0, 91), {**row("lr=0.4", 1, 0), "status": "diverged"}]
    assert alarms(summarise(rows, "base"), "base") == [
        ONE_SEED,
        "lr=0.4, 20 epochs: 1 of 2 seeds diverged.",
    ]


def test_a_choice_of_blocks_that_is_not_better_than_another_is_an_alarm():
    rows = [row("ce", 0, 90), row("selective", 0, 92), row("random3", 0, 92.5), row("last3", 0, 91), row("all", 0, 92)]
    assert alarms(summarise(rows, "ce"), "ce") == [
        ONE_SEED,
        "selective, 20 epochs, is not better than random3: -0.50 pp (one seed).",
        "selective, 20 epochs, is not better than all: +0.00 pp (one seed).",
    ]
    rows = [row("selective", seed, 92 + seed) for seed in range(3)] + [row("last3", seed, 92) for seed in range(3)]
    assert alarms(summarise(rows, "ce"), "ce") == [
        NO_CONTROL,
        "selective, 20 epochs, is not shown to be better than last3: +1.00 ± 2.48 pp (not resolved).",
    ]


@pytest.mark.parametrize(
    ("top1", "int8", "said"),
    [
        ((90.0, 91.0), (90.0, 89.5), "is not shown to be better than ce: +1.00 pp (one seed); INT8 test "
         "-0.50 pp (one seed)."),
        ((90.0, 91.0), (90.0, 90.5), ""),
        ((90.0, 89.0), (90.0, 89.5), "is not better than ce: -1.00 pp (one seed); INT8 test "
         "-0.50 pp (one seed)."),
        ((90.0, 91.0), (90.0, None), ""),
    ],
)  # fmt: skip
def test_a_loss_on_test_images_is_an_alarm_too(top1, int8, said):
    rows = [row(*a, int8_test_top1_pct=b) for a, b in zip((("ce", 0, top1[0]), ("kd", 0, top1[1])), int8, strict=True)]
    found = [alarm for alarm in alarms(summarise(rows, "ce"), "ce") if "than ce" in alarm]
    assert found == ([f"kd, 20 epochs, {said}"] if said else [])


def test_a_difference_of_one_seed_on_test_images_is_named_too():
    rows = [row(method, seed, top + seed / 9) for method, top in (("ce", 90), ("kd", 91)) for seed in (0, 1, 2)]
    rows[3]["val_top1_pct"] += 0.01
    assert alarms(summarise(rows, "ce"), "ce") == []
    for tested in (rows[0], rows[3]):
        tested["int8_test_top1_pct"] = tested["val_top1_pct"]
    assert alarms(summarise(rows, "ce"), "ce") == [ONE_SEED]


def test_chosen_blocks_are_compared_with_other_blocks_on_test_images_too():
    rows = [row(name, 0, 90 + i, int8_test_top1_pct=91 - i) for i, name in enumerate(("ce", "random3", "selective"))]
    (said,) = [alarm for alarm in alarms(summarise(rows, "ce"), "ce") if "random3:" in alarm]
    assert said.endswith("random3: +1.00 pp (one seed); INT8 test -1.00 pp (one seed).")


def test_hints_that_are_not_better_than_none_are_an_alarm():
    tops = {"ce": 89.0, "kd": 91.0, "adaptive": 91.5, "selective": 90.8, "all": 91.0}
    assert alarms(summarise([row(name, 0, top) for name, top in tops.items()], "ce"), "ce") == [
        ONE_SEED,
        "selective, 20 epochs, is not better than kd: -0.20 pp (one seed).",
        "selective, 20 epochs, is not better than all: -0.20 pp (one seed).",
        "selective, 20 epochs, is not better than adaptive: -0.70 pp (one seed).",
        "all, 20 epochs, is not better than kd: +0.00 pp (one seed).",
    ]
    rows = [row("selective", seed, 92 + seed) for seed in range(3)] + [row("kd", seed, 92) for seed in range(3)]
    assert alarms(summarise(rows, "ce"), "ce") == [
        NO_CONTROL,
        "selective, 20 epochs, is not shown to be better than kd: +1.00 ± 2.48 pp (not resolved).",
    ]


def test_a_difference_of_fewer_seeds_than_the_mean_says_so():
    rows = [row("ce", 0, 91.0), *(row("kd", seed, 90.0 + seed) for seed in (0, 1))]
    summary = summarise(rows, "ce")
    assert alarms(summary, "ce") == [
        ONE_SEED,
        "kd, 20 epochs, is not better than ce: -1.00 pp (one seed, 1 common seed).",
    ]
    page = render("Methods", summary, [], [], target_accuracy=85)
    assert "| ce | 91.00 (1 seed) |" in page
    assert "| kd | 90.50 ± 0.71 (2 seeds) |" in page
    assert "| kd to ce | -1.00 (one seed, 1 common seed) |" in page


@pytest.fixture
def tested_rows():
    rows = [row("ce", seed, 90, fp32_test_top1_pct=88.5, int8_test_top1_pct=88 + seed) for seed in (0, 1)]
    return rows + [row("kd", s, 91, fp32_test_top1_pct=90 + s, int8_test_top1_pct=89 + 1.1 * s) for s in (0, 1)]


def test_int8_test_accuracy_has_its_spread_its_difference_to_the_control_and_its_loss(tested_rows):
    page = render("Methods", summarise(tested_rows, "ce"), [], [], target_accuracy=85)
    assert "| INT8 test top-1 % | FP32 minus INT8 test, pp |" in page
    assert "| 88.50 ± 0.71 | 0.00 ± 0.71 |" in page  # losses 0.5, -0.5
    assert "| 89.55 ± 0.78 | 0.95 ± 0.07 |" in page  # losses 1, 0.9
    # Differences 1, 1.1: 12.706 * 0.0707 / sqrt(2).
    assert "| kd to ce | +1.00 ± 0.00 (not resolved) | +1.05 ± 0.64 (better) |" in page


def test_test_accuracies_are_of_the_seeds_that_were_measured_and_say_so(tested_rows):
    for column in ("fp32_test_top1_pct", "int8_test_top1_pct"):
        tested_rows[3][column] = None
    summary = summarise(tested_rows, "ce")
    assert [entry["tested_seeds"] for entry in summary] == [2, 1]
    page = render("Methods", summary, [], [], target_accuracy=85)
    assert "| 89.00 (1 of 2 seeds) | 1.00 |" in page
    assert "| 88.50 ± 0.71 | 0.00 ± 0.71 |" in page
    assert "| kd to ce | +1.00 ± 0.00 (not resolved) | +1.00 (one seed, 1 common seed) |" in page


def test_a_mean_of_epochs_is_whole_only_if_it_is():
    rows = [row("ce", seed, 90, reach_epochs=epoch) for seed, epoch in enumerate((10, 11))]
    assert "| 10.5 |" in render("Methods", summarise(rows, "ce"), [], [], target_accuracy=85)
