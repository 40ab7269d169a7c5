"""What a run reports as spent is what its ledgers say, recomputed from their files alone by other libraries."""

import pytest

from fed_distill.data import load
from fed_distill.privacy.ledger import Ledgers
from fed_distill.reporting.store import read_summary
from tests.privacy.recomputed import assert_charged_rightly, recomputed

QUIET = {"controls": [], "adaptation.enabled": False, "data.max_merchants": 3, "federation.rounds": 3}
PATE = {"federation.method": "pate", "federation.options": {}}
RUNS = {
    "example": {"privacy.epsilon": 3.0, "privacy.batch_size": 8},
    "group": {"privacy.epsilon": 8.0, "privacy.batch_size": 4, "privacy.group": "pair"},
    "merchant": {"privacy.epsilon": 10.0, "federation.participation": 0.5},
    "vote": {"privacy.epsilon": 5.0, **PATE},
}


@pytest.mark.parametrize("unit", RUNS)
def test_epsilon_is_that_of_the_ledgers_files(tiny_experiment, simulate, tmp_path, unit):
    experiment = tiny_experiment(tmp_path, {**QUIET, "privacy.unit": unit, **RUNS[unit]})
    folder, _ = simulate(experiment)
    told = read_summary(folder)["privacy"]
    ledgers = Ledgers(folder / "checkpoint" / "ledgers" / "seed-0" / experiment.federation.title)
    merchants = load(experiment.data).merchants
    assert ledgers.merchants() == sorted(merchants) and told["merchants"] == 3
    for merchant in ledgers.merchants():
        ledger = ledgers.of(merchant)
        assert_charged_rightly(ledger.epsilon(unit), ledger.path, unit)
    target = RUNS[unit]["privacy.epsilon"]
    for delta, epsilon in [(told["delta"], told["epsilon"]), (1e-5, None), (1e-6, None)]:
        reported = told["epsilon_at"][f"{delta:g}"] if epsilon is None else epsilon
        worst = max(recomputed(path, unit, delta).most for path in ledgers.files())
        assert 0.9995 * worst <= reported <= 1.01 * worst
    assert 0.98 * target < told["epsilon"] <= target
    assert told["delta"] == 1e-5
