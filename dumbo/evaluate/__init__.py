"""`dumbo evaluate`: held-out loss and perplexity, exact match, and tasks of lm-eval, of a run's model or of any other."""
