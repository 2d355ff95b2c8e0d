"""Text, labelled or not."""
