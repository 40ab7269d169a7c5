"""``python -m fed_distill.sites.supernode``: Flower's SuperNode, and its end when it is of no more use.

Flower's own process (``flower-supernode``, 1.41) goes on for ever, deaf, once its server shows a certificate that it
cannot trust, also when that has long been renewed. Ended with an error it is started anew by systemd or Docker.
"""

from flwr.supercore.exit import ExitCode, flwr_exit
from flwr.supernode.cli import flower_supernode


def main() -> None:
    """Be the SuperNode until it is stopped, or has given its server up."""
    flower_supernode()  # comes back only when it has given up: every other end leaves the process
    flwr_exit(
        ExitCode.SUPERNODE_CONNECTION_ERROR,
        "The server is given up (the line above says why), and this SuperNode with it: start it again.",
    )


if __name__ == "__main__":
    main()
