"""The white-box audit of a finished run takes its settings and names, and promises what its ledgers say."""

import pytest

from fed_distill.audit.finished_run import audit_run
from fed_distill.audit.white_box_run import WhiteBox
from fed_distill.errors import CheckpointError
from fed_distill.privacy.accounting import epsilon
from fed_distill.privacy.ledger import Ledgers
from fed_distill.reporting.callbacks import Callback
from fed_distill.reporting.store import read_experiment, read_summary
from fed_distill.reporting.wording import audit_bound

CHANGES = {"controls": ["server"], "adaptation.enabled": False, "privacy.epsilon": 3.0}
UNITS = {
    "example": {"privacy.batch_size": 16},
    "group": {"privacy.batch_size": 16},
    "label": {"privacy.texts_public": True},
    "merchant": {},
    "vote": {"federation.method": "pate", "federation.options": {}, "privacy.queries": 20},
}


@pytest.fixture
def finished(tiny_experiment, simulate, tmp_path):
    """A function: the folder of a finished tiny run that protects a unit."""

    def finish(unit, **changes):
        made = {**CHANGES, **UNITS.get(unit, {}), "privacy.unit": unit, **changes}
        return simulate(tiny_experiment(tmp_path, made))[0]

    return finish


def box(folder):
    return WhiteBox(folder, read_experiment(folder), merchants=6, proxy=40)


@pytest.mark.parametrize("unit", UNITS)
def test_every_unit_is_audited_with_the_settings_of_its_run(finished, unit):
    folder = finished(unit)
    found = box(folder).run()
    assert found.unit == unit
    assert found.releases == read_experiment(folder).federation.rounds
    assert not found.exceeded and 2.0 < found.promised < 3.1
    assert found.f_dp.epsilon > 0.3


def test_the_promise_is_that_of_the_charges_for_training(finished):
    folder = finished("example")
    ledgers = next((folder / "checkpoint" / "ledgers").rglob("*.jsonl")).parent
    spends = [
        [
            spend
            for entry in Ledgers(ledgers).of(name).entries()
            if entry.charge.what == "training"
            for spend in entry.charge.spends
        ]
        for name in Ledgers(ledgers).merchants()
    ]
    assert box(folder).run().promised == pytest.approx(max(epsilon(one, 1e-5) for one in spends))


def test_a_run_without_a_promise_has_nothing_to_exceed(finished):
    assert box(finished("none", **{"privacy.epsilon": None})).run() is None


def test_a_run_whose_ledgers_are_gone_cannot_be_audited(finished):
    folder = finished("example")
    for path in (folder / "checkpoint" / "ledgers").rglob("*.jsonl"):
        path.unlink()
    with pytest.raises(CheckpointError, match="no charges of this run"):
        box(folder).run()


def test_both_bounds_are_kept_beside_the_attacks(finished):
    folder = finished("example")
    found = audit_run(folder, Callback(), shadows=4, canaries=40)
    brief = read_summary(folder)["privacy"]["audit"]["white_box"]
    assert (brief["steinke"], brief["f_dp"]) == tuple(found["white_box"][key]["epsilon"] for key in ("steinke", "f_dp"))
    assert f"{brief['f_dp']:.2f} (f-DP" in audit_bound(read_summary(folder))
    assert f"{brief['promised']:.2f} for one example." in audit_bound(read_summary(folder))
