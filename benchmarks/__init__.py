"""Efficacy and speed, measured: each published table is a command (`python -m benchmarks --help`)."""
