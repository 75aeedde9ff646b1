"""Weights in and out, one library a file. Each file imports its library; importing this package imports none of them."""
