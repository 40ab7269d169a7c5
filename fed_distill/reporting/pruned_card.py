"""The model card of a pruned student: what was removed, what it cost, and the card of the student before pruning."""

from dataclasses import dataclass

from huggingface_hub import ModelCard, ModelCardData

from fed_distill.models.pruning import NetworkShape
from fed_distill.reporting import wording


@dataclass(frozen=True)
class PruningRow:
    """A student before or after pruning. parameters: number of weights. bytes: size of its weights' file. p50_ms,
    p99_ms: time on one core for a query with 100 titles, by torch. quality: metric on validation examples."""

    name: str
    parameters: int
    bytes: int
    p50_ms: float
    p99_ms: float
    quality: float


@dataclass(frozen=True)
class Pruning:
    """How a student was pruned. name: the run's. model: name of the student's model. digest: of the student before
    pruning. before, after: sizes. epochs: epochs of distillation. metric: name of the quality. private: whether the run
    has a privacy guarantee, so that quality is measured on the server's own validation examples. rows: the student
    before pruning, without and with distillation."""

    name: str
    model: str
    digest: str
    before: NetworkShape
    after: NetworkShape
    epochs: float
    metric: str
    private: bool
    rows: tuple[PruningRow, ...]

    @property
    def measured_on(self) -> str:
        """Examples that quality is measured on."""
        return "the server's own validation examples" if self.private else "the validation examples"


_CARD = """\
---
{metadata}
---
# {name}, pruned

A `{model}` student with {parameters} weights. `fed-distill prune` made it from the student with the digest
`{digest}`, whose card is below: it kept {layers} of {all_layers} layers and, in each feed-forward network,
{neurons} of {all_neurons} neurons, and distilled them for {epochs:g} epochs from that student on the run's proxy
set.

{table}

{metric} is measured on {measured_on}, by which nothing was chosen. Times are those of one core for a query with 100
titles.{privacy}

Use, classes, training data and limits are those of the card below. **Its figures are of the student before pruning.**

---

{card}"""
_PRIVACY = (
    " Pruning used the released student and the server's data, and none of a merchant: the privacy guarantee is that "
    "of the student before pruning."
)


def pruned_card(card: str, pruning: Pruning) -> str:
    """Return the model card of a pruned student, in the format of Hugging Face's model cards.

    :param card: model card of the student before pruning, whose results are left out of the metadata
    :param pruning: how the student was pruned
    """
    former = ModelCard(card)
    metadata = former.data
    assert isinstance(metadata, ModelCardData)  # of which a ModelCard has the base class
    metadata.eval_results = metadata.model_name = None
    return _CARD.format(
        metadata=metadata.to_yaml().strip(),
        name=pruning.name,
        model=pruning.model,
        parameters=wording.count(pruning.rows[-1].parameters),
        digest=pruning.digest,
        layers=wording.count(pruning.after.layers),
        all_layers=wording.count(pruning.before.layers),
        neurons=wording.count(pruning.after.neurons),
        all_neurons=wording.count(pruning.before.neurons),
        epochs=pruning.epochs,
        table=markdown_rows(pruning),
        metric=wording.METRIC_NAMES[pruning.metric],
        measured_on=pruning.measured_on,
        privacy=_PRIVACY if pruning.private else "",
        card=former.text.lstrip(),
    )


def cells(pruning: Pruning) -> list[tuple[str, ...]]:
    """Return the header and the rows of the table of ``pruning``."""
    header = ("student", "weights", "MB", "p50 ms", "p99 ms", wording.METRIC_NAMES[pruning.metric])
    return [
        header,
        *(
            (
                row.name,
                wording.count(row.parameters),
                f"{row.bytes / 1e6:.2f}",
                f"{row.p50_ms:.2f}",
                f"{row.p99_ms:.2f}",
                f"{row.quality:.4f}",
            )
            for row in pruning.rows
        ),
    ]


def markdown_rows(pruning: Pruning) -> str:
    """Return the table of ``pruning`` in Markdown."""
    header, *rows = cells(pruning)
    lines = [header, ("---", *["---:"] * (len(header) - 1)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
