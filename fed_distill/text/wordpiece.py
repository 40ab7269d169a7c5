"""Prune the vocabulary of a WordPiece tokenizer to the tokens that a catalogue uses.

Pieces of one character are always kept. WordPiece takes the longest piece of the vocabulary from left to right
(Devlin et al. 2019; Schuster and Nakajima 2012), so that a word whose tokens are all kept has the same tokens, and any
other word has shorter ones: no word becomes unknown that was not.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from tokenizers import Tokenizer

from fed_distill.errors import ConfigError
from fed_distill.text.hashing import Rows

Vocabulary = Literal["all", "catalogue"] | Annotated[int, Field(ge=0)]
"""Tokens of a student: all of its teacher's, those that the server's texts use, or this many of the most frequent ones
in these texts."""

_CHUNK = 10_000
"""Texts that are tokenized at once: their tokens are held in memory."""


@dataclass(frozen=True)
class TokenSet:
    """tokenizer: text of a ``tokenizer.json``. former: id of each of its tokens in the teacher's tokenizer, sorted,
    int64 ``[ids]``. counts: occurrences of each token in the server's texts, int64 ``[ids]``; None without texts."""

    tokenizer: str
    former: Rows
    counts: Rows | None

    @classmethod
    def of(cls, tokenizer: str, vocabulary: Vocabulary, texts: Sequence[str] | None) -> "TokenSet":
        """Choose a student's tokens.

        :param tokenizer: text of the teacher's ``tokenizer.json``
        :param vocabulary: see ``Vocabulary``
        :param texts: the server's texts
        :raises ConfigError: the vocabulary cannot be pruned, or pruning lacks texts
        """
        if vocabulary == "all":
            size = 1 + max(Tokenizer.from_str(tokenizer).get_vocab().values())
            return cls(tokenizer, np.arange(size), None if texts is None else token_counts(tokenizer, texts))
        if texts is None:
            raise ConfigError(
                f"vocabulary = {vocabulary!r} requires the server's texts, and none were given: "
                'pass texts to build_student, or set vocabulary = "all"'
            )
        limit = None if vocabulary == "catalogue" else vocabulary
        smaller, former = pruned(tokenizer, most_frequent(token_counts(tokenizer, texts), limit))
        return cls(smaller, former, token_counts(smaller, texts))


def token_counts(description: str, texts: Sequence[str]) -> Rows:
    """Count the tokens of ``texts``, without special tokens of the post-processor.

    :param description: text of a ``tokenizer.json``
    :returns: int64 ``[ids]``, by token id
    """
    tokenizer = Tokenizer.from_str(description)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    size = 1 + max(tokenizer.get_vocab().values())
    counts = np.zeros(size, dtype=np.int64)
    for start in range(0, len(texts), _CHUNK):
        encodings = tokenizer.encode_batch_fast(list(texts[start : start + _CHUNK]), add_special_tokens=False)
        ids = np.fromiter((token for encoding in encodings for token in encoding.ids), dtype=np.int64)
        counts += np.bincount(ids, minlength=size)
    return counts


def most_frequent(counts: Rows, limit: int | None) -> Rows:
    """Return the sorted ids of the ``limit`` most frequent tokens, None for all that occur. Of equal counts, the
    smaller ids are taken."""
    order = np.argsort(-counts, kind="stable")[: len(counts) if limit is None else limit]
    return np.sort(order[counts[order] > 0])


def pruned(description: str, tokens: Iterable[int]) -> tuple[str, Rows]:
    """Return a tokenizer with ``tokens``, all special tokens and all pieces of one character, and its former ids.

    :param description: text of the ``tokenizer.json`` of a WordPiece model
    :param tokens: ids of tokens to keep
    :returns: text of the new ``tokenizer.json``, and the former id of each new id, sorted, int64 ``[new ids]``
    :raises ConfigError: the model is not a WordPiece, or a token has a character without a piece of its own
    """
    whole: dict[str, Any] = json.loads(description)
    model = whole["model"]
    if model.get("type") != "WordPiece":
        raise ConfigError(
            f"only a WordPiece vocabulary can be pruned, and the teacher's tokenizer is a {model.get('type')}: "
            'set vocabulary = "all"'
        )
    vocabulary: dict[str, int] = model["vocab"]
    special = {token["id"]: token["content"] for token in whole["added_tokens"]}
    special |= {vocabulary[token]: token for token in (model["unk_token"],) if token in vocabulary}
    single = _pieces_of_one_character(vocabulary, set(special.values()), model["continuing_subword_prefix"])
    kept = np.array(sorted({*special, *single, *map(int, tokens)}), dtype=np.int64)
    new = {int(former): place for place, former in enumerate(kept)}
    model["vocab"] = {token: new[former] for token, former in vocabulary.items() if former in new}
    for token in whole["added_tokens"]:
        token["id"] = new[token["id"]]
    whole["post_processor"] = _renumbered(whole["post_processor"], new)
    whole["truncation"] = whole["padding"] = None
    return json.dumps(whole, ensure_ascii=False, separators=(",", ":")), kept


def _pieces_of_one_character(vocabulary: Mapping[str, int], special: set[str], prefix: str) -> set[int]:
    """Return the ids of pieces of one character; raise ConfigError unless they can spell every token."""
    single = set()
    for token, number in vocabulary.items():
        if token in special:
            continue
        inside = token.startswith(prefix) and token != prefix
        characters = token.removeprefix(prefix) if inside else token
        if len(characters) == 1:
            single.add(number)
        for place, character in enumerate(characters):
            if (prefix if inside or place else "") + character not in vocabulary:
                raise ConfigError(
                    f"the teacher's vocabulary cannot be pruned: its token {token!r} has the character {character!r}, "
                    'which has no piece of its own, so that words could become unknown: set vocabulary = "all"'
                )
    return single


def _renumbered(processor: Any, new: Mapping[int, int]) -> Any:
    """Renumber the special tokens of a post-processor's description, of any type that a WordPiece tokenizer has."""
    if processor is None:
        return None
    kind = processor["type"]
    if kind == "Sequence":
        return {**processor, "processors": [_renumbered(part, new) for part in processor["processors"]]}
    if kind == "TemplateProcessing":
        tokens = processor["special_tokens"]
        moved = {name: {**one, "ids": [new[former] for former in one["ids"]]} for name, one in tokens.items()}
        return {**processor, "special_tokens": moved}
    if kind in ("BertProcessing", "RobertaProcessing"):
        return processor | {name: [processor[name][0], new[processor[name][1]]] for name in ("sep", "cls")}
    if kind == "ByteLevel":
        return processor
    raise ConfigError(
        f'the vocabulary of a tokenizer with the post-processor {kind} cannot be pruned: set vocabulary = "all"'
    )
