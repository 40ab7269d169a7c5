"""Answers of the service are those of the student in Python, alone and among many; errors have one shape."""

import asyncio
import json
import math

import httpx
import numpy as np
import pytest

from fed_distill.data.tasks import HISTORY_SEPARATOR
from fed_distill.serving.explain import explain
from fed_distill.serving.index import Product, ProductIndex
from fed_distill.serving.index_files import save_index
from fed_distill.serving.runtime import load_exported
from fed_distill.serving.service import VERSION_HEADER, build_service
from fed_distill.serving.student import load_student
from tests.serving.services import TITLES, config_of, serving


@pytest.mark.parametrize("kind", ["two-tower", "lstm"])
def test_scores_and_rankings_are_those_of_the_student(kind, exported):
    trained, export = exported(kind)
    student = load_student(trained)
    with serving(config_of(export)) as client:
        ranked = client.post("/rank", json={"query": "usb  hub", "titles": TITLES}).json()
        scored = client.post("/score", json={"texts": ["usb hub"] * 4, "pairs": TITLES}).json()
        again = client.post("/rank", json={"query": "usb  hub", "titles": TITLES}).json()
    expected = student.rank("usb hub", TITLES)
    assert ranked["order"] == expected.order.tolist()
    np.testing.assert_allclose(ranked["scores"], expected.scores, atol=1e-5)
    np.testing.assert_allclose(scored["probabilities"], student.predict(["usb hub"] * 4, TITLES), atol=1e-5)
    assert scored["classes"] == list(student.classes)
    np.testing.assert_allclose(again["scores"], ranked["scores"], atol=1e-6)  # now by vectors of the cache


def test_a_search_by_words_counts_in_a_ranking(exported):
    trained, export = exported("two-tower")
    words = [7.5, 0.0, 3.25, 1.0]
    body = {"query": "usb hub", "titles": TITLES}
    with serving(config_of(export)) as client:
        alone = client.post("/rank", json=body).json()
        summed = client.post("/rank", json={**body, "bm25": words, "bm25_weight": 0.5}).json()
        unweighted = client.post("/rank", json={**body, "bm25": [1, 2, 3, 4], "bm25_weight": 1}).json()
        nothing = client.post("/rank", json={**body, "bm25": None, "bm25_weight": None}).json()
        refused = [
            client.post("/rank", json={**body, **more})
            for more in (
                {"bm25": words[:3], "bm25_weight": 0.5},
                {"bm25": [*words, 1.0], "bm25_weight": 0.5},
                {"bm25": ["7", "0", "1", "1"], "bm25_weight": 0.5},
                {"bm25": words, "bm25_weight": -0.1},
                {"bm25": words},
                {"bm25_weight": 0.5},
            )
        ]
        unbounded = client.post(
            "/rank",
            content=json.dumps({**body, "bm25": [math.nan, math.inf, 0.0, 0.0], "bm25_weight": 0.5}),
            headers={"Content-Type": "application/json"},
        )
    expected = [math.log(score / (1 - score)) + 0.5 * word for score, word in zip(alone["scores"], words, strict=True)]
    np.testing.assert_allclose(summed["scores"], expected, atol=1e-4)
    assert summed["order"] == sorted(range(4), key=lambda place: -expected[place]) != alone["order"]
    of_python = load_student(trained).rank("usb hub", TITLES, bm25=words, bm25_weight=0.5)
    np.testing.assert_allclose(summed["scores"], of_python.scores, atol=1e-4)
    assert np.subtract(unweighted["scores"], [1, 2, 3, 4]) == pytest.approx(
        [math.log(score / (1 - score)) for score in alone["scores"]], abs=1e-4
    )
    assert nothing["scores"] == pytest.approx(alone["scores"], abs=1e-6)
    assert [answer.status_code for answer in (*refused, unbounded)] == [422] * 7
    assert "bm25 has 3 scores for 4 candidates" in refused[0].json()["detail"]
    assert all("both of bm25 and bm25_weight" in answer.json()["detail"] for answer in refused[-2:])


