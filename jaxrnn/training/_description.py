"""What a checkpoint says of the training that wrote it, and where another one differs from it.

All of it is names, shapes and numbers in JSON: the same on any devices, with any version of JAX.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jax

from jaxrnn._base import PyTree
from jaxrnn._spec import Spec
from jaxrnn.training._leaves import differences
from jaxrnn.training.history import Labels
from jaxrnn.training.records import to_json

Description = dict[str, Any]


def described(state: PyTree, model: Any, labels: Labels) -> Description:
    """Of a training: the nodes of its state (a checkpoint has the leaves), its cells, its members, what it measures."""
    return {
        "state": nodes(state),
        "model": dict(_specs(model)),
        "labels": None if labels is None else json.loads(to_json(list(labels))),
        "measures": None,  # until a block has run
        "keeps": None,  # by which measure the best is kept
    }


def other(saved: Description, now: Description) -> str:
    """In words, what of the state and the model is another there than here; "" where nothing is."""
    said = {
        "state": differences(saved["state"], now["state"]),
        "model": differences(saved["model"], now["model"]) if saved["model"] and now["model"] else "",
    }
    return "; ".join(f"of the {what}, {text}" for what, text in said.items() if text)


def other_measures(saved: list[str] | None, now: list[str]) -> str:
    """In words, what was measured there and is here; "" where that is the same, or not known of both."""
    if saved is None or saved == now:
        return ""
    return f"of the measures, {', '.join(saved) or 'none'} there and {', '.join(now) or 'none'} here"


def nodes(tree: PyTree) -> dict[str, str]:
    """The type of each node that is no leaf, by its path: of an optimiser's parts the empty ones, too.

    Example:
        >>> nodes({"w": (1.0, None)})
        {'root': 'dict', 'w': 'tuple', 'w.1': 'NoneType'}
    """
    found = {}

    def visit(path: tuple[Any, ...], node: Any) -> None:
        children = jax.tree_util.tree_leaves_with_path(node, is_leaf=lambda a: a is not node)
        if not any(child is node for _, child in children):
            found[jax.tree_util.keystr(path, simple=True, separator=".") or "root"] = type(node).__name__
            for key, child in children:
                visit((*path, *key), child)

    visit((), tree)
    return found


def _specs(model: Any) -> Iterator[tuple[str, str]]:
    """The kinds and options of cells and layers, one or a tree of them, by path."""

    def is_model(a: Any) -> bool:
        return isinstance(a, Spec) or hasattr(a, "initial_carry")

    for path, one in jax.tree_util.tree_leaves_with_path(model, is_leaf=is_model):
        if not is_model(one):
            raise TypeError(
                f"training.fit: model must be a cell or a layer, or a tree of them, got {type(one).__name__}; give "
                f"what the parameters belong to, such as jr.gru(3, 4)."
            )
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "it"
        spec = one if isinstance(one, Spec) else one.spec
        if spec is None:
            yield name, "a cell without a spec"
        else:
            yield from _options(name, spec)


def _options(name: str, spec: Spec) -> Iterator[tuple[str, str]]:
    yield name, spec.kind
    for option, value in spec.options:
        yield f"{name}.{option}", _said(value)
    for place, child in enumerate(spec.children):
        yield from _options(f"{name}.{place}", child)


def _said(value: Any) -> str:
    """The value of an option; a function by its name, as its repr has an address."""
    if isinstance(value, Spec):
        return f"{value.kind}({', '.join(f'{name}={_said(v)}' for name, v in value.options)})"
    if isinstance(value, tuple):
        return f"({', '.join(map(_said, value))})"
    return getattr(value, "__qualname__", type(value).__name__) if callable(value) else repr(value)
