"""Does it help: generation and scores."""
