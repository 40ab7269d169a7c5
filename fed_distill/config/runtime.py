"""Where a run is kept and how it is computed."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fed_distill.config.tables import ConfigTable, Place, PositiveInt


class RuntimeConfig(ConfigTable):
    """Where a run is kept, how it is computed and what follows it; nothing here changes a result but by rounding."""

    folder: Place = Field(
        Path("runs"),
        description="runs are kept in FOLDER/NAME; runs, the default, is in the folder that a program works in, which "
        "under Flower is the server's",
    )
    resume: bool = Field(False, description="go on with a stopped run of this name")
    cache: Place | None = Field(
        None, description="teachers, what they teach, and the server's students; default: the user's cache folder"
    )
    sites: PositiveInt = Field(1, description="sites that a run waits for; in process, how many share the merchants")
    trainer: Literal["cohort", "sequential"] = Field(
        "cohort", description="many merchants as one tensor program, or one after another on the CPU"
    )
    cohort: PositiveInt | None = Field(
        None, description="merchants that train together at most; default: 16 on a CPU, on a GPU what fits"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where students are trained; auto: a GPU if any")
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None,
        description="cores that training uses: on Linux without a GPU, cohorts train in so many processes, else in so "
        "many threads; default: all cores",
    )
    measure_speed: bool = Field(True, description="time teacher and student on a few pairs, for the report")
    callbacks: list[str] = Field(
        default_factory=lambda: ["progress", "tensorboard"],
        description="what follows a run: progress, tensorboard, wandb, log, prometheus, own",
    )
    logs: Literal["text", "json"] = Field(
        "text", description="json: one object a line on stderr, in place of progress too; a real site has its own"
    )
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = Field(
        None, description="where the callback prometheus answers, 0 for any that is free; default: a file only"
    )
    metrics_address: str = Field(
        "127.0.0.1", description="of which of this machine's addresses; nobody needs a password"
    )

    @model_validator(mode="after")
    def _port_of_prometheus(self) -> Self:
        if self.metrics_port is not None and "prometheus" not in self.callbacks:
            raise ValueError("metrics_port is where callback prometheus answers: name it in runtime.callbacks too")
        return self
