"""Benchmarks: how fast a part is beside the code that others use for it, both run here."""
