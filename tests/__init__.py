"""Tests; they mirror the package."""

import os

# Before torch is imported: workers that share the cores with two threads each slow one another tenfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")
