"""Cells, one a file: equations, parameter record, factory. The face holds the records of parameters, carries and gates.

The factories stand at the root: ``jr.lstm`` makes a cell whose ``init`` returns ``jr.cells.LSTMParams``, with its gates
in the order ``jr.cells.gate_order("lstm")``.
"""

from jaxrnn.cells.antisymmetric_rnn import AntisymmetricRNNGates, AntisymmetricRNNParams
from jaxrnn.cells.cifg_lstm import CIFGParams
from jaxrnn.cells.conv_gru import ConvGRUParams
from jaxrnn.cells.conv_lstm import ConvLSTMParams
from jaxrnn.cells.ctrnn import CTRNNParams, effective_weights
from jaxrnn.cells.echo_state import EchoStateParams
from jaxrnn.cells.elman import ElmanParams
from jaxrnn.cells.embedding import EmbeddingParams
from jaxrnn.cells.fused import gate_order
from jaxrnn.cells.gru import GRUGates, GRUParams
from jaxrnn.cells.indrnn import IndRNNParams
from jaxrnn.cells.layer_norm import LayerNormParams
from jaxrnn.cells.layer_normed import LayerNormGRUParams, LayerNormLSTMParams
from jaxrnn.cells.lem import LEMCarry, LEMGates, LEMParams
from jaxrnn.cells.linear_rnn import LinearRNNParams
from jaxrnn.cells.lru import LRUParams
from jaxrnn.cells.lstm import LSTMParams
from jaxrnn.cells.lstm_family import LSTMCarry, LSTMGates
from jaxrnn.cells.mgu import MGUGates, MGUParams
from jaxrnn.cells.min_gru import MinGRUGates, MinGRUParams
from jaxrnn.cells.min_lstm import MinLSTMGates, MinLSTMParams
from jaxrnn.cells.mlstm import MLSTMCarry, MLSTMGates, MLSTMParams
from jaxrnn.cells.peephole_lstm import PeepholeLSTMParams
from jaxrnn.cells.qrnn import QRNNCarry, QRNNGates, QRNNParams
from jaxrnn.cells.readout import ReadoutParams
from jaxrnn.cells.rg_lru import RGLRUGates, RGLRUParams
from jaxrnn.cells.s5 import S5Params
from jaxrnn.cells.slstm import SLSTMCarry, SLSTMGates, SLSTMParams
from jaxrnn.cells.sru import SRUGates, SRUParams
from jaxrnn.cells.ugrnn import UGRNNGates, UGRNNParams

__all__ = [
    "ElmanParams",
    "LSTMParams",
    "LSTMCarry",
    "LSTMGates",
    "GRUParams",
    "GRUGates",
    "LayerNormLSTMParams",
    "LayerNormGRUParams",
    "PeepholeLSTMParams",
    "CIFGParams",
    "MGUParams",
    "MGUGates",
    "UGRNNParams",
    "UGRNNGates",
    "IndRNNParams",
    "AntisymmetricRNNParams",
    "AntisymmetricRNNGates",
    "LEMParams",
    "LEMCarry",
    "LEMGates",
    "ConvLSTMParams",
    "ConvGRUParams",
    "SLSTMParams",
    "SLSTMCarry",
    "SLSTMGates",
    "MLSTMParams",
    "MLSTMCarry",
    "MLSTMGates",
    "CTRNNParams",
    "EchoStateParams",
    "LRUParams",
    "S5Params",
    "MinGRUParams",
    "MinGRUGates",
    "MinLSTMParams",
    "MinLSTMGates",
    "RGLRUParams",
    "RGLRUGates",
    "LinearRNNParams",
    "SRUParams",
    "SRUGates",
    "QRNNParams",
    "QRNNCarry",
    "QRNNGates",
    "ReadoutParams",
    "LayerNormParams",
    "EmbeddingParams",
    "effective_weights",
    "gate_order",
]
