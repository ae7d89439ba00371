import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from kdedge.inputs import image_input
from kdedge.pipeline.distill.beta import BetaSchedule, KdSchedule, hint_share, kd_share, skill
from kdedge.pipeline.distill.blocks import (
    TeacherBlock,
    every_block,
    highest,
    highest_variance,
    last_blocks,
    random_blocks,
    stage_ends,
)
from kdedge.pipeline.distill.dynamic import DynamicChoice
from kdedge.pipeline.distill.gradients import gradient_shares
from kdedge.pipeline.distill.hints import (
    HintAdapters,
    HintPair,
    measure_similarity,
    pair_blocks,
    probe_shapes,
    scan_variance,
)
from kdedge.pipeline.distill.losses import hint_loss, kd_loss
from kdedge.pipeline.models.student import build_student
from kdedge.pipeline.models.teacher import FeatureTap, build_teacher, hint_candidates
from kdedge.pipeline.training.balance import class_weights


def test_kd_loss_equals_the_value_worked_out_by_hand():
    # Teacher (3/4, 1/4), student (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2).
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    teacher = torch.tensor([[math.log(3.0), 0.0]] * 5)
    assert kd_loss(torch.zeros(5, 2), teacher, 1.0).item() == pytest.approx(kl, abs=1e-6)
    # Logits twice as large at T = 2 give the same distributions, times T^2.
    assert kd_loss(torch.zeros(5, 2), 2 * teacher, 2.0).item() == pytest.approx(4 * kl, abs=1e-6)


def test_kd_loss_of_equal_logits_is_zero_and_its_gradient_does_not_scale_with_the_batch():
    logits = torch.randn(4, 10)
    assert kd_loss(logits, logits, 4.0).item() == pytest.approx(0, abs=1e-6)
    other = torch.randn(4, 10)
    once, twice = kd_loss(logits, other, 4.0), kd_loss(logits.repeat(2, 1), other.repeat(2, 1), 4.0)
    assert once.item() == pytest.approx(twice.item(), rel=1e-5)


def test_the_kd_term_weighs_all_classes_the_same_as_the_cross_entropy_does():
    labels = torch.tensor([0] * 6 + [1] * 2)
    student, teacher = torch.randn(8, 3), torch.randn(8, 3)
    weights = class_weights(labels.numpy())
    each = torch.stack([kd_loss(student[i : i + 1], teacher[i : i + 1], 2.0) for i in range(8)])
    expected = (each[:6].mean() + each[6:].mean()) / 2
    assert kd_loss(student, teacher, 2.0, labels, weights).item() == pytest.approx(expected.item(), rel=1e-5)
    shares = functional.one_hot(labels, 2).float()
    assert kd_loss(student, teacher, 2.0, shares, weights).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_gradient_of_a_hint_keeps_the_layout_of_the_map():
    predicted, target = (torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last) for _ in range(2))
    predicted.requires_grad_(True)
    (gradient,) = torch.autograd.grad(hint_loss(predicted, target, 2.0), predicted)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(gradient, (predicted - target) / predicted.numel())


def test_normalised_hint_loss_is_one_for_predicting_the_mean():
    target = torch.randn(8, 4, 6, 6) * 7 + 3
    mean = target.mean().expand_as(target)
    assert hint_loss(mean, target, target.var(correction=0)).item() == pytest.approx(1, abs=1e-5)
    assert hint_loss(torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, 3.0]]]]), 1.0).item() == pytest.approx(5.0)


def test_beta_is_halved_after_two_epochs_without_a_better_loss_counting_from_the_end_of_the_warmup():
    schedule = BetaSchedule(250, patience=2, warmup_epochs=2, adaptive=True, drop=False)
    seen = []
    for epoch, loss in enumerate([0.1, 0.1, 5.0, 4.0, 4.5, 4.0, 3.9, 4.1, 4.2, 4.3, 4.4]):
        schedule.update(epoch, loss, passed=False)
        seen.append(schedule.beta)
    assert seen == [250, 250, 250, 250, 250, 125, 125, 125, 62.5, 62.5, 31.25]


def test_beta_ends_for_good_once_the_teacher_is_passed_if_that_is_wanted():
    def betas(**options):
        schedule = BetaSchedule(8, patience=1, warmup_epochs=1, **options)
        seen = []
        for epoch, (loss, passed) in enumerate([(1, True), (2, False), (3, True), (1, False), (4, False)]):
            schedule.update(epoch, loss, passed=passed)
            seen.append(schedule.beta)
        return seen

    assert betas(adaptive=True, drop=True) == [8, 8, 0, 0, 0]
    assert betas(adaptive=True, drop=False) == [8, 8, 4, 4, 2]
    assert betas(adaptive=False, drop=True) == [8, 8, 8, 8, 8]


