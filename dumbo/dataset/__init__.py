"""Group `dataset`: rows, read lazily, as messages or text."""
