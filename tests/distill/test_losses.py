"""Losses against torch's own and against the formulas of their papers."""

import math

import torch
import torch.nn.functional as F
from scipy.stats import pearsonr, zscore

from fed_distill.distill.losses import (
    attention_loss,
    contrastive_loss,
    correlation_loss,
    cross_entropy,
    decision_cross_entropy,
    decoupled_kl,
    distillation_kl,
    embedding_loss,
    graded_log_odds,
    hard_and_soft_labels,
    hard_labels,
    hidden_loss,
    hint_loss,
    listwise_loss,
    margin_loss,
    relation_loss,
    soft_cross_entropy,
    soft_labels,
    soften,
    softened_cross_entropy,
    standardized,
    standardized_probabilities,
)
from fed_distill.models.base import Outputs

DRAW = torch.Generator().manual_seed(0)
LOGITS = torch.randn(6, 4, generator=DRAW) * 3
TEACHER = torch.randn(6, 4, generator=DRAW) * 3
LABELS = torch.tensor([0, 3, 2, 1, 1, 0])


def test_cross_entropy_is_minus_the_log_probability_of_the_label():
    expected = torch.stack(
        [-torch.log(row.exp()[label] / row.exp().sum()) for row, label in zip(LOGITS, LABELS, strict=True)]
    )
    torch.testing.assert_close(cross_entropy(LOGITS, LABELS), expected)
    torch.testing.assert_close(hard_labels()(Outputs(LOGITS), {"labels": LABELS}), expected)


def test_soft_cross_entropy_is_that_of_torch_and_at_a_certain_label_the_hard_one():
    probabilities = TEACHER.softmax(dim=-1)
    torch.testing.assert_close(
        soft_cross_entropy(LOGITS, probabilities), F.cross_entropy(LOGITS, probabilities, reduction="none")
    )
    torch.testing.assert_close(soft_cross_entropy(LOGITS, F.one_hot(LABELS, 4).float()), cross_entropy(LOGITS, LABELS))


def test_softened_probabilities_are_the_softmax_of_the_logits_over_the_temperature():
    for temperature in (0.5, 1.0, 2.0, 10.0):
        torch.testing.assert_close(
            soften(TEACHER.softmax(dim=-1), temperature), (TEACHER / temperature).softmax(dim=-1)
        )
    certain = torch.tensor([[1.0, 0.0, 0.0]])
    torch.testing.assert_close(soften(certain, 2.0), certain)


def test_distillation_is_torchs_divergence_times_the_squared_temperature():
    for temperature in (1.0, 2.0, 5.0):
        p, log_q = (TEACHER / temperature).softmax(dim=-1), (LOGITS / temperature).log_softmax(dim=-1)
        expected = temperature**2 * F.kl_div(log_q, p, reduction="none").sum(dim=-1)
        torch.testing.assert_close(distillation_kl(LOGITS, p, temperature), expected)
        objective = soft_labels(temperature)(Outputs(LOGITS), {"soft_labels": TEACHER.softmax(dim=-1)})
        torch.testing.assert_close(objective, expected, rtol=1e-4, atol=1e-5)


def test_distillation_is_never_negative_and_zero_for_the_teachers_own_logits():
    p = (TEACHER / 2).softmax(dim=-1)
    assert float(distillation_kl(LOGITS, p, 2.0).min()) > 0
    torch.testing.assert_close(distillation_kl(TEACHER + 7.0, p, 2.0), torch.zeros(6), atol=1e-5, rtol=0)


def test_certain_soft_labels_have_a_finite_loss_and_gradient():
    logits = LOGITS.clone().requires_grad_()
    loss = soft_labels(2.0)(Outputs(logits), {"soft_labels": F.one_hot(LABELS, 4).float()})
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(logits.grad).all()


def test_a_decision_is_the_class_that_the_teacher_holds_most_likely():
    probabilities = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]])
    logits = torch.tensor([[0.0, 1.0, 2.0], [3.0, 1.0, 0.0]])
    expected = F.cross_entropy(logits, torch.tensor([1, 0]), reduction="none")
    torch.testing.assert_close(decision_cross_entropy(logits, probabilities), expected)


def test_following_a_level_is_cross_entropy_with_it_and_differs_from_the_divergence_by_its_entropy():
    p, log_q = (TEACHER / 3).softmax(dim=-1), (LOGITS / 3).log_softmax(dim=-1)
    followed = softened_cross_entropy(LOGITS, TEACHER.softmax(dim=-1), 3.0)
    torch.testing.assert_close(followed, -9 * (p * log_q).sum(dim=-1), rtol=1e-4, atol=1e-5)
    entropy = -(p * p.log()).sum(dim=-1)
    torch.testing.assert_close(followed - distillation_kl(LOGITS, p, 3.0), 9 * entropy, rtol=1e-4, atol=1e-4)


