"""Campaigns of the generated marketplace, whose true effects are known because both outcomes of a customer are.

A customer has bought some products of a merchant and is then treated by a campaign for one department, or not. With a
and b, the shares of the campaign's department and of a neighbouring one in the customer's purchases,

    P(buys | not treated) = σ(-1.8 + 5 a),    P(buys | treated) = σ(-1.8 + 5 a + 0.2 + 3 b - a):

who likes the department buys anyway, and rather less if disturbed; who buys beside it is won by the campaign. Hence the
customers who respond are not those whom it is worth treating. Treatment has the probability 1/2, or, confounded,
σ(-1 + 4 a) within [0.1, 0.9]: shops write to those who buy anyway. The purchases decide on all of this, so that nothing
that confounds is unobserved; whether a model can read a and b in titles of several languages is another matter.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from fed_distill.config import DataConfig
from fed_distill.data.campaign_cells import MARKETING_EFFECT, cell_of
from fed_distill.data.labeled import LabeledRows
from fed_distill.data.tasks import HISTORY_SEPARATOR
from fed_distill.data.vocabulary import COLORS, DEPARTMENTS
from fed_distill.data.world import World
from fed_distill.data.writing import draw_habits, write_title
from fed_distill.seeds import numpy_stream

Floats = npt.NDArray[np.float64]

PURCHASES = 8
"""Number of titles in a history."""
_DEPARTMENTS, _CAMPAIGNS = 4, 2
"""Departments that are bought from, the first ones, and those that have a campaign; the neighbour is two further."""
_PRODUCTS = 15
"""Products of each department at a merchant."""
_TASTE = 0.5
"""Concentration of the customers' shares of the departments: small, a customer has few departments."""
_LEAST, _MOST = 0.1, 0.9


@dataclass(frozen=True)
class CampaignRows(LabeledRows):
    """Customers of campaigns with the true effect on each, ``[n]``; implements ``HasEffects``."""

    effects: Floats = field(default_factory=lambda: np.zeros(0))


def responses(own: Floats, neighbour: Floats) -> tuple[Floats, Floats]:
    """Return the probabilities of buying without treatment and with it, by the shares a and b of both departments."""
    without = -1.8 + 5.0 * own
    return expit(without), expit(without + 0.2 + 3.0 * neighbour - own)


def propensities(own: Floats, confounded: bool) -> Floats:
    """Return the probability of the treatment, by the share of the campaign's department."""
    return expit(-1.0 + 4.0 * own).clip(_LEAST, _MOST) if confounded else np.full(len(own), 0.5)


def generated_campaigns(
    world: World,
    merchants: Iterable[tuple[str, int, int]],
    languages: tuple[int, ...],
    confounded: bool,
    seed: int,
    config: DataConfig,
) -> CampaignRows:
    """Generate the customers of all merchants, each of one campaign.

    :param merchants: name, main language and number of customers of each
    :param languages: of the marketplace
    :param confounded: whether those who would buy anyway are treated more often
    :param seed: of the world
    """
    texts: list[str] = []
    campaigns: list[str] = []
    owners: list[str] = []
    cells, effects = [], []
    names = tuple(DEPARTMENTS)[:_DEPARTMENTS]
    for name, language, size in merchants:
        rng = numpy_stream(seed, "campaigns", name)
        titles = _titles(world, language, languages, rng)
        counts = rng.multinomial(PURCHASES, rng.dirichlet(np.full(len(names), _TASTE), size=size))
        campaign = rng.integers(_CAMPAIGNS, size=size)
        customer = np.arange(size)
        own, neighbour = (counts[customer, (campaign + step) % len(names)] / PURCHASES for step in (0, _CAMPAIGNS))
        without, with_it = responses(own, neighbour)
        treated = rng.random(size) < propensities(own, confounded)
        bought = rng.random(size) < np.where(treated, with_it, without)
        texts.extend(_history(titles, bought_of, rng) for bought_of in counts.tolist())
        campaigns.extend(f"{names[department]} week" for department in campaign.tolist())
        owners.extend([name] * size)
        cells.append(cell_of(treated, bought))
        effects.append(with_it - without)
    rows = CampaignRows.build(
        MARKETING_EFFECT,
        texts,
        np.concatenate(cells),
        config,
        pairs=campaigns,
        merchants=owners,
        groups=range(len(texts)),
        titles=PURCHASES,
    )
    kept = np.array(rows.group_names, dtype=np.int64)[rows.groups]
    return replace(rows, effects=np.concatenate(effects)[kept])


def _titles(world: World, language: int, languages: tuple[int, ...], rng: np.random.Generator) -> list[list[str]]:
    """Write a merchant's titles, by department."""
    habits = draw_habits(language, languages, rng)
    found = []
    for department in range(_DEPARTMENTS):
        products = rng.choice(np.flatnonzero(world.department_of == department), size=_PRODUCTS)
        colors = rng.integers(len(COLORS), size=_PRODUCTS).tolist()
        draws = rng.random((_PRODUCTS, 8)).tolist()
        found.append(
            [
                write_title(world, product, color, habits, draw)
                for product, color, draw in zip(products.tolist(), colors, draws, strict=True)
            ]
        )
    return found


def _history(titles: Sequence[Sequence[str]], counts: Sequence[int], rng: np.random.Generator) -> str:
    chosen = [
        titles[department][at]
        for department, count in enumerate(counts)
        for at in rng.integers(_PRODUCTS, size=count).tolist()
    ]
    return HISTORY_SEPARATOR.join(chosen[at] for at in rng.permutation(len(chosen)))
