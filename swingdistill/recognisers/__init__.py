"""What in a text looks private: e-mail addresses, numbers with checksums, keys and more."""
