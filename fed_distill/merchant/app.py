"""The Flower ClientApp: lists a site's merchants, trains them, and evaluates a student on them."""

import uuid
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fed_distill.config import Experiment
from fed_distill.data import DataReader
from fed_distill.data.examples import FederatedData
from fed_distill.data.public_part import PublicPart
from fed_distill.errors import FedDistillError, TrainingError
from fed_distill.logs import observed
from fed_distill.merchant.budgets import tell_budgets
from fed_distill.merchant.manifest import Manifest
from fed_distill.merchant.metrics import Tally
from fed_distill.merchant.observing import Answering, hidden, watched
from fed_distill.merchant.opening import open_site
from fed_distill.merchant.request_validation import outlined
from fed_distill.merchant.site import Site
from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.storage.versions import versions
from fed_distill.transport.records import decode_downlink, decode_starts, prefixed
from fed_distill.transport.requests import ANSWER, PROTOCOL, Refusal, TrainRequest

OWN = ("limits", "ledger")
"""Keys of ``[privacy]`` that a site's node config overrides."""


def manifest_of(context: Context) -> Manifest | None:
    """Read the ``site.toml`` that a real site's node config names; None in a simulation."""
    return Manifest.read(Path(str(context.node_config["site"]))) if "site" in context.node_config else None


def site_for(context: Context, data: FederatedData | None = None) -> Site:
    """Open the site of a Flower context; ``data`` as for ``open_site``.

    A real site's node config names its ``site.toml``; then only files that it names are read.
    """
    experiment, manifest = Experiment.from_run_config(context.run_config), manifest_of(context)
    if manifest is not None:
        data = manifest.read_data()
        return open_site(manifest.own(experiment), 0, 1, data, manifest.limits, manifest.read_secret())
    own = {f"privacy.{name}": str(context.node_config[name]) for name in OWN if name in context.node_config}
    experiment = experiment.with_changes(own) if own else experiment
    part, parts = int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
    return open_site(experiment, part, parts, data)


class Hosting:
    """The sites of one process, each opened at its first message.

    Flower's simulation engine pickles the ClientApp for every message. A hosting is pickled as its key, which refers to
    a hosting of the unpickling process: a worker reads data and encodes texts once instead of once per message.
    tallies: counts of each node, by node id.
    """

    def __init__(
        self, data: FederatedData | None = None, key: str | None = None, reader: DataReader | None = None
    ) -> None:
        self._data = data
        self._key = uuid.uuid4().hex if key is None else key
        self._reader = DataReader() if reader is None else reader
        self.tallies: dict[int, Tally] = defaultdict(Tally)
        self._sites: dict[int, Site] = {}

    def __reduce__(self) -> tuple[Callable[..., "Hosting"], tuple[FederatedData | None, str]]:
        return _hosting_here, (self._data, self._key)

    def site_of(self, context: Context) -> Site:
        """Return the site of a Flower context."""
        if context.node_id not in self._sites:
            real = self._data is not None or "site" in context.node_config
            data = self._data if real else self._reader(Experiment.from_run_config(context.run_config).data)
            site = site_for(context, data)
            self._sites[context.node_id] = replace(site, tally=self.tallies[context.node_id])
        return self._sites[context.node_id]


_HERE: dict[str, Hosting] = {}
"""Unpickled hostings of this process, a worker of Flower's simulation, which lives as long as its run."""


def _hosting_here(data: FederatedData | None, key: str) -> Hosting:
    if key not in _HERE:
        _HERE[key] = Hosting(data, key)
    return _HERE[key]


def build_app(data: FederatedData | None = None, reader: DataReader | None = None) -> ClientApp:
    """Build a ClientApp with its own sites, each opened at its first message.

    :param data: data of the merchants, instead of the experiment's
    :param reader: reads the data of a simulation, for a server in this process too; None for one of its own
    """
    hosting = Hosting(data, reader=reader)
    site_of = hosting.site_of

    def watch(message: Message, context: Context, answer: Answering) -> Message:
        try:
            manifest = manifest_of(context)
        except FedDistillError as error:
            raise hidden(error) from None
        return watched(message, context, hosting.tallies[context.node_id], manifest, answer)

    app = ClientApp(mods=[watch])

    @app.query("merchants")
    def merchants(message: Message, context: Context) -> Message:
        site = site_of(context)
        public = PublicPart(site.task, site.holdings.proxy).fingerprint
        record = ConfigRecord({"names": list(site.holdings.merchants), "public": public, "protocol": PROTOCOL})
        manifest = manifest_of(context)
        if manifest is not None:
            record["name"] = manifest.name
            tell_budgets(site.protection, site.holdings.merchants)
        record["versions"] = [f"{name} {version}" for name, version in versions().items()]
        if site.protection.tells_sizes(site.holdings.merchants):
            record["examples"] = [len(data.train) for data in site.holdings.merchants.values()]
        return Message(RecordDict({"merchants": record}), reply_to=message)

    @app.query("privacy")
    def privacy(message: Message, context: Context) -> Message:
        site, record = site_of(context), _request_record(message)
        arm, seed = record.get("arm"), record.get("seed")
        if type(arm) is not str or type(seed) is not int:
            raise TrainingError("the request for privacy budgets has no federation and seed")
        spent = site.protection.spent(arm, seed, site.holdings.merchants)
        return Message(RecordDict({"spent": MetricRecord(asdict(spent))}), reply_to=message)

    @app.query("join")
    def join(message: Message, context: Context) -> Message:
        request = TrainRequest.from_record(_request_record(message))
        refusals = site_of(context).join(request)
        reply = {f"{number}/refusal": refusal.to_record() for number, refusal in enumerate(refusals)}
        return Message(RecordDict(dict(reply)), reply_to=message)

    @app.train("merchants")
    def train(message: Message, context: Context) -> Message:
        content = message.content
        request, starts = TrainRequest.from_record(_request_record(message)), decode_starts(content)
        site = site_of(context)
        codec = site.codec(request)
        if codec.downlink_weights is not None:  # a few bytes can decode to many
            site.check_models(request)
        shape = len(site.holdings.proxy_of(request)), len(site.task.classes)
        student = outlined(request.global_blueprint).state_dict() if request.blueprints else None
        down = codec.decode_downlink(content, site.receives(request), shape, student)
        reply = RecordDict({ANSWER: ConfigRecord({"to": request.title(down.round)})})
        with observed(federation=request.arm, seed=request.seed, round=down.round):
            for number, answer in enumerate(site.train(request, down, starts)):
                sent = answer if isinstance(answer, Refusal) else site.coded(answer, codec, request, down)
                if isinstance(sent, Refusal):
                    reply[f"{number}/refusal"] = sent.to_record()
                else:
                    reply.update(prefixed(sent, f"{number}/"))
        return Message(reply, reply_to=message)

    @app.evaluate("merchants")
    def evaluate(message: Message, context: Context) -> Message:
        request = TrainRequest.from_record(_request_record(message))
        weights = decode_downlink(message.content, (StudentWeights,)).weights
        if not weights:
            raise TrainingError("the request to evaluate a student has no weights")
        counts = site_of(context).evaluate(request, weights)
        record = MetricRecord({merchant: [right, count] for merchant, (right, count) in counts.items()})
        return Message(RecordDict({"counts": record}), reply_to=message)

    return app


def _request_record(message: Message) -> ConfigRecord:
    """Return the request record of a message; raise TrainingError if it is missing."""
    record = message.content.config_records.get("request")
    if record is None:
        raise TrainingError("the message has no record 'request'")
    return record


app = build_app()
