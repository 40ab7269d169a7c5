"""``python -m fed_distill.sites.supernode SITE.TOML OPTIONS``: Flower's SuperNode for a site, whose file says where the
server is; the options are those of ``flower-supernode``.

Flower's own process (1.41) goes on for ever, deaf, once its server shows a certificate that it cannot trust, also when
that has long been renewed. This one ends with an error, so that systemd or Docker start it again, and says what to do.
"""

import sys

from flwr.supercore.exit import ExitCode, flwr_exit
from flwr.supernode.cli import flower_supernode

from fed_distill.errors import ConfigError
from fed_distill.toml import read_toml

ADVICE = """\
This site is not with its server. `fed-distill sites check .` in its folder says whether the server answers and is to be
trusted. A certificate that has expired is the operator's to renew. Flower's code 2004 (failed to activate) means that
the operator has not registered this site's key, or that the site has just been there: it is let in again a minute after
it was lost. Then start it again; systemd and Docker do."""


def main() -> None:
    """Be the SuperNode until it is stopped, or has given its server up."""
    if not sys.argv[1:]:
        sys.exit("usage: python -m fed_distill.sites.supernode SITE.TOML [options of flower-supernode]")
    path, *options = sys.argv[1:]
    try:
        sys.argv = ["flower-supernode", "--superlink", _address(path), *options]
    except ConfigError as error:
        sys.exit(f"error: {error}")
    try:
        flower_supernode()  # comes back only when it has given up: every other end leaves the process
        flwr_exit(ExitCode.SUPERNODE_CONNECTION_ERROR, "The server is given up; the line above says why.")
    except SystemExit as end:
        if end.code:
            print(ADVICE, file=sys.stderr, flush=True)
        raise


def _address(path: str) -> str:
    try:
        return str(read_toml(path, "the site in")["server"]["address"])
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path} has no address in [server]") from error


if __name__ == "__main__":
    main()
