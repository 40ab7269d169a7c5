"""A run of marketing-effect: its report has the overlap of the arms that its file of effects has."""

import json

from fed_distill.data import load
from fed_distill.reporting.campaign_effect import EFFECTS


def test_the_report_of_a_campaign_has_the_overlap_of_its_arms(tiny_experiment, simulate, tmp_path):
    changes = {
        "data.task": "marketing-effect",
        "data.options": {"merchants": 6, "rows": 60},
        "data.max_examples": None,
        "controls": [],
        "federation.rounds": 1,
        "adaptation.enabled": False,
        "runtime.measure_speed": False,
    }
    experiment = tiny_experiment(tmp_path, changes)
    folder, _ = simulate(experiment)
    found = json.loads((folder / EFFECTS).read_text(encoding="utf-8"))
    overlap, customers = found["overlap"], found["customers"]
    assert (sum(overlap["treated"]), sum(overlap["control"])) == (customers["treated"], customers["control"])
    assert customers["treated"] + customers["control"] == len(load(experiment.data).test)
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert 'id="overlap"' in report
    shown = next(at for at, count in enumerate(overlap["treated"]) if count)
    low, high = overlap["edges"][shown : shown + 2]
    told = f"treated, propensity {low:g} to {high:g}: {overlap['treated'][shown]:,} of {customers['treated']:,}"
    assert report.count(told) == 2, "drawn for wide and for narrow pages"
