"""The controls of an experiment, each of which isolates one source of gain."""

from collections.abc import Mapping
from typing import Literal, get_args

Control = Literal[
    "student", "server", "local", "pooled", "fedavg", "oracle-proxy", "bm25", "popularity", "repeat", "item-knn"
]
MEANINGS: Mapping[Control, str] = {
    "student": "the student trained on the server's labels, without teacher or merchants: what labels alone give",
    "server": "student, with the teacher's soft labels on the proxy set too: what the teacher adds",
    "local": "server, trained further by each merchant alone: what a merchant gains without others",
    "pooled": "server, trained further on everybody's data in one place: what moving the data would give",
    "fedavg": "federated averaging from student, without a teacher anywhere: what federation adds",
    "oracle-proxy": "student, with the true labels of the proxy set too: about what soft labels of it can reach",
    "bm25": "ranks by the words that query and title share, without training, with word counts of the server's titles",
    "popularity": "recommends what is bought most, without training, from everybody's data",
    "repeat": "recommends what the customer bought before, then by popularity, from everybody's data",
    "item-knn": "recommends what is bought with what the customer bought, without training, from everybody's data",
}
"""What each control is, and what it isolates."""
CONTROLS: tuple[Control, ...] = get_args(Control)
OF_PURCHASES: tuple[Control, ...] = ("popularity", "repeat", "item-knn")
"""Controls of the task next-basket alone."""
UNTRAINED: tuple[Control, ...] = ("bm25", *OF_PURCHASES)
"""Controls without a student: the first of the task relevance, the others of next-basket."""
OF_ALL_DATA: tuple[Control, ...] = ("pooled", *OF_PURCHASES)
"""Controls that need the merchants' data in one place."""
DEFAULT_CONTROLS: tuple[Control, ...] = ("student", "server", "local", "pooled", "fedavg")
ROWS = ("teacher", *(name for name in CONTROLS if name != "fedavg"))
"""Rows in the tables of results, whose names a federation cannot have."""
