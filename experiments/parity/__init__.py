"""The same weights in jaxrnn and in the library that they come from: how far the numbers lie apart."""