def test_hints_count_by_what_the_teacher_knows_beyond_the_largest_class():
    skills = [skill(pct, 10.0) for pct in (5.0, 10.0, 41.5, 73.0, 82.0, 91.0, 100.0)]
    assert [hint_share(known) for known in skills] == pytest.approx([0, 0, 0, 0, 0.5, 1, 1])
    assert [kd_share(known) for known in skills] == pytest.approx([0, 0, 0.125, 1, 1, 1, 1])
    assert hint_share(skill(82.0, 60.0)) == 0
    assert skill(100.0, 100.0) == 0


def test_kd_ends_for_good_below_four_fifths_of_the_errors_of_the_teacher():
    schedule = KdSchedule(drop=True)
    for student, active in ((50.0, True), (69.0, True), (76.5, False), (20.0, False)):
        schedule.update(student, 70.0)
        assert schedule.active is active
    resumed = KdSchedule(drop=True)
    resumed.load_state_dict(schedule.state_dict())
    assert not resumed.active
    kept = KdSchedule(drop=False)
    kept.update(99.0, 10.0)
    assert kept.active


def test_static_beta_stays():
    schedule = BetaSchedule(250, patience=1, warmup_epochs=0, adaptive=False, drop=True)
    for epoch in range(5):
        schedule.update(epoch, 1.0, passed=True)
    assert schedule.beta == 250


def test_beta_goes_on_from_its_saved_state():
    first = BetaSchedule(8, patience=2, warmup_epochs=0, adaptive=True, drop=False)
    for epoch, loss in enumerate([1.0, 2.0]):
        first.update(epoch, loss, passed=False)
    second = BetaSchedule(8, patience=2, warmup_epochs=0, adaptive=True, drop=False)
    second.load_state_dict(first.state_dict())
    second.update(2, 2.0, passed=False)
    assert second.beta == 4


def test_blocks_of_the_highest_variance_are_chosen_in_depth_order():
    variances = {"a": 5.0, "b": 1.0, "c": 9.0, "d": 7.0}
    blocks = {name: TeacherBlock(variance, 8) for name, variance in variances.items()}
    assert highest_variance(blocks, 3) == highest(variances, 3) == ("a", "c", "d")
    assert last_blocks(blocks, 3) == ("b", "c", "d")
    assert every_block(blocks, 3) == ("a", "b", "c", "d")


def test_stages_end_where_names_or_the_size_of_the_maps_change():
    def ends(**sides):
        return stage_ends({name.replace("_", "."): TeacherBlock(1.0, side) for name, side in sides.items()})

    assert ends(layer1_0=8, layer1_1=8, layer2_0=4) == ("layer1.1", "layer2.0")
    assert ends(layer3_1=1, layer4_0=1, layer4_1=1) == ("layer3.1", "layer4.1")  # of tiny images
    assert ends(features_0=16, features_1=16, features_2=8, features_3=8) == ("features.1", "features.3")


def test_random_blocks_are_drawn_by_the_seed_in_depth_order():
    names = [f"b{index}" for index in range(8)]
    draws = [random_blocks(dict.fromkeys(names, TeacherBlock(1.0, 8)), 3, seed) for seed in range(200)]
    assert draws[3] == random_blocks(dict.fromkeys(names, TeacherBlock(9.0, 4)), 3, 3)
    assert all(list(draw) == sorted(draw) and len(set(draw)) == 3 for draw in draws)
    # Each block in 3 of 8 draws: 75 of 200, with a standard deviation of 7.
    assert all(50 <= sum(name in draw for draw in draws) <= 100 for name in names)


def test_dynamic_takes_the_blocks_that_the_student_explains_least():
    pairs = tuple(HintPair(name, index, 4, 4) for index, name in enumerate("abcd"))
    adapters = HintAdapters(pairs, normalised=True)
    adapters.choose(("a", "b"))
    choice = DynamicChoice(adapters, 2, every=2, epochs=6)
    shares = {"a": 0.2, "b": 0.9, "c": 0.1, "d": 0.5}
    choice.update(0, lambda: pytest.fail("measured in an epoch without a choice"))
    assert adapters.chosen == ("a", "b")
    choice.update(1, lambda: shares)
    assert adapters.chosen == ("b", "d")
    choice.update(3, lambda: {**shares, "c": 0.95})
    assert adapters.chosen == ("b", "c")
    choice.update(5, lambda: pytest.fail("measured after the last epoch"))
    assert [entry["epoch"] for entry in choice.history] == [0, 2, 4]

    resumed = HintAdapters(pairs, normalised=True)
    resumed.choose(("a", "b"))
    DynamicChoice(resumed, 2, every=2, epochs=6).load_state_dict(choice.state_dict())
    assert resumed.chosen == ("b", "c")


