"""How much of a promise the white-box audit can show where nothing is wrong: the table in docs/concepts/privacy.md.

    python experiments/benchmarks/audit_power.py

Each cell is the range over three seeds of both lower bounds on epsilon, at delta 1e-5 and confidence 0.95, for noise
that the accountant finds for the column's epsilon. It takes about five minutes on one core.
"""

from collections.abc import Callable, Iterator

from rich.console import Console

from fed_distill.audit.central_canaries import MeanAudit, VoteAudit
from fed_distill.audit.gradient_canaries import CANARY_TRAINING, CanaryStudent, TrainerAudit
from fed_distill.audit.white_box import WhiteBoxAudit
from fed_distill.audit.white_box_run import audited_tally
from fed_distill.config import FederationConfig
from fed_distill.config.privacy import MerchantPrivacy, VotePrivacy
from fed_distill.mechanisms.base import NoiseSource, Terms
from fed_distill.mechanisms.merchant import ByMerchant
from fed_distill.mechanisms.vote import ByVote
from fed_distill.privacy.accounting import DELTA, Spend, noise_for
from fed_distill.seeds import Keystream
from fed_distill.training.cohort.trainer import CohortTrainer

EPSILONS, SEEDS = (1.0, 3.0, 10.0), range(3)
MERCHANTS, QUERIES, SECRET = 50, 30, "5e" * 32
SAMPLING = {"none, 2 releases": (1.0, 2), "rate 0.25, 4 releases": (0.25, 4)}
"""Sampling rate and number of releases."""


def training(unit: str, canaries: int, epsilon: float, rate: float, releases: int, seed: int) -> WhiteBoxAudit:
    """Units ``example`` and ``group``: DP-SGD by the cohort trainer, one step a release."""
    audit = TrainerAudit(
        CohortTrainer(CANARY_TRAINING),
        Spend(noise_for(epsilon, DELTA, rate, releases), rate, 1),
        releases,
        lambda number: (SECRET, "fedavg", "shop", number + 1, f"digest {seed}"),
        unit=unit,
        grouped=unit == "group",
    )
    return audit.run(seed=seed, delta=DELTA, canaries=canaries)


def averaging(canaries: int, epsilon: float, rate: float, releases: int, seed: int) -> WhiteBoxAudit:
    """Unit ``merchant``: the server's private mean."""
    privacy = MerchantPrivacy(epsilon=epsilon, delta=DELTA)
    terms = Terms(privacy, FederationConfig(method="fedavg", participation=rate, rounds=releases), MERCHANTS, QUERIES)
    audit = MeanAudit(
        lambda number: ByMerchant("merchant", privacy).aggregator(
            terms, CanaryStudent(1), NoiseSource((SECRET, seed, number), reproducible=True)
        ),
        lambda number, count: (Keystream(seed, "sample merchants", number).uniform(count) < rate).numpy(),
        rate,
        releases,
    )
    return audit.run(seed=seed, delta=DELTA, canaries=canaries)


def voting(canaries: int, epsilon: float, rate: float, releases: int, seed: int) -> WhiteBoxAudit:
    """Unit ``vote``: the server's counts, of which nothing is sampled."""
    privacy = VotePrivacy(epsilon=epsilon, delta=DELTA, answers=QUERIES)
    terms = Terms(privacy, FederationConfig(method="pate", participation=rate, rounds=releases), MERCHANTS, QUERIES)
    mechanism, noise = ByVote("vote", privacy), NoiseSource((SECRET, seed), reproducible=True)
    counting = mechanism.counting(terms)
    audit = VoteAudit(audited_tally(mechanism, terms, counting, noise), counting, QUERIES, releases)
    return audit.run(seed=seed, delta=DELTA, canaries=canaries)


Run = Callable[[float, float, int, int], WhiteBoxAudit]


def cells() -> Iterator[tuple[str, str, Run]]:
    """Unit, sampling and what audits it: of epsilon, rate, releases and seed."""
    for sampling in SAMPLING:
        yield "example", sampling, lambda *given: training("example", 50_000, *given)
    for sampling in SAMPLING:
        yield "group", sampling, lambda *given: training("group", 20_000, *given)
    for sampling in SAMPLING:
        yield "merchant", sampling, lambda *given: averaging(5_000, *given)
    yield "vote", next(iter(SAMPLING)), lambda *given: voting(20_000, *given)


def main() -> None:
    """Print the table as Markdown, a row at a time."""
    console = Console(soft_wrap=True)
    console.print("| unit | sampling | " + " | ".join(f"ε = {epsilon:g}" for epsilon in EPSILONS) + " |")
    console.print("| --- | --- |" + " --- |" * len(EPSILONS))
    for unit, sampling, run in cells():
        row = []
        for epsilon in EPSILONS:
            found = [run(epsilon, *SAMPLING[sampling], seed) for seed in SEEDS]
            both = ([one.steinke.epsilon for one in found], [one.f_dp.epsilon for one in found])
            row.append(" / ".join(f"{min(each):.2f}–{max(each):.2f}" for each in both))
        console.print(f"| {unit} | {sampling} | " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
