"""A catalogue is searched by vectors first and by the head second, while products change."""

import itertools
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fed_distill.errors import ConfigError, DataError
from fed_distill.serving.index import Product, ProductIndex, nearest_rows
from fed_distill.serving.recall import first_stage_recall, graph_recall

ROOT = Path(__file__).parents[2]
WORDS = ("red", "blue", "phone", "shoe", "kettle", "maxi", "mini", "ultra", "pro", "手机")
TITLES = [" ".join(words) for words in itertools.permutations(WORDS, 3)]
ENGINES = ("exact", "usearch")


class Fixed:
    """A student of given vectors, whose head prefers what is far away."""

    def __init__(self, table):
        self.table = table

    def embed(self, texts):
        return np.array([self.table[text] for text in texts], dtype=np.float32).reshape(len(texts), 2)

    def score_vectors(self, query, titles):
        return 1.0 - (titles.astype(np.float64) @ query.astype(np.float64))


def products(titles, first=0):
    return [Product(str(number), title) for number, title in enumerate(titles, first)]


@pytest.fixture
def fixed():
    angles = {"query": 0.0, "a": 0.1, "b": -0.1, "c": 0.5, "d": 1.0, "e": 3.0, "other": 2.0}
    return Fixed({name: (np.cos(angle), np.sin(angle)) for name, angle in angles.items()} | {"!": (0.0, 0.0)})


def test_the_head_orders_the_nearest_candidates_by_hand(fixed):
    index = ProductIndex.build(fixed, products(["e", "d", "c", "b", "a"]))
    hits = index.search("query", k=2, candidates=3)
    assert [hit.title for hit in hits] == ["c", "b"]  # of a, b, c the head prefers c; a and b tie, b is first
    assert hits[0].similarity == pytest.approx(np.cos(0.5), abs=1e-6)
    assert hits[0].score == pytest.approx(1 - np.cos(0.5), abs=1e-6)
    assert [hit.title for hit in index.search("query", k=2, candidates=5)] == ["e", "d"]
    assert [hit.title for hit in index.search("query", k=9)] == ["e", "d", "c", "b", "a"]
    assert len(index.search("query", k=4, candidates=1)) == 4


def test_a_query_without_any_feature_and_an_empty_catalogue_find_nothing(fixed):
    assert ProductIndex.build(fixed, products(["a", "!"])).search("!") == []
    assert ProductIndex.build(fixed, []).search("query") == []


@pytest.mark.parametrize("engine", ENGINES)
def test_searching_with_all_candidates_is_ranking_the_whole_catalogue(searching, engine):
    index = ProductIndex.build(searching, products(TITLES), engine)
    for query in ("blue phone", "手机 pro", "kettle"):
        expected = searching.rank(query, TITLES)
        hits = index.search(query, 10, len(TITLES))
        np.testing.assert_allclose([hit.score for hit in hits], expected.scores[expected.order[:10]], atol=1e-6)
        cosine = searching.embed([query])[0] @ searching.embed([hit.title for hit in hits]).T
        np.testing.assert_allclose([hit.similarity for hit in hits], cosine, atol=1e-6)


def test_usearch_finds_almost_what_exact_search_finds_and_recall_is_that_of_a_slow_count(searching):
    index = ProductIndex.build(searching, products(TITLES), "usearch")
    segment = index.snapshot()[0]
    queries = searching.embed(TITLES[::40])
    assert graph_recall(segment, queries, 10, 100) > 0.95
    shares = []
    for query in queries:
        scores = searching.score_vectors(query, segment.vectors)
        best = np.argsort(-scores, kind="stable")[:10].tolist()
        found = np.argsort(-(segment.vectors.astype(np.float64) @ query.astype(np.float64)), kind="stable")[:50]
        shares.append(len(set(best) & set(found.tolist())) / 10)
    exact = ProductIndex.build(searching, products(TITLES)).snapshot()[0]
    assert first_stage_recall(exact, searching, queries, 10, 50) == pytest.approx(np.mean(shares))


@pytest.mark.parametrize("engine", ENGINES)
def test_products_are_added_replaced_and_deleted(searching, engine):
    index = ProductIndex.build(searching, products(TITLES[:20]), engine)
    index.add([Product("new", "ultra kettle")])
    index.replace([Product("3", "red shoe shoe")])
    index.delete(["0", "1", "0"])
    assert len(index) == 19
    assert ("new" in index, "3" in index, "0" in index) == (True, True, False)
    hits = {hit.id: hit.title for hit in index.search("phone", 50)}
    assert hits.keys() == {str(number) for number in range(2, 20)} | {"new"}
    assert (hits["3"], hits["new"]) == ("red shoe shoe", "ultra kettle")
    index.compact()
    assert {hit.id: hit.title for hit in index.search("phone", 50)} == hits
    assert [len(segment.vectors) for segment in index.snapshot()] == [19, 0]


