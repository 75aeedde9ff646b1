"""jaxrnn: a functional recurrence toolkit for JAX. Write a cell once, as its equations; run it every way.

cell = jr.lstm(input_size=40, hidden_size=128)      a Cell: init, initial_carry, step
layer = jr.scan(cell)                               a Layer: init, initial_carry, apply
carry, ys = layer.apply(params, xs)                 xs (T, *B, I) -> ys (T, *B, H)
"""

from jaxrnn._base import Cell, Layer
from jaxrnn._spec import Spec, build
from jaxrnn.cells._lstm import LSTMCarry, LSTMGates
from jaxrnn.cells.cifg_lstm import CIFGParams, cifg_lstm
from jaxrnn.cells.conv_lstm import ConvLSTMParams, conv_lstm
from jaxrnn.cells.dropout import dropout
from jaxrnn.cells.elman import ElmanParams, elman
from jaxrnn.cells.embedding import EmbeddingParams, embedding
from jaxrnn.cells.gru import GRUGates, GRUParams, gru
from jaxrnn.cells.layer_norm import LayerNormParams, layer_norm
from jaxrnn.cells.lstm import LSTMParams, lstm
from jaxrnn.cells.mgu import MGUGates, MGUParams, mgu
from jaxrnn.cells.peephole_lstm import PeepholeLSTMParams, peephole_lstm
from jaxrnn.cells.readout import ReadoutParams, readout
from jaxrnn.combine import BiCarry, BiParams, bidirectional, chain, residual, stack
from jaxrnn.gradients.bptt import bptt_contributions
from jaxrnn.gradients.fixed_points import FixedPoints, LinearAnalysis, find_fixed_points, linear_analysis
from jaxrnn.gradients.flow import Flow, StateFlow, gradient_flow, norm_by_lag
from jaxrnn.gradients.jacobian_penalty import jacobian_penalty
from jaxrnn.gradients.jacobians import log_singular_values, spectral_radius, step_jacobian
from jaxrnn.gradients.lyapunov import Diagnosis, LyapunovSpectrum, diagnose, lyapunov_spectrum, verdict
from jaxrnn.gradients.tbptt import tbptt
from jaxrnn.interop.safetensors import load, save
from jaxrnn.running._segments import Budget
from jaxrnn.running.plan import Explanation, Plan, Report, explain
from jaxrnn.running.scan import scan
from jaxrnn.running.stream import Slots, Stream, stream
from jaxrnn.running.trace import gates, trace_gates
from jaxrnn.sequences import last, masked_mean, max_pool, mean_pool, pad
from jaxrnn.training.devices import batch_mesh, replicate, shard_batch, use_cpu_devices
from jaxrnn.training.ensemble import Division, Ensemble, ensemble, stack_members
from jaxrnn.training.processes import join_processes
from jaxrnn.wrappers.clip_state import clip_state
from jaxrnn.wrappers.cotangent_clip import cotangent_clip
from jaxrnn.wrappers.leaky import leaky
from jaxrnn.wrappers.normalized import NormalizedParams, normalized
from jaxrnn.wrappers.recurrent_dropout import recurrent_dropout
from jaxrnn.wrappers.zoneout import zoneout

__version__ = "0.1.0"

__all__ = [
    "BiCarry",
    "BiParams",
    "Budget",
    "CIFGParams",
    "Cell",
    "ConvLSTMParams",
    "Diagnosis",
    "Division",
    "ElmanParams",
    "EmbeddingParams",
    "Ensemble",
    "Explanation",
    "FixedPoints",
    "Flow",
    "GRUGates",
    "GRUParams",
    "LSTMCarry",
    "LSTMGates",
    "LSTMParams",
    "Layer",
    "LayerNormParams",
    "LinearAnalysis",
    "LyapunovSpectrum",
    "MGUGates",
    "MGUParams",
    "NormalizedParams",
    "PeepholeLSTMParams",
    "Plan",
    "ReadoutParams",
    "Report",
    "Slots",
    "Spec",
    "StateFlow",
    "Stream",
    "batch_mesh",
    "bidirectional",
    "bptt_contributions",
    "build",
    "chain",
    "cifg_lstm",
    "clip_state",
    "conv_lstm",
    "cotangent_clip",
    "diagnose",
    "dropout",
    "elman",
    "embedding",
    "ensemble",
    "explain",
    "find_fixed_points",
    "gates",
    "gradient_flow",
    "gru",
    "jacobian_penalty",
    "join_processes",
    "last",
    "layer_norm",
    "leaky",
    "linear_analysis",
    "load",
    "log_singular_values",
    "lstm",
    "lyapunov_spectrum",
    "masked_mean",
    "max_pool",
    "mean_pool",
    "mgu",
    "norm_by_lag",
    "normalized",
    "pad",
    "peephole_lstm",
    "readout",
    "recurrent_dropout",
    "replicate",
    "residual",
    "save",
    "scan",
    "shard_batch",
    "spectral_radius",
    "stack",
    "stack_members",
    "step_jacobian",
    "stream",
    "tbptt",
    "trace_gates",
    "use_cpu_devices",
    "verdict",
    "zoneout",
]
