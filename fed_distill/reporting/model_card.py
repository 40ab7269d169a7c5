"""The model card of a student: ``README.md`` in its folder, in the format of Hugging Face's model cards.

As Mitchell et al., "Model cards for model reporting", FAT* 2019: what the student is for, how it was trained, how well
it does and for whom, its privacy and its limits. All figures are those of ``summary.json``; no merchant is named.
"""

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import tomli_w
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined, Template

from fed_distill.config import Experiment
from fed_distill.data.examples import Task
from fed_distill.evaluation.metrics import SCORES
from fed_distill.models.base import TextModel
from fed_distill.models.huggingface import is_huggingface
from fed_distill.models.towers import Towers
from fed_distill.models.transformer import Transformer
from fed_distill.privacy.disclosure import is_private
from fed_distill.reporting import wording
from fed_distill.reporting.headline import covers, headline
from fed_distill.reporting.store import EXPERIMENT
from fed_distill.reporting.tables import markdown_table

CARD = "README.md"
_LIBRARY = "fed-distill"
_HUB_METRICS = {
    "accuracy": "accuracy",
    "macro_f1": "f1",
    "auc": "roc_auc",
    "ndcg@10": "ndcg_at_10",
    "mrr@10": "mrr_at_10",
    "recall@20": "recall_at_20",
    "qini": "qini",
}
_PURPOSES = {
    "relevance": "It grades a product title for a search query, and ranks titles by expected gain.",
    "recommend": "It predicts from the titles of a shopper's last clicks whether to recommend a product.",
    "next-basket": "It predicts from the titles of a customer's purchases what the next basket has.",
    "marketing-effect": "It predicts from the titles of a customer's purchases what a campaign changes.",
    "profile": "It predicts a customer's segment from what the customer bought.",
    "matching": "It predicts whether two titles are of the same product.",
    "sentiment": "It predicts whether a review is positive.",
    "category": "It predicts a product's category from its title.",
    "faq": "It predicts the intent of a shopper's question.",
}
_CARD = """\
---
{{ metadata }}
---
# {{ name }}

A `{{ student }}` student with {{ parameters }} weights. {{ purpose }} fed-distill
trained it by federation across {{ merchants }} merchants, with the method `{{ method }}` and {{ teacher }}.

## Use

```python
from fed_distill import load_student

student = load_student("path/to/this/folder")
{{ call }}
{% if towers %}
student.embed(["a text"])  # unit vectors, by the tower that all texts share
{% endif %}
```

Classes, in the order of the logits: {{ classes }}. Texts of more than {{ max_characters }} characters are rejected, as
they were left out in training; e-mail addresses, card numbers and phone numbers in the usual formats are masked, as
they were there.

{{ transformers }}

## Training data

Data set: `{{ dataset }}`{{ source }}. Task: `{{ task }}`. Merchants: {{ merchants }}{{ byzantine }}.{{ server }} The
test set was split off by groups, such as products, before anything was trained.

## Evaluation

{{ verdict }} {{ headline }}

{{ table }}
{{ covers }} This student is the row **{{ federation }}**; the others are {{ rows }}.{{ seeds }}

### For whom it does worst

{{ worst }}

## Privacy

Unit: {{ unit }}. Epsilon spent: {{ epsilon }}{{ delta }}.

{{ privacy }}

## Limits

{% for limit in limits %}
- {{ limit }}
{% endfor %}

## Repeat

Save these settings as `{{ experiment_file }}` and call `fed-distill run {{ experiment_file }}`, with {{ versions }}. Of
files and folders only the names are given.

````toml
{{ toml }}````
"""


