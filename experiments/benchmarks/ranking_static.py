"""Model2Vec beside a student (Tulkens and van Dongen, MinishLab 2024): distilled as it comes, and trained further.

Trained by Model2Vec itself, on pairs that the server or its teacher call relevant; and with this project's head and
training on the very data of a student of the server.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fed_distill.data.examples import FederatedData, Task
from fed_distill.models.static import Static
from fed_distill.models.towers import SPREAD

if TYPE_CHECKING:
    from model2vec import StaticModel

HEAD_WIDTH, MAX_TOKENS = 64, 512
"""Those of ``static``."""


def distil_model2vec(source: Path, to: Path) -> None:
    """Distil the transformer in ``source`` with Model2Vec's defaults: each token of its vocabulary alone, 256 principal
    components, weights of smooth inverse frequency."""
    from model2vec.distill import distill

    distill(str(source), device="cpu").save_pretrained(str(to))


def relevant_pairs(data: FederatedData, soft_labels: Tensor) -> tuple[list[str], list[str]]:
    """Return the pairs of the positive class: of the server's labels, and of the teacher's most probable class.

    :param soft_labels: the teacher's probabilities on the proxy set ``[proxy, classes]``
    """
    positive = data.task.positive_index
    parts = (data.public, data.public.labels), (data.proxy, soft_labels.argmax(dim=1).numpy())
    chosen = [part.take(np.flatnonzero(labels == positive)) for part, labels in parts]
    return [one for part in chosen for one in part.texts], [one for part in chosen for one in part.pairs or ()]


def train_model2vec(source: Path, queries: Sequence[str], titles: Sequence[str], to: Path) -> None:
    """Train Model2Vec's vectors by its own trainer of pairs, with its defaults: other titles of a batch are negatives
    (InfoNCE, van den Oord et al. 2018), and a tenth of the pairs is for early stopping. There is no head, so that the
    result is a Model2Vec again.

    :param queries, titles: relevant pairs
    """
    from model2vec import StaticModel
    from model2vec.train import StaticModelForPairSimilarity

    static = StaticModel.from_pretrained(source, force_download=False)
    model = StaticModelForPairSimilarity.from_static_model(model=static, n_layers=0)
    model.fit(list(queries), list(titles), device="cpu").to_static_model().save_pretrained(str(to))


def with_head(model: "StaticModel", task: Task) -> Static:
    """Return a student ``static`` with the tokenizer and the vectors of a Model2Vec, and a new head.

    Vectors are scaled as those of ``static``. Its unknown token, which Model2Vec leaves out, is row 0 here: padding.
    """
    vectors = torch.from_numpy(np.asarray(model.embedding, dtype=np.float32))
    unknown = model.unk_token_id
    if unknown is None:
        raise SystemExit("this Model2Vec has no unknown token: distil it from a WordPiece model")
    student = Static(
        len(task.classes),
        task.pair,
        tokenizer=model.tokenizer.to_str(),
        rows=len(vectors),
        pad_id=unknown,
        width=vectors.shape[1],
        head_width=HEAD_WIDTH,
        max_tokens=MAX_TOKENS,
        dropout=0.0,
    )
    rows = torch.from_numpy(student.tokens.placed(np.arange(len(vectors))))
    with torch.no_grad():
        student.bag.table[rows] = vectors * (SPREAD / vectors.std())
        student.bag.table[0] = 0.0
    return student
