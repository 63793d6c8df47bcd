"""Benchmarks: skills on fixed problems, by the answers that a model writes."""
