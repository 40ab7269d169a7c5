"""Domain adaptation: three stages, each kept only if it clearly improves the student on validation."""

import numpy as np
import pytest
import torch

from fed_distill.distill.adapt import AdaptationStage, Part, adapt, domain_stages
from fed_distill.distill.losses import soft_labels
from fed_distill.evaluation.resampling import mean_of, resampled
from fed_distill.training.plan import Phase, Plan

LABELS = torch.full((2, 3), 1 / 3)


def test_the_stages_fine_tune_distil_and_fine_tune_again():
    references = {"soft_labels": LABELS}
    distil = Phase(soft_labels(2.0), data="proxy", epochs=1.5, references=references)
    stages = domain_stages(distil, 6)
    assert all(len(stage.parts) == 1 and not stage.parts[0].frozen for stage in stages)
    phases = [stage.parts[0].plan.phases for stage in stages]
    assert [[phase.data for phase in some] for some in phases] == [["private"], ["proxy"], ["private"]]
    assert [some[0].steps for some in phases] == [6, None, 6]
    assert phases[1][0].epochs == 1.5
    assert torch.equal(phases[1][0].references["soft_labels"], LABELS)
    assert len({stage.title for stage in stages}) == 3


def test_gradual_unfreezing_frees_the_last_layer_first_in_the_same_time():
    distil = Phase(soft_labels(2.0), data="proxy", epochs=1.5, references={"soft_labels": LABELS})
    layers = (frozenset({"words"}), frozenset({"middle.a", "middle.b"}), frozenset({"head"}))
    first, between, last = domain_stages(distil, 7, layers)
    assert first.parts == last.parts
    assert [set(part.frozen) for part in first.parts] == [{"words", "middle.a", "middle.b"}, {"words"}, set()]
    assert [part.plan.phases[0].steps for part in first.parts] == [2, 2, 3]
    assert [set(part.frozen) for part in between.parts] == [set()]


def validation(score):
    """A score that is the same on all queries, so that differences have no standard error."""
    return resampled(mean_of([score] * 4), range(4))


def run(scores):
    """Adapt through stages after which validation gives ``scores``; the weights count the stages that were kept."""
    scores = [validation(score) if isinstance(score, float) else score for score in scores]
    stages = [AdaptationStage(f"stage {number}", (Part(Plan()),)) for number in range(1, len(scores))]
    reached = {(): scores[0]}
    trained = []

    def train(weights, stage):
        trained.append((tuple(weights), stage.title))
        done = (*weights, stage.title)
        reached[done] = scores[int(stage.title[-1])]
        return dict.fromkeys(done)

    return adapt({}, stages, train, lambda weights: reached[tuple(weights)]), trained


def test_stages_that_help_are_kept():
    result, trained = run([0.5, 0.6, 0.7])
    assert list(result.weights) == ["stage 1", "stage 2"]
    kept = "kept (+0.1, above 1.1 standard errors, 0)"
    assert result.notes == (
        f"stage 1: validation 0.5000 -> 0.6000, {kept}",
        f"stage 2: validation 0.6000 -> 0.7000, {kept}",
    )
    assert trained == [((), "stage 1"), (("stage 1",), "stage 2")]


@pytest.mark.parametrize("score", [0.6, float("nan")])
def test_a_stage_that_does_not_improve_the_score_is_undone(score):
    result, trained = run([0.5, 0.6, score, 0.7])
    assert list(result.weights) == ["stage 1", "stage 3"]
    assert result.notes[1] == f"stage 2: validation 0.6000 -> {score:.4f}, undone (no improvement)"
    assert trained[2] == (("stage 1",), "stage 3")


def test_a_stage_that_harms_is_undone_and_the_next_starts_from_before_it():
    result, trained = run([0.5, 0.6, 0.4, 0.7])
    assert list(result.weights) == ["stage 1", "stage 3"]
    assert result.notes[1] == "stage 2: validation 0.6000 -> 0.4000, undone (no improvement)"
    assert trained[2] == (("stage 1",), "stage 3")


@pytest.mark.parametrize(("gains", "kept"), [((0.2, 0.2, 0.2, 0.2), True), ((0.4, 0.4, -0.2, -0.2), False)])
def test_a_rise_that_queries_do_not_agree_on_is_undone(gains, kept):
    before = np.array([0.1, 0.3, 0.5, 0.7])
    first, second = (resampled(mean_of(values), range(4)) for values in (before, before + gains))
    result, _ = run([first, second])
    assert bool(result.weights) == kept
    # the standard deviation of the gains, 0.3, of four queries; the bootstrap's is of 200 draws
    error = 0.0 if kept else 0.15
    assert second.standard_error(first) == pytest.approx(error, abs=0.02)
    if not kept:
        assert result.notes[0].startswith(
            "stage 1: validation 0.4000 -> 0.5000, undone (+0.1, within 1.1 standard errors, 0.1"
        )


@pytest.mark.parametrize(("changed", "kept"), [(1, False), (2, True)])
@pytest.mark.parametrize("queries", [40, 300])
def test_a_rise_of_one_query_alone_is_undone(changed, kept, queries):
    """It equals its standard error, whatever the query: at every size, and at each place."""
    before = np.linspace(0.1, 0.9, queries)
    for place in range(0, queries - changed, queries // 8):
        after = before.copy()
        after[place : place + changed] += 0.05
        first, second = (resampled(mean_of(values), range(queries)) for values in (before, after))
        result, _ = run([first, second])
        assert bool(result.weights) == kept


def test_a_student_that_only_gets_worse_stays_as_it_was():
    result, _ = run([0.5, 0.4, 0.3, 0.49])
    assert result.weights == {}
    assert ["undone" in note for note in result.notes] == [True] * 3


def test_with_fewer_steps_than_layers_several_are_freed_at_once():
    layers = tuple(frozenset({str(number)}) for number in range(6))
    first, *_ = domain_stages(Phase(soft_labels(2.0), data="proxy", epochs=1.0), 4, layers)
    assert [part.plan.phases[0].steps for part in first.parts] == [1, 1, 1, 1]
    assert [len(part.frozen) for part in first.parts] == [4, 3, 1, 0]
