"""Descriptions of what leaves a merchant in addition to payloads, as far as they are common to all privacy units."""

from dataclasses import dataclass

from fed_distill.config import PrivacyConfig


@dataclass(frozen=True)
class Revealed:
    """One item that leaves a merchant, and its protection."""

    what: str
    how: str


def scores(config: PrivacyConfig, personal: bool) -> list[Revealed]:
    """Describe test results that merchants send; ``personal``: also those of personal students."""
    setting = "set privacy.report_scores = false to keep them"
    found = [
        Revealed(
            "number of correct test examples",
            f"sent exactly; not covered by the guarantee, though these examples are not used for training; {setting}"
            if config.reports_scores
            else "not sent",
        )
    ]
    if personal:
        found.append(
            Revealed(
                "number of correct test examples of its personal student",
                "sent exactly; not covered by the guarantee: this student is trained on the merchant's examples "
                f"without noise, and stays at the merchant; {setting}"
                if config.reports_scores
                else "not sent",
            )
        )
    return found


def validation(simulated: bool) -> Revealed:
    """Describe validation scores of released students; in a simulation their rows are merchants' too."""
    rows = (
        "in this simulation the validation set contains merchants' held-out rows, so these scores are exact "
        "functions of them and not covered by the guarantee; early stopping uses the server's own rows only"
        if simulated
        else "the validation rows are the server's own"
    )
    return Revealed(
        "validation scores of each round's student",
        f"computed by the server from the released student, at no additional epsilon; {rows}",
    )


def noise(owner: str, reproducible: bool) -> Revealed:
    """Describe who can subtract the noise. ``owner``: owner of the secret that it is derived from in a deployment."""
    if reproducible:
        how = (
            "derived from the run's seed, so that this simulation is reproducible: anyone who has the seed can "
            "subtract it. The run shows the guarantee that real sites would have"
        )
    else:
        how = f"derived from a secret of {owner}, which is never sent: the run's seed does not reveal it"
    return Revealed("the noise", how)
