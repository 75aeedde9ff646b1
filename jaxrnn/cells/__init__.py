"""One cell a file: equations, parameter record, factory."""
