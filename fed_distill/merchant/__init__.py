"""The site's side: its merchants, its policy, its ledger and its answers."""
