"""Measurements, each repeated by one command, results with hardware and versions in benchmarks/results/."""
