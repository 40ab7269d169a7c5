"""Which examples there are, and who has them."""

from typing import Annotated, Any, Literal

from pydantic import Field

from fed_distill.config.tables import LARGEST, ConfigTable, PositiveFloat, PositiveInt, Share


class DataConfig(ConfigTable):
    """Which examples, and how they are split between server, merchants, validation and test."""

    dataset: str = Field("marketplace", description="name of a dataset, or import path of an own one")
    task: str = Field("relevance", description="relevance, recommend, category, matching, sentiment or faq")
    seed: Annotated[int, Field(ge=-LARGEST, le=LARGEST)] = Field(
        0, description="seed of the splits; kept apart from the run's seed, so that seeds share a test set"
    )
    public_share: Share = Field(0.2, description="share of the large enough merchants whose data the server has")
    public_labels: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0,
        description="share of the public merchants' examples whose labels the server has, drawn by chance; the proxy "
        "set is drawn from all of them",
    )
    clients: Literal["here", "elsewhere"] = Field(
        "here",
        description="here: merchants of the data that are not public; elsewhere: those of real sites, which bring data "
        "of their own, and all that is here is public",
    )
    min_rows: PositiveInt = Field(30, description="merchants with fewer rows are not clients; their rows are public")
    valid_share: Share = Field(0.1, description="share of the groups held out for validation")
    test_share: Share = Field(0.2, description="share of the groups held out for the test")
    test_domain: str | None = Field(
        None, description="test on this domain (such as a category) alone, and train on no label of it; none for all"
    )
    proxy_size: PositiveInt = Field(4000, description="examples in the shared, unlabeled proxy set, at most")
    proxy_choice: Literal["random", "coverage", "uncertainty"] = Field(
        "random",
        description="coverage: spread over the texts that there are, by greedy k-center; uncertainty: where the "
        "teacher is least sure",
    )
    proxy_domains: list[str] = Field(
        default_factory=list, description="draw the proxy set from these domains, and train on no label of them"
    )
    proxy_dataset: str | None = Field(
        None, description="draw the proxy set from this dataset, such as the generated marketplace; none for the same"
    )
    proxy_options: dict[str, Any] = Field(default_factory=dict, description="options of that dataset")
    max_characters: PositiveInt = Field(512, description="longer texts are dropped in cleaning")
    max_merchants: PositiveInt | None = Field(None, description="keep only so many clients, the largest; none for all")
    max_examples: PositiveInt | None = Field(None, description="keep only so many examples in each table; none for all")
    partition: Literal["merchant", "dirichlet", "shard", "size"] = Field(
        "merchant",
        description="who owns a row: its merchant column, or a flwr-datasets partitioner where there is none",
    )
    partitions: PositiveInt = Field(20, description="merchants that a partitioner makes")
    concentration: PositiveFloat = Field(0.5, description="Dirichlet concentration; smaller is more skewed")
    options: dict[str, Any] = Field(default_factory=dict, description="the dataset's own options")
