"""Back-translation: a text is put into another language and back, and says the same in other words.

Sennrich et al., "Improving neural machine translation models with monolingual data", ACL 2016; of labelled texts Yu et
al. (QANet), ICLR 2018, sec. 3. Decoding is greedy and one text at a time, so that what a text becomes depends on itself
alone. Any sequence-to-sequence model of transformers will do: a Marian pair needs no more, of M2M, NLLB or T5 the saved
tokenizer and generation configuration must say which languages are meant.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from fed_distill.errors import DataError

_LONGER = 2
_MORE = 10
"""A translation has at most ``_LONGER`` times as many tokens as its text, and ``_MORE``."""


@dataclass(frozen=True)
class Translator:
    """A translation model and its tokenizer."""

    network: Any
    tokenizer: Any

    @classmethod
    def load(cls, path: str) -> "Translator":
        """The model in the folder or hub id ``path``; only local files are read, and weights only as safetensors.

        Raise DataError if they cannot be.
        """
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer  # only few runs translate

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
                f"that holds one, with model.safetensors and its tokenizer: {reason}"
            ) from error
        return cls(network.eval(), tokenizer)

    def translated(self, text: str) -> str:
        """The likeliest next token after another, until the model ends the text."""
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
    """there and back: two translators. A text is translated once, however often it is asked for."""

    there: Translator
    back: Translator
    _known: dict[str, str] = field(default_factory=dict)

    def reworded(self, text: str) -> str:
        """``text`` there and back; itself if nothing of it comes back."""
        if text not in self._known:
            self._known[text] = self.back.translated(self.there.translated(text)) or text
        return self._known[text]


@cache
def back_translation(there: str, back: str) -> BackTranslation:
    """By the models in two folders or hub ids, loaded once. Raise DataError naming the one that cannot be."""
    return BackTranslation(Translator.load(there), Translator.load(back))
