"""Group `formatter`: rows -> tokens, and which of them bear the loss."""
