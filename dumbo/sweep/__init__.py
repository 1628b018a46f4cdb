"""Sweeps (`-m`)."""
