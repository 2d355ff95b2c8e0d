"""Who says which tokens are private, and how surely."""
