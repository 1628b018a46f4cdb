"""`dumbo export`: a run's model as a plain Hugging Face folder, with proof that it is the same model."""
