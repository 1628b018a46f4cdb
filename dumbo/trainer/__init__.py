"""Group `trainer`: the engine on transformers' Trainer and the methods on top of it."""
