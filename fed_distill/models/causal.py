"""Causal language models as teachers: the probability of each class's label words after a prompt.

A class c is scored by log p(label words of c | prompt), the sum over their tokens, and the logits are these scores: a
softmax over the classes. Nothing is trained unless asked for; fine-tuning maximises the same probabilities. Texts are
padded on the right, where a causal model does not look, and read at their last real token.

Optional contextual calibration divides by the class probabilities of prompts without content (Zhao et al., "Calibrate
before use: improving few-shot performance of language models", ICML 2021, section 5: W = diag(p_cf)^-1, b = 0).
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from string import Formatter
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from fed_distill.data.examples import Task
from fed_distill.errors import ConfigError, ModelError
from fed_distill.models.base import Outputs, TextModel
from fed_distill.models.pretrained import check_weights, describe, read_pretrained
from fed_distill.models.transformer import network_of
from fed_distill.text.encoded import Encoded

CONTENT_FREE = ("N/A", "[MASK]", "")
"""Texts without content, whose class probabilities are averaged (Zhao et al. 2021, section 5)."""

_HEADS = ("ForCausalLM", "LMHeadModel")
_PROBE = "a"
_LEAST_ROOM = 8
"""Tokens that a prompt must leave for its texts, so that some of each is read."""


class CausalLM(TextModel):
    """A language model of any causal architecture, described by its Hugging Face configuration."""

    kind = "fed_distill.models.causal:CausalLM"
    files: Mapping[str, str] = {"tokenizer": "tokenizer.json"}
    zero_shot = True
    prior: Tensor

    def __init__(
        self,
        classes: int,
        pair: bool,
        *,
        config: Mapping[str, Any],
        max_length: int,
        tokenizer: str,
        prompt: str,
        label_words: Sequence[str],
        length_normalized: bool = False,
        network: PreTrainedModel | None = None,
    ) -> None:
        """config: a Hugging Face configuration as a dict. max_length: maximum number of tokens of a filled prompt.

        tokenizer: text of a ``tokenizer.json``. prompt: a template with ``{text}``, and ``{pair}`` for pairs.
        label_words: text that follows the prompt, for each class. length_normalized: divide scores by the number of
        tokens. network: an existing network; None to create it from ``config`` with new weights.

        :raises ConfigError: the prompt or the label words are unusable
        :raises ModelError: ``tokenizer`` is invalid
        """
        super().__init__()
        self.settings = {
            "classes": classes,
            "pair": pair,
            "config": dict(config),
            "max_length": max_length,
            "tokenizer": tokenizer,
            "prompt": prompt,
            "label_words": list(label_words),
            "length_normalized": length_normalized,
        }
        check_prompt(prompt, pair)
        self.network = network if network is not None else network_of(AutoModelForCausalLM, config)
        self.register_buffer("prior", torch.zeros(classes))
        self._tied = _tied_of(self)
        self.register_state_dict_post_hook(_drop_tied)  # type: ignore[no-untyped-call]  # torch leaves both untyped
        self.register_load_state_dict_pre_hook(_add_tied)  # type: ignore[no-untyped-call]  # see above
        self._selects = "logits_to_keep" in inspect.signature(self.network.forward).parameters
        self._prompt, self._pair, self._max_length = prompt, pair, max_length
        self._normalized = length_normalized
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer)
        except Exception as error:  # the tokenizers library raises nothing narrower
            raise ModelError(f"the model's tokenizer.json cannot be read: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._start = _start_of(self._tokenizer)
        fixed = len(self._ids("", ""))
        if not fixed:
            raise ConfigError("option prompt has no tokens without its texts: add words to the prompt")
        if fixed + _LEAST_ROOM > max_length:
            raise ConfigError(
                f"option prompt has {fixed} tokens without its texts, which leaves {max(0, max_length - fixed)} of "
                f"{max_length} for them: shorten the prompt or the label words, or raise teacher.max_length (at most "
                "the model's positions less the longest label words)"
            )
        self._words = self._continuations(label_words)

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Encoded:
        """Fill the prompt: ``input_ids``, int64 ``[n, length]``, token ids plus 1, so that 0 is padding on the right.

        Where a filled prompt is too long, both texts are cut to the largest number of characters that fits."""
        seconds = [""] * len(texts) if pairs is None else pairs
        filled = [self._prompt.format(text=text, pair=pair) for text, pair in zip(texts, seconds, strict=True)]
        found = [[*self._start, *one.ids] for one in self._tokenizer.encode_batch(filled, add_special_tokens=False)]
        for row, ids in enumerate(found):
            if len(ids) > self._max_length:
                found[row] = self._shortened(texts[row], seconds[row])
        self._check_known(ids for row in found for ids in row)
        padded = torch.zeros(len(found), max(map(len, found), default=1), dtype=torch.int64)
        for row, ids in enumerate(found):
            padded[row, : len(ids)] = torch.tensor(ids) + 1
        return {"input_ids": padded}

    def forward(self, batch: Encoded, hidden: bool = False) -> Outputs:
        """Score the classes of a batch; hidden states are those of the prompt: the embeddings and every layer's output.

        Classes whose label words differ in the last token only share one pass over the batch.
        """
        ids = batch["input_ids"]
        scores: dict[int, Tensor] = {}
        states: tuple[Tensor, ...] | None = None
        passes: dict[tuple[int, ...], list[int]] = {}
        for place, words in enumerate(self._words):
            passes.setdefault(words[:-1], []).append(place)
        for stem, places in passes.items():
            following, found = self._following(ids, stem, hidden and states is None)
            if found is not None:
                states = tuple(layer[:, : ids.shape[1]] for layer in found)
            before = sum((following[:, at, token] for at, token in enumerate(stem)), torch.zeros((), device=ids.device))
            for place in places:
                total = before + following[:, -1, self._words[place][-1]]
                scores[place] = total / (len(stem) + 1) if self._normalized else total
        logits = torch.stack([scores[place] for place in range(len(scores))], dim=1) - self.prior
        return Outputs(logits, states, ids > 0) if hidden else Outputs(logits)

    @torch.no_grad()
    def calibrate(self) -> None:
        """Subtract the log-probability of each class after prompts without content from its score, from now on."""
        encoded = self.encode(CONTENT_FREE, CONTENT_FREE if self._pair else None)
        self.prior = torch.zeros_like(self.prior)
        self.prior = self(encoded).logits.softmax(dim=-1).mean(dim=0).log()

    def _following(self, ids: Tensor, stem: tuple[int, ...], hidden: bool) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Return log-probabilities of the tokens after the prompt and after each token of ``stem``, float32
        ``[batch, stem + 1, vocabulary]``, and hidden states on request."""
        last = ids.ne(0).sum(dim=1, keepdim=True) - 1
        places = last + torch.arange(len(stem) + 1, device=ids.device)
        tokens = F.pad((ids - 1).clamp_min(0), (0, len(stem)))
        if stem:
            tokens = tokens.scatter(1, places[:, 1:], torch.tensor(stem, device=ids.device).expand(len(ids), -1))
        mask = (torch.arange(tokens.shape[1], device=ids.device) <= places[:, -1:]).to(torch.int64)
        # the logits of whole texts can be larger than the model: compute those that are read
        kept = torch.unique(places)
        some = {"logits_to_keep": kept} if self._selects else {}
        outputs = self.network(
            input_ids=tokens,
            attention_mask=mask,
            output_hidden_states=hidden,
            use_cache=False,
            return_dict=True,
            **some,
        )
        at = torch.searchsorted(kept, places) if self._selects else places
        read = outputs.logits.gather(1, at.unsqueeze(-1).expand(-1, -1, outputs.logits.shape[-1]))
        return read.float().log_softmax(dim=-1), tuple(outputs.hidden_states) if hidden else None

    def _ids(self, text: str, pair: str, words: str = "") -> list[int]:
        filled = self._prompt.format(text=text, pair=pair) + words
        return [*self._start, *self._tokenizer.encode(filled, add_special_tokens=False).ids]

    def _check_known(self, ids: Iterable[int]) -> None:
        table: Any = self.network.get_input_embeddings().weight
        rows, largest = len(table), max(ids, default=0)
        if largest >= rows:
            raise ModelError(
                f"the tokenizer has a token {largest:,}, and the model embeddings for {rows:,} tokens: use the "
                "tokenizer that the model was trained with"
            )

    def _shortened(self, text: str, pair: str) -> list[int]:
        """Return the longest prompt that fits, by bisection over the number of characters of both texts."""
        fits, low, high = self._ids("", ""), 0, max(len(text), len(pair))
        while high - low > 1:
            middle = (low + high) // 2
            ids = self._ids(text[:middle], pair[:middle])
            if len(ids) <= self._max_length:
                low, fits = middle, ids
            else:
                high = middle
        return fits

    def _continuations(self, label_words: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the tokens of the label words after the prompt, by class; raise ConfigError if they are ambiguous."""
        stem, found = self._ids(_PROBE, _PROBE), []
        for words in label_words:
            whole = self._ids(_PROBE, _PROBE, words)
            if whole[: len(stem)] != stem or len(whole) == len(stem):
                raise ConfigError(
                    f"option label_words: {words!r} has no tokens of its own after the prompt: end the prompt without "
                    "a blank, and begin the words with one"
                )
            self._check_known(whole)
            found.append(tuple(whole[len(stem) :]))
        for place, tokens in enumerate(found):
            for other, longer in enumerate(found):
                if place != other and longer[: len(tokens)] == tokens:
                    raise ConfigError(
                        f"option label_words: the tokens of {label_words[other]!r} begin with those of "
                        f"{label_words[place]!r}, which is thus never less probable: choose other words"
                    )
        return found


def causal(
    classes: int,
    pair: bool,
    max_length: int,
    task: Task,
    path: str,
    *,
    prompt: str,
    label_words: dict[str, str] | None = None,
    length_normalized: bool = False,
    calibrate: bool = False,
    download: bool = False,
) -> CausalLM:
    """Load the causal language model of the folder or hub id ``path``; see ``CausalLM`` for the options.

    ``label_words`` are words by class; by default a blank and the class's name. With ``calibrate``, scores are
    calibrated by prompts without content. Files are read as by ``pretrained``.

    :raises ConfigError: the prompt or the label words are unusable
    :raises ModelError: the files are missing or invalid, or those of another kind of model
    """
    check_prompt(prompt, pair)
    given = label_words or {}
    unknown = sorted(set(given) - set(task.classes))
    if unknown:
        raise ConfigError(f"option label_words: {unknown[0]!r} is no class; {task.name} has: {', '.join(task.classes)}")
    words = [given.get(name, " " + name.replace("_", " ")) for name in task.classes]
    network, tokenizer, drawn = read_pretrained(AutoModelForCausalLM, path, download)
    architecture = (network.config.architectures or ["?"])[0]
    if not architecture.endswith(_HEADS):
        raise ModelError(f"{path!r} contains a {architecture}, not a causal language model: remove the option prompt")
    check_weights(path, drawn)
    room = getattr(network.config, "max_position_embeddings", None) or max_length
    longest = max(len(tokenizer.backend_tokenizer.encode(one).ids) for one in words)
    model = CausalLM(
        classes,
        pair,
        config=describe(network),
        max_length=min(max_length, room - longest),
        tokenizer=tokenizer.backend_tokenizer.to_str(),
        prompt=prompt,
        label_words=words,
        length_normalized=length_normalized,
        network=network,
    ).eval()
    if calibrate:
        model.calibrate()
    return model


def check_prompt(prompt: str, pair: bool) -> None:
    """Raise ConfigError unless ``prompt`` has exactly the placeholders of the task's texts."""
    wanted = ["pair", "text"] if pair else ["text"]
    listing = " and ".join(f"{{{name}}}" for name in reversed(wanted))
    try:
        fields = [(name, form, change) for _, name, form, change in Formatter().parse(prompt) if name is not None]
    except ValueError as error:
        raise ConfigError(f"option prompt: {error}; write {{{{ and }}}} for braces that are text") from error
    for name, form, change in fields:
        if name not in wanted or form or change:
            raise ConfigError(f"option prompt: unknown placeholder {{{name}}}; this task has {listing}")
    if sorted({name for name, _, _ in fields}) != wanted:
        raise ConfigError(f"option prompt must contain {listing}")


def _tied_of(model: TextModel) -> dict[str, str]:
    """Return the names of weights that are other weights too, such as output embeddings, with the names of those."""
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    return {name: first[id(value)] for name, value in named if first.setdefault(id(value), name) != name}


def _drop_tied(model: CausalLM, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Leave each weight once in a state dict: files reject weights that share memory."""
    for name in model._tied:
        weights.pop(prefix + name, None)


def _add_tied(model: CausalLM, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name, other in model._tied.items():
        if prefix + other in weights:
            weights.setdefault(prefix + name, weights[prefix + other])


def _start_of(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the special tokens that the tokenizer puts before a text, such as <s>; those after it are left out."""
    bare, whole = (tokenizer.encode(_PROBE, add_special_tokens=special).ids for special in (False, True))
    for place in range(len(whole) - len(bare) + 1):
        if whole[place : place + len(bare)] == bare:
            return tuple(whole[:place])
    return ()