def test_a_hint_costs_half_the_squared_distance():
    guided, hint = torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.0, 0.0]]), torch.tensor([[0.0, 2.0, 1.0], [3.0, 4.0, 0.0]])
    torch.testing.assert_close(hint_loss(guided, hint), torch.tensor([2.5, 12.5]))
    torch.testing.assert_close(hint_loss(guided, hint), 0.5 * F.mse_loss(guided, hint, reduction="none").sum(dim=1))


def test_hidden_states_cost_their_mean_squared_difference_in_each_layer():
    states, targets = torch.randn(2, 5, 3, 7, generator=DRAW)
    layers = [[F.mse_loss(states[row, layer], targets[row, layer]) for layer in range(3)] for row in range(5)]
    torch.testing.assert_close(hidden_loss(states, targets), torch.tensor(layers).sum(dim=1))


def test_attention_costs_half_the_distance_of_the_maps_directions():
    maps = torch.tensor([[[3.0, 4.0], [2.0, 0.0]]])
    targets = torch.tensor([[[0.0, 5.0], [7.0, 0.0]]])
    torch.testing.assert_close(attention_loss(maps, targets), torch.tensor([0.5 * (0.6**2 + 0.2**2) ** 0.5]))
    torch.testing.assert_close(attention_loss(10 * maps, 0.1 * targets), attention_loss(maps, targets))


def test_equal_maps_cost_nothing_and_have_a_gradient():
    maps = torch.tensor([[[3.0, 4.0]]], requires_grad=True)
    loss = attention_loss(maps, maps.detach())
    loss.sum().backward()
    assert loss.item() == 0.0
    assert torch.equal(maps.grad, torch.zeros(1, 1, 2))


def test_lists_cost_the_divergence_of_their_top_one_probabilities():
    # ListNet's example of two lists, by hand: softmax(0, ln 3) = (1/4, 3/4), softmax(0, 0) = (1/2, 1/2)
    teacher, student = torch.tensor([[0.0, math.log(3.0)]]), torch.zeros(1, 2)
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    torch.testing.assert_close(listwise_loss(student, teacher, 1.0), torch.tensor([expected]))
    torch.testing.assert_close(listwise_loss(student, 2 * teacher, 2.0), torch.tensor([4 * expected]))
    torch.testing.assert_close(listwise_loss(teacher + 5.0, teacher, 3.0), torch.zeros(1), atol=1e-6, rtol=0)


def test_decoupling_by_hand():
    # p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4), target class 0
    p, logits = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[1.0, 2.0, 1.0]]).log()
    of_target = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    of_others = 0.5 * math.log(0.5 / (2 / 3)) + 0.5 * math.log(0.5 / (1 / 3))
    torch.testing.assert_close(decoupled_kl(logits, p, 1.0, 8.0), torch.tensor([of_target + 8 * of_others]))
    torch.testing.assert_close(decoupled_kl(3 * logits, p, 3.0, 2.0), torch.tensor([9 * (of_target + 2 * of_others)]))


def test_distillation_is_decoupled_with_the_share_of_the_other_classes_as_weight():
    """Zhao et al. 2022, eq. 6: KD = TCKD + (1 - p_t) NCKD."""
    softened = (TEACHER / 2).softmax(dim=-1)
    for logits, p in zip(LOGITS.split(1), softened.split(1), strict=True):
        weight = 1.0 - float(p.max())
        expected = distillation_kl(logits, p, 2.0)
        torch.testing.assert_close(decoupled_kl(logits, p, 2.0, weight), expected, rtol=1e-4, atol=1e-5)


def test_correlation_by_hand_and_as_scipys():
    # p - 1/3 = (5, -1, -4) / 30 and q - 1/3 = (-4, -1, 5) / 30: their correlation is -39/42
    p, q = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.2, 0.3, 0.5]])
    torch.testing.assert_close(correlation_loss(q.log(), p, 1.0), torch.tensor([1 + 39 / 42]))
    softened = (TEACHER / 2).softmax(dim=-1)
    pairs = zip((LOGITS / 2).softmax(dim=-1), softened, strict=True)
    expected = torch.tensor([4 * (1 - pearsonr(one, other).statistic) for one, other in pairs])
    torch.testing.assert_close(correlation_loss(LOGITS, softened, 2.0), expected.float(), rtol=1e-4, atol=1e-5)


