"""White-box audits of the production code: within the promise where it is right, above it for every planted fault."""

from types import SimpleNamespace

import numpy as np
import pytest
from opacus.optimizers import DPOptimizer

from fed_distill.audit.central_canaries import MeanAudit, VoteAudit
from fed_distill.audit.gradient_canaries import CANARY_TRAINING, CanaryStudent, TrainerAudit
from fed_distill.audit.white_box import Canaries, gaussian_scores, mixture_scores
from fed_distill.audit.white_box_run import audited_tally
from fed_distill.config import FederationConfig
from fed_distill.config.privacy import table_of_unit
from fed_distill.coordinator.federation import Federation
from fed_distill.errors import DataError, TrainingError
from fed_distill.mechanisms import merchant as merchant_level
from fed_distill.mechanisms import vote as vote_level
from fed_distill.mechanisms.base import NoiseSource, Terms
from fed_distill.mechanisms.merchant import ByMerchant
from fed_distill.mechanisms.vote import ByVote
from fed_distill.privacy.accounting import Spend, noise_for
from fed_distill.privacy.dp_sgd import add_noise
from fed_distill.seeds import Keystream
from fed_distill.training import preparation, private_steps
from fed_distill.training.cohort import batches, private, training
from fed_distill.training.cohort.trainer import CohortTrainer
from fed_distill.training.sequential import SequentialTrainer

DELTA, MERCHANTS, SECRET = 1e-5, 50, "5e" * 32
RATES = {"full batch": (1.0, 2), "Poisson": (0.25, 4)}
"""Sampling rate, and releases."""


def trained(epsilon, batch="full batch", seed=0, unit="example", trainer=CohortTrainer, canaries=20_000, **more):
    """An audit of a trainer with the noise that the accountant asks for."""
    rate, releases = RATES[batch]
    noise = noise_for(epsilon, DELTA, rate, releases)
    audit = TrainerAudit(
        trainer(CANARY_TRAINING),
        Spend(noise, rate, 1),
        releases,
        lambda number: (SECRET, "fedavg", "shop", number + 1, f"digest {seed}"),
        unit=unit,
        grouped=unit == "group",
        **more,
    )
    return audit.run(seed=seed, delta=DELTA, canaries=canaries)


def terms_of(epsilon, unit, rate, rounds):
    own = {"answers": 30} if unit == "vote" else {}
    tables = table_of_unit(unit)(unit=unit, epsilon=epsilon, delta=DELTA, **own)
    return Terms(tables, FederationConfig(method="fedavg", participation=rate, rounds=rounds), MERCHANTS, 30)


def averaged(epsilon, batch="full batch", seed=0):
    """An audit of the server's mean, and a function: what is foreseen by somebody who draws noise from a name."""
    rate, rounds = RATES[batch]
    terms = terms_of(epsilon, "merchant", rate, rounds)

    def named(*name, exact=False):
        return lambda number: ByMerchant("merchant", terms.privacy).aggregator(
            terms, CanaryStudent(1), NoiseSource((*name, number), reproducible=not exact)
        )

    def present(number, count):
        return (Keystream(seed, "sample merchants", number).uniform(count) < rate).numpy()

    return MeanAudit(named(SECRET, seed), present, rate, rounds), named


def voted(epsilon, seed=0, rounds=2, canaries=20_000, **more):
    terms = terms_of(epsilon, "vote", 1.0, rounds)
    counting = ByVote("vote", terms.privacy).counting(terms)
    tally = counted(epsilon, SECRET, seed, rounds=rounds)
    return VoteAudit(tally, counting, 30, rounds, **more).run(seed=seed, delta=DELTA, canaries=canaries)


def counted(epsilon, *name, rounds=2):
    """The server's count of votes, whose noise is drawn from a name."""
    terms = terms_of(epsilon, "vote", 1.0, rounds)
    mechanism = ByVote("vote", terms.privacy)
    return audited_tally(mechanism, terms, mechanism.counting(terms), NoiseSource(name, reproducible=True))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("epsilon", [1.0, 3.0, 10.0])
