"""Properties of parsers, splits, intervals, the gate and the image reader on generated inputs."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from kdedge.benchmarks.gate import judge
from kdedge.benchmarks.interval import tango_interval, wilson_interval_pct
from kdedge.benchmarks.sampling import stratified_sample
from kdedge.dataset import Split, keep_used, split_train_val
from kdedge.errors import InputError
from kdedge.export.bundle import standalone
from kdedge.images import read_image
from kdedge.parsing import parse_choices, parse_counts, parse_cpus, parse_paths
from kdedge.pipeline.data.parts import hold_out_groups
from kdedge.preprocessing import RESIZE_MODES

few = settings(
    max_examples=50, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NAMES = ("ce", "kd", "selective", "last3")


def spaced(parts):
    """Texts of a list: its parts with commas, and spaces around them."""
    return st.lists(st.sampled_from(["", " "]), min_size=2 * len(parts), max_size=2 * len(parts)).map(
        lambda spaces: ",".join(
            before + part + after for before, part, after in zip(spaces[::2], parts, spaces[1::2], strict=True)
        )
    )


def distinct(values):
    return list(dict.fromkeys(values))


def outcome(call):
    """Return the result of a call, or the error of what it refuses."""
    try:
        return call(), None
    except InputError as error:
        return None, error


# Parsers ---------------------------------------------------------------------------------------------------------


@few
@given(st.data(), st.lists(st.integers(0, 99), min_size=1))
def test_a_list_of_counts_is_read_back_in_order_and_once_each(data, counts):
    text = data.draw(spaced([str(count) for count in counts]))
    assert parse_counts(text, "--seeds", 99, least=0) == distinct(counts)


@few
@given(st.data(), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 9)), min_size=1))
def test_ranges_of_cpus_are_their_cpus(data, ranges):
    parts = [f"{first}-{first + more}" if more else str(first) for first, more in ranges]
    cpus = [cpu for first, more in ranges for cpu in range(first, first + more + 1)]
    assert parse_cpus(data.draw(spaced(parts)), "--affinity") == distinct(cpus)


@few
@given(st.data(), st.lists(st.sampled_from(NAMES), min_size=1))
def test_a_list_of_names_is_read_back_in_order_and_once_each(data, names):
    assert parse_choices(data.draw(spaced(names)), "--methods", NAMES) == distinct(names)


@few
@given(st.data(), st.lists(st.text("ab./", min_size=1, max_size=5), min_size=1, max_size=6))
def test_a_list_of_paths_is_read_back_in_order_and_once_each(data, names):
    assert parse_paths(data.draw(spaced(names)), "--beside") == [Path(name) for name in distinct(names)]


@settings(few, max_examples=200)
@given(st.text("0123456789,-. ²٣abx", max_size=12))
def test_any_text_is_a_list_or_a_wrong_input(text):
    for parse in (
        lambda: parse_counts(text, "--seeds", 99),
        lambda: parse_cpus(text, "--affinity"),
        lambda: parse_choices(text, "--methods", NAMES),
        lambda: parse_paths(text, "--beside"),
    ):
        found, error = outcome(parse)
        if error:
            assert repr(text) in str(error)
            assert error.hint
        else:
            assert len(set(found)) == len(found)
            assert bool(found) == bool(text)


# Splits ----------------------------------------------------------------------------------------------------------


@st.composite
def labelled(draw):
    """A data set in any order whose images are their indices."""
    counts = draw(st.lists(st.integers(2, 30), min_size=1, max_size=6))
    labels = np.random.default_rng(draw(st.integers(0, 9))).permutation(np.repeat(np.arange(len(counts)), counts))
    images = np.zeros((len(labels), 1, 1, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels))
    return Split(images, labels.astype(np.int64))


def ids(split):
    return split.images[:, 0, 0, 0].tolist()


@few
@given(labelled(), st.floats(0.01, 0.95))
def test_a_division_is_complete_disjoint_in_order_and_stratified(whole, fraction):
    train, val = split_train_val(whole, fraction)
    assert sorted([*ids(train), *ids(val)]) == list(range(len(whole)))
    assert (ids(train), ids(val)) == (sorted(ids(train)), sorted(ids(val)))
    for part in (train, val):
        assert part.labels.tolist() == whole.labels[ids(part)].tolist()
    for count, held in zip(np.bincount(whole.labels), np.bincount(val.labels), strict=True):
        assert 1 <= held < count
        assert abs(held - fraction * count) <= 1


@few
@given(labelled(), st.floats(0.01, 0.95), st.integers(1, 200))
def test_a_train_size_is_met_exactly_and_changes_no_validation_image(whole, fraction, size):
    train, val = split_train_val(whole, fraction)
    try:
        small, same_val = split_train_val(whole, fraction, size)
    except InputError:
        assert size > len(train) or size < len(train) / np.bincount(train.labels).min()
        return
    assert ids(val) == ids(same_val)
    assert len(small) == size
    assert set(ids(small)) <= set(ids(train))
    shares = size * np.bincount(train.labels) / len(train)
    assert np.abs(np.bincount(small.labels) - shares).max() < 1
    # What is kept of the data set is divided in the same way again.
    kept = keep_used(whole, fraction, size)
    assert sorted(ids(kept)) == sorted([*ids(small), *ids(val)])
    assert [ids(part) for part in split_train_val(kept, fraction)] == [ids(small), ids(val)]


@few
@given(labelled(), st.integers(1, 60), st.integers(0, 3))
def test_a_sample_is_stratified_and_the_beginning_of_a_larger_one(whole, count, seed):
    drawn = stratified_sample(whole.labels, count, seed)
    assert len(set(drawn)) == len(drawn) == min(count, len(whole))
    assert stratified_sample(whole.labels, count + 5, seed)[: len(drawn)].tolist() == drawn.tolist()
    there, taken = np.bincount(whole.labels), np.bincount(whole.labels[drawn], minlength=whole.labels.max() + 1)
    # A class with fewer images than another gave all that it has, or is at most one behind.
    assert all(mine == have or mine >= taken.max() - 1 for mine, have in zip(taken, there, strict=True))


@few
@given(st.data(), st.floats(0.05, 0.5), st.integers(1, 2), st.booleans())
def test_groups_are_held_out_as_a_whole_and_every_class_keeps_some(data, fraction, least_kept, pure):
    count = data.draw(st.integers(1, 120))
    drawn = data.draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=count, max_size=count))
    labels, groups = np.array(drawn).T
    if pure:  # each group has one class
        groups += 10 * labels
    groups, labels = (np.unique(values, return_inverse=True)[1] for values in (groups, labels))
    division = [hold_out_groups(labels, groups, fraction, np.random.default_rng(0), least_kept) for _ in range(2)]
    kept, held = division[0]
    assert sorted([*kept, *held]) == list(range(count))
    assert not set(groups[kept]) & set(groups[held])
    assert all(np.array_equal(first, again) for first, again in zip(*division, strict=True))
    for label in np.unique(labels):
        there = len(set(groups[labels == label]))
        assert len(set(groups[kept][labels[kept] == label])) >= min(there, least_kept)
        assert not pure or there <= least_kept or label in labels[held]


# Intervals and the gate ------------------------------------------------------------------------------------------

tables = st.tuples(st.integers(1, 20_000), st.floats(0, 1), st.floats(0, 1)).map(
    lambda drawn: (drawn[0], int(drawn[0] * drawn[1] * drawn[2]), int(drawn[0] * drawn[1] * (1 - drawn[2])))
)


@few
@given(tables, st.floats(0.5, 0.999))
def test_an_interval_holds_its_estimate_mirrors_and_narrows(table, confidence):
    n, only_a, only_b = table
    lower, upper = tango_interval(n, only_a, only_b, confidence)
    assert -1 <= lower <= (only_a - only_b) / n <= upper <= 1
    assert tango_interval(n, only_b, only_a, confidence) == pytest.approx((-upper, -lower), abs=1e-9)
    for inner in (tango_interval(n, only_a, only_b, 0.4), tango_interval(4 * n, 4 * only_a, 4 * only_b, confidence)):
        assert lower - 1e-9 <= inner[0]
        assert inner[1] <= upper + 1e-9


@few
@given(st.integers(1, 20_000), st.floats(0, 1))
def test_the_interval_of_a_share_holds_it(n, share):
    right = int(n * share)
    lower, upper = wilson_interval_pct(right, n)
    assert -1e-4 <= lower <= 100 * right / n + 1e-4
    assert 100 * right / n - 1e-4 <= upper <= 100 + 1e-4
    assert wilson_interval_pct(n - right, n) == pytest.approx([100 - upper, 100 - lower], abs=2e-4)


def gate(table, limit_pp):
    n, only_fp32, only_int8 = table
    fp32, int8 = np.ones(n, bool), np.ones(n, bool)
    int8[:only_fp32] = False
    fp32[only_fp32 : only_fp32 + only_int8] = False
    return judge(fp32, int8, limit_pp)


@few
@given(tables, st.floats(0.1, 5), st.floats(1, 10))
def test_a_larger_limit_never_turns_a_verdict_for_the_worse(table, limit_pp, factor):
    order = ("failed", "undecided", "passed")
    strict, lenient = (gate(table, limit) for limit in (limit_pp, limit_pp * factor))
    assert order.index(strict["verdict"]) <= order.index(lenient["verdict"])
    assert strict["passed"] == (strict["verdict"] == "passed") == (strict["cause"] is None)
    if strict["passed"]:
        assert strict["loss_upper95_pp"] <= limit_pp


@few
@given(tables, st.floats(0.1, 5))
def test_the_gate_promises_what_holds(table, limit_pp):
    made = gate(table, limit_pp)
    if made["provable_pp"] is not None:
        assert made["provable_pp"] >= limit_pp
        provable = gate(table, made["provable_pp"])
        assert provable["cause"] != "loss"
    if needed := made["images_to_decide"]:
        assert needed > table[0]


# The image reader ------------------------------------------------------------------------------------------------

MODES = {"1": 2, "L": 256, "LA": 256, "P": 256, "RGB": 256, "RGBA": 256, "I;16": 1 << 16}
TURNED = {1: 0, 3: 2, 6: 1, 8: 3}  # EXIF orientation: quarter turns that undo it


@st.composite
def pictures(draw):
    """An image of any mode, size and content that PNG can hold."""
    mode = draw(st.sampled_from(sorted(MODES)))
    shape = (draw(st.integers(1, 40)), draw(st.integers(1, 40)))
    channels = {"LA": (2,), "RGB": (3,), "RGBA": (4,)}.get(mode, ())
    values = np.random.default_rng(draw(st.integers(0, 99))).integers(0, MODES[mode], (*shape, *channels))
    if mode == "1":
        return Image.fromarray(values.astype(np.uint8) * 255).convert("1")
    if mode == "P":
        return Image.fromarray(np.stack([values] * 3, -1).astype(np.uint8)).quantize(16)
    return Image.fromarray(values.astype(np.uint16 if mode == "I;16" else np.uint8))


@few
@given(pictures(), st.integers(1, 24), st.sampled_from(RESIZE_MODES))
def test_any_image_becomes_pixels_of_the_size_and_the_same_in_the_bundle(tmp_path, picture, size, mode):
    picture.save(tmp_path / "picture.png")
    pixels = read_image(tmp_path / "picture.png", size, mode)
    assert (pixels.shape, pixels.dtype) == ((size, size, 3), np.uint8)
    assert np.array_equal(pixels, standalone.decode(tmp_path / "picture.png", size, mode))


@few
@given(st.integers(1, 24), st.integers(0, 99), st.sampled_from(sorted(TURNED)), st.sampled_from(["PNG", "TIFF"]))
def test_pixels_of_the_wanted_size_are_kept_and_turned_upright(tmp_path, size, seed, orientation, format_):
    upright = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.rot90(upright, TURNED[orientation]))
    stored.save(tmp_path / "picture", format_, exif=exif)
    assert np.array_equal(read_image(tmp_path / "picture", size), upright)


@pytest.mark.filterwarnings("ignore")  # pytest undoes the filter that the reader sets
@settings(few, max_examples=150)
@given(st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"GIF89a", b"RIFF", b"BM"]), st.binary())
def test_any_bytes_are_pixels_or_a_wrong_input(tmp_path, head, rest):
    path = tmp_path / "picture"
    path.write_bytes(head + rest)
    pixels, error = outcome(lambda: read_image(path, 8))
    if error:
        assert str(path) in str(error)
    else:
        assert pixels.shape == (8, 8, 3)
