"""Services of the tests: in this process, with students whose folders a test may change."""

import shutil
import time
from contextlib import contextmanager

from starlette.testclient import TestClient

from fed_distill.serving.service import build_service
from fed_distill.serving.service_config import ServeConfig

TITLES = ["Anker 555 USB-C Hub", "red kettle 2 l", "hdmi cable", "usb hub 7in1"]


def config_of(export, canary=None, shadow=None, drift=None, limits=None, keys=(), **service):
    """Settings that look at files often, so that a test need not wait."""
    tables = {"service": {"student": export, "watch_seconds": 0.02, **service}, "limits": limits, "key": keys}
    tables |= {"canary": canary, "shadow": shadow, "drift": drift}
    return ServeConfig.model_validate({name: table for name, table in tables.items() if table is not None})


@contextmanager
def serving(config, folder=None):
    """A client of a service that is ready."""
    with TestClient(build_service(config, folder), base_url="http://localhost") as client:
        until(lambda: client.get("/ready").status_code == 200)
        yield client


def until(happened):
    """Wait until a condition holds; the test's own time limit ends it otherwise."""
    while not happened():
        time.sleep(0.005)


def replace_export(target, source):
    """Put another export in a folder's place, as an operator does: a rename, never a half-written folder."""
    fresh = target.with_name(f"{target.name}.fresh")
    shutil.copytree(source, fresh)
    target.rename(target.with_name(f"{target.name}.{time.monotonic_ns()}"))
    fresh.rename(target)