@pytest.mark.parametrize("batch", RATES)
def test_examples_are_bounded_within_their_promise_and_not_far_below(epsilon, batch, seed):
    found = trained(epsilon, batch, seed, canaries=50_000)
    assert found.promised == pytest.approx(epsilon, rel=2e-3) and not found.exceeded
    assert found.f_dp.epsilon >= 0.4 * epsilon
    assert found.steinke.epsilon >= 0.3 * epsilon


@pytest.mark.parametrize("epsilon", [1.0, 3.0, 10.0])
@pytest.mark.parametrize("batch", RATES)
def test_groups_and_merchants_are_bounded_within_their_promise(epsilon, batch):
    groups = trained(epsilon, batch, unit="group")
    merchants = averaged(epsilon, batch)[0].run(seed=0, delta=DELTA, canaries=5_000)
    for found in (groups, merchants):
        assert found.promised == pytest.approx(epsilon, rel=2e-3) and not found.exceeded
        assert found.f_dp.epsilon > 0.1 * epsilon
    assert (groups.unit, merchants.unit) == ("group", "merchant")


@pytest.mark.parametrize("epsilon", [1.0, 3.0, 10.0])
def test_votes_are_bounded_within_their_promise(epsilon):
    found = voted(epsilon)
    assert found.promised == pytest.approx(epsilon, rel=2e-3) and not found.exceeded
    assert found.f_dp.epsilon > 0.1 * epsilon


def test_both_trainers_are_audited_and_found_alike():
    cohort, sequential = (trained(3.0, trainer=one, canaries=5_000) for one in (CohortTrainer, SequentialTrainer))
    assert sequential.f_dp.epsilon == pytest.approx(cohort.f_dp.epsilon, rel=0.02) and not sequential.exceeded


def weakened(factor):
    return lambda total, deviation, stream: add_noise(total, factor * deviation, stream)


def always_alike(*name):
    return Keystream("the same for every release")


@pytest.mark.parametrize("batch", RATES)
@pytest.mark.parametrize("unit", ["example", "group"])
@pytest.mark.parametrize(("epsilon", "factor"), [(1.0, 0.5), (3.0, 0.5), (10.0, 0.0)])
def test_noise_of_training_that_is_halved_or_missing_is_found(monkeypatch, epsilon, factor, unit, batch):
    monkeypatch.setattr(private, "add_noise", weakened(factor))
    assert trained(epsilon, batch, unit=unit, canaries=50_000).exceeded


@pytest.mark.parametrize(("epsilon", "factor"), [(3.0, 0.5), (10.0, 0.0)])
def test_noise_of_the_sequential_trainer_that_is_halved_or_missing_is_found(monkeypatch, epsilon, factor):
    monkeypatch.setattr(private_steps, "add_noise", weakened(factor))
    assert trained(epsilon, trainer=SequentialTrainer, canaries=5_000).exceeded


@pytest.mark.parametrize("epsilon", [1.0, 10.0])
def test_clipping_left_out_is_found(monkeypatch, epsilon):
    clipped = training.clipped_sums
    monkeypatch.setattr(
        training, "clipped_sums", lambda stack, flows, mask, largest: clipped(stack, flows, mask, 1e6 * largest)
    )
    assert trained(epsilon).exceeded


def test_clipping_left_out_of_the_sequential_trainer_is_found(monkeypatch):
    clip = DPOptimizer.clip_and_accumulate

    def unclipped(self):
        self.max_grad_norm *= 1e6
        clip(self)

    monkeypatch.setattr(DPOptimizer, "clip_and_accumulate", unclipped)
    assert trained(3.0, trainer=SequentialTrainer, canaries=5_000).exceeded


def test_groups_that_are_clipped_by_example_are_found(monkeypatch):
    monkeypatch.setattr(batches.PhaseData, "_members", lambda *of: None)
    assert trained(3.0, unit="group").exceeded


def test_sampling_left_out_is_found(monkeypatch):
    monkeypatch.setattr(preparation, "sampling_rate", lambda *of: 1.0)
    assert trained(3.0, "Poisson").exceeded


@pytest.mark.parametrize("epsilon", [1.0, 10.0])
def test_noise_that_two_releases_share_is_found(monkeypatch, epsilon):
    monkeypatch.setattr(private, "Keystream", always_alike)
    monkeypatch.setattr(merchant_level, "Keystream", always_alike)
    assert trained(epsilon).exceeded
    assert averaged(epsilon)[0].run(seed=0).exceeded


