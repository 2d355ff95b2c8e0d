"""Images drawn from no private data: what a generator starts from."""
