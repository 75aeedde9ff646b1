"""The recurrences that read the digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jaxrnn as jr


def bidirectional_lstm(input_size: int, hidden_size: int, *, dtype: Any = None) -> jr.Layer:
    each = (jr.lstm(input_size, hidden_size, dtype=dtype) for _ in range(2))
    return jr.bidirectional(*each)


Name = Literal["elman", "gru", "lstm", "peephole_lstm", "bidirectional_lstm"]

# (input_size, hidden_size, dtype=…) -> Cell or Layer
RECURRENCES: dict[Name, Callable[..., jr.Cell | jr.Layer]] = {
    "elman": jr.elman,
    "gru": jr.gru,
    "lstm": jr.lstm,
    "peephole_lstm": jr.peephole_lstm,
    "bidirectional_lstm": bidirectional_lstm,
}
