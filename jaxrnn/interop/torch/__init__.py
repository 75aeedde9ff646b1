"""PyTorch: the weights of nn.RNN, nn.LSTM and nn.GRU and of their cells, in and out.

What the two say differently (G gates: 1, 4 or 3):

    PyTorch                                             jaxrnn
    weight_ih (G*H, I), a row for each output           W_xh (I, G*H)
    two biases, of which only the sum counts            b; in the GRU's candidate also b_hh, inside the reset product
    the GRU's z multiplies the old state                z multiplies the candidate: 1 - σ(a) = σ(-a), so its blocks of
                                                        the weights are negated
    batch_first                                         always time first: ``xs.swapaxes(0, 1)``; no weight changes
    h_0, c_0 (layers * directions, B, H)                a carry for each layer, ``BiCarry`` of two directions
    PackedSequence                                      ``lengths``
    weight_norm, pruning                                folded into the weights, as at the next forward pass

A file of ``torch.save`` or ``torch.jit.save`` holds a pickle, a program that can do anything when it is run. Here it is
read and never run: tensors are taken from it, everything else is passed over.
"""

from jaxrnn.interop.torch._files import FORMATS as FORMATS
from jaxrnn.interop.torch._files import REFUSED as REFUSED
from jaxrnn.interop.torch._files import load, parts
from jaxrnn.interop.torch._from_torch import from_torch
from jaxrnn.interop.torch._names import LIBRARY as LIBRARY
from jaxrnn.interop.torch._to_torch import to_torch

__all__ = ["from_torch", "load", "parts", "to_torch"]
