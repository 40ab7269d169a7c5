"""Every error that fed-distill raises on purpose.

An error is raised where the fact is known, names the file, key, row or merchant, and says what to do.
The command line prints it once, without a traceback, and exits with code 2.
"""


class FedDistillError(Exception):
    """Base of the family: catch it to catch everything that a user can mend."""


class ConfigError(FedDistillError):
    """An experiment, an option or a name in it is wrong.

    Remedy: Change the key that the message names; ``fed-distill config FILE`` prints all keys with
    their values.
    """


class DataError(FedDistillError):
    """Input data is missing, unreadable or unfit for the task.

    Remedy: Correct the file or row that the message names; ``fed-distill data describe FILE`` shows what was read.
    """


class ModelError(FedDistillError):
    """A teacher or student cannot be found, loaded or built.

    Remedy: Choose a name that ``fed-distill models`` lists, a folder or hub id with all its files, or install the
    package that the message names.
    """


class ServiceError(FedDistillError):
    """Workers of the service cannot start, or end again and again.

    Remedy: Read the log lines before the message: they have the reason of the first worker that ended.
    """


class TrainingError(FedDistillError):
    """Training went wrong in a way that continuing would hide, such as a loss that is not finite.

    Remedy: Lower the learning rate of the training that the message names, or set its ``clip_norm``.
    """


class TooFewAnswers(TrainingError):
    """Too few merchants took part in a round: sites were offline, late or outside their hours. A retry may help.

    Remedy: Wait until more sites are online and resume the run, or lower ``federation.minimum_share`` or raise
    ``federation.deadline``.
    """


class UplinkRejected(FedDistillError):
    """What a merchant sent back cannot be used: not finite, of the wrong shape, or not asked for.

    Remedy: None is needed for one merchant, which is left out of the round and counted. If many are rejected, compare
    the versions of server and sites.
    """


class CheckpointError(FedDistillError):
    """A stored run is missing, torn, or belongs to another experiment.

    Remedy: Resume with the settings of the stored run, or start a run under another name.
    """


class BudgetExceeded(FedDistillError):
    """A private release would cost more epsilon than its merchant has left.

    Remedy: None at this budget: the merchant takes no further part. Plan fewer rounds or a smaller ``privacy.epsilon``;
    only the site may raise its ``max_epsilon``.
    """


class LedgerError(FedDistillError):
    """A merchant's ledger is torn, edited, or another merchant's.

    Remedy: Restore a copy from after its last charge, or begin an empty ledger and lower ``max_epsilon`` by what may
    have been spent; ``fed-distill ledger verify`` checks it.
    """


class NotAllowed(FedDistillError):
    """A site's own rules forbid what the server asks of it; its text begins with ``rule NAME:``.

    Remedy: Change the experiment, or agree with the site that it changes this rule in its ``site.toml``.
    """

    @property
    def rule(self) -> str:
        """Name of the rule."""
        return str(self).removeprefix("rule ").partition(":")[0]


class NotNow(NotAllowed):
    """A site's own rules forbid it at this time of the day, and allow it at another.

    Remedy: None: the round is asked again, and the site takes part within its hours.
    """
