"""Log lines of the service on stderr, of one process or of each worker."""

import logging
from typing import Literal

from fed_distill.logs import log_as

LogStyle = Literal["text", "json"]


def log_service(style: LogStyle) -> None:
    """Write the log of this process to stderr, in ``style``; JSON tells unforeseen errors without their texts."""
    if style == "json":
        log_as("json", private=True)
    else:
        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s")
        logging.getLogger("fed_distill").setLevel(logging.INFO)
