"""Domain-adaptive pretraining by masked language modelling on unlabeled texts.

Masked language modelling as in BERT (Devlin et al. 2019, section 3.1), on texts of the task (Gururangan et al., "Don't
stop pretraining", ACL 2020). The prediction head shares the embedding table and is discarded afterwards.
"""

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fed_distill import seeds
from fed_distill.config import MaskedConfig
from fed_distill.data.examples import Examples
from fed_distill.errors import ConfigError, TrainingError
from fed_distill.models.base import TextModel
from fed_distill.models.prediction import lengths
from fed_distill.seeds import Randomness
from fed_distill.text.encoded import Encoded
from fed_distill.text.tokens import Tokens
from fed_distill.training.batching import bucketed_batches
from fed_distill.training.optimization import Pace, build_optimizer, clip, set_rate

FIELD = "input_ids"
"""The encoded field that is masked."""
HIDDEN_SHARE, MASKED_SHARE, RANDOM_SHARE = 0.15, 0.8, 0.1
"""Share of predicted tokens; of these the shares replaced by the mask and by a random token; the rest is unchanged."""
_BATCH = 64


@runtime_checkable
class TokenModel(Protocol):
    """A model with token-level inputs."""

    tokens: Tokens


class MaskedHead(nn.Module):
    """Predicts tokens from hidden states, by similarity to the rows of the embedding table."""

    def __init__(self, width: int, table: Tensor) -> None:
        """Create the head.

        :param width: width of the hidden states
        :param table: embedding table ``[rows, embedding width]``, shared with the model
        """
        super().__init__()
        self.transform = nn.Sequential(nn.Linear(width, table.shape[1]), nn.GELU(), nn.LayerNorm(table.shape[1]))
        self.bias = nn.Parameter(torch.zeros(len(table)))

    def forward(self, states: Tensor, table: Tensor) -> Tensor:
        """Return logits ``[tokens, rows]`` of hidden states ``[tokens, width]``."""
        logits: Tensor = self.transform(states) @ table.T + self.bias
        return logits


def pretrain_on_domain(
    model: TextModel,
    texts: Examples,
    config: MaskedConfig,
    randomness: Randomness,
    progress: Callable[[int, int], None],
) -> list[float]:
    """Train ``model`` in place as ``config`` says on unlabeled ``texts``, leaving those without a word out; returns the
    mean loss of each (begun) epoch.

    Raise ConfigError for a model that does not read tokens one by one, TrainingError if the loss is not finite or no
    text has a word.
    """
    table, encoded = _token_table(model), model.encode(texts.texts, texts.pairs)
    assert isinstance(model, TokenModel)
    with_words = torch.nonzero(_hideable(encoded[FIELD], model.tokens).any(dim=1)).squeeze(1)
    if not len(with_words):
        raise TrainingError(f"none of {len(texts):,} texts has a word to mask: set masked.epochs = 0")
    encoded = {key: values[with_words] for key, values in encoded.items()}
    generator, sizes = seeds.torch_stream(*randomness, "masked words"), lengths(encoded)
    an_epoch = math.ceil(len(with_words) / _BATCH)
    steps = max(1, round(config.epochs * an_epoch))
    pace, losses, training = Pace.of(config), list[float](), model.training
    with seeds.scope(*randomness, "masked words"):
        head = MaskedHead(_width(model, encoded), table)
        trained = [*model.named_parameters(), *head.named_parameters("head")]
        optimizer = build_optimizer(trained, model.tables, config)
        model.train()
        while len(losses) < steps:
            for index in bucketed_batches(sizes, _BATCH, generator)[: steps - len(losses)]:
                set_rate(optimizer, pace.at(len(losses), steps))
                loss = _loss(model, head, table, model.collate(encoded, index), generator)
                losses.append(loss.item())
                if not math.isfinite(losses[-1]):
                    raise TrainingError(f"the loss of masked words is {losses[-1]}: lower masked.learning_rate")
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
                clip([value for _, value in trained], config)
                optimizer.step()
                progress(len(losses), steps)
    model.train(training)
    return [sum(part) / len(part) for part in (losses[at : at + an_epoch] for at in range(0, steps, an_epoch))]


def hidden_tokens(ids: Tensor, tokens: Tokens, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mask tokens; padding and special tokens are never masked, and every other text has at least one masked token.

    :param ids: token ids ``[batch, length]``
    :param tokens: the tokenizer
    :param rows: number of token ids
    :param generator: random generator
    :returns: masked ids ``[batch, length]``, and which tokens are predicted, bool ``[batch, length]``
    """
    hideable = _hideable(ids, tokens)
    draws = torch.rand(ids.shape, generator=generator).masked_fill(~hideable, 2.0)
    hidden = hideable & (draws <= draws.amin(dim=1, keepdim=True).clamp_min(HIDDEN_SHARE))
    way = torch.rand(ids.shape, generator=generator)
    others = torch.randint(1, rows, ids.shape, generator=generator)
    shown = torch.where(way < MASKED_SHARE, tokens.mask, torch.where(way < MASKED_SHARE + RANDOM_SHARE, others, ids))
    return torch.where(hidden, shown, ids), hidden


def _hideable(ids: Tensor, tokens: Tokens) -> Tensor:
    """Return which tokens are neither padding nor special, bool ``[batch, length]``."""
    return ~torch.isin(ids, torch.tensor(sorted(tokens.special)))


def check_token_model(model: TextModel) -> None:
    """Raise ConfigError unless ``model`` has token-level inputs."""
    _token_table(model)


def _loss(model: TextModel, head: MaskedHead, table: Tensor, batch: Encoded, generator: torch.Generator) -> Tensor:
    """Return the mean cross-entropy of the masked tokens."""
    assert isinstance(model, TokenModel)
    ids = batch[FIELD]
    shown, hidden = hidden_tokens(ids, model.tokens, len(table), generator)
    states = model({**batch, FIELD: shown}, hidden=True).hidden
    return F.cross_entropy(head(states[-1][hidden], table), ids[hidden])


def _token_table(model: TextModel) -> nn.Parameter:
    tables = [name for name, fields in model.tables.items() if FIELD in fields]
    if not isinstance(model, TokenModel) or not tables:
        raise ConfigError(
            f"masked.epochs: {model.kind} has no token-level inputs with an embedding table: choose another "
            "model, such as lstm, bert-mini or minilm, or remove it"
        )
    return model.get_parameter(tables[0])


def _width(model: TextModel, encoded: Encoded) -> int:
    with torch.no_grad():
        hidden = model(model.collate(encoded, torch.zeros(1, dtype=torch.int64)), hidden=True).hidden
    if not hidden:
        raise ConfigError(f"masked.epochs: {model.kind} returns no hidden states: remove it")
    return int(hidden[-1].shape[-1])
