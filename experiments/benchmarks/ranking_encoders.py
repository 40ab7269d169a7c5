"""Sentence encoders beside a student: sentence-transformers fine-tuned on the student's data, and exported to ONNX."""

import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel

from experiments.benchmarks.rankers import ENCODER, TOKENIZER, onnx_encoder
from fed_distill.data.examples import Examples, FederatedData
from fed_distill.errors import ModelError

LEARNING_RATES = (5e-5, 2e-4)
"""Tried, and chosen by validation queries: the default of sentence-transformers, and that of the run's teacher."""
BATCH = 32
WARM_UP = 0.1
LONGEST = 64
"""Maximum number of tokens of a text, as of the teacher's pairs."""
_TOLERANCE = 1e-4


def graded_pairs(data: FederatedData, soft_labels: Tensor) -> tuple[Examples, list[float]]:
    """Return the pairs that a student of the server is trained on, and the target of each: its gain, or the expected
    gain of its soft label.

    :param soft_labels: the teacher's probabilities on the proxy set ``[proxy, classes]``
    """
    gains = np.asarray(data.task.gains, dtype=np.float64)
    targets = [*gains[data.public.labels], *(soft_labels.double().numpy() @ gains)]
    return Examples.concatenate([data.public, data.proxy]), [float(value) for value in targets]


def fine_tune_encoder(
    source: Path, pairs: Examples, targets: Sequence[float], learning_rate: float, seed: int, to: Path
) -> None:
    """Fine-tune a sentence encoder on graded pairs for one epoch, and save it.

    The loss is CoSENT (Su 2022; Huang et al., TASLP 2024), sentence-transformers' choice for graded pairs. One epoch of
    a run's proxy set is about as many steps as the teacher's.

    :param source: folder of a model of sentence-transformers
    :param targets: grade of each pair, the larger the more alike
    """
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import CoSENTLoss

    model = SentenceTransformer(str(source), device="cpu", local_files_only=True)
    model.max_seq_length = min(LONGEST, model.max_seq_length or LONGEST)
    columns = {"sentence1": list(pairs.texts), "sentence2": list(pairs.pairs or ()), "score": list(targets)}
    with tempfile.TemporaryDirectory() as scratch:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=scratch,
            num_train_epochs=1,
            per_device_train_batch_size=BATCH,
            learning_rate=learning_rate,
            warmup_steps=WARM_UP,
            seed=seed,
            use_cpu=True,
            save_strategy="no",
            logging_steps=50,
            report_to="none",
            disable_tqdm=True,
        )
        trainer = SentenceTransformerTrainer(
            model=model, args=arguments, train_dataset=Dataset.from_dict(columns), loss=CoSENTLoss(model)
        )
        trainer.train()
    model.eval().save_pretrained(str(to), create_model_card=False)


def export_encoder(source: Path, examples: Sequence[str], to: Path) -> None:
    """Write a sentence encoder with mean pooling as ``encoder.onnx`` beside its ``tokenizer.json``.

    It is exported by torch: sentence-transformers' own ``backend="onnx"`` requires optimum-onnx, whose version 0.1
    excludes transformers 5.

    :param source: folder of a model of sentence-transformers
    :param examples: texts whose vectors must be equal to those of sentence-transformers
    :raises ModelError: they are not
    """
    from sentence_transformers import SentenceTransformer

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        fields = torch.ones(2, 8, dtype=torch.int64), torch.ones(2, 8, dtype=torch.int64)
        shape = {0: "n", 1: "length"}
        program = torch.onnx.export(
            _MeanPooled(source).eval(),
            fields,
            dynamo=True,
            opset_version=20,
            input_names=["input_ids", "attention_mask"],
            output_names=["vectors"],
            dynamic_shapes=(shape, shape),
            verbose=False,
        )
    if program is None:
        raise ModelError(f"torch cannot export {source}")
    (to / ENCODER).write_bytes(program.model_proto.SerializeToString())
    model = SentenceTransformer(str(source), device="cpu", local_files_only=True)
    shutil.copyfile(source / TOKENIZER, to / TOKENIZER)
    _pad_to_longest(to / TOKENIZER, int(model.max_seq_length or LONGEST))
    expected = model.encode(list(examples), normalize_embeddings=True, show_progress_bar=False)
    difference = float(np.abs(onnx_encoder(to)(examples) - expected).max())
    if difference > _TOLERANCE:
        raise ModelError(f"the ONNX graph of {source} differs from sentence-transformers by {difference:.1e}")


class _MeanPooled(nn.Module):
    """The mean of the last hidden states over the tokens of a text, of length 1."""

    def __init__(self, source: Path) -> None:
        super().__init__()
        self.network = AutoModel.from_pretrained(str(source), attn_implementation="eager", local_files_only=True)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.network(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=torch.zeros_like(input_ids)
        ).last_hidden_state
        used = attention_mask.unsqueeze(-1).to(states.dtype)
        return F.normalize((states * used).sum(dim=1) / used.sum(dim=1).clamp_min(1.0), dim=-1)


def _pad_to_longest(path: Path, longest: int) -> None:
    """Let the tokenizer of ``path`` cut texts to ``longest`` tokens, and pad a batch to its longest text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    padding = tokenizer.padding or {}
    tokenizer.enable_truncation(longest)
    tokenizer.enable_padding(pad_id=int(padding.get("pad_id", 0)), pad_token=str(padding.get("pad_token", "[PAD]")))
    tokenizer.save(str(path))
