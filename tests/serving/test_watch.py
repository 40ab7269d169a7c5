"""Traffic like the training data raises no drift, traffic of another language does, and nothing of it is kept."""

import os
import re
import subprocess
import sys
from itertools import cycle, product

import numpy as np
import pytest

from fed_distill import seeds
from fed_distill.config import Experiment
from fed_distill.data import load
from fed_distill.data.student_description import StudentDescription
from fed_distill.models import build_student
from fed_distill.models.student_folder import save_student
from fed_distill.serving import export as exporting
from fed_distill.serving.service_metrics import WORKERS_FOLDER
from fed_distill.serving.watch import Thinning
from tests.serving.services import config_of, serving, until

CHINESE = ["手机", "蓝牙", "耳机", "保温", "水壶", "无线", "充电", "电线", "折叠", "台灯", "透明", "防摔"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """An export of an untrained student with the reference of a run's data, and the data."""
    run = tmp_path_factory.mktemp("shop")
    options = {"merchants": 20, "rows": 1500, "ranking_queries": 1000, "ranking_candidates": 8}
    table = {"proxy_from": "catalogue", "proxy_size": 4000, "options": options}
    experiment = Experiment.model_validate({"name": "shop", "data": table})
    (run / "experiment.toml").write_text(experiment.to_toml())
    data = load(experiment.data)
    with seeds.scope(0, "watched student"):
        model = build_student("two-tower", {"rows": 32_768, "width": 8, "head_width": 8}, data.task)
    save_student(run / "student", model, StudentDescription(data.task, experiment.data.max_characters))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "latencies", lambda *_: [1.0])
        exporting.export_student(run, run / "export", ["float32"])
    return run / "export", data


def like_training(data):
    """Rankings of the validation products, which the reference does not have."""
    ranked = data.ranking_valid
    for query in np.unique(ranked.queries):
        rows = np.flatnonzero(ranked.queries == query)
        texts = [ranked.examples.pairs[row] for row in rows]
        yield {"query": ranked.examples.texts[rows[0]], "titles": texts}


def in_chinese():
    for first, second in product(CHINESE, CHINESE):
        yield {"query": first, "titles": [f"{first} {second} {other}" for other in CHINESE[:8]]}


def watched(export, bodies, **settings):
    """The metrics after enough requests."""
    drift = {"requests_per_second": 1e6, **settings}
    with serving(config_of(export, drift=drift, access_log=False)) as client:
        for body in cycle(bodies):
            assert client.post("/rank", json=body).status_code == 200
            metrics = parsed(client.get("/metrics").text) if body is bodies[-1] else {}
            if metrics.get(("drift_values", "student", "text_length"), 0) >= 500:
                return metrics


def parsed(text):
    """Values by name, role, and what they are of."""
    pattern = r'^fed_distill_(\w+)\{(?:of="(\w+)",)?(?:part="(\w+)",)?role="(\w+)"\} (.*)$'
    return {
        (name, role, of or part): float(value)
        for name, of, part, role, value in re.findall(pattern, text, re.MULTILINE)
    }


def unseen(metrics, part):
    return (
        metrics["unseen_features_total", "student", part] / metrics["watched_features_total", "student", part],
        metrics["reference_unseen_share", "student", part],
        metrics["unseen_ceiling", "student", part],
    )


OF = [f"{part}_{what}" for part in ("text", "pair") for what in ("length", "features")] + ["rank_score"]


def test_traffic_like_the_training_data_is_no_drift(shop):
    export, data = shop
    metrics = watched(export, list(like_training(data)))
    found = {of: metrics["drift_psi", "student", of] for of in OF}
    assert max(found.values()) < 0.25, found
    assert max(value for of, value in found.items() if not of.startswith("text")) < 0.1, found  # there are few queries
    for part in ("text", "pair"):
        share, reference, ceiling = unseen(metrics, part)
        assert (share - reference) / (ceiling - reference) < 0.05


def test_traffic_in_another_language_is(shop):
    export, _ = shop
    metrics = watched(export, list(in_chinese()))
    for of in OF[:4]:
        assert metrics["drift_psi", "student", of] > 0.25
    for part in ("text", "pair"):
        share, reference, ceiling = unseen(metrics, part)
        assert (share - reference) / (ceiling - reference) > 0.5


def test_few_requests_and_old_exports_show_no_index(shop, exported, caplog):
    export, data = shop
    bodies = list(like_training(data))[:5]
    with serving(config_of(export)) as client:
        for number, body in enumerate(bodies):
            client.post("/rank", json=body)
            until(
                lambda least=number: (
                    parsed(client.get("/metrics").text)["drift_values", "student", "text_length"] > least
                )
            )
        metrics = parsed(client.get("/metrics").text)
        assert all(np.isnan(metrics["drift_psi", "student", of]) for of in OF)
        assert metrics["drift_values", "student", "pair_length"] == sum(len(body["titles"]) for body in bodies)
    caplog.set_level("INFO")
    with serving(config_of(exported("two-tower")[1])) as client:
        assert client.post("/rank", json=bodies[0]).status_code == 200
        assert "drift_psi{" not in client.get("/metrics").text
    assert "has no reference.json: its drift is not measured" in caplog.text


