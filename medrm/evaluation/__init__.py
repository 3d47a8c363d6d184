"""Benchmarks, verdicts and their numbers: evaluate, compare, report."""
