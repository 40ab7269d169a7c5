"""What noise leaves of expertise: the table in docs/concepts/privacy.md.

    python experiments/benchmarks/expertise_noise.py

On PriceRunner's 90 merchants, all of whose examples are labelled, and 2,000 proxy pairs of the public catalogue. Each
merchant's expertise from its noised sum is compared with the largest cosine that is used without privacy: by rank
correlation over the proxy set, by the share of the quarter that it answers which it would answer without privacy, and
by the exact expertise of the consensus: averaged over merchants with the weights of ``expert-fd``, then over the
proxy set. It takes a few minutes on one core.
"""

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from scipy.stats import spearmanr

from fed_distill.config import DataConfig
from fed_distill.data import load
from fed_distill.methods.expert_fd import ExpertFD
from fed_distill.privacy.dp_sgd import add_noise
from fed_distill.privacy.text_sum import closeness, text_sum
from fed_distill.seeds import Keystream
from fed_distill.text.similarity import bags, largest_cosine

NOISES = (0.0, 5.0, 10.0, 20.0)
PROXY = 2_000
METHOD = ExpertFD()
Matrix = npt.NDArray[np.float64]


def answered(expertise: Matrix) -> npt.NDArray[np.bool_]:
    """Return which examples each merchant answers, ``[merchants, proxy]``."""
    most = int(np.ceil(METHOD.answer_share * expertise.shape[1]))
    chosen = np.zeros(expertise.shape, dtype=bool)
    np.put_along_axis(chosen, np.argsort(-expertise, axis=1, kind="stable")[:, :most], True, axis=1)
    return chosen


def consensus(expertise: Matrix, exact: Matrix) -> float:
    """Return the mean over answered examples of the merchants' ``exact`` expertise, weighted by ``expertise``."""
    weights = answered(expertise) * np.exp(METHOD.concentration * (expertise - 1.0))
    total = weights.sum(axis=0)
    return float(np.mean((weights * exact).sum(axis=0)[total > 0.0] / total[total > 0.0]))


def main() -> None:
    """Print a Markdown table."""
    data = load(
        DataConfig(
            dataset="pricerunner",
            task="relevance",
            public_labels=0.05,
            proxy_from="catalogue",
            proxy_size=PROXY,
            options={"max_pairs": 10_000, "ranking_candidates": 20},
        )
    )
    proxy = bags(data.proxy.texts, data.proxy.pairs)
    own = [bags(one.train.texts, one.train.pairs) for one in data.merchants.values()]
    exact = np.array([largest_cosine(proxy, one) for one in own], dtype=np.float64)
    sums = [text_sum(one) for one in own]
    sizes = [one.shape[0] for one in own]
    out = Console(width=150, highlight=False)
    out.print(f"{len(own)} merchants of {min(sizes)} to {max(sizes)} examples, median {np.median(sizes):g}")
    out.print("| noise | rank correlation | of its answers | exact expertise of the consensus |")
    out.print("| ---: | ---: | ---: | ---: |")
    out.print(f"| none: largest cosine | 1 | 100 % | {consensus(exact, exact):.3f} |")
    for noise in NOISES:
        noised = [add_noise(one, noise, Keystream(0, "benchmark", place)) for place, one in enumerate(sums)]
        found = torch.stack([closeness(one, size, noise, proxy) for one, size in zip(noised, sizes, strict=True)])
        expertise = found.numpy().astype(np.float64)
        ranks = np.mean([spearmanr(a, b).statistic for a, b in zip(expertise, exact, strict=True)])
        kept = (answered(expertise) & answered(exact)).sum() / answered(exact).sum()
        out.print(f"| {noise:g} | {ranks:.2f} | {100 * kept:.0f} % | {consensus(expertise, exact):.3f} |")
    out.print(f"| merchants alike | – | – | {exact.mean():.3f} |")


if __name__ == "__main__":
    main()
