"""Benchmarks of the bridge with real processes. Run with `python -m benchmarks`; see README.md beside this file."""