@pytest.mark.parametrize(("secret", "found"), [(SECRET, False), (5, True)])
def test_training_noise_that_the_run_seed_foretells_is_found(secret, found):
    """A secret of 5 is the run's seed: somebody forgot the site's own."""
    releases = RATES["full batch"][1]
    audit = TrainerAudit(
        CohortTrainer(CANARY_TRAINING),
        Spend(noise_for(3.0, DELTA, 1.0, releases), 1.0, 1),
        releases,
        lambda number: (secret, "fedavg", "shop", number),
        outsider=lambda number: (5, "fedavg", "shop", number),
    )
    assert audit.run(seed=0, canaries=5_000).exceeded == found


@pytest.mark.parametrize(("epsilon", "factor"), [(1.0, 0.5), (3.0, 0.5), (10.0, 0.0)])
def test_noise_of_the_mean_that_is_halved_or_missing_is_found(monkeypatch, epsilon, factor):
    monkeypatch.setattr(merchant_level, "add_noise", weakened(factor))
    assert averaged(epsilon)[0].run(seed=0, canaries=10_000).exceeded


def test_updates_that_are_not_clipped_are_found(monkeypatch):
    summed = merchant_level._ClippedSum
    monkeypatch.setattr(
        merchant_level, "_ClippedSum", lambda *first_three_and_norm: summed(*first_three_and_norm[:3], 1e9)
    )
    assert averaged(10.0)[0].run(seed=0).exceeded


@pytest.mark.parametrize("epsilon", [1.0, 3.0])
@pytest.mark.parametrize(("secret", "found"), [(SECRET, False), ("", True)])
def test_a_merchants_noise_that_the_run_seed_foretells_is_found(epsilon, secret, found):
    """With the names that a federation gives its noise; its seed and identity are in every request."""
    place = SimpleNamespace(secret=secret, seed=5, arm="fedavg", identity="f00d")
    audit, named = averaged(epsilon)
    production = MeanAudit(named(*Federation.noise.fget(place).name, exact=True), audit.present, 1.0, audit.rounds)
    outsider = named(5, "fedavg", "f00d", exact=True)
    assert production.foreseen(outsider, seed=0, delta=DELTA).exceeded == found


class Halved(Keystream):
    """Noise of half the deviation."""

    def normal(self, *shape):
        return super().normal(*shape) / 2


def test_vote_noise_that_is_halved_is_found(monkeypatch):
    monkeypatch.setattr(vote_level, "Keystream", Halved)
    assert voted(3.0, canaries=50_000).exceeded


@pytest.mark.parametrize("epsilon", [1.0, 3.0])
def test_vote_noise_that_is_the_same_in_every_round_is_found(monkeypatch, epsilon):
    tally = ByVote.tally
    monkeypatch.setattr(ByVote, "tally", lambda self, terms, noise, round: tally(self, terms, noise, 1))
    assert voted(epsilon).exceeded


@pytest.mark.parametrize(("seed", "found"), [(SECRET, True), (5, False)])
def test_vote_noise_that_is_foretold_is_found(seed, found):
    assert voted(3.0, outsider=counted(3.0, seed, 0)).exceeded == found


def test_too_few_canaries_are_refused():
    with pytest.raises(DataError, match="too few"):
        Canaries.drawn(3, 1, seed=0)


def test_a_trainer_that_cannot_train_them_is_not_passed_over(monkeypatch):
    monkeypatch.setattr(TrainerAudit, "_examples", 0)
    with pytest.raises(TrainingError, match="no private examples"):
        trained(1.0, canaries=100)


def test_scores_are_log_likelihood_ratios():
    """By hand: one release with noise of variance 4, a canary that adds 1 and is drawn with probability 1/4."""
    shown = np.array([[-1.0, 0.5, 3.0]])
    density = np.exp(-((shown - np.array([[0.0], [1.0]])) ** 2) / 8)
    assert mixture_scores(shown, Spend(2.0, 0.25, 1)) == pytest.approx(
        np.log((0.75 * density[0] + 0.25 * density[1]) / density[0])
    )
    references = np.array([[2.0, -2.0, 2.0, -2.0]])
    assert gaussian_scores(shown, references, np.ones((1, 3))) == pytest.approx(np.log(density[1] / density[0]))