def model_card(
    summary: Mapping[str, Any], experiment: Experiment, task: Task, model: TextModel, max_characters: int
) -> str:
    """Return the model card of the run's student as Markdown with metadata in YAML.

    :param summary: the run's summary
    :param experiment: the run's experiment, with names in place of paths; its runtime settings are left out
    :param task: the task
    :param model: the student
    :param max_characters: longest text in its data
    """
    main = summary["federations"][summary["federation"]]
    dumped = experiment.model_dump(
        mode="json", exclude_none=True, exclude={"runtime": True, "privacy": {"ledger", "limits"}}
    )
    settings = _without_folders(dumped)
    return _template().render(
        metadata=_metadata(summary, task),
        name=summary["name"],
        student=experiment.student.model,
        parameters=wording.count(summary["student"]["parameters"]),
        purpose=_PURPOSES.get(task.name, f"It classifies texts for the task `{task.name}`."),
        merchants=wording.count(summary["merchants"]),
        method=summary["method"],
        teacher=_teacher(summary["teacher"]["parameters"]),
        call=_call(task),
        towers=isinstance(model, Towers),
        classes=_classes(task),
        max_characters=wording.count(max_characters),
        transformers=_transformers(model),
        dataset=wording.dataset_name(summary),
        source=_source(summary),
        task=task.name,
        byzantine=_byzantine(summary),
        server=_server(summary),
        verdict=wording.verdict(summary),
        headline=headline(summary),
        table=markdown_table(summary),
        covers=covers(summary),
        federation=summary["federation"],
        rows=_rows(summary),
        seeds=_seeds(summary),
        worst=_worst(summary),
        unit=f"`{summary['privacy']['unit']}`" if is_private(summary["privacy"]) else "none",
        epsilon=_epsilon(summary["privacy"]),
        delta=_delta(summary["privacy"]),
        privacy=" ".join([wording.privacy(summary).strip(), *wording.promises(summary)]),
        limits=_limits(summary, main),
        experiment_file=EXPERIMENT,
        versions=", ".join(f"{name} {version}" for name, version in summary["versions"].items()),
        toml=tomli_w.dumps(settings),
    )