def test_certain_labels_and_sure_students_have_finite_losses_and_gradients():
    certain, logits = F.one_hot(LABELS, 4).float(), torch.cat([LOGITS[:4], torch.zeros(1, 4), 80 * LOGITS[5:]])
    for loss in (
        lambda values: decoupled_kl(values, certain, 1.0, 8.0),
        lambda values: correlation_loss(values, certain, 1.0),
        lambda values: distillation_kl(standardized(values), standardized_probabilities(certain), 1.0),
        lambda values: graded_log_odds(values, (1.0, 0.1, 0.01, 0.0)),
    ):
        values = logits.clone().requires_grad_()
        found = loss(values)
        found.sum().backward()
        assert torch.isfinite(found).all()
        assert torch.isfinite(values.grad).all()


def test_standardized_logits_are_z_scores():
    torch.testing.assert_close(
        standardized(torch.tensor([[1.0, 2.0, 3.0]])), torch.tensor([[-1.0, 0.0, 1.0]]) * 1.5**0.5
    )
    expected = torch.from_numpy(zscore(LOGITS.numpy(), axis=1))
    torch.testing.assert_close(standardized(LOGITS), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        standardized_probabilities(LOGITS.softmax(dim=-1)), expected.softmax(dim=-1), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(standardized(torch.full((1, 3), 7.0)), torch.zeros(1, 3))


def test_a_mix_of_labels_may_be_of_standardized_logits():
    references = {"labels": LABELS, "soft_labels": TEACHER.softmax(dim=-1)}
    p, q = (torch.from_numpy(zscore(values.numpy(), axis=1)) / 2 for values in (TEACHER, LOGITS))
    expected = 0.3 * F.cross_entropy(LOGITS, LABELS, reduction="none")
    expected += 0.7 * 4 * F.kl_div(q.log_softmax(dim=1), p.softmax(dim=1), reduction="none").sum(dim=1)
    found = hard_and_soft_labels(2.0, 0.3, standardize=True)(Outputs(LOGITS), references)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_raw_score_is_the_log_odds_of_the_expected_gain_and_ranks_as_it_does():
    p = torch.tensor([[0.2, 0.5, 0.3]])  # expected gain 0.2 + 0.5 / 2 = 0.45
    torch.testing.assert_close(graded_log_odds(p.log() + 7.0, (1.0, 0.5, 0.0)), torch.tensor([math.log(0.45 / 0.55)]))
    torch.testing.assert_close(graded_log_odds(p.log(), (5.0, 4.0, 3.0)), torch.tensor([math.log(0.45 / 0.55)]))
    two = torch.tensor([[-1.5, 2.0], [3.0, 3.0]])
    torch.testing.assert_close(graded_log_odds(two, (0.0, 1.0)), torch.tensor([3.5, 0.0]))
    logits = 4 * torch.randn(500, 4, generator=DRAW, dtype=torch.float64)
    gains = (1.0, 0.1, 0.01, 0.0)
    expected = logits.softmax(dim=-1) @ torch.tensor(gains, dtype=torch.float64)
    assert torch.equal(graded_log_odds(logits, gains).argsort(), expected.argsort())


def test_contrastive_loss_is_the_cross_entropy_of_the_first_score_as_far_as_it_is_relevant():
    scores = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0], [-5.0, 5.0]])
    found = contrastive_loss(scores, torch.tensor([0.5, 1.0, 0.0]))
    torch.testing.assert_close(found, torch.tensor([0.5 * math.log(4 / 3), math.log(2.0), 0.0]))


def test_embeddings_cost_the_squared_distance_of_their_directions():
    # a right angle costs 2, an equal direction nothing
    vectors = torch.tensor([[[3.0, 0.0], [1.0, 1.0]], [[2.0, 0.0], [0.0, -1.0]]])
    targets = torch.tensor([[[0.0, 7.0], [2.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]]])
    torch.testing.assert_close(embedding_loss(vectors, targets), torch.tensor([1.0, 2.0]))


def test_relations_and_margins_cost_their_squared_difference():
    student, teacher = torch.tensor([0.5, -0.2, 0.0]), torch.tensor([0.1, -0.2, 1.0])
    for loss in (relation_loss, margin_loss):
        torch.testing.assert_close(loss(student, teacher), torch.tensor([0.16, 0.0, 1.0]))


def test_a_margin_does_not_depend_on_which_candidate_comes_first():
    student, teacher = torch.tensor([0.5, -0.2]), torch.tensor([0.1, 0.4])
    torch.testing.assert_close(margin_loss(-student, -teacher), margin_loss(student, teacher))


def test_hard_and_soft_labels_are_weighed_against_each_other():
    references = {"labels": LABELS, "soft_labels": TEACHER.softmax(dim=-1)}
    hard, soft = hard_labels()(Outputs(LOGITS), references), soft_labels(2.0)(Outputs(LOGITS), references)
    both = hard_and_soft_labels(2.0, 0.3)(Outputs(LOGITS), references)
    torch.testing.assert_close(both, 0.3 * hard + 0.7 * soft)
