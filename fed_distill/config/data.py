"""Configuration of the data and of its split between server and merchants."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fed_distill.config.tables import LARGEST, ConfigTable, PositiveFloat, PositiveInt, Share


class ClicksConfig(ConfigTable):
    """Labels of merchants' training examples that are derived from simulated clicks instead of grades."""

    sessions: Annotated[int, Field(ge=0, le=1_000_000_000)] = Field(
        0, description="times that a query's products are shown; 0: labels are the grades"
    )
    bias: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = Field(
        1.0, description="position bias: position k is seen with probability (1 / k)^bias"
    )
    noise: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.1, description="probability of a click on an irrelevant product that is seen"
    )
    corrected: bool = Field(True, description="account for the probability that a position is seen")

    @model_validator(mode="after")
    def _used(self) -> Self:
        if not self.sessions:
            self._refuse_idle(["bias", "noise", "corrected"], "sessions = 0")
        return self


class DataConfig(ConfigTable):
    """The dataset and its split between server, merchants, validation and test."""

    dataset: str = Field("marketplace", description="name of a dataset, or import path of a custom one")
    task: str = Field(
        "relevance",
        description="relevance, recommend, next-basket, marketing-effect, category, profile, matching, sentiment or "
        "faq",
    )
    seed: Annotated[int, Field(ge=-LARGEST, le=LARGEST)] = Field(
        0, description="seed of the splits; separate from the run's seed, so that all seeds share one test set"
    )
    public_share: Share = Field(
        0.2, description="share of the merchants with at least min_rows rows whose data the server holds"
    )
    public_labels: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0,
        description="share of the public merchants' examples whose labels the server has, drawn at random; the proxy "
        "set is drawn from all their examples",
    )
    client_labels: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0,
        description="share of each client's training examples that are labelled, drawn at random, at least one; the "
        "client keeps the others without labels",
    )
    cold_merchants: Share = Field(
        0.0,
        description="share of the clients that are held out whole: they do not train and are not in the catalogue, "
        "and a test of their own measures merchants that join later",
    )
    clients: Literal["here", "elsewhere"] = Field(
        "here",
        description="here: the clients are the dataset's non-public merchants; elsewhere: the clients are merchants of "
        "real sites with their own data, and the whole dataset is public",
    )
    clicks: ClicksConfig = Field(default_factory=ClicksConfig)
    min_rows: PositiveInt = Field(30, description="merchants with fewer rows are not clients; their rows are public")
    valid_share: Share = Field(0.1, description="share of the groups held out for validation")
    test_share: Share = Field(0.2, description="share of the groups held out for the test")
    scored_on: Literal["test", "validation"] = Field(
        "test",
        description="examples of the final scores; validation: test examples are dropped when the data are read, as in "
        "all trials of a tuning, so that no setting can be chosen by them",
    )
    test_domain: str | None = Field(
        None,
        description="test only on this domain (for example a category) and exclude its labels from training; none: all",
    )
    proxy_size: PositiveInt = Field(4000, description="maximum number of examples in the shared, unlabeled proxy set")
    proxy_from: Literal["public", "catalogue", "generated"] = Field(
        "public",
        description="public: draw the proxy set from the public merchants' training rows; catalogue: from the titles "
        "and queries of all merchants' training products, which must be public, without labels; "
        "generated: recombine words of the public merchants' training texts, where merchants' titles are not public",
    )
    proxy_neighbours: Share = Field(
        0.75,
        description="share of a catalogue's pairs that are lexical neighbours, for tasks with two texts; the others "
        "are random pairs",
    )
    proxy_choice: Literal["random", "coverage", "uncertainty"] = Field(
        "random",
        description="random; coverage: greedy k-center selection over the texts; uncertainty: the examples with the "
        "least certain teacher predictions",
    )
    proxy_domains: list[str] = Field(
        default_factory=list,
        description="draw the proxy set from these domains and exclude their labels from training; empty: all",
    )
    proxy_dataset: str | None = Field(
        None, description="draw the proxy set from this dataset, for example marketplace; none: from the same dataset"
    )
    proxy_options: dict[str, Any] = Field(default_factory=dict, description="options of proxy_dataset")
    max_characters: PositiveInt = Field(512, description="maximum length of a text; cleaning drops longer ones")
    max_merchants: PositiveInt | None = Field(None, description="number of clients to keep, the largest; none: all")
    max_examples: PositiveInt | None = Field(None, description="number of examples to keep in each table; none: all")
    partition: Literal["merchant", "dirichlet", "shard", "size"] = Field(
        "merchant",
        description="assignment of rows to merchants: by the merchant column, or by a flwr-datasets partitioner",
    )
    partitions: PositiveInt = Field(20, description="number of merchants that a partitioner creates")
    concentration: PositiveFloat = Field(0.5, description="Dirichlet concentration; smaller is more skewed")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the dataset")

    @model_validator(mode="after")
    def _proxy_of_a_catalogue(self) -> Self:
        if self.proxy_from != "catalogue":
            self._refuse_idle(["proxy_neighbours"], f"proxy_from = {self.proxy_from!r}")
        return self

    @model_validator(mode="after")
    def _scored_without_sites(self) -> Self:
        if self.scored_on == "validation" and self.clients == "elsewhere":
            raise ValueError(
                "scored_on = 'validation' cannot drop the test examples of real sites (clients = 'elsewhere'): tune in "
                "a simulation, or remove scored_on"
            )
        return self