def _without_folders(value: Any) -> Any:
    """Return settings in which a text that is surely a path with folders, which may name a person, is its last part."""
    if isinstance(value, dict):
        return {key: _without_folders(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_folders(one) for one in value]
    if not isinstance(value, str):
        return value
    root, *folders = Path(value).parts[:-1] or ("",)
    return Path(value).name if root in ("~", "..") or (root == "/" and folders) else value


@cache
def _template() -> Template:
    markdown = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    return markdown.from_string(_CARD)


def _metadata(summary: Mapping[str, Any], task: Task) -> str:
    """Return the metadata for the hub as YAML, with a result for each metric that was measured, of no tiny run."""
    pipeline = "text-classification" if task.gains is None else "text-ranking"
    results = [
        EvalResult(
            task_type=pipeline,
            dataset_type=summary["dataset"],
            dataset_name=wording.dataset_name(summary),
            dataset_split="test",
            metric_type=_HUB_METRICS[name],
            metric_name=wording.METRIC_NAMES[name],
            metric_value=summary["student"][name],
        )
        for name in SCORES
        if summary["student"][name] is not None and not wording.is_tiny(summary)
    ]
    tags = ["federated-learning", "knowledge-distillation", "e-commerce", task.name]
    tags += ["differential-privacy"] if is_private(summary["privacy"]) else []
    data = ModelCardData(
        model_name=summary["name"], library_name=_LIBRARY, pipeline_tag=pipeline, tags=tags, eval_results=results
    )
    return data.to_yaml().strip()


def _teacher(parameters: float | None) -> str:
    if not parameters:
        return "a file of labels in place of a teacher"
    return f"a teacher of {wording.count(parameters)} weights"


def _call(task: Task) -> str:
    if task.of_campaigns:
        return 'order, effects = student.recommend(["a title", "a later title"], ["a campaign", "another campaign"])'
    if task.of_histories:
        return 'order, scores = student.recommend(["a title", "a later title"], ["a candidate", "another candidate"])'
    if task.gains is not None:
        return 'order, scores = student.rank("a query", ["a title", "another title"])'
    if task.pair:
        return 'student.predict(["a text"], pairs=["another text"])  # class probabilities'
    return 'student.predict(["a text"])  # class probabilities'


def _classes(task: Task) -> str:
    if task.gains is None:
        return ", ".join(f"`{name}`" for name in task.classes)
    return ", ".join(f"`{name}` (gain {gain:g})" for name, gain in zip(task.classes, task.gains, strict=True))


def _transformers(model: TextModel) -> str:
    if not is_huggingface(model):
        why = "it has adapters" if isinstance(model, Transformer) else "its network is not one of theirs"
        return f"The library transformers cannot load it: {why}."
    loaded = "`AutoModelForSequenceClassification.from_pretrained` loads the same network from this folder"
    if isinstance(model, Transformer) and model.from_scratch:
        return (
            f"{loaded}; its token ids are hashed word pieces, which `student.model.encode` computes, so that there is "
            "no tokenizer for `AutoTokenizer`."
        )
    return (
        f"{loaded}, and `AutoTokenizer.from_pretrained` its tokenizer (with `truncation=True`). They do not mask "
        "personal data and do not collapse white space."
    )


def _source(summary: Mapping[str, Any]) -> str:
    source = summary["data"].get("source") or {}
    named = [str(source[key]) for key in ("name", "license") if source.get(key)]
    return f" ({'; '.join(named)})" if named else ""


def _server(summary: Mapping[str, Any]) -> str:
    counts = summary["data"].get("examples")
    if counts is None:
        return ""
    return (
        f" The server has {wording.count(counts['public'])} labelled examples and a proxy set of "
        f"{wording.count(counts['proxy'])}."
    )


def _byzantine(summary: Mapping[str, Any]) -> str:
    attack = summary["byzantine"]
    if attack is None:
        return ""
    return f", of which {wording.percent(attack['fraction'])} were Byzantine in a simulation (`{attack['attack']}`)"


def _rows(summary: Mapping[str, Any]) -> str:
    controls = [f"*{wording.ROW_NAMES[name]}* (control `{name}`)" for name in summary["controls"]]
    compared = [f"*{title}* (compared)" for title in summary["federations"] if title != summary["federation"]]
    return ", ".join(["the *teacher*", *controls, *compared])


def _seeds(summary: Mapping[str, Any]) -> str:
    seeds = summary["seeds"]
    if len(seeds) == 1:
        return ""
    return f" Figures are means over {len(seeds)} seeds; the weights in this folder are those of seed {seeds[0]}."


def _worst(summary: Mapping[str, Any]) -> str:
    student = summary["student"]
    if student["worst_merchant"] is None:
        return "Not measured: no merchant has a test set of its own, or no site sends its scores."
    uncovered = " The privacy guarantee does not cover these figures." if is_private(summary["privacy"]) else ""
    return (
        f"Accuracy on a merchant's own test examples: {wording.number(student['merchant_accuracy'], 3)} on average, "
        f"{wording.number(student['worst_tenth'], 3)} at the tenth percentile (after "
        f"accuracies that rest on few examples are shrunk towards the mean), and "
        f"{wording.number(student['worst_merchant']['accuracy'], 3)} for the worst-served merchant of those with "
        f"at least 20, or of all if most have fewer.{uncovered}"
    )


def _epsilon(privacy: Mapping[str, Any]) -> str:
    if not is_private(privacy):
        return "none"
    if privacy["epsilon"] is None:
        return "unbounded"
    return f"{math.ceil(1000 * privacy['epsilon']) / 1000:.3f}"  # rounded up: a guarantee is not understated


def _delta(privacy: Mapping[str, Any]) -> str:
    return (
        f" at delta {wording.at_most(privacy['delta'])}" if is_private(privacy) and privacy["delta"] is not None else ""
    )


def _limits(summary: Mapping[str, Any], main: Mapping[str, Any]) -> list[str]:
    limits = [
        *(
            ["It is of a tiny run, which only tries a file: its numbers mean nothing."]
            if wording.is_tiny(summary)
            else []
        ),
        "It was tested on texts like those it was trained on: other languages, other kinds of products and other ways "
        "of writing were not.",
        "Its probabilities were not calibrated: use them to rank and compare, or calibrate them on data of your own.",
    ]
    cold = (main["cold"] or {}).get(summary["headline"])
    metric = wording.METRIC_NAMES[summary["headline"]]
    limits.append(
        "It was not tested on merchants that had no part in training (`data.cold_merchants`)."
        if cold is None
        else f"On merchants that had no part in training it reaches {wording.number(cold)} {metric}."
    )
    if main["interval"][summary["headline"]] is None:
        limits.append("Its figures have no interval: chance may explain differences between rows.")
    if not is_private(summary["privacy"]):
        limits.append("It has no differential privacy: it may reveal something about the examples behind it.")
    elif summary["privacy"]["epsilon"] is None or math.isinf(summary["privacy"]["epsilon"]):
        limits.append("Its noise is too small for a guarantee.")
    limits.append("Whether its weights may be shared depends on the licences of the data and of the teacher.")
    return limits
