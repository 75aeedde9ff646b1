"""Keras 3: the weights of SimpleRNN, LSTM, GRU, Bidirectional and of a Sequential of them, in and out.

What the two say differently:

    Keras                                               jaxrnn
    gate order of GRU weights z, r, n                   r, z, n
    the GRU's z multiplies the old state                z multiplies the candidate: 1 - σ(a) = σ(-a), so its blocks of
                                                        the weights are negated
    GRU: reset_after=True, with biases (2, 3H)          reset="after", of the first two gates' biases the sum
    (B, T, I)                                           time first: ``xs.swapaxes(0, 1)``; no weight changes
    go_backwards: outputs last step first               ``jr.scan(cell, reverse=True)``: outputs in input order
    mask: masked steps repeat the last output           ``lengths`` or ``mask``: outputs are 0 there
    return_sequences, return_state, stateful            ``apply`` returns ``(carry, ys)`` and takes a carry

A file that ``model.save_weights`` wrote holds arrays alone, so a model of the same form reads it, Keras' own or one
made from ours (``path`` ends in ``.weights.h5``; a single layer goes as ``jr.stack(layer)`` with ``(params,)``):

    theirs = to_keras(model, model.init(key))
    theirs.load_weights(path)
    model, params = from_keras(theirs)

and ``to_keras(model, params).save_weights(path)`` writes one. Lists of arrays go the same way, by ``set_weights`` and
``get_weights``. Any backend of Keras serves; KERAS_BACKEND names it before Keras is imported.
"""

from jaxrnn.interop.keras._files import FORMATS as FORMATS
from jaxrnn.interop.keras._files import REFUSED as REFUSED
from jaxrnn.interop.keras._from_keras import from_keras
from jaxrnn.interop.keras._names import LIBRARY as LIBRARY
from jaxrnn.interop.keras._to_keras import to_keras

__all__ = ["from_keras", "to_keras"]
