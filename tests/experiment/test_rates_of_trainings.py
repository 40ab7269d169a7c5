"""Each training has the rate of its own table: at next to none it leaves the student as it was, and others do not."""

import json
import re

import pytest

NONE = 1e-12
RUN = {"controls": ["server", "pooled", "local"], "data.max_merchants": 3, "federation.rounds": 1}
ALL = {"training.pooled", "training.local", "training.merchants", "adaptation"}


@pytest.fixture
def moved(tiny_experiment, simulate, tmp_path):
    """A function (table) -> which trainings changed a student where that table has next to no rate."""

    def found(table):
        folder, _ = simulate(tiny_experiment(tmp_path, {**RUN, f"{table}.learning_rate": NONE}))
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        controls, adapted = summary["controls"], summary["adaptation"]
        server = controls["server"]["auc"]
        scores = {
            "training.pooled": [(server, controls["pooled"]["auc"])],
            "training.local": [(server, controls["local"]["auc"])],
            "training.merchants": [(server, adapted["before"]["auc"])],
            "adaptation": re.findall(r"validation (\S+) -> ([0-9.]+)", " ".join(adapted["notes"]["0"])),
        }
        return {
            name
            for name, pairs in scores.items()
            if any(float(after) != pytest.approx(float(before), abs=1e-9) for before, after in pairs)
        }

    return found


@pytest.mark.parametrize("table", ["training.pooled", "training.local", "adaptation"])
def test_a_training_has_its_own(moved, table):
    assert moved(table) == ALL - {table}


def test_merchants_alone_have_that_of_all_merchants_where_they_have_none(moved):
    assert moved("training.merchants") == ALL - {"training.merchants", "training.local"}
