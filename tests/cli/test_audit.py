"""``fed-distill audit`` ends with an error where more was shown than was promised, so that a program can act on it."""

import pytest
from typer.testing import CliRunner

from fed_distill.audit import finished_run
from fed_distill.cli.audit import EXCEEDED
from fed_distill.cli.main import app

RATE = {"0.01": {"value": 0.02}}
FOUND = {
    "attacks": {"loss": {"auc": 0.51, "auc_interval": (0.49, 0.53), "tpr": RATE, "control_auc": None}},
    "epsilon_lower_bound": 0.15,
    "epsilon_of_accountant": 8.0,
    "delta": 1e-5,
    "label_shares": {"error": 0.2, "baseline": 0.3},
}


def white_box(bound, exceeded):
    found = {"steinke": {"epsilon": 1.0}, "f_dp": {"epsilon": bound}, "promised": 3.0, "delta": 1e-5}
    return {**found, "unit": "group", "exceeded": exceeded}


@pytest.mark.parametrize(("found", "code"), [(None, 0), (white_box(2.5, False), 0), (white_box(3.5, True), EXCEEDED)])
def test_the_exit_code_says_whether_more_was_shown_than_promised(monkeypatch, tmp_path, found, code):
    monkeypatch.setattr(finished_run, "audit_run", lambda *_: {**FOUND, "white_box": found})
    done = CliRunner().invoke(app, ["audit", str(tmp_path)])
    assert done.exit_code == code
    assert ("white box, f-DP" in done.output) == (found is not None)
    assert ("exceeds the guarantee" in done.output) == (code != 0)
    if found:
        row = next(line.split() for line in done.output.splitlines() if line.startswith("white box, f-DP"))
        assert row[3:] == [f"{found['f_dp']['epsilon']:.2f}", "3.00", "1e-05", "group"]