@pytest.mark.parametrize("kind", ["two-tower, one text", "lstm, one text"])
def test_a_task_of_one_text_is_scored_without_pairs(kind, exported):
    trained, export = exported(kind)
    with serving(config_of(export)) as client:
        answer = client.post("/score", json={"texts": TITLES})
        refused = client.post("/score", json={"texts": TITLES, "pairs": TITLES})
        unranked = client.post("/rank", json={"query": "usb", "titles": TITLES})
    np.testing.assert_allclose(answer.json()["probabilities"], load_student(trained).predict(TITLES), atol=1e-5)
    assert refused.status_code == unranked.status_code == 422
    assert "leave pairs out" in refused.json()["detail"]


def test_recommendations_are_those_of_the_student(exported):
    trained, export = exported("recommending")
    history = ["red kettle 2 l", "mail me@example.org cup"]
    with serving(config_of(export)) as client:
        answer = client.post("/recommend", json={"history": history, "titles": TITLES}).json()
        pairs = {"texts": [HISTORY_SEPARATOR.join(history)] * 4, "pairs": TITLES}
        scored = client.post("/score", json=pairs).json()
    expected = load_student(trained).recommend(history, TITLES)
    assert answer["order"] == expected.order.tolist()
    np.testing.assert_allclose(answer["scores"], expected.scores, atol=1e-5)
    np.testing.assert_allclose(np.array(scored["probabilities"])[:, 1], expected.scores, atol=1e-5)


@pytest.mark.parametrize("kind", ["two-tower", "lstm"])
def test_concurrent_requests_share_batches_and_get_their_own_answers(kind, exported):
    trained, export = exported(kind)
    student = load_student(trained)
    asked = [(f"query {n}", [f"title {n} {place}" for place in range(1 + n % 5)]) for n in range(60)]

    async def all_at_once():
        app = build_service(config_of(export))
        app.state.students.load()
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            bodies = [{"query": query, "titles": titles} for query, titles in asked]
            answers = await asyncio.gather(*(client.post("/rank", json=body) for body in bodies))
            return answers, (await client.get("/metrics")).text

    answers, metrics = asyncio.run(all_at_once())
    for (query, titles), answer in zip(asked, answers, strict=True):
        np.testing.assert_allclose(answer.json()["scores"], student.rank(query, titles).scores, atol=1e-5)
    counts = {line.split()[0]: float(line.split()[1]) for line in metrics.splitlines() if line[0] != "#"}
    assert counts['fed_distill_requests_total{route="/rank",status="200"}'] == 60
    assert counts["fed_distill_batch_rows_count"] < 30
    assert counts["fed_distill_batch_rows_sum"] >= sum(len(titles) for _, titles in asked)


@pytest.fixture
def indexed(exported, tmp_path):
    """An export with an index of ``TITLES``."""
    trained, export = exported("two-tower")
    student = load_student(trained)
    products = [Product(f"p{place}", title) for place, title in enumerate(TITLES)]
    save_index(ProductIndex.build(student, products), tmp_path / "index", student.digest)
    return student, export, tmp_path / "index"


def test_a_search_finds_what_the_index_finds_and_products_rank_as_their_titles(indexed):
    student, export, index = indexed
    with serving(config_of(export, index=index)) as client:
        found = client.post("/search", json={"query": "usb hub", "k": 3}).json()["hits"]
        by_id = client.post("/rank", json={"query": "usb hub", "products": ["p2", "p0"]})
        unknown = client.post("/rank", json={"query": "usb hub", "products": ["p2", "../p0"]})
        both = client.post("/rank", json={"query": "usb", "products": ["p2"], "titles": ["x"]})
    expected = student.rank("usb hub", TITLES)
    assert [hit["id"] for hit in found] == [f"p{place}" for place in expected.order[:3]]
    np.testing.assert_allclose([hit["score"] for hit in found], np.sort(expected.scores)[::-1][:3], atol=1e-5)
    np.testing.assert_allclose(by_id.json()["scores"], expected.scores[[2, 0]], atol=1e-5)
    assert unknown.status_code == both.status_code == 422
    assert "either titles or products" in both.json()["detail"]


