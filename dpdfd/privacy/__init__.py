"""The mechanism, its units of privacy, and the accounting of what was released."""
