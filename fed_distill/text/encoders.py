"""Encode texts as the specification in a student's folder says (``docs/how-to/student.md``), without its network."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fed_distill.errors import ModelError
from fed_distill.text.hashing import bag_rows, bag_specification, piece_specification
from fed_distill.text.tokens import FEWEST_ROWS, LONGEST, SHORTEST, Fields, HashedTokens, PretrainedTokens

TOKENIZER = "tokenizer.json"
_MOST_ROWS = (1 << 31) - 1
"""Largest number of rows: they are int32."""

Encoder = Callable[[Sequence[str], Sequence[str] | None], Fields]
"""Encodes texts, or texts and their pairs. For one vector a text, the fields are ``text_ids`` and ``pair_ids``, else
``input_ids`` and ``segments``."""


def encoder_of(specification: Mapping[str, Any], folder: Path) -> Encoder:
    """Return what encodes texts as ``specification`` says.

    :param specification: ``encoding`` of ``student.json``
    :param folder: the student's folder, for its ``tokenizer.json``
    :raises ModelError: a parameter is missing or invalid, a constant is another one than this program's, or the
        algorithm is that of a custom student
    """
    algorithm = specification.get("algorithm")
    if algorithm == TOKENIZER:
        return _tokenizer(specification, folder)
    if algorithm == bag_specification(1, (), 1)["algorithm"]:
        rows = _number(specification, "rows", 2, _MOST_ROWS)
        longest = _number(specification, "max_features", 1, LONGEST)
        ngrams = specification.get("ngrams")
        if (
            not isinstance(ngrams, list)
            or not all(type(size) is int and 2 <= size <= 8 for size in ngrams)
            or len(set(ngrams)) < len(ngrams)
        ):
            raise ModelError(f"encoding.ngrams must be distinct lengths of 2 to 8 characters, not {str(ngrams)[:80]}")
        _check_constants(specification, bag_specification(rows, ngrams, longest))
        return _apart(lambda texts: bag_rows(texts, rows, ngrams, longest))
    if algorithm == piece_specification(1, 1)["algorithm"]:
        rows = _number(specification, "rows", FEWEST_ROWS, _MOST_ROWS)
        longest = _number(specification, "max_length", SHORTEST, LONGEST)
        _check_constants(specification, piece_specification(rows, longest))
        return HashedTokens(rows, longest).encode
    raise ModelError(
        f"texts of this student are encoded by {algorithm!r}, which is not one of fed-distill's: use load_student"
    )


def unknown_token(specification: Mapping[str, Any], folder: Path) -> int | None:
    """Return the id by which texts are encoded where the tokenizer knows no token; None if there is none.

    Parameters and errors are those of ``encoder_of``.
    """
    return _pretrained(specification, folder).unknown if specification.get("algorithm") == TOKENIZER else None


def _tokenizer(specification: Mapping[str, Any], folder: Path) -> Encoder:
    tokens = _pretrained(specification, folder)
    return tokens.encode if specification.get("special_tokens") else _apart(tokens.bags)


def _pretrained(specification: Mapping[str, Any], folder: Path) -> PretrainedTokens:
    swapped = specification.get("swapped_ids")
    if not isinstance(swapped, list) or len(swapped) != 2 or not isinstance(swapped[1], int):
        raise ModelError(f"encoding.swapped_ids must be two token ids, not {swapped!r}")
    try:
        text = (folder / TOKENIZER).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{folder / TOKENIZER} cannot be read: {error}") from error
    shortest = SHORTEST if specification.get("special_tokens") else 1
    return PretrainedTokens(text, swapped[1], _number(specification, "max_length", shortest, LONGEST))


def _apart(encode: Callable[[Sequence[str]], Any]) -> Encoder:
    """Encode a text and its pair each on its own."""

    def both(texts: Sequence[str], pairs: Sequence[str] | None) -> Fields:
        fields = {"text_ids": encode(texts)}
        return fields if pairs is None else {**fields, "pair_ids": encode(pairs)}

    return both


def _number(specification: Mapping[str, Any], key: str, least: int, most: int) -> int:
    value = specification.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ModelError(f"encoding.{key} must be an integer of {least:,} to {most:,}, not {value!r:.80}")
    return value


def _check_constants(given: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise ModelError if a parameter differs; ``unicode`` may, as only code points that were added since differ."""
    for key in own:
        if key != "unicode" and given.get(key) != own[key]:
            raise ModelError(
                f"encoding.{key} is {given.get(key)!r}, and this version of fed-distill encodes with {own[key]!r}: "
                "install the version that wrote the student (versions)"
            )
