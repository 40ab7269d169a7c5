"""The merchants' side: one Flower ClientApp a site, its merchants, their data and what they keep."""
