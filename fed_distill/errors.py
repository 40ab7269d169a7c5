"""Every error that fed-distill raises on purpose.

An error is raised where the fact is known, names the file, key, row or merchant, and says what to do.
The command line prints it once, without a traceback, and exits with code 2.
"""


class FedDistillError(Exception):
    """Base of the family: catch it to catch everything that a user can mend."""


class ConfigError(FedDistillError):
    """An experiment, an option or a name in it is wrong."""


class DataError(FedDistillError):
    """Input data is missing, unreadable or unfit for the task."""


class ModelError(FedDistillError):
    """A teacher or student cannot be found, loaded or built."""


class ServiceError(FedDistillError):
    """Workers of the service cannot start, or end again and again."""


class TrainingError(FedDistillError):
    """Training went wrong in a way that continuing would hide, such as a loss that is not finite."""


class TooFewAnswers(TrainingError):
    """Too few merchants took part in a round, and asked again more may: sites were away, late, or at rest."""


class UplinkRejected(FedDistillError):
    """What a merchant sent back cannot be used: not finite, of the wrong shape, or not asked for."""


class CheckpointError(FedDistillError):
    """A stored run is missing, torn, or belongs to another experiment."""


class BudgetExceeded(FedDistillError):
    """A private release would cost more epsilon than its merchant has left."""


class LedgerError(FedDistillError):
    """A merchant's ledger is torn, edited, or another merchant's."""


class NotAllowed(FedDistillError):
    """A site's own rules forbid what the server asks of it; its text begins with ``rule NAME:``."""

    @property
    def rule(self) -> str:
        """Name of the rule."""
        return str(self).removeprefix("rule ").partition(":")[0]


class NotNow(NotAllowed):
    """A site's own rules forbid it at this time of the day, and allow it at another."""
