"""Noise that a trusted server adds, for units ``merchant`` and ``vote``: how much, and what it costs each merchant.

Server and sites compute it from the same experiment, so that a merchant charges its ledger by what was agreed on.
"""

from fed_distill.config import FederationConfig, PrivacyConfig
from fed_distill.mechanisms.merchant import merchant_noise, merchant_spend
from fed_distill.mechanisms.vote import VoteMechanism, calibrated, vote_spends
from fed_distill.privacy.accounting import Spend, default_delta


def central_delta(config: PrivacyConfig, merchants: int) -> float:
    """Delta of the promise to each of so many merchants."""
    return default_delta(merchants) if config.delta is None else config.delta


def mean_noise(config: PrivacyConfig, federation: FederationConfig, merchants: int) -> float:
    """Noise multiplier of each round's mean update, for unit ``merchant``."""
    if config.noise_multiplier is not None:
        return config.noise_multiplier
    assert config.epsilon is not None
    return merchant_noise(
        config.epsilon,
        central_delta(config, merchants),
        federation.participation,
        federation.rounds,
        config.accountant,
    )


def vote_mechanism(config: PrivacyConfig, federation: FederationConfig, merchants: int, queries: int) -> VoteMechanism:
    """How each round's votes on ``queries`` examples are counted, for unit ``vote``; the share that must agree is of
    those who are asked in a round."""
    voters = max(1, round(federation.participation * merchants))
    if config.noise_multiplier is not None:
        noise = config.noise_multiplier
        return VoteMechanism(config.consensus * voters, config.vote_noise_ratio * noise, noise, config.answers)
    assert config.epsilon is not None
    return calibrated(
        config.epsilon,
        central_delta(config, merchants),
        queries=queries,
        max_answers=config.answers,
        voters=voters,
        consensus=config.consensus,
        ratio=config.vote_noise_ratio,
        rounds=federation.rounds,
        accountant=config.accountant,
    )


def central_spends(
    config: PrivacyConfig, federation: FederationConfig, merchants: int, proxy: int
) -> tuple[Spend, ...]:
    """What all rounds of a federation cost each of its ``merchants``, with so many proxy examples."""
    if config.unit == "merchant":
        noise = mean_noise(config, federation, merchants)
        return (merchant_spend(noise, federation.participation, federation.rounds),)
    queries = queried(config, proxy)
    return vote_spends(vote_mechanism(config, federation, merchants, queries), queries, federation.rounds)


def queried(config: PrivacyConfig, proxy: int) -> int:
    """Proxy examples that are asked about in a round."""
    return proxy if config.queries is None else min(config.queries, proxy)
