"""Keras: the weights of SimpleRNN, LSTM, GRU, Bidirectional and of chains of them, in and out; files of Keras 1 to 3.

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
    Masking, mask_zero                                  ``mask`` or ``lengths``, passed by whoever calls
    hard_sigmoid: relu6(x + 3) / 6 in Keras 3,          "hard_sigmoid",
        clip(0.2 x + 0.5, 0, 1) in Keras 1 and 2        ("hard_sigmoid", 0.2, 0.5)
    CuDNNLSTM, CuDNNGRU: kernels as cuDNN reads them    lstm, gru(reset="after")

Files are read by ``load``: models alone, weights alone with the model whose they are. Into Keras,
``to_keras(model, params).save_weights(path)`` writes them (a single layer goes as ``jr.stack(layer)`` with
``(params,)``). Lists of arrays go by ``set_weights`` and ``get_weights``.

Any backend of Keras serves; KERAS_BACKEND names it before Keras is imported.
"""

from jaxrnn.interop.keras._files import FORMATS as FORMATS
from jaxrnn.interop.keras._files import REFUSED as REFUSED
from jaxrnn.interop.keras._files import load
from jaxrnn.interop.keras._from_keras import from_keras
from jaxrnn.interop.keras._names import LIBRARY as LIBRARY
from jaxrnn.interop.keras._to_keras import to_keras

__all__ = ["from_keras", "load", "to_keras"]
