"""How the merchants' updates become one: aggregators by name.

All but ``fedavg``, ``fedagree`` and those of submodels are Flower's own strategies. Those that take a mean see one
merchant at a time; the robust ones (agreement, median, trimmed mean, Krum ...) compare all merchants and hold them all
in memory.
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
        "fedagree": "fed_distill.aggregation.agreement:FedAgree",
        "fedsubagree": "fed_distill.aggregation.agreement:FedSubAgree",
        "fedsubmedian": "fed_distill.aggregation.robust_rows:FedSubMedian",
        "fedsubtrimmedavg": "fed_distill.aggregation.robust_rows:FedSubTrimmedAvg",
    },
)
SUBMODEL_AGGREGATORS = ("fedsubavg", "fedsubagree", "fedsubmedian", "fedsubtrimmedavg")
"""Those that merge a table's row over the merchants that sent it: with whole tables they would see nothing of that."""
