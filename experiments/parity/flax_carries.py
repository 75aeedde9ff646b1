"""Our carries as Flax has them, and back."""

from __future__ import annotations

from typing import Any

import jaxrnn as jr


def swapped(carry: Any) -> Any:
    """Our carry as Flax's, whose LSTM's is (c, h), and the same back."""
    if isinstance(carry, jr.BiCarry):
        return tuple(map(swapped, carry))
    return (carry.c, carry.h) if isinstance(carry, jr.LSTMCarry) else carry


def back(end: Any, like: Any) -> Any:
    if isinstance(like, jr.BiCarry):
        return jr.BiCarry(*map(back, end, like))
    return jr.LSTMCarry(h=end[1], c=end[0]) if isinstance(like, jr.LSTMCarry) else end
