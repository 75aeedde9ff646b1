"""A traced step as data: a flat list of operations."""
