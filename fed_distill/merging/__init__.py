"""How the merchants' weights become one: aggregators by name.

All but ``fedavg``, ``fedagree`` and those of submodels are Flower's own strategies. Those that take a mean see one
merchant at a time; the robust ones (agreement, median, trimmed mean, Krum ...) compare all merchants and hold them all
in memory.
"""

from fed_distill.registry import Registry

AGGREGATORS = Registry(
    "aggregator",
    {
        "fedavg": "fed_distill.merging.fedavg:FedAvg",
        "fedavgm": "fed_distill.merging.flower:FedAvgM",
        "fedadam": "fed_distill.merging.flower:FedAdam",
        "fedadagrad": "fed_distill.merging.flower:FedAdagrad",
        "fedyogi": "fed_distill.merging.flower:FedYogi",
        "fedmedian": "fed_distill.merging.flower:FedMedian",
        "fedtrimmedavg": "fed_distill.merging.flower:FedTrimmedAvg",
        "krum": "fed_distill.merging.flower:Krum",
        "multikrum": "fed_distill.merging.flower:MultiKrum",
        "bulyan": "fed_distill.merging.flower:Bulyan",
        "fedsubavg": "fed_distill.merging.fedsubavg:FedSubAvg",
        "fedagree": "fed_distill.merging.agreement:FedAgree",
        "fedsubagree": "fed_distill.merging.agreement:FedSubAgree",
        "fedsubmedian": "fed_distill.merging.robust_rows:FedSubMedian",
        "fedsubtrimmedavg": "fed_distill.merging.robust_rows:FedSubTrimmedAvg",
    },
)
SUBMODEL_AGGREGATORS = ("fedsubavg", "fedsubagree", "fedsubmedian", "fedsubtrimmedavg")
"""Those that merge a table's row over the merchants that sent it: with whole tables they would see nothing of that."""
