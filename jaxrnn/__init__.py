"""jaxrnn: a functional recurrence toolkit for JAX. Write a cell once, as its equations; run it every way.

cell = jr.lstm(input_size=40, hidden_size=128)      a Cell: init, initial_carry, step
layer = jr.scan(cell)                               a Layer: init, initial_carry, apply
carry, ys = layer.apply(params, xs)                 xs (T, *B, I) -> ys (T, *B, H)

Here are the cells, the wrappers and what runs them. The rest stands in a face for each subject: ``jr.cells`` and
``jr.wrappers`` (records of parameters and gates), ``jr.attention``, ``jr.decoding``, ``jr.planning``, ``jr.gradients``,
``jr.devices``, ``jr.training``, ``jr.interop``, ``jr.plotting``. ``gradients``, ``training``, ``interop`` and
``plotting`` are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxrnn import attention, cells, decoding, devices, planning, wrappers
from jaxrnn._base import Cell, Layer, draw_each_step
from jaxrnn._deprecated import moved_names
from jaxrnn._spec import Spec, build
from jaxrnn._version import __version__ as __version__
from jaxrnn.attention.attend import attend
from jaxrnn.attention.decoder import decoder
from jaxrnn.attention.pool import attention_pool
from jaxrnn.branching import branch
from jaxrnn.cells.antisymmetric_rnn import antisymmetric_rnn
from jaxrnn.cells.cifg_lstm import cifg_lstm
from jaxrnn.cells.conv_gru import conv_gru
from jaxrnn.cells.conv_lstm import conv_lstm
from jaxrnn.cells.ctrnn import ctrnn
from jaxrnn.cells.dense import dense
from jaxrnn.cells.dropout import dropout
from jaxrnn.cells.echo_state import echo_state
from jaxrnn.cells.elman import elman
from jaxrnn.cells.embedding import embedding
from jaxrnn.cells.gru import gru
from jaxrnn.cells.indrnn import indrnn
from jaxrnn.cells.layer_norm import layer_norm
from jaxrnn.cells.lem import lem
from jaxrnn.cells.linear_rnn import linear_rnn
from jaxrnn.cells.lru import lru
from jaxrnn.cells.lstm import lstm
from jaxrnn.cells.lstm_family import LSTMCarry
from jaxrnn.cells.mgu import mgu
from jaxrnn.cells.min_gru import min_gru
from jaxrnn.cells.min_lstm import min_lstm
from jaxrnn.cells.mlstm import mlstm
from jaxrnn.cells.peephole_lstm import peephole_lstm
from jaxrnn.cells.pointwise import pointwise
from jaxrnn.cells.qrnn import qrnn
from jaxrnn.cells.readout import readout
from jaxrnn.cells.rg_lru import rg_lru
from jaxrnn.cells.s5 import s5
from jaxrnn.cells.slstm import slstm
from jaxrnn.cells.sru import sru
from jaxrnn.cells.ugrnn import ugrnn
from jaxrnn.checking import check_cell
from jaxrnn.combine import BiCarry, bidirectional, chain, residual, stack
from jaxrnn.decoding.beams import beam_search
from jaxrnn.decoding.generating import generate
from jaxrnn.decoding.likelihood import log_likelihood
from jaxrnn.online.learner import online
from jaxrnn.parallel_over_time.convergence import convergence
from jaxrnn.parallel_over_time.parallel import parallel
from jaxrnn.planning.explanation import explain
from jaxrnn.planning.plan import Plan
from jaxrnn.running.scan import scan
from jaxrnn.running.segments import Budget
from jaxrnn.running.stream import Slots, stream
from jaxrnn.running.tbptt import tbptt
from jaxrnn.running.trace import gates, trace_gates
from jaxrnn.saving import load, save
from jaxrnn.sequences import last, masked_mean, max_pool, mean_pool, pad
from jaxrnn.wrappers.clip_state import clip_state
from jaxrnn.wrappers.cotangent_clip import cotangent_clip
from jaxrnn.wrappers.dilated import dilated
from jaxrnn.wrappers.every import every
from jaxrnn.wrappers.leaky import leaky
from jaxrnn.wrappers.masked_weights import masked_weights
from jaxrnn.wrappers.noisy_state import noisy_state
from jaxrnn.wrappers.normalized import normalized
from jaxrnn.wrappers.recurrent_dropout import recurrent_dropout
from jaxrnn.wrappers.spectral_norm import spectral_norm
from jaxrnn.wrappers.weight_drop import weight_drop
from jaxrnn.wrappers.weight_noise import weight_noise
from jaxrnn.wrappers.weight_norm import weight_norm
from jaxrnn.wrappers.zoneout import zoneout

if TYPE_CHECKING:
    from jaxrnn import gradients, interop, plotting, training
    from jaxrnn.parallel_over_time.forecast import forecast_convergence
    from jaxrnn.ridge import fit_readout

__all__ = [
    # cells
    "elman",
    "lstm",
    "gru",
    "peephole_lstm",
    "cifg_lstm",
    "mgu",
    "ugrnn",
    "indrnn",
    "antisymmetric_rnn",
    "lem",
    "conv_lstm",
    "conv_gru",
    "slstm",
    "mlstm",
    "ctrnn",
    "echo_state",
    "lru",
    "s5",
    "min_gru",
    "min_lstm",
    "rg_lru",
    "linear_rnn",
    "sru",
    "qrnn",
    "readout",
    "dense",
    "pointwise",
    "dropout",
    "layer_norm",
    "embedding",
    # wrappers: a cell in, a cell out
    "recurrent_dropout",
    "zoneout",
    "leaky",
    "normalized",
    "clip_state",
    "cotangent_clip",
    "weight_drop",
    "weight_noise",
    "weight_norm",
    "spectral_norm",
    "masked_weights",
    "noisy_state",
    "dilated",
    "every",
    # what they are made of
    "Cell",
    "Layer",
    "check_cell",
    "draw_each_step",
    "LSTMCarry",
    "BiCarry",
    # running
    "scan",
    "parallel",
    "convergence",
    "Plan",
    "Budget",
    "explain",
    "forecast_convergence",
    "fit_readout",
    "tbptt",
    "online",
    "stream",
    "Slots",
    "gates",
    "trace_gates",
    # the closed loop
    "generate",
    "beam_search",
    "log_likelihood",
    # combining
    "stack",
    "chain",
    "branch",
    "bidirectional",
    "residual",
    # attention
    "attend",
    "attention_pool",
    "decoder",
    # sequences
    "pad",
    "last",
    "mean_pool",
    "max_pool",
    "masked_mean",
    # spec and files
    "Spec",
    "build",
    "save",
    "load",
    # faces
    "attention",
    "cells",
    "wrappers",
    "planning",
    "gradients",
    "decoding",
    "devices",
    "training",
    "interop",
    "plotting",
]

_LAZY = ("gradients", "training", "interop", "plotting")
_LAZY_FUNCTIONS = {
    "forecast_convergence": "jaxrnn.parallel_over_time.forecast",  # which imports gradients
    "fit_readout": "jaxrnn.ridge",
}

_moved = moved_names(
    "jaxrnn",
    {
        **{
            name: f"jaxrnn.cells.{name}"
            for name in (
                *("CIFGParams", "ConvLSTMParams", "ElmanParams", "EmbeddingParams", "GRUGates", "GRUParams"),
                *("LSTMGates", "LSTMParams", "LayerNormParams", "MGUGates", "MGUParams", "PeepholeLSTMParams"),
                "ReadoutParams",
            )
        },
        "BiParams": "jaxrnn.combine.BiParams",
        "ctc_decode": "jaxrnn.decoding.ctc_decode",
        "Stream": "jaxrnn.running.stream.Stream",
        "NormalizedParams": "jaxrnn.wrappers.NormalizedParams",
        "Explanation": "jaxrnn.planning.Explanation",
        "Report": "jaxrnn.planning.ScanExplanation",
        **{
            name: f"jaxrnn.gradients.{name}"
            for name in (
                *("Diagnosis", "FixedPoints", "Flow", "LinearAnalysis", "LyapunovSpectrum", "StateFlow"),
                *("bptt_contributions", "diagnose", "find_fixed_points", "gradient_flow", "jacobian_penalty"),
                *("linear_analysis", "log_singular_values", "lyapunov_spectrum", "norm_by_lag", "spectral_radius"),
                "step_jacobian",
            )
        },
        "verdict": "jaxrnn.gradients.classify_exponent",
        **{
            name: f"jaxrnn.devices.{name}"
            for name in (
                *("Ensemble", "batch_mesh", "ensemble", "join_processes", "replicate", "shard_batch"),
                *("stack_members", "use_cpu_devices"),
            )
        },
        "Division": "jaxrnn.devices.EnsembleLayout",
    },
    stacklevel=4,
)


if not TYPE_CHECKING:  # type checkers know every name without it, and report those that are none

    def __getattr__(name: str) -> Any:
        if name in _LAZY_FUNCTIONS:
            return getattr(importlib.import_module(_LAZY_FUNCTIONS[name]), name)
        return importlib.import_module(f"jaxrnn.{name}") if name in _LAZY else _moved(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
