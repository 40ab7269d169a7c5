"""The server's side: teacher, proxy labels, rounds, merging, adaptation and the comparison with its controls."""
