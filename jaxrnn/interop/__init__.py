"""Weights in and out, one library a file, imported only where that file is used."""
