"""The marketplace's products: brands with aliases, lines with codes, sizes, and affinities between types.

The world is shared by all merchants and languages, and every entity has several names. A single merchant's data contain
only some of them, so there is something to gain from federation.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fed_distill.data.dataset import IntArray
from fed_distill.data.vocabulary import DEPARTMENTS, HAN, LINES, SYLLABLES, Words
from fed_distill.seeds import numpy_stream

_NUMBERS = tuple(range(100, 1000, 75))
_LINES_OF_BRAND = 2


@dataclass(frozen=True)
class ProductType:
    """A type of product: its department, its names, and unit and values of its size."""

    department: int
    words: Words
    unit: str
    sizes: tuple[float, ...]


@dataclass(frozen=True)
class Brand:
    """A brand of one department. forms: registered, abbreviated and transliterated name. lines: (name, code)."""

    forms: tuple[str, str, str]
    lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class World:
    """All products, as columns ``[products]``: type, brand, line of the brand, model number, size and popularity.

    affinity: ``[types, types]``, preference for the second type after a click on the first.
    """

    types: tuple[ProductType, ...]
    brands: tuple[Brand, ...]
    type_of: IntArray
    brand_of: IntArray
    line_of: IntArray
    number_of: IntArray
    size_of: IntArray
    department_of: IntArray
    popularity: npt.NDArray[np.float64]
    affinity: npt.NDArray[np.float64]

    @property
    def products(self) -> int:
        """Number of products."""
        return len(self.type_of)


def make_world(products: int, seed: int) -> World:
    """Draw ``products`` distinct products, or slightly fewer if brands are small."""
    rng = numpy_stream(seed, "world")
    types = tuple(
        ProductType(department, words, unit, sizes)
        for department, kinds in enumerate(DEPARTMENTS.values())
        for words, unit, sizes in kinds.values()
    )
    brands_a_department = max(6, products // 400)
    brands = _brands(len(DEPARTMENTS) * brands_a_department, rng)
    rows: list[npt.NDArray[np.int64]] = []
    for brand in range(len(brands)):
        own = np.flatnonzero([kind.department == brand // brands_a_department for kind in types])
        made = rng.choice(own, size=3, replace=False)
        combinations = np.stack(
            np.meshgrid(made, [brand], np.arange(_LINES_OF_BRAND), _NUMBERS, np.arange(3), indexing="ij"), axis=-1
        ).reshape(-1, 5)
        wanted = round(products * (brand + 1) / len(brands)) - round(products * brand / len(brands))
        rows.append(rng.permutation(combinations)[:wanted])
    columns = np.concatenate(rows)
    return World(
        types=types,
        brands=brands,
        type_of=columns[:, 0],
        brand_of=columns[:, 1],
        line_of=columns[:, 2],
        number_of=columns[:, 3],
        size_of=columns[:, 4],
        department_of=np.array([kind.department for kind in types])[columns[:, 0]],
        popularity=rng.pareto(3.0, size=len(columns)) + 0.5,
        affinity=rng.normal(size=(len(types), len(types))),
    )


def _brands(count: int, rng: np.random.Generator) -> tuple[Brand, ...]:
    brands: dict[str, Brand] = {}
    while len(brands) < count:
        parts = rng.choice(len(SYLLABLES), size=2 if rng.random() < 0.6 else 3, replace=False)
        name = "".join(SYLLABLES[part] for part in parts).capitalize()
        if name in brands:
            continue
        consonants = [letter for letter in name.upper() if letter not in "AEIOU"]
        chinese = "".join(HAN[part] for part in parts)
        lines = tuple((LINES[line], _code(rng)) for line in rng.choice(len(LINES), size=_LINES_OF_BRAND, replace=False))
        brands[name] = Brand((name, "".join(consonants[:4]), chinese), lines)
    return tuple(brands.values())


def _code(rng: np.random.Generator) -> str:
    return "".join("ABCDEFGHJKLMNPRSTUVWXZ"[letter] for letter in rng.integers(22, size=2))
