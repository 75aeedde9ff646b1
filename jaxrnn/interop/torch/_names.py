"""What PyTorch calls its weights, its order of gates, and its tensors as NumPy's arrays."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrnn.cells.fused import GateOrder
from jaxrnn.interop.conversion import as_weights, reordered
from jaxrnn.interop.registry import Library

LIBRARY = Library("PyTorch", "torch", extra="torch")

WEIGHT = r"(?:weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)(?:_l\d+(?:_reverse)?)?"  # of a layer, or of a cell
KEY = re.compile(r"(weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)(?:_l(\d+)(_reverse)?)?")
KINDS = {1: "elman", 3: "gru", 4: "lstm"}  # by the number of gates
GATES: dict[str, GateOrder] = {"lstm": ("i", "f", "g", "o"), "gru": ("r", "z", "n")}  # in torch's fused arrays


def turned(a: Any, old: GateOrder, new: GateOrder) -> Any:
    """The blocks of a GRU in the other library's order, z the share of the other state."""
    return reordered(a, old, new, negate=("z",))


def numpy_of(who: str, name: str, a: Any) -> np.ndarray:
    """A tensor of floats, on any device or in a file, or an array as NumPy's."""
    if hasattr(a, "detach"):
        try:
            a = a.detach().cpu()
            if str(a.dtype) == "torch.bfloat16":  # which Tensor.numpy() does not know
                return a.view(LIBRARY.load().int16).numpy().view(jnp.bfloat16)
            a = a.numpy()
        except (NotImplementedError, RuntimeError, TypeError) as error:  # sparse, quantised, on no device
            why = str(error).partition("\n")[0].rstrip(".")
            raise TypeError(
                f"{who}: {name} ({a.dtype}) has no numbers that NumPy holds: {why}; pass floats."
            ) from error
    return as_weights(who, name, a)


def tensor_of(torch: ModuleType, a: Any) -> Any:
    """A copy as a tensor."""
    a = np.array(a, order="C")
    if a.dtype == jnp.bfloat16:
        return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(a)
