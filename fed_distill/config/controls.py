"""The controls of an experiment, each of which isolates one source of gain.

``student``: the server's labels, without teacher or merchants. ``server``: with the teacher's soft labels, so that the
difference is what the teacher adds. ``local``: each merchant alone, from ``server``. ``fedavg``: federation from
``student``, without a teacher anywhere. ``pooled``: everybody's data in one place, with the teacher. ``oracle-proxy``:
``student`` with the true labels of the proxy set, the ceiling of methods on soft labels. ``popularity``, ``repeat`` and
``item-knn``: recommenders without trained weights, of everybody's data (``evaluation/recommenders.py``).
"""

from typing import Literal, get_args

Control = Literal["student", "server", "local", "pooled", "fedavg", "oracle-proxy", "popularity", "repeat", "item-knn"]
CONTROLS: tuple[Control, ...] = get_args(Control)
OF_PURCHASES: tuple[Control, ...] = ("popularity", "repeat", "item-knn")
"""Controls of the task next-basket alone."""
OF_ALL_DATA: tuple[Control, ...] = ("pooled", *OF_PURCHASES)
"""Controls that need the merchants' data in one place."""
DEFAULT_CONTROLS: tuple[Control, ...] = ("student", "server", "local", "pooled", "fedavg")
ROWS = ("teacher", *(name for name in CONTROLS if name != "fedavg"))
"""Rows in the tables of results, whose names a federation cannot have."""
