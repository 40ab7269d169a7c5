"""The server of a federation: sites, rounds, aggregation, retries."""
