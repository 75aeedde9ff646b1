"""Parallel over time: runs whose steps do not wait for each other, and whether that can pay."""
