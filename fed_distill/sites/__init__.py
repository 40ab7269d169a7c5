"""What an operator needs to run across real sites: identities, folders, the shared public part, and checks."""
