"""The Flower ClientApp: answers which merchants a site has, trains them, and measures a student on them."""

import uuid
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fed_distill.config import Experiment
from fed_distill.data import load
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
"""Keys of ``[privacy]`` that are the site's business: its node config wins over what the server's run says."""


def manifest_of(context: Context) -> Manifest | None:
    """The ``site.toml`` that a real site's node config names; None in a simulation."""
    return Manifest.read(Path(str(context.node_config["site"]))) if "site" in context.node_config else None


def site_for(context: Context, data: FederatedData | None = None) -> Site:
    """Open the site that a Flower context is of; ``data`` as for ``open_site``.

    A real site's node config names its ``site.toml``, and then nothing but what that file names is read.
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
    """The sites that one process serves, each opened at the first message to it.

    Flower's simulation engine pickles the ClientApp anew for every message. A hosting is pickled as its key alone,
    which stands for a hosting of the process that reads it: a worker reads data and encodes texts once, not once a
    message. tallies: what each node has done, by node id.
    """

    def __init__(self, data: FederatedData | None = None, key: str | None = None) -> None:
        self._data = data
        self._key = uuid.uuid4().hex if key is None else key
        self.tallies: dict[int, Tally] = defaultdict(Tally)
        self._sites: dict[int, Site] = {}
        self._read: dict[str, FederatedData] = {}

    def __reduce__(self) -> tuple[Callable[..., "Hosting"], tuple[FederatedData | None, str]]:
        return _hosting_here, (self._data, self._key)

    def site_of(self, context: Context) -> Site:
        """The site that a Flower context is of."""
        if context.node_id not in self._sites:
            real = self._data is not None or "site" in context.node_config
            site = site_for(context, self._data if real else self._simulated(context))
            self._sites[context.node_id] = replace(site, tally=self.tallies[context.node_id])
        return self._sites[context.node_id]

    def _simulated(self, context: Context) -> FederatedData:
        """All merchants of a simulation, read once for all sites that this process serves."""
        config = Experiment.from_run_config(context.run_config).data
        key = config.model_dump_json()
        if key not in self._read:
            self._read = {key: load(config)}
        return self._read[key]


_HERE: dict[str, Hosting] = {}
"""Hostings that came to this process pickled: a worker of Flower's simulation lives as long as its run."""


def _hosting_here(data: FederatedData | None, key: str) -> Hosting:
    if key not in _HERE:
        _HERE[key] = Hosting(data, key)
    return _HERE[key]


def build_app(data: FederatedData | None = None) -> ClientApp:
    """A ClientApp with sites of its own, opened at the first message to each.

    ``data``: what its merchants have, where that is not what the experiment names.
    """
    hosting = Hosting(data)
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
        site, asked = site_of(context), _asked(message)
        arm, seed = asked.get("arm"), asked.get("seed")
        if type(arm) is not str or type(seed) is not int:
            raise TrainingError("a question about privacy that is of no federation and seed")
        spent = site.protection.spent(arm, seed, site.holdings.merchants)
        return Message(RecordDict({"spent": MetricRecord(asdict(spent))}), reply_to=message)

    @app.query("join")
    def join(message: Message, context: Context) -> Message:
        request = TrainRequest.from_record(_asked(message))
        refusals = site_of(context).join(request)
        reply = {f"{number}/refusal": refusal.to_record() for number, refusal in enumerate(refusals)}
        return Message(RecordDict(dict(reply)), reply_to=message)

    @app.train("merchants")
    def train(message: Message, context: Context) -> Message:
        content = message.content
        request, starts = TrainRequest.from_record(_asked(message)), decode_starts(content)
        site = site_of(context)
        codec = site.codec(request)
        if codec.downlink_weights is not None:  # of which a few bytes can stand for many
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
        request = TrainRequest.from_record(_asked(message))
        weights = decode_downlink(message.content, (StudentWeights,)).weights
        if not weights:
            raise TrainingError("a request to measure a student, without its weights")
        counts = site_of(context).evaluate(request, weights)
        record = MetricRecord({merchant: [right, count] for merchant, (right, count) in counts.items()})
        return Message(RecordDict({"counts": record}), reply_to=message)

    return app


def _asked(message: Message) -> ConfigRecord:
    """What is asked, as the server has written it; TrainingError for a message without."""
    asked = message.content.config_records.get("request")
    if asked is None:
        raise TrainingError("a message that asks for nothing: it has no record 'request'")
    return asked


app = build_app()
