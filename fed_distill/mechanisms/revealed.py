"""What leaves a merchant beside its payloads, in words, as far as that is the same for all privacy units."""

from dataclasses import dataclass

from fed_distill.config import PrivacyConfig


@dataclass(frozen=True)
class Revealed:
    """One part of what leaves a merchant, and how it is protected."""

    what: str
    how: str


def scores(config: PrivacyConfig, personal: bool) -> list[Revealed]:
    """Test results that merchants send; ``personal``: also of students of their own."""
    setting = "set privacy.report_scores = false to keep them"
    found = [
        Revealed(
            "number of correct test examples",
            f"sent exactly; not covered by the promise, though nobody trains on these examples; {setting}"
            if config.tells_scores
            else "not sent",
        )
    ]
    if personal:
        found.append(
            Revealed(
                "number of correct test examples of its personal student",
                "sent exactly; not covered by the promise: this student is trained on its examples without noise, and "
                f"stays with the merchant; {setting}"
                if config.tells_scores
                else "not sent",
            )
        )
    return found


def validation(simulated: bool) -> Revealed:
    """Scores of the released students, on rows that in a simulation are merchants' too."""
    rows = (
        "in this simulation the validation set also contains merchants' held-out rows, so these scores are exact "
        "figures of them and not covered by the promise; early stopping uses the server's own rows only"
        if simulated
        else "the validation rows are the server's own"
    )
    return Revealed(
        "validation scores of each round's student",
        f"computed by the server from the released student, which costs no further epsilon; {rows}",
    )


def noise(whose: str, reproducible: bool) -> Revealed:
    """Who can take the noise off. ``whose``: who draws it, from a secret of their own outside a simulation."""
    if reproducible:
        how = (
            "drawn from the run's seed, so that this simulation can be repeated: whoever knows the seed can subtract "
            "it. The run shows what real sites would promise"
        )
    else:
        how = f"drawn from a secret of {whose}, which is never sent: it cannot be reproduced from the run's seed"
    return Revealed("the noise", how)
