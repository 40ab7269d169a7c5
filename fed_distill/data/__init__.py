"""Datasets: rows read, cleaned and split between the server and the merchants.

``load`` is all that an experiment needs; ``dataset.py`` says how to add an own dataset.
"""

from fed_distill.config import DataConfig
from fed_distill.data.dataset import DATASETS, Dataset, Source
from fed_distill.data.examples import FederatedData
from fed_distill.data.limits import limited
from fed_distill.data.proxy import proxy_source
from fed_distill.data.splits import federate

__all__ = ["DATASETS", "Dataset", "Source", "load"]


def load(config: DataConfig) -> FederatedData:
    """Read the dataset that ``config`` names and split it: the same ``config`` gives the same bytes.

    Raises ConfigError for a wrong name, option or task, DataError for data that are missing or unfit.
    """
    dataset: Dataset = DATASETS.build(config.dataset, config.options)
    return limited(federate(dataset.read(config), config, proxy_source(config)), config)
