"""Hostile and malformed replies, made by the hundred from honest ones: each is refused by name or is what an honest
merchant could have sent, the others are merged as if it were not there, and it costs no more memory than an honest one.

A federation of three sites is recorded once for each kind of uplink. Then its round is played again and again, with the
reply of one site changed.
"""

import logging

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fed_distill.coordinator.exchange import LONGEST_REASON
from fed_distill.transport.messages import Uplink
from fed_distill.transport.records import check_uplink, decode_uplink, encode_uplink, from_bytes, to_bytes
from tests.coordinator.hostile_replies import hostile
from tests.coordinator.replayed_round import HOSTILE, KINDS, TINY, Outcome, Round, record

EXAMPLES = 45
"""Replies of each kind."""
ROOM = 1.5
"""Memory that a hostile round may take at its peak, as a multiple of an honest one's."""
SPARE = 65_536
"""Bytes of Python objects that it may take besides: a round of prototypes has a few hundred bytes of payload."""
SMALL = 4096
"""Bytes of a tensor that no round is too small for."""


@pytest.fixture(scope="module")
def recorded(tiny_experiment, tmp_path_factory):
    """A function: the recorded round of a kind."""
    found: dict[str, Round] = {}

    def of(kind):
        if kind not in found:
            experiment = tiny_experiment(tmp_path_factory.mktemp("recorded"), {**TINY, **KINDS[kind]})
            found[kind] = record(experiment)
        return found[kind]

    return of


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_hostile_is_refused_by_name_and_the_others_are_merged(recorded, kind, caplog):
    caplog.set_level(logging.CRITICAL)
    caplog.set_level(logging.CRITICAL, "flwr")
    played = recorded(kind)
    honest, without = played.honest, played.without
    assert set(honest.intake.merchants) == set(played.whole.merchants)
    assert set(without.intake.merchants) == set(played.whole.merchants) - set(played.theirs)

    @settings(
        derandomize=True, database=None, deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck)
    )
    @given(st.data())
    def check(data):
        reply = data.draw(hostile(played.reply))
        outcome = played.play(reply)
        check_round(played, outcome)
        check_memory(played, reply, outcome)

    check()


def check_round(played: Round, outcome: Outcome) -> None:
    intake, theirs = outcome.intake, set(played.theirs)
    merged, named = set(intake.merchants), [refusal.merchant for refusal in intake.refusals]
    assert merged >= set(played.whole.merchants) - theirs
    assert set(named) <= theirs | {""}
    assert len(set(named)) == len(named)  # each once, and the site for all that it was not asked for
    told = [refusal.reason for refusal in intake.refusals if not refusal.merchant]
    assert all(reason.startswith(f"site {HOSTILE} ") for reason in told)
    assert merged.isdisjoint(named)
    assert theirs <= merged | set(named) or any("its reply is to" in reason for reason in told)
    for refusal in intake.refusals:
        assert refusal.reason.isprintable()
        assert refusal.merchant in refusal.reason
        assert len(refusal.reason) <= LONGEST_REASON
    if not merged & theirs:
        assert outcome.state.keys() == played.without.state.keys()
        assert all(torch.equal(value, played.without.state[name]) for name, value in outcome.state.items())
    for merchant in merged & theirs:
        check_could_be_honest(played, outcome.uplinks[merchant])
    assert all(bool(torch.isfinite(value.double()).all()) for value in outcome.state.values())


def check_memory(played: Round, reply: bytes, outcome: Outcome) -> None:
    """It takes no more than an honest round. One of several plays must show it: the peak counts other threads too."""
    allowed = ROOM * played.honest.peak + SPARE
    assert outcome.peak <= allowed or min(played.play(reply).peak for _ in range(3)) <= allowed
    assert outcome.largest <= max(ROOM * played.honest.largest, SMALL)


def check_could_be_honest(played: Round, uplink: Uplink) -> None:
    """It fits the round, has the payloads that all have, and is the same when it is sent again."""
    check_uplink(uplink, played.context)
    assert uplink.kinds == played.honest.uplinks[uplink.merchant].kinds
    assert 1 <= uplink.examples <= played.honest.uplinks[uplink.merchant].examples
    again = decode_uplink(from_bytes(to_bytes(encode_uplink(uplink))), played.method.sends)
    assert again.kinds == uplink.kinds
    assert again.examples == uplink.examples
