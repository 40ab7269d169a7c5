"""Generate a proxy set from the words of public texts, for when merchants' titles are not public.

Words of the given texts are recombined: a text is a walk over words that follow each other in some text, as long as the
texts are (a bigram model, Shannon 1948, section 3). So it has the vocabulary and the word order of the texts, and
products that none of them names. A pair's first text is a query: words of a generated second text in their order, as
many as queries have. The second text of the pair is, in turn, the one that the query is from, another that shares a
word with it, and any other, so that a teacher finds every grade of relevance.

A one-shot method is then one round of a method on soft labels. DENSE (Zhang et al., "DENSE: Data-free one-shot
federated learning", NeurIPS 2022) trains a generator through the merchants' models instead: it requires these models at
the server, which soft labels avoid, and inputs in which gradients are defined, which texts are not.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fed_distill.data.examples import UNLABELED, Examples
from fed_distill.errors import DataError
from fed_distill.seeds import numpy_stream

OWNER = "generated"
"""Name of the merchant of generated examples."""
_ATTEMPTS = 10
"""Maximum number of generated texts for each distinct one."""
_WORDS = 2.0
"""Minimum mean number of words of texts that are recombined by words; others, as Chinese ones, are by characters."""


def generated(public: Examples, size: int, seed: int) -> Examples:
    """Generate distinct unlabeled examples from the texts of the server's own ones.

    :param public: examples with one text or with pairs of a query and a title
    :param size: number of examples; fewer are returned if the texts have too few different combinations
    :param seed: seed of all draws
    :return: examples; each generated text is a group
    :raises DataError: there are no texts
    """
    titles = public.texts if public.pairs is None else public.pairs
    model = _Bigrams(titles)
    stream = numpy_stream(seed, "generated proxy")
    walks = model.distinct(size, stream)
    made = [model.joined(walk) for walk in walks]
    if public.pairs is None:
        return _examples(made, None, np.arange(len(made)))
    lengths = [max(len(model.split(query)), 1) for query in public.texts]
    partners = _partners(walks, stream)
    queries = [
        model.joined(_some_of(walks[partner], lengths[place], stream))
        for partner, place in zip(partners, stream.integers(len(lengths), size=len(walks)), strict=True)
    ]
    return _examples(queries, made, np.arange(len(made)))


class _Bigrams:
    """Words of texts, and the words that follow each."""

    def __init__(self, texts: Sequence[str]) -> None:
        known = [text for text in texts if text.strip()]
        if not known:
            raise DataError("a proxy set cannot be generated without public texts: raise data.public_share")
        by_words = sum(len(text.split()) for text in known) >= _WORDS * len(known)
        self.joint = " " if by_words else ""
        walks = [self.split(text) for text in known]
        self._longest = max(map(len, walks))
        self._firsts = [walk[0] for walk in walks]
        followers: dict[str, list[str | None]] = defaultdict(list)
        for walk in walks:
            for word, after in zip(walk, [*walk[1:], None], strict=True):
                followers[word].append(after)
        self._followers: Mapping[str, Sequence[str | None]] = followers

    def split(self, text: str) -> list[str]:
        """Return the words of a text, or its characters."""
        return text.split() if self.joint else [one for one in text if not one.isspace()]

    def joined(self, words: Sequence[str]) -> str:
        """Inverse of ``split``, up to spaces."""
        return self.joint.join(words)

    def distinct(self, size: int, stream: np.random.Generator) -> list[list[str]]:
        """Return at most ``size`` distinct walks."""
        found: dict[tuple[str, ...], None] = {}
        for _ in range(_ATTEMPTS * size):
            if len(found) == size:
                break
            found.setdefault(tuple(self._walk(stream)))
        return [list(walk) for walk in found]

    def _walk(self, stream: np.random.Generator) -> list[str]:
        """Return words from one that begins a text to one that ends a text, at most as many as the longest has."""
        draws = stream.random(self._longest)
        word: str | None = self._firsts[int(draws[0] * len(self._firsts))]
        words: list[str] = []
        for place in range(1, self._longest + 1):
            assert word is not None
            words.append(word)
            if place == self._longest:
                break
            after = self._followers[word]
            word = after[int(draws[place] * len(after))]
            if word is None:
                break
        return words


def _partners(walks: Sequence[Sequence[str]], stream: np.random.Generator) -> list[int]:
    """Return the number of the text that each query is from: in turn the own one, one that shares a word, any."""
    having: dict[str, list[int]] = defaultdict(list)
    for number, walk in enumerate(walks):
        for word in dict.fromkeys(walk):
            having[word].append(number)
    partners = []
    for number, (walk, draw) in enumerate(zip(walks, stream.random((len(walks), 2)), strict=True)):
        if number % 3 == 0:
            partners.append(number)
        elif number % 3 == 1:
            sharing = having[walk[int(draw[0] * len(walk))]]
            partners.append(sharing[int(draw[1] * len(sharing))])
        else:
            partners.append(int(draw[0] * len(walks)))
    return partners


def _some_of(words: Sequence[str], count: int, stream: np.random.Generator) -> list[str]:
    """Return at most ``count`` random words, in their order."""
    if count >= len(words):
        return list(words)
    return [words[place] for place in np.sort(stream.choice(len(words), count, replace=False))]


def _examples(texts: Sequence[str], pairs: Sequence[str] | None, groups: npt.NDArray[np.int64]) -> Examples:
    return Examples(
        texts=tuple(texts),
        pairs=None if pairs is None else tuple(pairs),
        labels=np.full(len(texts), UNLABELED, dtype=np.int64),
        groups=groups,
        merchants=(OWNER,) * len(texts),
    )