@pytest.mark.parametrize("engine", ENGINES)
def test_all_products_can_be_replaced_and_deleted(searching, engine):
    index = ProductIndex.build(searching, products(TITLES[:3]), engine)
    index.replace(products(TITLES[3:6]))
    assert {hit.title for hit in index.search("phone")} == set(TITLES[3:6])
    index.delete(["0", "1", "2"])
    assert index.search("phone") == []
    empty = ProductIndex.build(searching, [], engine)
    assert empty.search("phone") == []
    empty.add(products(TITLES[:2]))
    assert {hit.title for hit in empty.search("phone")} == set(TITLES[:2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.add([Product("new", "a"), Product("0", "b")]), "product '0' is in the index already"),
        (lambda index: index.add([Product("new", "a"), Product("new", "b")]), "product 'new' occurs twice"),
        (lambda index: index.add([Product("new", "a"), Product("more", " ")]), r"texts\[1\] is empty"),
        (lambda index: index.replace([Product("0", "a"), Product("no", "b")]), "there is no product 'no'"),
        (lambda index: index.delete(["0", "no"]), "there is no product 'no'"),
        (lambda index: index.search("red", 0), "k is 0"),
    ],
)
def test_a_wrong_change_changes_nothing(searching, change, message):
    index = ProductIndex.build(searching, products(TITLES[:5]))
    before = index.snapshot()
    with pytest.raises(DataError, match=message):
        change(index)
    assert index.snapshot() is before
    assert ("0" in index, "new" in index) == (True, False)


def test_a_student_without_gains_is_rejected_before_anything_is_embedded(searching):
    class Embeds:
        score_vectors = searching.score_vectors

        def embed(self, texts):
            assert not texts
            return searching.embed(texts)

    object.__setattr__(searching.task, "gains", None)
    with pytest.raises(DataError, match="has no score of a title"):
        ProductIndex.build(Embeds(), products(TITLES))


def test_usearch_that_is_not_installed_is_named_before_anything_is_embedded(searching, monkeypatch):
    class Embeds:
        def embed(self, texts):
            raise AssertionError("nothing is embedded")

    monkeypatch.setitem(sys.modules, "usearch.index", None)
    with pytest.raises(ConfigError, match=r"pip install 'fed-distill\[index\]', or use engine 'exact'"):
        ProductIndex.build(Embeds(), products(TITLES), "usearch")


class Changes(RuleBasedStateMachine):
    """Any sequence of changes leaves what a dictionary of products in order of their addition would hold."""

    def __init__(self):
        super().__init__()
        draw = np.random.default_rng(0)
        table = {
            text: value / np.linalg.norm(value) for text, value in zip("abcdef", draw.normal(size=(6, 2)), strict=True)
        }
        self.student = Fixed(table)
        self.expected = dict(products("abc"))
        self.index = ProductIndex.build(self.student, products("abc"))
        self.numbers = itertools.count(3)

    @rule(titles=st.lists(st.sampled_from("abcdef"), max_size=4))
    def add(self, titles):
        added = [Product(str(next(self.numbers)), title) for title in titles]
        self.index.add(added)
        self.expected |= dict(added)

    @precondition(lambda self: self.expected)
    @rule(data=st.data(), title=st.sampled_from("abcdef"))
    def replace(self, data, title):
        id = data.draw(st.sampled_from(sorted(self.expected)))
        self.index.replace([Product(id, title)])
        del self.expected[id]
        self.expected[id] = title

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def delete(self, data):
        ids = data.draw(st.lists(st.sampled_from(sorted(self.expected)), min_size=1, unique=True))
        self.index.delete(ids)
        for id in ids:
            del self.expected[id]

    @rule()
    def compact(self):
        self.index.compact()

    @invariant()
    def holds(self):
        assert len(self.index) == len(self.expected)
        query = self.student.embed(["a"])[0]
        found = nearest_rows(self.index.snapshot(), query, 100).rows.tolist()
        first = len(self.index.snapshot()[0].vectors)
        held = [self.index.snapshot()[row >= first].product(row - first * (row >= first)) for row in found]
        similarity = {title: round(float(self.student.embed([title])[0] @ query), 5) for title in "abcdef"}
        # stable, so that of equal titles the one added first is first
        order = sorted(self.expected, key=lambda id: -similarity[self.expected[id]])
        assert [product.id for product in held] == order
        assert dict(held) == self.expected
        rows = sum(len(segment.vectors) for segment in self.index.snapshot())
        assert rows <= 2 * len(self.expected) or not self.expected


TestChanges = Changes.TestCase
TestChanges.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_searches_see_one_state_while_another_thread_changes_it(fixed):
    """A batch of two products is added or deleted as a whole, so that no search sees one of them."""
    index = ProductIndex.build(fixed, products(["c"]))
    stop, seen = threading.Event(), set()

    def read():
        while not stop.is_set():
            seen.add(tuple(sorted(hit.id for hit in index.search("query", 10))))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in range(300):
        index.add([Product("x", "a"), Product("y", "b")])
        index.replace([Product("y", "d"), Product("x", "e")])
        index.delete(["x", "y"])
    stop.set()
    for reader in readers:
        reader.join()
    assert seen <= {("0",), ("0", "x", "y")}


def test_threads_that_search_one_graph_find_what_one_thread_finds(searching):
    index = ProductIndex.build(searching, products(TITLES), "usearch")
    queries = searching.embed(TITLES[::7])
    expected = [index.search_vector(query) for query in queries]
    found = {}

    def search(number):
        found[number] = [index.search_vector(query) for query in queries]

    threads = [threading.Thread(target=search, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(4)] == [expected] * 4


def test_an_index_needs_no_torch():
    program = "import sys, fed_distill.serving.index, fed_distill.serving.index_files; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "False\n"


def test_a_score_by_vectors_is_that_of_rank(searching):
    scores = searching.score_vectors(searching.embed(["red kettle"])[0], searching.embed(TITLES))
    np.testing.assert_allclose(scores, searching.rank("red kettle", TITLES).scores, atol=1e-6)
