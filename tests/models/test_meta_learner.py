"""The teacher of campaigns: its cells against the learners, and its way through fitting, cache and configuration."""

import numpy as np
import pytest
import torch
from scipy.special import expit

from fed_distill.config import Experiment, TeacherConfig
from fed_distill.data.campaign_cells import MARKETING_EFFECT, bought_of, effects, propensities, responses, treated_of
from fed_distill.data.examples import Examples
from fed_distill.data.tasks import RELEVANCE
from fed_distill.distill.teacher import cached_teacher, check_fine_tuning
from fed_distill.errors import ConfigError
from fed_distill.methods.checks import check as check_method
from fed_distill.methods.fedmkt import FedMKT
from fed_distill.models import load_teacher, predict
from fed_distill.models.meta_learner import features, hashed
from fed_distill.models.uplift_learners import fit

HISTORIES = ("tea ; milk", "milk ; milk ; jam", "soap", "tea")
CAMPAIGNS = ("tea week", "soap week", "tea week", "soap week")


def customers(count: int = 400, seed: int = 0) -> Examples:
    """Tea drinkers buy in tea week if treated, soap buyers whenever; the rest hardly ever."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(3, size=count)
    texts = tuple(("green tea ; milk", "soap ; milk", "jam ; bread")[kind] for kind in kinds)
    treated = rng.random(count) < 0.5
    rate = np.array([[0.1, 0.7], [0.7, 0.7], [0.1, 0.1]])[kinds, treated.astype(int)]
    labels = 2 * (~treated).astype(np.int64) + (rng.random(count) >= rate)
    return Examples(texts, ("tea week",) * count, labels, np.arange(count), ("shop",) * count)


def config(**keys) -> TeacherConfig:
    return TeacherConfig(model="meta-learner", **keys)


def fitted(learner: str, examples: Examples):
    model = load_teacher(config(options={"learner": learner, "rows": 256}), MARKETING_EFFECT)
    model.fit(examples.texts, examples.pairs, examples.labels)
    return model.eval()


def test_a_word_is_one_feature_alone_and_another_with_each_campaign():
    found = hashed(HISTORIES, CAMPAIGNS, 1000)
    history, crossed = ({at for at in row if low < at < low + 1000} for low in (0, 2000) for row in (found[0],))
    assert len(history) == len(crossed) == 2
    tea = [{int(at) for at in row if 0 < at < 1000} for row in hashed(("tea", "tea"), ("a week", "b week"), 1000)]
    both = [{int(at) for at in row if at > 2000} for row in hashed(("tea", "tea"), ("a week", "b week"), 1000)]
    assert tea[0] == tea[1] and both[0] != both[1]
    counted = features(HISTORIES, CAMPAIGNS, 1000).toarray()
    np.testing.assert_allclose(
        counted[0].sum(), (2 + 2 + 2) / np.sqrt(6)
    )  # two words, two of the campaign, two crossed
    assert counted[1].max() == pytest.approx(2 / np.sqrt(3 + 2 + 3))  # milk, twice


@pytest.mark.parametrize("learner", ["t", "x"])
def test_cells_have_the_effect_of_the_learner_and_leave_the_mean_response(learner):
    examples = customers()
    model = fitted(learner, examples)
    with torch.inference_mode():
        found = predict(model, model.encode(examples.texts, examples.pairs)).double().numpy()
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-6)
    x = features(examples.texts, examples.pairs, 256)
    parts = fit(x, treated_of(examples.labels), bought_of(examples.labels), 0.05)
    e, without, treated = (expit(part(x)) for part in parts[:3])
    of_control, of_treated = (part(x) for part in parts[3:])
    e = e.clip(0.05, 0.95)
    expected = treated - without if learner == "t" else e * of_control + (1 - e) * of_treated
    np.testing.assert_allclose(effects(found), expected, atol=1e-4)
    np.testing.assert_allclose(propensities(found), e, atol=1e-4)
    low, high = responses(found)
    np.testing.assert_allclose(e * high + (1 - e) * low, e * treated + (1 - e) * without, atol=1e-4)


@pytest.mark.parametrize("learner", ["t", "x"])
def test_it_finds_whom_the_campaign_makes_buy(learner):
    model = fitted(learner, customers(3000))
    asked = ("green tea ; milk", "soap ; milk", "jam ; bread")
    found = effects(predict(model, model.encode(asked, ("tea week",) * 3)).numpy())
    np.testing.assert_allclose(found, [0.6, 0.0, 0.0], atol=0.1)


def test_it_is_fitted_once_and_then_read_from_the_cache(tmp_path):
    public = customers()
    arguments = (MARKETING_EFFECT, public, public.take(range(20)), public, 0, lambda *_: None)
    first, name = cached_teacher(tmp_path, config(options={"rows": 256}), *arguments)
    again, same = cached_teacher(tmp_path, config(options={"rows": 256}), *arguments)
    other = cached_teacher(tmp_path, config(options={"rows": 256, "learner": "t"}), *arguments)[1]
    assert name == same != other and first.history == []
    assert torch.equal(first.model.weights, again.model.weights) and bool(first.model.weights.any())


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ConfigError, match="estimates the effect of campaigns, and task 'relevance' has none: set data"):
        load_teacher(config(), RELEVANCE)
    for budget in ({"epochs": 3}, {"steps": 5}):
        with pytest.raises(
            ConfigError, match="teacher meta-learner is not fitted by steps: remove its epochs and steps"
        ):
            check_fine_tuning(config(**budget))
    check_fine_tuning(config())
    experiment = Experiment.model_validate(
        {"teacher": {"model": "meta-learner"}, "federation": {"method": "fedmkt"}, "data": {"task": "marketing-effect"}}
    )
    with pytest.raises(ConfigError, match="fedmkt trains the teacher, and teacher meta-learner cannot be trained"):
        check_method(experiment, experiment.federation, FedMKT())
