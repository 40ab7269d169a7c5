"""Back-translation: translate a text into another language and back to paraphrase it.

Sennrich et al., "Improving neural machine translation models with monolingual data", ACL 2016; for labelled texts Yu et
al. (QANet), ICLR 2018, section 3. Decoding is greedy and without batching, so that the result depends on the text
alone. Any sequence-to-sequence model of transformers works. A Marian pair needs no options; for M2M, NLLB or T5 the
languages must be set in the saved tokenizer and generation configuration.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from fed_distill.errors import DataError

_LONGER = 2
_MORE = 10
"""A translation has at most ``_LONGER`` times the tokens of its source, plus ``_MORE``."""


@dataclass(frozen=True)
class Translator:
    """A translation model and its tokenizer."""

    network: Any
    tokenizer: Any

    @classmethod
    def load(cls, path: str) -> "Translator":
        """Load a model from local files; weights must be safetensors.

        :param path: folder or hub id
        :raises DataError: it cannot be loaded
        """
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer  # slow to import and rarely needed

        from fed_distill.text.quiet import quiet

        factory: Any = AutoModelForSeq2SeqLM  # its class methods are untyped
        try:
            with quiet():
                network = factory.from_pretrained(
                    path, local_files_only=True, use_safetensors=True, dtype=torch.float32
                )
                tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            reason = str(error).strip().split("\n")[0]
            raise DataError(
                f"training.augmentation.back_translation: cannot load the translation model {path!r}; give a folder "
                f"that contains model.safetensors and a tokenizer: {reason}"
            ) from error
        return cls(network.eval(), tokenizer)

    def translated(self, text: str) -> str:
        """Translate by greedy decoding."""
        inputs = self.tokenizer([text], return_tensors="pt", truncation=True)
        ids = inputs["input_ids"]
        with torch.no_grad():
            found = self.network.generate(
                input_ids=ids,
                attention_mask=inputs["attention_mask"],
                do_sample=False,
                num_beams=1,
                max_new_tokens=_LONGER * ids.shape[1] + _MORE,
            )
        said: str = self.tokenizer.decode(found[0], skip_special_tokens=True)
        return said.strip()


@dataclass(frozen=True)
class BackTranslation:
    """A pair of translators, ``there`` and ``back``, with a cache of paraphrases."""

    there: Translator
    back: Translator
    _known: dict[str, str] = field(default_factory=dict)

    def reworded(self, text: str) -> str:
        """Translate ``text`` there and back; return it unchanged if the result is empty."""
        if text not in self._known:
            self._known[text] = self.back.translated(self.there.translated(text)) or text
        return self._known[text]


@cache
def back_translation(there: str, back: str) -> BackTranslation:
    """Load and cache the models in two folders or hub ids; raise DataError, naming the one that cannot be loaded."""
    return BackTranslation(Translator.load(there), Translator.load(back))
