"""The limits that a site is handed cover one whole run of the experiment, and nothing unprotected."""

import tomllib

import pytest

from fed_distill.errors import BudgetExceeded, ConfigError
from fed_distill.merchant.allowance import _rounded_up, allowance, run_exposure
from fed_distill.merchant.limits import Limits
from fed_distill.privacy.accounting import Spend
from fed_distill.privacy.ledger import Charge, Ledgers, exposure

AT_MERCHANTS = ("example", "group")
UNITS = (*AT_MERCHANTS, "merchant", "vote")


def private(experiment, unit, **changes):
    method = {"federation.method": "pate", "federation.options": {}} if unit == "vote" else {}
    steps = {"privacy.batch_size": 16} if unit in AT_MERCHANTS else {}
    promise = {"privacy.unit": unit, "privacy.epsilon": 4.0, **steps}
    return experiment.with_changes({**promise, **method, **changes})


@pytest.mark.parametrize("unit", UNITS)
def test_one_unit_is_allowed_and_no_other(experiment, unit):
    found = allowance(private(experiment, unit), 5, 40)
    assert found.units == (unit,)
    assert "no training without privacy" in found.in_words


def test_the_methods_of_all_arms_are_allowed_and_no_others(experiment):
    plain = {"federation.method": "fedavg-kd", "federation.options": {}, "controls": ["server"]}
    assert allowance(experiment.with_changes(plain)).methods == ("fedavg-kd",)
    more = {"compare": [{"method": "expert-fd"}], "controls": ["local", "fedavg"], "adaptation.personal": True}
    assert set(allowance(experiment.with_changes({**plain, **more})).methods) == {
        *("fedavg-kd", "expert-fd", "fedavg", "local", "personal")
    }


def test_a_run_without_privacy_is_named_as_what_it_is(experiment):
    assert allowance(experiment).units == ("none",)
    assert "not protected" in allowance(experiment).units_note


@pytest.mark.parametrize(("method", "sent"), [("lp-mst", True), ("fedavg-kd", False)])
def test_it_is_said_that_an_experiment_needs_texts(experiment, method, sent):
    label = {"privacy.unit": "label", "privacy.epsilon": 1.0, "privacy.texts_public": True}
    found = allowance(experiment.with_changes({**label, "federation.method": method, "federation.options": {}}))
    assert found.texts is sent
    assert ("also needs `texts = true`, to send the texts of labelled training examples" in found.in_words) is sent
    assert not allowance(None).texts


def test_without_an_experiment_a_site_trusts_nobody_else():
    assert set(allowance(None).units) == {"example", "group"}


@pytest.mark.parametrize("unit", UNITS)
def test_seeds_and_compared_federations_are_counted(experiment, unit):
    once = run_exposure(private(experiment, unit), 5, 40)
    assert once > 4.0  # an example is exposed to no less than what its unit was promised
    for more in ({"repeats": 2}, {"compare": [{"label": "again"}]}):
        twice = run_exposure(private(experiment, unit, **more), 5, 40)
        assert once < twice < 2.5 * once


def test_the_mean_of_a_merchant_counts_with_half_its_noise(experiment):
    """By hand: four times the Rényi divergence of the same noise, in the one round that there is."""
    changes = {"privacy.epsilon": None, "privacy.noise_multiplier": 5.0, "federation.rounds": 1}
    found = run_exposure(private(experiment, "merchant", **changes), 5, 40)
    example = Charge("r", "a", 0, 0, "example", "x", "0", (Spend(2.5, 1.0, 1),), 1e-5)
    assert found == pytest.approx(exposure([example]))


def test_two_digits_rounded_up():
    assert [_rounded_up(value) for value in (8.0, 8.01, 12.01, 99.9, 0.123, 4.0)] == [8.0, 8.1, 13.0, 100.0, 0.13, 4.0]


@pytest.mark.parametrize("unit", ["example", "group", "merchant"])
def test_a_run_fits_into_what_its_sites_are_handed_and_a_second_one_does_not(
    command, run_over, experiment, tmp_path, unit
):
    planned, folder = handed(command, experiment, tmp_path, unit)
    run_over(planned)
    for site in folder.glob("sites/*"):
        limits = Limits.model_validate(tomllib.loads((site / "site.toml").read_text(encoding="utf-8"))["limits"])
        for path in Ledgers(site / "state" / "ledgers").files():
            entries = Ledgers(site / "state" / "ledgers").read(path)
            assert limits.default.max_epsilon >= exposure(entry.charge for entry in entries) > 4.0
    with pytest.raises(BudgetExceeded, match="no merchant can participate any more"):
        run_over(planned.with_changes({"name": "second", "seed": 7}))


def test_a_second_run_fits_into_what_sites_are_handed_for_two(command, run_over, experiment, tmp_path):
    planned, _ = handed(command, experiment, tmp_path, "example", "--runs", 2)
    run_over(planned)
    run_over(planned.with_changes({"name": "second", "seed": 7}))
    with pytest.raises(BudgetExceeded, match="no merchant can participate any more"):
        run_over(planned.with_changes({"name": "third", "seed": 8}))


def test_runs_of_no_experiment_are_refused(command, tmp_path):
    with pytest.raises(ConfigError, match="--runs multiplies the runs of an experiment: add --experiment FILE"):
        command("init", tmp_path / "deployment", "--runs", 2)


def test_runs_without_privacy_need_no_budget(command, experiment, tmp_path):
    file = tmp_path / "open.toml"
    file.write_text(experiment.to_toml(), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"--runs has no effect, as .*open.toml has no private releases"):
        command("init", tmp_path / "deployment", "--runs", 2, "--experiment", file)


@pytest.mark.parametrize("unit", UNITS)
def test_two_runs_are_priced_as_two_seeds(experiment, unit):
    twice = run_exposure(private(experiment, unit, repeats=2), 5, 40)
    assert run_exposure(private(experiment, unit), 5, 40, runs=2) == pytest.approx(twice)


def handed(command, experiment, tmp_path, unit, *options):
    """A private experiment, and the folder of a deployment that was made for it."""
    steps = {"privacy.batch_size": 10**6} if unit in AT_MERCHANTS else {}
    changes = {"adaptation.enabled": False, "privacy.report_scores": False, **steps}
    planned = private(experiment, unit, **changes)
    file, folder = tmp_path / "private.toml", tmp_path / "deployment"
    file.write_text(planned.to_toml(), encoding="utf-8")
    command("init", folder, "--overwrite", "--experiment", file, "--rehearse", "--sites", "north,south,west", *options)
    return planned, folder
