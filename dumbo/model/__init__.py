"""Group `model`: where weights and tokenizers come from."""