@pytest.mark.parametrize("variant", ["float32", "int4", "pruned"])
def test_an_explanation_is_that_of_the_trained_student_whatever_variant_is_served(exported, variant):
    trained, export = exported("two-tower")
    with serving(config_of(export, trained=trained, variant=variant)) as client:
        answer = client.post("/explain", json={"query": "usb hub", "title": TITLES[0]}).json()
    expected = explain(load_student(trained), "usb hub", TITLES[0])
    words = [(word["text"], word["contribution"]) for word in answer["title_words"]]
    assert [text for text, _ in words] == [word.text for word in expected.title_words]
    np.testing.assert_allclose([value for _, value in words], [w.contribution for w in expected.title_words], atol=1e-6)


def test_what_a_service_does_not_have_is_said(exported):
    with serving(config_of(exported("two-tower")[1])) as client:
        for path, body in {
            "/search": {"query": "usb"},
            "/explain": {"query": "usb", "title": "hub"},
            "/rank": {"query": "usb", "products": ["1"]},
            "/recommend": {"history": ["usb"], "titles": ["hub"]},
        }.items():
            answer = client.post(path, json=body)
            assert answer.status_code == 422, path
            assert set(answer.json()) == {"error", "detail", "request_id"}


def test_an_index_of_another_student_is_refused_at_the_start(indexed, exported, tmp_path):
    _, _, index = indexed
    app = build_service(config_of(exported("recommending")[1], index=index))
    with pytest.raises(Exception, match="of another student"):
        app.state.students.load()


def test_it_is_not_ready_before_a_student_is_loaded(tmp_path):
    from starlette.testclient import TestClient

    with TestClient(build_service(config_of(tmp_path / "none")), base_url="http://localhost") as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/ready").status_code == 503
        answer = client.post("/rank", json={"query": "usb", "titles": ["hub"]})
        assert (answer.status_code, answer.json()["error"]) == (503, "not_ready")
        assert answer.headers["retry-after"] == "1"


def test_the_description_has_examples_that_work(exported):
    with serving(config_of(exported("two-tower")[1])) as client:
        described = client.get("/openapi.json").json()
        for path, name in {"/rank": "RankRequest", "/score": "ScoreRequest"}.items():
            example = described["components"]["schemas"][name]["examples"][0]
            assert client.post(path, json=example).status_code == 200
        assert {"/score", "/rank", "/recommend", "/search", "/explain"} <= set(described["paths"])
        for page in ("/docs", "/redoc"):
            assert client.get(page).json()["error"] == "not_found"


def test_answers_name_the_student_and_metrics_have_no_text(exported):
    export = exported("two-tower")[1]
    with serving(config_of(export)) as client:
        answer = client.post("/rank", json={"query": "secretword", "titles": ["othersecret"]})
        version = client.get("/ready").json()["students"]["student"]
        metrics = client.get("/metrics").text
    assert answer.headers[VERSION_HEADER] == version
    assert f'version="{version}"' in metrics
    assert "secretword" not in metrics
    assert "othersecret" not in metrics


def test_known_titles_are_looked_up(exported):
    export = exported("two-tower")[1]
    assert load_exported(export).has_vectors
    with serving(config_of(export)) as client:
        for _ in range(3):
            client.post("/rank", json={"query": "usb hub", "titles": TITLES})
        lines = client.get("/metrics").text.splitlines()
    counts = {
        line.split()[0]: float(line.split()[1]) for line in lines if line.startswith("fed_distill_vector_lookups")
    }
    assert counts['fed_distill_vector_lookups_total{result="miss"}'] == 5
    assert counts['fed_distill_vector_lookups_total{result="hit"}'] == 10
