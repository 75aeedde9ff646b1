"""The recurrences that read the digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jaxrnn as jr


def bidirectional_lstm(input_size: int, hidden_size: int) -> jr.Layer:
    return jr.bidirectional(jr.lstm(input_size, hidden_size), jr.lstm(input_size, hidden_size))


Name = Literal["elman", "gru", "lstm", "peephole_lstm", "bidirectional_lstm"]

# (input_size, hidden_size) -> Cell or Layer
RECURRENCES: dict[Name, Callable[[int, int], jr.Cell | jr.Layer]] = {
    "elman": jr.elman,
    "gru": jr.gru,
    "lstm": jr.lstm,
    "peephole_lstm": jr.peephole_lstm,
    "bidirectional_lstm": bidirectional_lstm,
}
