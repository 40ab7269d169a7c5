"""Write a two-tower or static student for JavaScript: ``web/student.json`` and ``web/weights.bin``, which
``web/student.js`` of this package reads in a browser or in node. ``docs/how-to/student.md`` has the format.
"""

from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from fed_distill.data.student_description import DESCRIPTION
from fed_distill.errors import ConfigError, ModelError
from fed_distill.models.base import TextModel
from fed_distill.models.static import Static
from fed_distill.models.towers import Towers
from fed_distill.models.two_tower import TwoTower
from fed_distill.serving.exported_folder import WEB_WEIGHTS
from fed_distill.serving.student import Student
from fed_distill.storage.files import read_json, strict_json
from fed_distill.storage.versions import versions
from fed_distill.text.javascript import mask_patterns, unicode_tables
from fed_distill.text.javascript_wordpiece import wordpiece_tables

WEB_FORMAT = 1
"""Version of the web export. Increase it with any change by which an earlier ``student.js`` would misread one."""
WebVariant = Literal["int8", "float32"]

Tensors = dict[str, npt.NDArray[Any]]


def check_web(student: Student, variant: str) -> WebVariant:
    """Return the variant for a web export of ``student``.

    :raises ConfigError: there is no such variant
    :raises ModelError: the student is neither two-tower nor static, or its tokenizer does not run in JavaScript
    """
    for known in get_args(WebVariant):
        if variant == known:
            if not isinstance(student.model, TwoTower | Static):
                raise ModelError(
                    f"a student {student.model.kind!r} cannot be exported for a browser: only 'two-tower' and 'static' "
                    "can, which have no network beside their table and head"
                )
            _wordpiece(student.model)
            return known  # type: ignore[no-any-return]  # get_args gives Any
    raise ConfigError(f"a web export has no variant {variant!r}; it has: {', '.join(get_args(WebVariant))}")


def write_web(to: Path, student: Student, folder: Path, variant: WebVariant) -> None:
    """Write the folder ``to``, which must not exist.

    :param student: a two-tower or static student, see ``check_web``
    :param folder: folder of ``student``, for its ``student.json``
    :param variant: ``float32``: rows as trained; ``int8``: rows of the variant ``int8`` of the export
    """
    to.mkdir()
    content: list[bytes] = []
    described, offset = {}, 0
    for name, values in _tensors(student, variant).items():
        described[name] = {"type": values.dtype.name, "shape": list(values.shape), "offset": offset}
        content.append(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes())
        offset += len(content[-1])
    (to / WEB_WEIGHTS).write_bytes(b"".join(content))
    trained = read_json(folder / DESCRIPTION)
    header = {
        "format": WEB_FORMAT,
        "student": student.digest,
        "variant": variant,
        **{key: trained[key] for key in ("task", "text", "encoding")},
        "unicode": unicode_tables(),
        "masks": mask_patterns(),
        **_wordpiece(student.model),
        "bytes": offset,
        "tensors": described,
        "versions": versions(),
    }
    (to / DESCRIPTION).write_text(strict_json(header, DESCRIPTION) + "\n", encoding="utf-8")


def _wordpiece(model: TextModel) -> dict[str, Any]:
    """Return the entry ``wordpiece`` of ``web/student.json``, which only static students have."""
    return {"wordpiece": wordpiece_tables(model.settings["tokenizer"])} if isinstance(model, Static) else {}


def _tensors(student: Student, variant: WebVariant) -> Tensors:
    """Return the weights by name, float32 first, so that each begins at a multiple of four bytes."""
    from fed_distill.serving.tower_graphs import BLOCK, head_weights, int8_rows, merged_table  # requires onnx

    model = student.model
    assert isinstance(model, Towers)
    head: Tensors = dict(head_weights(model))
    table = merged_table(model)
    if variant == "float32":
        return {**head, "table": table}
    codes, scales = int8_rows(table)
    rounded = {name: values.astype(np.float16).astype(np.float32) for name, values in head.items()}
    return {**rounded, "scale": np.repeat(scales, BLOCK)[: len(codes)].astype(np.float32), "table": codes}
