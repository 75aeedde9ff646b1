"""State dicts: the recurrent parts in one, in a checkpoint around it; parametrizations folded into the weights."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxrnn._checks import nearest
from jaxrnn.interop.torch._names import KEY, WEIGHT, numpy_of
from jaxrnn.saving.files import few

# In front of a weight's name: a path that ends at a point (or where somebody else's naming ends), and what
# torch.nn.utils.parametrize puts there; behind it: how the weight is parametrized.
NAME = re.compile(rf"(|.*?[._/])((?:parametrizations\.)?{WEIGHT}(?:_g|_v|_orig|_mask|_u|\.original\d*|\.\d+\..+)?)")
OWN = re.compile(rf"(?:parametrizations\.)?({WEIGHT})(.*)")

OPTIONS = ("nonlinearity", "mode", "dropout")  # what a module that was saved whole says beside its weights
DEEPEST = 64


class Part(NamedTuple):
    """A recurrent module in a state dict.

    Fields:
        own: its tensors by their names in it; where a whole module was saved also ``OPTIONS``.
        others: the names of the tensors beside it.
    """

    own: dict[str, Any]
    others: list[str]


def is_tensor(a: Any) -> bool:
    return hasattr(a, "shape") and hasattr(a, "dtype")


def parts_in(who: str, source: Mapping[Any, Any]) -> dict[str, Part]:
    """The recurrent modules of a state dict, or of a checkpoint that holds some, by what stands before their names."""
    parts: dict[str, Part] = {}
    for home, state in _states(who, source):
        tensors = {name: a for name, a in state.items() if isinstance(name, str) and is_tensor(a)}
        found = {name: match for name in tensors if (match := NAME.fullmatch(name))}
        for prefix in dict.fromkeys(match[1] for match in found.values()):
            own = {match[2]: tensors[name] for name, match in found.items() if match[1] == prefix}
            own |= {name: state[prefix + name] for name in OPTIONS if prefix + name in state}
            others = [home + name for name in tensors if name not in found or found[name][1] != prefix]
            parts[home + prefix] = Part(own, others)
    return parts


def _states(who: str, source: Mapping[Any, Any]) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """A mapping and those in it, each with its path; one that stands in several places at the first."""
    waiting, seen = collections.deque([("", source, 0)]), {id(source)}
    while waiting:
        home, state, depth = waiting.popleft()
        if depth > DEEPEST:
            raise ValueError(f"{who}: dicts are nested deeper than {DEEPEST} at {home[:80]!r}; pass the state dict.")
        yield home, state
        for name, value in state.items():
            if isinstance(value, Mapping) and id(value) not in seen:
                seen.add(id(value))
                waiting.append((f"{home}{name}.", value, depth + 1))


def chosen(who: str, names: Mapping[str, Any], prefix: str, option: str = "prefix=") -> str:
    """The part that a prefix names: whole, without its last point, or by its end where that is one part's alone."""
    if not names:
        raise ValueError(
            f"{who}: there is no recurrent module: no tensor is called weight_ih_l0, weight_hh_l0 …, or weight_ih, "
            f"weight_hh as in a cell; pass the state dict of an nn.RNN, nn.LSTM, nn.GRU, of one of their cells, or of "
            f"a model that holds one."
        )
    if prefix in names:
        return prefix
    wanted = prefix if prefix.endswith((".", "_", "/")) else f"{prefix}."
    ends = list(names) if not prefix else [name for name in names if f".{name}".endswith(f".{wanted}")]
    if len(ends) == 1:
        return ends[0]
    listed = few([repr(name) for name in (ends or names)])
    if not prefix:
        raise ValueError(f"{who}: there are {len(names)} recurrent modules; choose one with {option}: {listed}.")
    if ends:
        raise ValueError(f"{who}: {len(ends)} recurrent modules end with {wanted!r}: {listed}; give more of the name.")
    known = f"{option} may be {listed}" if any(names) else "the names of the only one stand alone; leave it out"
    raise ValueError(f"{who}: no recurrent module is called {prefix!r}; {known}{nearest(wanted, names)}")


def weights_of(who: str, own: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights of a part, those of weight_norm and of pruning as the forward pass has them."""
    grouped: dict[str, dict[str, Any]] = {}
    for name, a in own.items():
        if match := OWN.fullmatch(name):
            grouped.setdefault(match[1], {})[match[2]] = a
    return {weight: _folded(who, weight, forms) for weight, forms in grouped.items()}


def _folded(who: str, weight: str, forms: dict[str, Any]) -> np.ndarray:
    arrays = {form: numpy_of(who, weight + form, a) for form, a in forms.items()}
    if arrays.keys() == {""}:
        return arrays[""]
    if arrays.keys() == {"_orig", "_mask"} and arrays["_orig"].shape == arrays["_mask"].shape:  # pruning
        return (arrays["_orig"] * arrays["_mask"]).astype(arrays["_orig"].dtype)
    for g, v in (("_g", "_v"), (".original0", ".original1")):  # weight_norm, old and new
        if arrays.keys() == {g, v} and _is_norm(arrays[g].shape, arrays[v].shape):
            return _weight_norm(arrays[g], arrays[v])
    said = few([repr(weight + form) for form in forms])
    raise ValueError(
        f"{who}: {said} parametrize {weight} in a way that has no counterpart: weight_norm and pruning are folded in, "
        f"of others pass the module itself, or remove them first: torch.nn.utils.parametrize.remove_parametrizations."
    )


def _is_norm(g: tuple[int, ...], v: tuple[int, ...]) -> bool:
    return not g or (len(g) == len(v) and all(a in (1, b) for a, b in zip(g, v, strict=True)))


def _weight_norm(g: np.ndarray, v: np.ndarray) -> np.ndarray:
    """g v / ‖v‖, the norm over the axes that g lacks. Salimans & Kingma, 2016."""
    axes = tuple(axis for axis in range(v.ndim) if not g.ndim or g.shape[axis] == 1)
    wide = v.astype(np.float64)
    norm = np.sqrt((wide**2).sum(axes, keepdims=True))
    return (g.astype(np.float64) * wide / norm).astype(v.dtype)


def summary(own: Mapping[str, Any]) -> str:
    """A part in words, from its names and shapes: ``LSTM, 3 -> 5, 2 layers, both directions``."""
    found = [(match, a) for name, a in own.items() if (match := OWN.fullmatch(name)) and len(np.shape(a)) == 2]
    shapes: dict[str, tuple[int, ...]] = {}
    for match, a in found:  # of a parametrized weight the larger one
        shapes[match[1]] = max(shapes.get(match[1], ()), tuple(a.shape), key=lambda s: int(np.prod(s)) if s else 0)
    keys = [key for name in shapes if (key := KEY.fullmatch(name))]
    first = {key[1]: shapes[key[0]] for key in reversed(keys) if not key[3]}
    if not {"weight_ih", "weight_hh"} <= first.keys():
        return "not whole"
    (rows, columns), (_, I) = first["weight_hh"], first["weight_ih"]
    projects = "weight_hr" in first
    kind = "LSTM" if projects else {1: "RNN", 3: "GRU", 4: "LSTM"}.get(rows // columns, "of no known kind")
    layers = 1 + max((int(key[2]) for key in keys if key[2]), default=0)
    words = [f"{kind}{'' if any(key[2] for key in keys) else 'Cell'}", f"{I} -> {columns}"]
    words += [f"{layers} layers"] if layers > 1 else []
    words += ["both directions"] if any(key[3] for key in keys) else []
    return ", ".join(words)
