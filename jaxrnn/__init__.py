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
from jaxrnn.gradients.tbptt import tbptt
from jaxrnn.running._segments import Budget
from jaxrnn.running.plan import Explanation, Plan, Report, explain
from jaxrnn.running.scan import scan
from jaxrnn.running.trace import gates, trace_gates
from jaxrnn.sequences import last, masked_mean, max_pool, mean_pool, pad
from jaxrnn.training.devices import batch_mesh, replicate, shard_batch, use_cpu_devices
from jaxrnn.training.ensemble import Division, Ensemble, ensemble, stack_members

__version__ = "0.1.0"

__all__ = [
    "BiCarry",
    "BiParams",
    "Budget",
    "Cell",
    "Division",
    "ElmanParams",
    "EmbeddingParams",
    "Ensemble",
    "Explanation",
    "GRUGates",
    "GRUParams",
    "LSTMCarry",
    "LSTMGates",
    "LSTMParams",
    "Layer",
    "LayerNormParams",
    "PeepholeLSTMParams",
    "Plan",
    "ReadoutParams",
    "Report",
    "Spec",
    "batch_mesh",
    "bidirectional",
    "bptt_contributions",
    "build",
    "chain",
    "dropout",
    "elman",
    "embedding",
    "ensemble",
    "explain",
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
    "replicate",
    "residual",
    "scan",
    "shard_batch",
    "stack",
    "stack_members",
    "tbptt",
    "trace_gates",
    "use_cpu_devices",
]
