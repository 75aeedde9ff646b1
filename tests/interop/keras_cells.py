"""Keras' recurrent layers in the precision of their dtype."""

import jax.numpy as jnp
import keras


def cells_of(layer):
    if isinstance(layer, keras.layers.Bidirectional):
        return [layer.forward_layer.cell, layer.backward_layer.cell]
    return getattr(layer.cell, "cells", [layer.cell]) if isinstance(layer, keras.layers.RNN) else []


def in_full_precision(*layers):
    """On JAX Keras' tanh rounds to float32, whatever the layer's dtype: JAX's own takes its place."""
    for cell in (cell for layer in layers for cell in cells_of(layer)):
        if cell.activation is keras.activations.tanh:
            cell.activation = jnp.tanh