@pytest.mark.parametrize(
    ("canary", "rate", "reasons", "shown"),
    [
        (False, 10, {}, {"student": 1.0}),
        (True, 10, {"canary": "its export has no reference.json"}, {"student": 1.0, "canary": 0.0}),
        (True, 0, {}, {}),
    ],
)
def test_a_student_whose_drift_cannot_be_measured_is_named(shop, exported, canary, rate, reasons, shown):
    """The canary is an export with --no-quality; without a wish to watch, nothing is amiss."""
    table = {"student": exported("two-tower")[1], "share": 0.5} if canary else None
    with serving(config_of(shop[0], canary=table, drift={"requests_per_second": rate})) as client:
        until(lambda: len(client.get("/ready").json()["students"]) == 1 + canary)
        told = client.get("/ready").json()["drift_not_measured"]
        metrics = client.get("/metrics").text
    assert {role: why.partition(":")[0] for role, why in told.items()} == reasons
    found = re.findall(r'^fed_distill_drift_measured\{role="(\w+)"\} (.*)$', metrics, re.MULTILINE)
    assert {role: float(value) for role, value in found} == shown


def test_a_student_and_a_canary_have_windows_of_their_own(shop):
    export, data = shop
    with serving(config_of(export, canary={"student": export, "share": 0.5}, drift={"requests_per_second": 1e6})) as (
        client
    ):
        until(lambda: len(client.get("/ready").json()["students"]) == 2)
        for number, body in enumerate(list(like_training(data))[:60]):
            client.post("/rank", json={**body, "session": f"{number}"})

        def values():
            metrics = parsed(client.get("/metrics").text)
            return [metrics[("drift_values", role, "text_length")] for role in ("student", "canary")]

        until(lambda: sum(values()) > 20)
        assert min(values()) > 0


def test_scores_are_watched_in_their_route(shop):
    export, data = shop
    body = next(like_training(data))
    count = len(body["titles"])
    with serving(config_of(export)) as client:
        scored = {"texts": [body["query"]] * count, "pairs": body["titles"]}
        assert client.post("/score", json=scored).status_code == 200
        until(lambda: parsed(client.get("/metrics").text)["drift_values", "student", "score_score"] == count)
        metrics = parsed(client.get("/metrics").text)
        assert metrics["drift_values", "student", "text_length"] == count
        assert metrics["drift_values", "student", "rank_score"] == 0


def test_nothing_is_watched_at_a_rate_of_zero(shop):
    export, data = shop
    with serving(config_of(export, drift={"requests_per_second": 0})) as client:
        for body in list(like_training(data))[:5]:
            client.post("/rank", json=body)
        metrics = parsed(client.get("/metrics").text)
    assert metrics["drift_values", "student", "text_length"] == 0
    assert ("watched_features_total", "student", "text") not in metrics


def test_no_text_of_a_request_is_in_the_metrics(shop):
    export, _ = shop
    with serving(config_of(export)) as client:
        client.post("/rank", json={"query": "zzpersonal", "titles": ["zzsecret title"] * 3})
        until(lambda: parsed(client.get("/metrics").text)["drift_values", "student", "text_length"] == 1)
        assert "zz" not in client.get("/metrics").text


WORKER = """
import sys
from fed_distill.serving.drift import Drift
from fed_distill.serving.service_metrics import ServiceMetrics
metrics = ServiceMetrics()
metrics.drift.drift("student", {"pair_length": Drift(int(sys.argv[1]), float(sys.argv[2]) if sys.argv[2] else None)})
metrics.drift.measured("student", bool(sys.argv[2]))
metrics.drift.features("student", "pair", 100, 7)
metrics.drift.reference("student", {"pair": 0.01}, 0.75)
metrics.shadow.compared("rank", 0.01, 0.5, {"kendall": -0.2})
sys.stdout.buffer.write(metrics.text())
"""


def test_workers_have_windows_of_their_own_and_counts_together(tmp_path):
    """Two processes, the first with too few values for an index."""
    environment = {**os.environ, WORKERS_FOLDER: str(tmp_path)}
    for values, index in (("3", ""), ("600", "0.5")):
        command = [sys.executable, "-c", WORKER, values, index]
        text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    found = {
        name: sorted(re.findall(rf"^fed_distill_{name}{{.*}} (.*)$", text, re.MULTILINE))
        for name in (
            "drift_psi",
            "drift_values",
            "drift_measured",
            "unseen_features_total",
            "reference_unseen_share",
            "unseen_ceiling",
        )
    }
    assert found == {
        "drift_psi": ["0.5", "NaN"],
        "drift_values": ["3.0", "600.0"],
        "drift_measured": ["0.0"],  # one worker that cannot is enough
        "unseen_features_total": ["14.0"],
        "reference_unseen_share": ["0.01"],
        "unseen_ceiling": ["0.75"],
    }
    assert len(set(re.findall(r'^fed_distill_drift_psi.*pid="(\d+)"', text, re.MULTILINE))) == 2
    assert 'fed_distill_shadow_rank_correlation_bucket{kind="kendall",le="0.0",route="rank"} 2.0' in text
    assert 'fed_distill_shadow_overlap_sum{route="rank"} 1.0' in text


def test_about_the_rate_is_chosen_of_each_second_evenly():
    draw = np.random.default_rng(0)
    now, chosen = 0.0, []
    thinning = Thinning(20.0, lambda: now, draw.random)
    for number in range(200_000):  # 1,000 a second
        now = number / 1000
        if thinning.chosen():
            chosen.append(now)
    assert len(chosen) == pytest.approx(200 * 20, rel=0.05)
    assert np.mean(np.array(chosen) % 1.0) == pytest.approx(0.5, abs=0.02)
    now = 1000.0
    few = [Thinning(20.0, lambda: now, draw.random) for _ in range(100)]
    assert all(one.chosen() for one in few for _ in range(20))  # a slow service is watched whole
