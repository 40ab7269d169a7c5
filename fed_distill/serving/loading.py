"""Load a student from whichever folder it is in: a run, its student, or an export."""

from pathlib import Path

from fed_distill.errors import ConfigError
from fed_distill.serving.exported_folder import EXPORT
from fed_distill.serving.scorer import Scorer


def load_scorer(folder: Path, variant: str | None = None) -> Scorer:
    """Load a variant of an export (by default float32), or a trained student.

    :raises ConfigError: ``variant`` is given for a folder that is no export
    """
    if (folder / EXPORT).exists():
        from fed_distill.serving.runtime import load_exported

        return load_exported(folder, variant or "float32")
    if variant is not None:
        raise ConfigError(
            f"--variant requires an export, and {folder} has no {EXPORT}: write one with fed-distill export"
        )
    from fed_distill.serving.student import load_student

    return load_student(folder)
