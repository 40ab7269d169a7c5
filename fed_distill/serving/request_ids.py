"""An id for each request, by which a client and the log of the service speak of the same one.

A proxy in front may give it, so that both logs have one id. What a client gives is logged, so that only what looks
like a random number is taken: no name, address, phone or card number does.
"""

import re
import secrets
from collections.abc import Iterable

REQUEST_ID_HEADER = "X-Request-ID"
REQUEST_ID_PATTERN = "^([0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})$"
"""Of an id in an answer: 128 bits in hexadecimal, as nginx's ``$request_id``, or a UUID, as HAProxy's ``uuid()``."""
_GIVEN = re.compile(rb"(?=[^a-f]*[a-f])" + REQUEST_ID_PATTERN.strip("^$").encode())
"""Of an id that is given: with a letter, which one random number in three million lacks, and numbers of people do."""


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the id that the headers of a request give, if there is one of this form, or a new one."""
    given = [value for name, value in headers if name == b"x-request-id"]
    if len(given) == 1 and _GIVEN.fullmatch(given[0]):
        return given[0].decode("ascii")
    return secrets.token_hex(16)
