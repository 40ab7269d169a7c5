"""Aggregators of the merchants' updates, by name.

All but ``fedavg``, ``flame`` and those for submodels are Flower's own strategies. Means process one merchant at a time;
robust aggregators (FLAME, median, trimmed mean, Krum ...) compare all merchants and hold all of them in memory.
"""

from fed_distill.registry import Registry

AGGREGATORS = Registry(
    "aggregator",
    {
        "fedavg": "fed_distill.aggregation.fedavg:WeightedMean",
        "fedavgm": "fed_distill.aggregation.flower:FedAvgM",
        "fedadam": "fed_distill.aggregation.flower:FedAdam",
        "fedadagrad": "fed_distill.aggregation.flower:FedAdagrad",
        "fedyogi": "fed_distill.aggregation.flower:FedYogi",
        "fedmedian": "fed_distill.aggregation.flower:FedMedian",
        "fedtrimmedavg": "fed_distill.aggregation.flower:FedTrimmedAvg",
        "krum": "fed_distill.aggregation.flower:Krum",
        "multikrum": "fed_distill.aggregation.flower:MultiKrum",
        "bulyan": "fed_distill.aggregation.flower:Bulyan",
        "fedsubavg": "fed_distill.aggregation.fedsubavg:FedSubAvg",
        "flame": "fed_distill.aggregation.flame:Flame",
        "fedsubflame": "fed_distill.aggregation.flame:FedSubFlame",
        "fedsubmedian": "fed_distill.aggregation.robust_rows:FedSubMedian",
        "fedsubtrimmedavg": "fed_distill.aggregation.robust_rows:FedSubTrimmedAvg",
    },
    renamed={"fedagree": "flame", "fedsubagree": "fedsubflame"},
)
SUBMODEL_AGGREGATORS = ("fedsubavg", "fedsubflame", "fedsubmedian", "fedsubtrimmedavg")
"""Aggregators that average a table's row over the merchants that sent it; they require partial tables."""
