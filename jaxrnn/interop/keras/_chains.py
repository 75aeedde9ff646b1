"""The graph of a functional model, of Keras 1, 2 or 3, where it is a chain of layers; masks do not count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jaxrnn.interop.conversion import refuse


def chain_of(who: str, config: Mapping[str, Any]) -> list[str]:
    """The names of a functional model's layers from its input to its output.

    Args:
        who: for errors.
        config: what ``get_config`` says.

    Raises:
        ValueError: layers that read from several others or are used twice, several inputs or outputs.
    """
    what = f"the graph of {config.get('name', 'a model')!r}"
    why = "only chains of layers are read here; convert its parts apart, and pass the lists of their layers"
    nodes = {layer["name"]: layer for layer in config["layers"]}
    ends = {name for name, _, _ in _histories(config["output_layers"])}
    if len(ends) != 1:
        refuse(who, f"{what}, whose outputs are of {', '.join(sorted(ends)) or 'no layer'},", why)
    (name,) = ends
    names: list[str] = []
    while nodes[name]["class_name"] != "InputLayer":
        if len(calls := nodes[name]["inbound_nodes"]) != 1 or name in names:
            refuse(who, f"{what}, where {name} is used {len(calls)} times,", why)
        names.append(name)
        sources = list(_histories(calls[0]))
        if len(sources) != 1 or sources[0][1:] != (0, 0):
            said = ", ".join(f"{source} (output {place})" for source, _, place in sources) or "nothing"
            refuse(who, f"{what}, where {name} reads from {said},", why)
        name = sources[0][0]
    return names[::-1]


def _histories(call: Any) -> Iterator[tuple[str, int, int]]:
    """The tensors that a call reads, each as (layer, its call, which of its outputs): as any version writes them."""
    if isinstance(call, Mapping):
        if "keras_history" in call.get("config", ()):
            yield from _histories(call["config"]["keras_history"])
        else:
            for name, value in call.items():
                if name != "mask":
                    yield from _histories(value)
    elif isinstance(call, list | tuple):
        if len(call) >= 3 and isinstance(call[0], str) and all(type(n) is int for n in call[1:3]):
            yield call[0], call[1], call[2]
            call = call[3:]
        for value in call:
            yield from _histories(value)
