"""The folder of a trained student: everything that is needed to use it, in this program or another.

``student.json`` has the task, the cleaning and encoding of texts, examples with expected values, and versions;
``model.json``, ``model.safetensors`` and the files named in it are those of ``TextModel.save``. A student that is a
Hugging Face classifier also has the files by which transformers loads it (``huggingface``). ``docs/how-to/student.md``
has the format.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fed_distill.data.student_description import DESCRIPTION, FORMAT, StudentDescription, read_encoding
from fed_distill.data.tasks import HISTORY_SEPARATOR
from fed_distill.errors import ModelError
from fed_distill.models.base import TextModel, read_model_files
from fed_distill.models.building import with_weights
from fed_distill.models.huggingface import write_huggingface
from fed_distill.models.outline import check_shapes
from fed_distill.models.prediction import predict
from fed_distill.storage.files import strict_json
from fed_distill.storage.versions import versions

MODEL = "model.json"

_TEXTS = (
    ("usb-c hub 7in1", "Anker 555 USB-C Hub (8-in-1)"),
    ("Kühlschrank A+++ weiß", "BOSCH KGN36 Kühl-/Gefrierkombination 60 cm, weiss"),
    ("手机壳 iphone15", "适用苹果15手机壳 硅胶 ＭａｇＳａｆｅ"),
    ("☕ café ﬁlter", "Melitta Café-Filter 1×4, 80 Stück"),
)
"""Texts and pairs whose encoding and class probabilities are stored, so that another program can check its own: letters
with marks, ligatures, full-width forms, ideographs, digits and symbols."""


def save_student(folder: Path, model: TextModel, description: StudentDescription) -> None:
    """Write ``model`` with its description into ``folder``, which must be empty."""
    model.save(folder)
    content: dict[str, Any] = {
        "format": FORMAT,
        "task": asdict(description.task),
        "text": {"max_characters": description.max_characters, "history_separator": HISTORY_SEPARATOR},
        "encoding": dict(model.text_encoding),
        "examples": examples(model, description.task.pair),
        "versions": versions(),
    }
    text = strict_json(content, DESCRIPTION, indent=1)
    (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
    write_huggingface(folder, model, description.task)


def load_saved_student(folder: Path) -> tuple[TextModel, StudentDescription]:
    """Load what ``save_student`` wrote, with no more memory than its files and their model need.

    :raises ModelError: it is missing, damaged, or not of one model and task
    """
    description = StudentDescription.read(folder)
    kind, settings, weights = read_model_files(folder)
    task = description.task
    classes = settings.get("classes", len(task.classes))  # a custom model may have neither
    pair = settings.get("pair", task.pair)
    if classes != len(task.classes) or pair != task.pair:
        texts = {True: "two texts", False: "one text"}
        raise ModelError(
            f"{folder / MODEL} has {classes} classes of {texts[bool(pair)]}, and {folder / DESCRIPTION} has "
            f"{len(task.classes)} classes of {texts[task.pair]}: these files are not of one student; copy both from "
            "the same run"
        )
    try:
        check_shapes(kind, settings, weights)
    except ModelError as error:
        raise ModelError(
            f"{folder}: {MODEL} and model.safetensors are not of one student: {error}; copy both from the same run"
        ) from error
    model = with_weights(folder, kind, settings, weights)
    _check_encoding(folder, model)
    broken = [name for name, value in model.state_dict().items() if not bool(value.isfinite().all())]
    if broken:
        raise ModelError(
            f"{folder}: weights {broken[0]!r} are not finite, so that every score would be NaN: train it again"
        )
    return model, description


def _check_encoding(folder: Path, model: TextModel) -> None:
    """Raise ModelError if this version encodes texts otherwise than the one that wrote the folder; the tables of
    Unicode are Python's, and are not compared."""
    stored = read_encoding(folder)
    now = json.loads(json.dumps(dict(model.text_encoding)))
    for key in sorted((stored.keys() | now.keys()) - {"unicode"}):
        if stored.get(key) != now.get(key):
            raise ModelError(
                f"{folder}: the student reads texts with {key} = {stored.get(key)!r}, and this version of fed-distill "
                f"with {now.get(key)!r}: install the version that wrote it (see versions in {DESCRIPTION}), or train "
                "it again"
            )


def examples(model: TextModel, pair: bool) -> list[dict[str, Any]]:
    """Return a few texts with their encoding, by field without a batch dimension, and their class probabilities."""
    found = []
    for text, other in _TEXTS:
        encoded = model.encode([text], [other] if pair else None)
        found.append(
            {
                "text": text,
                **({"pair": other} if pair else {}),
                "encoded": {name: values[0].tolist() for name, values in encoded.items()},
                "probabilities": predict(model, encoded)[0].tolist(),
            }
        )
    return found
