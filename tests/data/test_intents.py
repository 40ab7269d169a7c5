"""Questions of the marketplace's shoppers, and questions in a user's table."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from fed_distill.config import DataConfig
from fed_distill.data import load
from fed_distill.data.examples import FederatedData
from fed_distill.data.intents import CLOSINGS, GREETINGS, INTENTS
from fed_distill.data.vocabulary import LANGUAGES
from fed_distill.data.writing import QUESTION_DRAWS
from fed_distill.errors import DataError

OPTIONS = {"merchants": 12, "rows": 150, "products": 400}
FAQ = DataConfig(task="faq", proxy_size=100, min_rows=20, options=OPTIONS)


@pytest.fixture(scope="module")
def faq() -> FederatedData:
    return load(FAQ)


def test_a_question_has_one_text_and_an_intent(faq: FederatedData) -> None:
    assert faq.task.name == "faq"
    assert faq.task.classes == tuple(INTENTS)
    assert faq.public.pairs is None
    assert {label for merchant in faq.merchants.values() for label in merchant.train.labels.tolist()} == set(range(12))


def test_every_intent_can_be_asked_in_every_language() -> None:
    """Chances for picks are the last 5 of the draws; alternatives differ; nothing is left of the notation."""
    for patterns in INTENTS.values():
        assert len(patterns) == len(LANGUAGES)
        for written in patterns:
            assert len(written) == 3
            for pattern in written:
                brackets = re.findall(r"\[([^\]]*)\]", pattern)
                assert 1 <= len(brackets) <= QUESTION_DRAWS - 11
                assert all(len(set(choices.split("/"))) == len(choices.split("/")) >= 2 for choices in brackets)
                assert not re.search(r"[\[\]/]|\{(?!product\})", re.sub(r"\[[^\]]*\]", "", pattern))
    assert len(GREETINGS) == len(CLOSINGS) == len(LANGUAGES)


def test_no_notation_is_left_in_what_is_asked(faq: FederatedData) -> None:
    texts = [*faq.public.texts, *faq.test.texts, *faq.proxy.texts]
    assert not [text for text in texts if re.search(r"[\[\]{}/]", text) or not text.strip()]


def test_merchants_are_asked_different_things() -> None:
    even, skewed = (load(FAQ.model_copy(update={"options": {**OPTIONS, "grade_skew": skew}})) for skew in (0.0, 1.0))

    def spread_of(data: FederatedData) -> float:
        shares = [np.bincount(one.train.labels, minlength=12) / len(one.train) for one in data.merchants.values()]
        return float(np.std(shares, axis=0).mean())

    assert spread_of(skewed) > 2 * spread_of(even)


def test_intents_can_be_learned_but_not_from_a_single_word(faq: FederatedData) -> None:
    train = [text for merchant in faq.merchants.values() for text in merchant.train.texts] + list(faq.public.texts)
    labels = [int(label) for merchant in faq.merchants.values() for label in merchant.train.labels]
    labels += faq.public.labels.tolist()
    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 3)).fit(train)
    model = LogisticRegression(C=10.0, max_iter=300).fit(vectors.transform(train), labels)
    accuracy = float(model.score(vectors.transform(faq.test.texts), faq.test.labels))
    words: dict[str, Counter[int]] = {}
    for text, label in zip(train, labels, strict=True):
        for word in set(text.lower().split()):
            words.setdefault(word, Counter())[label] += 1
    best = {word: counts.most_common(1)[0] for word, counts in words.items() if sum(counts.values()) > 2}
    right = 0
    for text, label in zip(faq.test.texts, faq.test.labels.tolist(), strict=True):
        known = [best[word] for word in text.lower().split() if word in best]
        right += bool(known) and max(known, key=lambda found: found[1])[0] == label
    assert 0.7 < accuracy < 0.99
    assert right / len(faq.test) < accuracy - 0.1


def test_departments_are_domains() -> None:
    data = load(FAQ.model_copy(update={"test_domain": "phones", "options": {**OPTIONS, "languages": ["en"]}}))
    assert 0 < len(data.test) < len(load(FAQ.model_copy(update={"options": {**OPTIONS, "languages": ["en"]}})).test)


def table(tmp_path: Path, rows: list[str]) -> DataConfig:
    path = tmp_path / "questions.csv"
    path.write_text("\n".join(["question,intent,shop,topic", *rows]) + "\n", encoding="utf-8")
    columns = {"text": "question", "label": "intent", "merchant": "shop", "domain": "topic"}
    options = {"path": str(path), "columns": columns}
    return DataConfig.model_validate(
        {"dataset": "table", "task": "faq", "min_rows": 10, "proxy_size": 10, "options": options}
    )


def test_intents_of_a_table_are_those_that_stand_in_it(tmp_path: Path) -> None:
    intents = ("refund", "size", "where is it")
    rows = [f"question {row} on {intents[row % 3]},{intents[row % 3]},shop {row % 5},t{row % 2}" for row in range(240)]
    data = load(table(tmp_path, rows))
    assert (data.task.name, data.task.classes) == ("faq", intents)
    assert all(
        text.endswith(intents[label]) for text, label in zip(data.test.texts, data.test.labels.tolist(), strict=True)
    )
    left_out = load(table(tmp_path, rows).model_copy(update={"test_domain": "t1"}))
    assert all(int(text.split()[1]) % 2 == 1 for text in left_out.test.texts)
    assert all(int(text.split()[1]) % 2 == 0 for text in left_out.public.texts)


def test_a_table_of_one_intent_is_refused(tmp_path: Path) -> None:
    rows = [f"question {row},refund,shop {row % 4},t" for row in range(40)]
    with pytest.raises(DataError, match=r"questions\.csv: task faq requires at least two classes"):
        load(table(tmp_path, rows))
