"""Cells, one a file: equations, parameter record, factory. The face holds the records of parameters, carries and gates.

The factories stand at the root: ``jr.lstm`` makes a cell whose ``init`` returns ``jr.cells.LSTMParams``, with its gates
in the order ``jr.cells.gate_order("lstm")``.
"""

from jaxrnn.cells.cifg_lstm import CIFGParams
from jaxrnn.cells.conv_lstm import ConvLSTMParams
from jaxrnn.cells.elman import ElmanParams
from jaxrnn.cells.embedding import EmbeddingParams
from jaxrnn.cells.fused import gate_order
from jaxrnn.cells.gru import GRUGates, GRUParams
from jaxrnn.cells.layer_norm import LayerNormParams
from jaxrnn.cells.lstm import LSTMParams
from jaxrnn.cells.lstm_family import LSTMCarry, LSTMGates
from jaxrnn.cells.mgu import MGUGates, MGUParams
from jaxrnn.cells.peephole_lstm import PeepholeLSTMParams
from jaxrnn.cells.readout import ReadoutParams

__all__ = [
    "ElmanParams",
    "LSTMParams",
    "LSTMCarry",
    "LSTMGates",
    "GRUParams",
    "GRUGates",
    "PeepholeLSTMParams",
    "CIFGParams",
    "MGUParams",
    "MGUGates",
    "ConvLSTMParams",
    "ReadoutParams",
    "LayerNormParams",
    "EmbeddingParams",
    "gate_order",
]