def test_only_chosen_adapters_are_trained_and_the_others_keep_their_weights():
    pairs = tuple(HintPair(name, 0, 3, 2) for name in "ab")
    adapters = HintAdapters(pairs, normalised=False)
    optimizer = torch.optim.SGD(adapters.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    maps, targets = [torch.randn(4, 2, 5, 5)], {name: torch.randn(4, 3, 5, 5) for name in "ab"}

    def train(*chosen):
        before = [adapter[0].weight.clone() for adapter in adapters.adapters]
        adapters.choose(chosen)
        loss = adapters(maps, {name: targets[name] for name in chosen})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return [not torch.equal(old, new[0].weight) for old, new in zip(before, adapters.adapters, strict=True)]

    assert train("a", "b") == [True, True]
    assert train("a") == [True, False]  # neither momentum nor weight decay moves what is left out
    assert train("b") == [False, True]


def test_gradient_shares_equal_the_values_worked_out_by_hand():
    weights = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    other = torch.nn.Parameter(torch.tensor(5.0))
    # Gradients (3, 4), norm 5, and (0, 15), norm 15; `other` is no weight of the student.
    terms = {"kd": (weights * torch.tensor([3.0, 4.0])).sum() + other, "hint": 15 * weights[1] * other / 5}
    shares = gradient_shares(terms, [weights])
    assert shares == {"kd": pytest.approx(25), "hint": pytest.approx(75)}
    assert weights.grad is None
    sum(terms.values()).backward()  # the graph is still there
    assert gradient_shares({"ce": terms["kd"]}, [weights]) == {"ce": 100}


def test_pairs_follow_depth_at_the_nearest_resolution():
    student = [(32, 32), (64, 16), (128, 8), (256, 4), (384, 4)]
    pairs = pair_blocks({"t8": (128, 8), "t4": (256, 4), "t2": (512, 2)}, student)
    assert [(p.teacher_block, p.student_block) for p in pairs] == [("t8", 2), ("t4", 3), ("t2", 4)]
    assert pairs[0] == HintPair("t8", 2, 128, 128)
    # One block at 4 x 4: both student blocks fit, the deeper is taken.
    assert pair_blocks({"t4": (256, 4)}, student)[0].student_block == 4
    # More teacher blocks than student blocks: blocks repeat, the order holds.
    many = pair_blocks({f"t{i}": (8, 8) for i in range(8)}, student)
    indices = [pair.student_block for pair in many]
    assert indices == sorted(indices)
    assert len(indices) == 8


def test_pairs_are_the_best_of_all_assignments_and_deep_networks_take_no_time():
    rng = np.random.default_rng(0)
    for _ in range(60):
        teacher_sides = [int(side) for side in sorted(2 ** rng.integers(0, 5, rng.integers(1, 6)), reverse=True)]
        student_sides = [int(side) for side in sorted(2 ** rng.integers(0, 5, rng.integers(1, 6)), reverse=True)]
        once = len(teacher_sides) <= len(student_sides)
        pick = itertools.combinations if once else itertools.combinations_with_replacement
        best = min(
            pick(range(len(student_sides)), len(teacher_sides)),
            key=lambda choice: (
                sum(abs(math.log2(t / student_sides[s])) for t, s in zip(teacher_sides, choice, strict=True)),
                [-index for index in choice],
            ),
        )
        shapes = {f"block{number}": (4, side) for number, side in enumerate(teacher_sides)}
        pairs = pair_blocks(shapes, [(2, side) for side in student_sides])
        assert [pair.student_block for pair in pairs] == list(best)
    deep = {f"block{number}": (4, 32 >> number // 13) for number in range(50)}
    assert len(pair_blocks(deep, [(2, 32 >> number // 5) for number in range(19)])) == 50
    assert pair_blocks({}, [(2, 8)]) == ()


def test_variance_scan_equals_numpy_over_all_four_axes():
    teacher = build_teacher("resnet18", 3, "cifar-pool").eval()
    batches = [torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)]
    scanned = scan_variance(teacher, batches)
    assert list(scanned) == [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]
    expected = []
    with torch.no_grad(), FeatureTap(teacher, ("layer2.1",)) as tap:
        for batch in batches:
            teacher(batch)
            expected.append(np.var(tap.maps["layer2.1"].numpy()))
    assert scanned["layer2.1"] == pytest.approx(np.mean(expected), rel=1e-4)


def test_a_tap_captures_the_sum_before_the_last_relu_and_removes_its_hooks():
    teacher = build_teacher("resnet18", 3, "cifar-pool").eval()
    block = teacher.backbone.layer1[0]
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad(), FeatureTap(teacher, ("layer1.0",)) as tap:
        teacher(x)
        captured = tap.maps["layer1.0"]
    backbone = teacher.backbone
    with torch.no_grad():
        stem = backbone.maxpool(backbone.relu(backbone.bn1(backbone.conv1((x - teacher.mean) / teacher.std))))
        by_hand = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(stem))))) + stem
    torch.testing.assert_close(captured, by_hand)
    assert captured.min() < 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in teacher.modules())


def test_a_tap_removes_its_hooks_after_an_error():
    teacher = build_teacher("resnet18", 3, "cifar-pool")
    with pytest.raises(RuntimeError), FeatureTap(teacher, ("layer1.0",)):
        raise RuntimeError
    assert not any(module._forward_pre_hooks for module in teacher.modules())


def test_other_classifiers_offer_their_feature_stages_or_nothing():
    assert "features.3" in hint_candidates(build_teacher("mobilenet_v2", 2, "imagenet"))
    assert hint_candidates(build_teacher("shufflenet_v2_x0_5", 2, "imagenet")) == {}
    # Its maps have their channels last, where hints look for a side.
    assert hint_candidates(build_teacher("swin_t", 2, "imagenet")) == {}


def test_adapters_map_student_maps_to_teacher_maps_and_stay_out_of_the_student():
    student = build_student("lite-xs", 3, image_input(16))
    before = set(student.state_dict())
    pairs = (HintPair("t", 1, 20, 32),)
    adapters = HintAdapters(pairs, normalised=True)
    maps = student.features(torch.rand(4, 3, 16, 16))
    target = {"t": torch.randn(4, 20, 8, 8)}
    adapters.calibrate(maps, target)
    loss = adapters(maps, target)
    loss.backward()
    assert adapters.variances.item() == pytest.approx(
        torch.nn.functional.adaptive_avg_pool2d(target["t"], 4).var(dim=(0, 2, 3), correction=0).mean().item()
    )
    assert student.blocks[1].conv.weight.grad is not None
    assert set(student.state_dict()) == before


def test_similarity_of_a_linear_image_of_the_teacher_is_perfect_and_of_noise_is_none():
    generator = torch.Generator().manual_seed(0)
    pair = HintPair("t", 0, 6, 8)

    def maps(seed, linear):
        generator.manual_seed(seed)
        student_map = torch.randn(64, 8, 4, 4, generator=generator)
        generator.manual_seed(99)
        weight = torch.randn(6, 8, generator=generator)
        teacher_map = torch.einsum("oc,nchw->nohw", weight, student_map) + 2
        if not linear:
            generator.manual_seed(seed + 50)
            teacher_map = torch.randn(64, 6, 4, 4, generator=generator)
        return [student_map], {"t": teacher_map}

    unexplained, cosine = measure_similarity(pair, maps(1, True), maps(2, True))
    assert unexplained == pytest.approx(0, abs=1e-5)
    assert cosine == pytest.approx(1, abs=1e-4)
    unexplained, cosine = measure_similarity(pair, maps(1, False), maps(2, False))
    assert unexplained == pytest.approx(1, abs=0.05)
    assert abs(cosine) < 0.05


def test_hints_pair_a_resnet_teacher_with_a_mobilenet_student_and_train_it():
    torch.manual_seed(0)
    teacher = build_teacher("resnet18", 3, "cifar-pool").eval()
    student = build_student("mobilenet_v2", 3, image_input(16))
    pixels = torch.rand(4, 3, 16, 16)
    shapes, student_shapes = probe_shapes(teacher, student.features, pixels)
    ends = stage_ends({name: TeacherBlock(1.0, side) for name, (_, side) in shapes.items()})
    pairs = pair_blocks({name: shapes[name] for name in ends}, student_shapes)
    # The teacher ends at 1 x 1, the student at 2 x 2.
    assert [student_shapes[pair.student_block][1] for pair in pairs] == [8, 4, 2, 2]
    adapters = HintAdapters(pairs, normalised=True)
    with torch.no_grad(), FeatureTap(teacher, tuple(pair.teacher_block for pair in pairs)) as tap:
        teacher(pixels)
        targets = dict(tap.maps)
    adapters(student.features(pixels), targets).backward()
    assert student.blocks[0][0].weight.grad.abs().sum() > 0
