"""The controls of an experiment, each of which isolates one source of gain.

``student``: the server's labels, without teacher or merchants. ``server``: with the teacher's soft labels, so that the
difference is what the teacher adds. ``local``: each merchant alone, from ``server``. ``fedavg``: federation from
``student``, without a teacher anywhere. ``pooled``: everybody's data in one place, with the teacher. ``oracle-proxy``:
``student`` with the true labels of the proxy set, the ceiling of methods on soft labels.
"""

from typing import Literal

Control = Literal["student", "server", "local", "pooled", "fedavg", "oracle-proxy"]
CONTROLS: tuple[Control, ...] = ("student", "server", "local", "pooled", "fedavg", "oracle-proxy")
DEFAULT_CONTROLS: tuple[Control, ...] = ("student", "server", "local", "pooled", "fedavg")
ROWS = ("teacher", "student", "server", "local", "pooled", "oracle-proxy")
"""Rows in the tables of results, whose names a federation cannot have."""
