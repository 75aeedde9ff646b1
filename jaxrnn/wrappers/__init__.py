"""Wrappers, one a file: a Cell in, a Cell out, with the same parameters or a few more."""
