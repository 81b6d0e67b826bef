"""Sections 4.1-4.4: the metrics, benchmarks, ablations and the user study."""
