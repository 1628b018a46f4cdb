"""Proofs by numbers, on this model and this data."""
