"""Benchmarks of the running platform: ``python -m bench gateway`` (see docs/benchmarks.md)."""
