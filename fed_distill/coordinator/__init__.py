"""The server's side of a federation: sites, rounds, aggregation, retries."""
