"""What gradients/ and wrappers/ need of a run: marks on params and carry, measured products, a changed step."""
