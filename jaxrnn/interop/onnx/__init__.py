"""ONNX: its recurrent operators run, loaded as library cells, and written.

    run(model, inputs)          what the graph computes, as the operators define it: every option of RNN, LSTM and GRU
    load(model)                 (layer, params): the library's own cells with the model's weights
    inspect(model)              the recurrent nodes of any graph, which load(model, node=…) takes out
    export(layer, params, …)    a model that other runtimes run to the same numbers

What ONNX calls differently, and these functions translate:

- Weights have a row for each output, gates stand in the order i o f c (LSTM; c is the candidate, g here) and z r h
  (GRU; h is the candidate, n here); the library's orders are i f g o and r z n.
- The GRU's z keeps the old state, ours takes the candidate: its block is negated.
- There are two biases, of the input's and of the state's product. Only their sum matters, but for the candidate of a
  GRU with ``linear_before_reset``, which is ``reset="after"`` here.
- ``input_forget`` computes i and takes f = 1 - i; ``jr.cifg_lstm`` computes f: the block is negated.
- Directions are an axis of their own, Y (T, D, B, H), and the states are two arrays (D, B, H).

The operators' text leaves three things open, in which this module does as onnxruntime does: ``clip`` bounds what enters
the activations of the gates and of the candidate, not C_t where h reads it; alphas and betas are consumed by those
activations alone that have one; padded steps output 0. In one thing it does not: the final state of a sequence of
length 0 is its initial state; onnxruntime gives zeros.
"""

from jaxrnn.interop.onnx._exporting import export
from jaxrnn.interop.onnx._files import FORMATS as FORMATS
from jaxrnn.interop.onnx._inspecting import RecurrentNode, inspect
from jaxrnn.interop.onnx._loading import load
from jaxrnn.interop.onnx._reading import LIBRARY as LIBRARY
from jaxrnn.interop.onnx._running import run

__all__ = ["RecurrentNode", "export", "inspect", "load", "run"]
