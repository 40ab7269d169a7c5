"""Configuration of a run's folder, computation and callbacks."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fed_distill.config.tables import ConfigTable, Place, PositiveInt


class RuntimeConfig(ConfigTable):
    """Folder, computation and callbacks of a run. These keys change results by rounding errors at most."""

    folder: Place = Field(
        Path("runs"),
        description="a run is written to FOLDER/NAME; a relative folder is in the working folder of the process, with "
        "Flower that of the server",
    )
    resume: bool = Field(False, description="resume a stopped run of this name")
    cache: Place | None = Field(
        None,
        description="cache of teachers, their soft labels and the server's students; none: the user's cache folder",
    )
    sites: PositiveInt = Field(
        1, description="number of sites that a run waits for; in process: number of sites that share the merchants"
    )
    trainer: Literal["cohort", "sequential"] = Field(
        "cohort", description="cohort: many merchants as one tensor program; sequential: one after another on the CPU"
    )
    cohort: PositiveInt | None = Field(
        None,
        description="maximum number of merchants trained together; none: 16 on a CPU, what fits in memory on a GPU",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="device for training students; auto: a GPU if there is one"
    )
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None,
        description="number of cores for training: the number of processes that train cohorts on Linux without a GPU, "
        "otherwise the number of threads; none: all cores",
    )
    measure_speed: bool = Field(True, description="measure the speed of teacher and student for the report")
    disagreements: Annotated[int, Field(ge=0, le=100)] = Field(
        10,
        description="number of proxy examples in the report on which teacher and student disagree most, with their "
        "texts; 0: none",
    )
    callbacks: list[str] = Field(
        default_factory=lambda: ["progress", "tensorboard"],
        description="callbacks of a run: progress, tensorboard, wandb, mlflow, log, prometheus, or import paths of "
        "custom ones",
    )
    logs: Literal["text", "json"] = Field(
        "text", description="json: one object per line on stderr, also for progress; a real site has its own setting"
    )
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = Field(
        None, description="port of the callback prometheus; 0: any free port; none: it writes a file only"
    )
    metrics_address: str = Field(
        "127.0.0.1", description="address on which the callback prometheus listens, without authentication"
    )

    @model_validator(mode="after")
    def _port_of_prometheus(self) -> Self:
        if self.metrics_port is not None and "prometheus" not in self.callbacks:
            raise ValueError(
                "metrics_port requires the callback prometheus: add it to runtime.callbacks, or remove metrics_port"
            )
        return self
