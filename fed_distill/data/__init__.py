"""Datasets: read, clean and split rows between the server and the merchants.

``load`` is the entry point; ``dataset.py`` describes how to add a dataset.
"""

from fed_distill.config import DataConfig
from fed_distill.data.dataset import DATASETS, Dataset, Source
from fed_distill.data.examples import FederatedData
from fed_distill.data.limits import limited
from fed_distill.data.proxy import proxy_source
from fed_distill.data.splits import federate
from fed_distill.data.validation_only import without_test

__all__ = ["DATASETS", "DataReader", "Dataset", "Source", "load"]


def load(config: DataConfig) -> FederatedData:
    """Read and split the dataset of ``config``. Equal configurations give identical data.

    :raises ConfigError: a name, option or task is wrong
    :raises DataError: data are missing or unsuitable
    """
    dataset: Dataset = DATASETS.build(config.dataset, config.options)
    data = limited(federate(dataset.read(config), config, proxy_source(config)), config)
    return data if config.scored_on == "test" else without_test(data)


class DataReader:
    """``load`` that keeps the data of its last configuration, for several users in one process."""

    def __init__(self) -> None:
        self._key = ""
        self._data: FederatedData | None = None

    def __call__(self, config: DataConfig) -> FederatedData:
        """Return the data of ``config``; raises as ``load`` does."""
        key = config.model_dump_json()
        if self._data is None or self._key != key:
            self._key, self._data = key, load(config)
        return self._data
