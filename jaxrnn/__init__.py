"""jaxrnn: a functional recurrence toolkit for JAX. Write a cell once, as its equations; run it every way.

cell = jr.lstm(input_size=40, hidden_size=128)      a Cell: init, initial_carry, step
layer = jr.scan(cell)                               a Layer: init, initial_carry, apply
carry, ys = layer.apply(params, xs)                 xs (T, *B, I) -> ys (T, *B, H)
"""

from jaxrnn._base import Cell, Layer
from jaxrnn._spec import Spec, build
from jaxrnn.cells.dropout import dropout
from jaxrnn.cells.elman import ElmanParams, elman
from jaxrnn.cells.embedding import EmbeddingParams, embedding
from jaxrnn.cells.gru import GRUGates, GRUParams, gru
from jaxrnn.cells.layer_norm import LayerNormParams, layer_norm
from jaxrnn.cells.lstm import LSTMCarry, LSTMGates, LSTMParams, lstm
from jaxrnn.cells.peephole_lstm import PeepholeLSTMParams, peephole_lstm
from jaxrnn.cells.readout import ReadoutParams, readout
from jaxrnn.combine import BiCarry, BiParams, bidirectional, chain, residual, stack
from jaxrnn.gradients.bptt import bptt_contributions
from jaxrnn.running.scan import scan
from jaxrnn.running.trace import gates, trace_gates
from jaxrnn.sequences import last, masked_mean, max_pool, mean_pool, pad

__version__ = "0.1.0"

__all__ = [
    "BiCarry",
    "BiParams",
    "Cell",
    "ElmanParams",
    "EmbeddingParams",
    "GRUGates",
    "GRUParams",
    "LSTMCarry",
    "LSTMGates",
    "LSTMParams",
    "Layer",
    "LayerNormParams",
    "PeepholeLSTMParams",
    "ReadoutParams",
    "Spec",
    "bidirectional",
    "bptt_contributions",
    "build",
    "chain",
    "dropout",
    "elman",
    "embedding",
    "gates",
    "gru",
    "last",
    "layer_norm",
    "lstm",
    "masked_mean",
    "max_pool",
    "mean_pool",
    "pad",
    "peephole_lstm",
    "readout",
    "residual",
    "scan",
    "stack",
    "trace_gates",
]
