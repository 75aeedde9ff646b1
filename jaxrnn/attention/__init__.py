"""Attention: where a query looks in a memory. What ``jr.decoder`` attends by, and the records of it all.

``jr.attend``, ``jr.attention_pool`` and ``jr.decoder`` stand at the root.

    weighting.py   scores become weights, weights a context; padding kept out
    attention.py   Attention, the record of pure functions, and how a score makes one
    bound.py       the Cell that a decoder becomes once its memory is bound
"""

from jaxrnn.attention.attend import Attended
from jaxrnn.attention.attention import Attention, scored
from jaxrnn.attention.bound import DecoderCarry, DecoderGates, DecoderParams
from jaxrnn.attention.decoder import Decoder
from jaxrnn.attention.location import LocationSensitiveParams, location_sensitive
from jaxrnn.attention.pool import AttentionPool, AttentionPoolParams
from jaxrnn.attention.scores import AdditiveParams, GeneralParams, additive, dot, general

__all__ = [
    "dot",
    "general",
    "additive",
    "location_sensitive",
    "scored",
    "Attention",
    "Attended",
    "GeneralParams",
    "AdditiveParams",
    "LocationSensitiveParams",
    "AttentionPool",
    "AttentionPoolParams",
    "Decoder",
    "DecoderParams",
    "DecoderCarry",
    "DecoderGates",
]
