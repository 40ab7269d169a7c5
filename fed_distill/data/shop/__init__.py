"""Shops with customers: purchases over time, for next baskets and customer profiles."""
