"""Campaigns of the Complete Journey, from three of the package's files.

Households that received a campaign are treated, all others that had bought before are not; nobody was assigned at
random. Campaigns of type A are left out: each household received 16 coupons that were chosen by its earlier purchases
from thousands, and the data do not say which. So are campaigns that began before 2017 or ended after it, when purchases
are not known.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from fed_distill.data.shop.campaigns import Campaigns
from fed_distill.data.shop.tables import ShopTables

CAMPAIGN_SHA256 = {
    "campaigns": "5038e291ea3188f0bd3a0e429412ff29111c4f743b5a364c4cb6d86b7f4b24a4",
    "campaign_descriptions": "50850beea46c52b7c71ed57e2f7027b0737fdef3b3c95bb628465425e8621216",
    "coupons": "2c4b102aa2245f5ac229e263f90f0b54263c4a83d352df14f7fa3f49f25fc05e",
}
_CATEGORIES = 5
"""Number of product categories that describe a campaign, the most frequent of its coupons."""


def journey_campaigns(folder: Path, tables: ShopTables) -> Campaigns:
    """Read the campaigns of types B and C within the year of ``tables``.

    :param folder: folder of the package's files, whose content is verified before
    """
    described, received, coupons, products = (
        pd.read_parquet(folder / f"{name}.parquet")
        for name in ("campaign_descriptions", "campaigns", "coupons", "products")
    )
    days = tables.times.astype("datetime64[D]")
    first, last = pd.Timestamp(days.min()), pd.Timestamp(days.max())
    chosen = described[
        (described.campaign_type != "Type A") & (described.start_date > first) & (described.end_date <= last)
    ].sort_values("campaign_id")
    places = {name: place for place, name in enumerate(tables.product_names)}
    categories = dict(zip(products.product_id, products.product_category, strict=True))
    customers = {name: place for place, name in enumerate(tables.customer_names)}
    treated = np.zeros((len(chosen), len(customers)), dtype=np.bool_)
    texts, promoted = [], []
    for place, row in enumerate(chosen.itertuples()):
        listed = coupons.product_id[coupons.campaign_id == row.campaign_id].drop_duplicates()
        promoted.append(np.array([places[str(product)] for product in listed if str(product) in places]))
        texts.append(_text(str(row.campaign_type), listed, categories))
        households = received.household_id[received.campaign_id == row.campaign_id].astype(str)
        treated[place, [customers[name] for name in households if name in customers]] = True
    campaign, customer = np.indices(treated.shape)
    return Campaigns(
        tuple(texts),
        chosen.start_date.to_numpy().astype("datetime64[D]"),
        chosen.end_date.to_numpy().astype("datetime64[D]"),
        tuple(promoted),
        customer.ravel(),
        campaign.ravel(),
        treated.ravel(),
    )


def _text(kind: str, products: "pd.Series[int]", categories: Mapping[int, str]) -> str:
    """Describe a campaign by its type and the most frequent categories of its products."""
    found = products.map(categories).dropna().value_counts(sort=False)
    names = sorted(found.index, key=lambda name: (-found[name], name))[:_CATEGORIES]
    return ", ".join([kind, *(str(name).lower() for name in names)])
