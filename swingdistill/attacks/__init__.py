"""What a model still knows of its training text: extraction and membership inference."""
