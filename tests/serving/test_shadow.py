"""A shadow is asked in the background: it is compared, and can neither fail nor delay an answer."""

import asyncio
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram

from fed_distill.serving.index import Product, ProductIndex
from fed_distill.serving.index_files import save_index
from fed_distill.serving.runtime import load_exported
from fed_distill.serving.service_config import ShadowTable
from fed_distill.serving.shadow import Agreement, Shadow, hits_agree, rankings_agree
from fed_distill.serving.watch_metrics import ShadowMetrics
from tests.serving.services import TITLES, config_of, replace_export, serving, until

MANY = [f"{title} {number}" for title in TITLES for number in range(5)]
BODY = {"query": "usb hub", "titles": MANY}


def value(client, series):
    """The value of a series in /metrics; 0 if there is none."""
    found = re.search(rf"^fed_distill_{re.escape(series)} (.*)$", client.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def results(client, route="rank"):
    return {
        name: value(client, f'shadow_requests_total{{result="{name}",route="{route}"}}')
        for name in ("compared", "failed", "dropped")
    }


def test_correlations_are_the_hand_computed_ones():
    # Ranks 1 2 3 4 and 2 1 3 4: rho = 1 - 6 * 2 / (4 * 15) = 0.8; one of six pairs is discordant: tau = 4 / 6.
    found = rankings_agree(np.array([0.9, 0.8, 0.3, 0.1]), np.array([0.5, 0.6, 0.2, 0.1]))
    assert found.overlap is None
    assert found.correlations == pytest.approx({"spearman": 0.8, "kendall": 4 / 6})
    # Ties, ranks 1.5 1.5 3 and 1 2 3: rho = 1.5 / sqrt(1.5 * 2); tau-b = 2 / sqrt(2 * 3).
    tied = rankings_agree(np.array([0.9, 0.9, 0.1]), np.array([0.9, 0.5, 0.1]))
    assert tied.correlations == pytest.approx({"spearman": 1.5 / 3**0.5, "kendall": 2 / 6**0.5})


def test_overlap_is_that_of_the_first_ten():
    scores = np.arange(20.0)
    assert rankings_agree(scores, scores) == Agreement(1.0, pytest.approx({"spearman": 1.0, "kendall": 1.0}))
    assert rankings_agree(scores, -scores) == Agreement(0.0, pytest.approx({"spearman": -1.0, "kendall": -1.0}))
    moved = scores.copy()
    moved[:3], moved[-3:] = scores[-3:], scores[:3]  # three of the first ten leave
    assert rankings_agree(scores, moved).overlap == 0.7
    assert rankings_agree(scores[:10], -scores[:10]).overlap is None
    assert rankings_agree(scores[:1], scores[:1]) == Agreement(None)
    assert rankings_agree(scores, np.zeros(20)) == Agreement(0.0)  # equal scores: the first titles are first
    assert hits_agree(["a", "b", "c", "d"], ["d", "x", "b"]) == Agreement(0.5)
    assert hits_agree(["a", "b"], []) == hits_agree([], ["a", "b"]) == Agreement(0.0)
    assert hits_agree([], []) == Agreement(None)


def test_the_same_student_agrees_in_all(exported):
    export = exported("two-tower")[1]
    with serving(config_of(export, shadow={"student": export, "share": 1.0})) as client:
        until(lambda: len(client.get("/ready").json()["students"]) == 2)
        for number in range(20):
            assert client.post("/rank", json={**BODY, "query": f"usb {number}"}).status_code == 200
        until(lambda: results(client)["compared"] == 20)
        assert value(client, 'shadow_overlap_sum{route="rank"}') == 20
        assert value(client, 'shadow_overlap_bucket{le="0.9",route="rank"}') == 0
        for kind in ("spearman", "kendall"):
            below, all_of_them = (
                value(client, f'shadow_rank_correlation_bucket{{kind="{kind}",le="{edge}",route="rank"}}')
                for edge in ("0.99", "+Inf")
            )
            assert (below, all_of_them) == (0, 20)
        assert value(client, 'shadow_seconds_count{route="rank"}') == 20
        assert results(client)["failed"] == results(client)["dropped"] == 0


def test_another_student_differs_and_never_answers(exported):
    export, other = exported("two-tower")[1], exported("lstm")[1]
    alone = load_exported(export).rank("usb hub", MANY)
    with serving(config_of(export, shadow={"student": other, "share": 1.0})) as client:
        until(lambda: len(client.get("/ready").json()["students"]) == 2)
        live = client.get("/ready").json()["students"]["student"]
        answers = [client.post("/rank", json=BODY) for _ in range(20)]
        until(lambda: results(client)["compared"] == 20)
        assert value(client, 'shadow_rank_correlation_bucket{kind="spearman",le="0.99",route="rank"}') == 20
        metrics = client.get("/metrics").text
    assert {answer.headers["x-student-version"] for answer in answers} == {live}
    np.testing.assert_allclose(answers[0].json()["scores"], alone.scores, atol=1e-5)
    assert "fed_distill_vector_lookups_total" in metrics
    lookups = sum(map(float, re.findall(r"^fed_distill_vector_lookups_total\{.*\} (.*)$", metrics, re.MULTILINE)))
    assert lookups == 20 * (1 + len(MANY))  # of the answers alone


def test_a_shadow_that_fails_is_counted_and_harms_nothing(exported, caplog):
    export, other = exported("two-tower")[1], exported("two-tower, one text")[1]
    with serving(config_of(export, shadow={"student": other, "share": 1.0})) as client:
        until(lambda: len(client.get("/ready").json()["students"]) == 2)
        assert {client.post("/rank", json=BODY).status_code for _ in range(10)} == {200}
        until(lambda: results(client)["failed"] == 10)
    told = [record.getMessage() for record in caplog.records if "fails at rank" in record.getMessage()]
    assert len(told) == 1 and "DataError" in told[0] and "usb" not in told[0]


def test_a_new_shadow_comes_and_a_bad_one_is_refused(exported, tmp_path):
    export = exported("two-tower")[1]
    shadow = shutil.copytree(exported("two-tower")[1], tmp_path / "shadow")
    with serving(config_of(export, shadow={"student": shadow, "share": 1.0})) as client:

        def versions():
            return client.get("/ready").json()["students"]

        until(lambda: len(versions()) == 2)
        first = versions()["shadow"]
        assert first == versions()["student"]
        replace_export(shadow, exported("lstm")[1])
        until(lambda: versions()["shadow"] != first)
        second = versions()["shadow"]
        (shadow / "float32" / "classifier.onnx").write_bytes(b"none")
        until(lambda: client.get("/ready").json()["refused"] == ["shadow"])
        assert versions()["shadow"] == second
        assert client.post("/rank", json=BODY).status_code == 200
        assert f'student_info{{role="shadow",variant="float32",version="{second}"}} 1.0' in client.get("/metrics").text


def test_searches_are_compared_by_their_first_hits(exported, tmp_path):
    export = exported("two-tower")[1]
    student = load_exported(export)
    index = ProductIndex.build(student, [Product(f"p{number}", text) for number, text in enumerate(MANY)])
    save_index(index, tmp_path / "index", student.digest)
    shadow = {"student": export, "index": tmp_path / "index", "share": 1.0}
    with serving(config_of(export, shadow=shadow, index=tmp_path / "index")) as client:
        until(lambda: len(client.get("/ready").json()["students"]) == 2)
        for _ in range(5):
            assert len(client.post("/search", json={"query": "usb hub", "k": 12}).json()["hits"]) == 12
            assert client.post("/rank", json={"query": "usb", "products": ["p1", "p7"]}).status_code == 200
        until(lambda: results(client, "search")["compared"] == results(client)["compared"] == 5)
        assert value(client, 'shadow_overlap_sum{route="search"}') == 5


def test_a_shadow_without_an_index_is_asked_about_titles_alone(exported, tmp_path):
    export = exported("two-tower")[1]
    student = load_exported(export)
    save_index(ProductIndex.build(student, [Product("p1", TITLES[0])]), tmp_path / "index", student.digest)
    shadow = {"student": exported("lstm")[1], "share": 1.0}
    with serving(config_of(export, shadow=shadow, index=tmp_path / "index")) as client:
        until(lambda: len(client.get("/ready").json()["students"]) == 2)
        assert client.post("/search", json={"query": "usb hub"}).status_code == 200
        assert client.post("/rank", json={"query": "usb", "products": ["p1"]}).status_code == 200
        assert client.post("/rank", json=BODY).status_code == 200
        until(lambda: results(client)["compared"] == 1)
        assert results(client) == {"compared": 1, "failed": 0, "dropped": 0}
        assert set(results(client, "search").values()) == {0}


def test_a_full_queue_drops_and_never_waits():
    registry = CollectorRegistry()

    def made(kind, name, text, labels, **more):
        return kind(name, text, labels, registry=registry, **more)

    def counted(result):
        return registry.get_sample_value("shadow_requests_total", {"route": "rank", "result": result}) or 0

    async def offered():
        release = asyncio.Event()

        async def ask(student):
            await release.wait()
            return lambda: Agreement(1.0)

        with ThreadPoolExecutor(1) as executor:
            metrics = ShadowMetrics(made, Counter, Histogram)
            table = ShadowTable.model_validate({"student": "x", "share": 1.0, "queue": 3})
            shadow = Shadow(table, lambda: SimpleNamespace(version="v"), executor, metrics)
            running = asyncio.create_task(shadow.run())
            shadow.offer("rank", ask)
            await asyncio.sleep(0)  # which is asked now, and does not answer
            for _ in range(5):
                shadow.offer("rank", ask)
            dropped = counted("dropped")
            release.set()
            while counted("compared") < 4:
                await asyncio.sleep(0)
            running.cancel()
        return dropped

    assert asyncio.run(offered()) == 2
    assert counted("failed") == 0


def test_about_the_share_is_asked():
    shares = []
    for share in (0.1, 0.5):
        table = ShadowTable.model_validate({"student": "x", "share": share, "queue": 10_000})
        shadow = Shadow(table, lambda: None, None, None)
        for _ in range(4000):
            shadow.offer("rank", None)
        shares.append(shadow._queue.qsize() / 4000)
    assert shares == pytest.approx([0.1, 0.5], abs=0.04)  # five standard deviations and more
