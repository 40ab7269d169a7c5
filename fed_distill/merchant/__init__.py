"""The site: merchants, policy, ledgers and stored answers."""
