"""Domain-adaptive pretraining: a model reads unlabeled texts of its domain and guesses the words that are hidden.

Masked language modelling as in BERT (Devlin et al. 2019, sec. 3.1), on texts of the task instead of the world's
(Gururangan et al., "Don't stop pretraining", ACL 2020). The head that guesses shares the embedding table and is thrown
away, what the layers have learned of the domain stays.
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
"""The encoded field whose tokens are hidden."""
HIDDEN_SHARE, MASKED_SHARE, RANDOM_SHARE = 0.15, 0.8, 0.1
"""Of the tokens those that are guessed; of these those shown as the mask, and as another token; the rest is shown."""
_BATCH = 64


@runtime_checkable
class ReadsTokens(Protocol):
    """A model that reads a text token by token."""

    tokens: Tokens


class MaskedHead(nn.Module):
    """Guesses tokens from hidden states, by their likeness to the rows of the embedding table."""

    def __init__(self, width: int, table: Tensor) -> None:
        """width: of the hidden states. table: ``[rows, own width]``, shared with the model."""
        super().__init__()
        self.transform = nn.Sequential(nn.Linear(width, table.shape[1]), nn.GELU(), nn.LayerNorm(table.shape[1]))
        self.bias = nn.Parameter(torch.zeros(len(table)))

    def forward(self, states: Tensor, table: Tensor) -> Tensor:
        """Logits ``[tokens, rows]`` of hidden states ``[tokens, width]``."""
        logits: Tensor = self.transform(states) @ table.T + self.bias
        return logits


def read_domain(
    model: TextModel,
    texts: Examples,
    config: MaskedConfig,
    randomness: Randomness,
    progress: Callable[[int, int], None],
) -> list[float]:
    """Train ``model`` in place as ``config`` says on unlabeled ``texts``; returns the mean loss of each (begun) epoch.

    Raise ConfigError for a model that does not read tokens one by one, TrainingError if the loss is not finite.
    """
    table, encoded = _token_table(model), model.encode(texts.texts, texts.pairs)
    generator, sizes = seeds.torch_stream(*randomness, "masked words"), lengths(encoded)
    an_epoch = math.ceil(len(texts) / _BATCH)
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
    """What a model is shown of ``ids`` ``[batch, length]``, and which tokens it must guess, bool ``[batch, length]``.

    Padding and special tokens are never hidden; of every text at least one token is, if it has any other.
    """
    hideable = ~torch.isin(ids, torch.tensor(sorted(tokens.special)))
    draws = torch.rand(ids.shape, generator=generator).masked_fill(~hideable, 2.0)
    hidden = hideable & (draws <= draws.amin(dim=1, keepdim=True).clamp_min(HIDDEN_SHARE))
    way = torch.rand(ids.shape, generator=generator)
    others = torch.randint(1, rows, ids.shape, generator=generator)
    shown = torch.where(way < MASKED_SHARE, tokens.mask, torch.where(way < MASKED_SHARE + RANDOM_SHARE, others, ids))
    return torch.where(hidden, shown, ids), hidden


def check_reads(model: TextModel) -> None:
    """ConfigError unless ``model`` reads tokens one by one, so that some can be hidden."""
    _token_table(model)


def _loss(model: TextModel, head: MaskedHead, table: Tensor, batch: Encoded, generator: torch.Generator) -> Tensor:
    """Mean cross-entropy of the hidden tokens."""
    assert isinstance(model, ReadsTokens)
    ids = batch[FIELD]
    shown, hidden = hidden_tokens(ids, model.tokens, len(table), generator)
    states = model({**batch, FIELD: shown}, hidden=True).hidden
    return F.cross_entropy(head(states[-1][hidden], table), ids[hidden])


def _token_table(model: TextModel) -> nn.Parameter:
    tables = [name for name, fields in model.tables.items() if FIELD in fields]
    if not isinstance(model, ReadsTokens) or not tables:
        raise ConfigError(
            f"masked.epochs: {model.kind} does not read a text token by token from a table of its own: take another "
            "model, such as lstm, bert-mini or minilm, or drop it"
        )
    return model.get_parameter(tables[0])


def _width(model: TextModel, encoded: Encoded) -> int:
    with torch.no_grad():
        hidden = model(model.collate(encoded, torch.zeros(1, dtype=torch.int64)), hidden=True).hidden
    if not hidden:
        raise ConfigError(f"masked.epochs: {model.kind} gives no hidden states to guess words from: drop it")
    return int(hidden[-1].shape[-1])
