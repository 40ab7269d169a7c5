"""Files by which transformers loads a student: ``config.json`` and, with a tokenizer, ``tokenizer_config.json``.

The weights in ``model.safetensors`` have the names of Hugging Face already (``TextModel.unsaved_prefix``), so that
``AutoModelForSequenceClassification.from_pretrained(folder)`` computes the same logits. This holds for a Transformer
without adapters. One that was built from scratch has hashed word pieces: transformers loads its network, and the token
ids must come from ``Student.model.encode``.
"""

import copy
import json
from pathlib import Path

from tokenizers import Tokenizer

from fed_distill.data.examples import Task
from fed_distill.models.base import TextModel
from fed_distill.models.transformer import Transformer

CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
_ROLES = {
    "pad_token": ("[PAD]", "<pad>"),
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "mask_token": ("[MASK]", "<mask>"),
}
"""Special tokens by role, as BERT and RoBERTa write them."""


def is_huggingface(model: TextModel) -> bool:
    """Whether transformers can load ``model`` as a sequence classifier with equal logits."""
    return isinstance(model, Transformer) and bool(model.unsaved_prefix)


def write_huggingface(folder: Path, model: TextModel, task: Task) -> None:
    """Write the files by which transformers loads ``model``, saved in ``folder``; nothing if it cannot."""
    if not isinstance(model, Transformer) or not is_huggingface(model):
        return
    config = copy.deepcopy(model.network.config)
    config.architectures = [type(model.network).__name__]
    config.id2label = dict(enumerate(task.classes))
    config.label2id = {name: index for index, name in enumerate(task.classes)}
    config.problem_type = "single_label_classification"
    (folder / CONFIG).write_text(config.to_json_string(), encoding="utf-8")
    if model.settings["tokenizer"] is None:
        return
    vocabulary = Tokenizer.from_str(model.settings["tokenizer"]).get_vocab()
    special = {role: next((one for one in known if one in vocabulary), None) for role, known in _ROLES.items()}
    names = {number: token for token, number in vocabulary.items()}
    settings = {
        **{role: token for role, token in special.items() if token is not None},
        "pad_token": names[int(model.settings["config"].get("pad_token_id") or 0)],
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.settings["max_length"],
        "model_input_names": ["input_ids", *(["token_type_ids"] if model.has_segments else []), "attention_mask"],
    }
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
