"""Spec: a frozen, hashable, JSON-able record of how a cell, layer or model was made; and who makes what it names."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np

from jaxrnn._arguments import checks_arguments
from jaxrnn._checks import nearest

P = ParamSpec("P")
Made = TypeVar("Made")
Factory = TypeVar("Factory", bound=Callable[..., Any])

FACTORIES: dict[str, Callable[..., Any]] = {}  # by kind; ``registered`` enters them


class Spec(NamedTuple):
    """What ``jr.build`` rebuilds a cell, layer or model from.

    Fields:
        kind: the name of the factory, ``"lstm"``, ``"stack"`` …
        options: the factory's arguments that differ from their defaults, as sorted (name, value) pairs; a value that
            is a record, as a :class:`Plan` is, stands as a Spec.
        children: the specs of the cells and layers that went in.
    """

    kind: str
    options: tuple[tuple[str, Any], ...] = ()
    children: tuple[Spec, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain dicts, lists, strings and numbers, ready for ``json.dumps``.

        Raises:
            TypeError: where an option is a function, which JSON cannot hold.
        """
        for name, value in self.options:
            if callable(value):
                raise TypeError(
                    f"Spec.to_dict: {self.kind}'s option {name} is the function {value!r}, which cannot be written "
                    f"as JSON; name a built-in one as a string, or rebuild this model from code."
                )
        return {
            "kind": self.kind,
            "options": {name: v.to_dict() if isinstance(v, Spec) else v for name, v in self.options},
            "children": [child.to_dict() for child in self.children],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Spec:
        """The inverse of :meth:`to_dict`."""
        unknown = set(data) - set(cls._fields) if isinstance(data, dict) else None
        if unknown is None or unknown or not isinstance(data.get("kind"), str):
            raise ValueError(f"Spec.from_dict: expected a dict with the keys kind, options and children, got {data!r}.")
        options = data.get("options", {})
        if not isinstance(options, dict):
            raise ValueError(f"Spec.from_dict: expected a dict of options for {data['kind']!r}, got {options!r}.")
        return cls(
            data["kind"],
            tuple(sorted((n, cls.from_dict(v) if isinstance(v, dict) else _plain(n, v)) for n, v in options.items())),
            tuple(cls.from_dict(child) for child in data.get("children", ())),
        )


def registered(factory: Factory) -> Factory:
    """Enter what makes a kind, under its own name: ``build`` finds it there.

    Factories are entered by :func:`specified`. A record that stands in an option, as a :class:`Plan` does, is entered
    by this decorator.

    Raises:
        ValueError: for a kind that another module has entered.
    """
    kind = factory.__name__
    known = FACTORIES.get(kind)
    if known is not None and known.__module__ != factory.__module__:  # a module that is reloaded enters its own again
        raise ValueError(
            f"the kind {kind!r} is registered twice, by {known.__module__} and by {factory.__module__}; give one of "
            f"them another name."
        )
    FACTORIES[kind] = factory
    return factory


def factory_of(kind: str) -> Callable[..., Any]:
    """What makes a kind: ``jr.lstm`` of ``"lstm"``."""
    return FACTORIES[kind]


def specified(factory: Callable[P, Made]) -> Callable[P, Made]:
    """Let a factory's result carry the spec of the call that made it, check its plain options, and register it."""
    signature = inspect.signature(factory)
    factory = checks_arguments(factory)

    @functools.wraps(factory)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Made:
        made: Any = factory(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        children, options = [], {}
        for name, value in bound.arguments.items():
            parameter = signature.parameters[name]
            if parameter.kind is parameter.VAR_POSITIONAL:
                children.extend(value)
            elif hasattr(value, "initial_carry"):  # a Cell or a Layer
                children.append(value)
            elif value is not parameter.default:
                options[name] = _plain(name, value)
        if any(child.spec is None for child in children):
            return made
        spec = Spec(factory.__name__, tuple(sorted(options.items())), tuple(child.spec for child in children))
        return made._replace(spec=spec)

    return registered(wrapper)


def _plain(name: str, value: Any) -> Any:
    """An option as JSON can hold it: dtypes by name, NumPy's numbers as Python's, records (a Plan …) as Specs; lists
    as tuples, which can be hashed."""
    if hasattr(value, "_fields"):
        fields = ((n, _plain(n, v)) for n, v in value._asdict().items() if v != value._field_defaults.get(n, ()))
        return Spec(type(value).__name__, tuple(sorted(fields)))
    if name.endswith("dtype") and value is not None:
        return np.dtype(value).name
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return tuple(_plain(name, v) for v in value)
    return value.item() if isinstance(value, np.generic) else value


def defaults_of(kind: str) -> dict[str, Any]:
    """The arguments of a kind's factory that have a default, with it."""
    parameters = inspect.signature(factory_of(kind)).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}


def build(spec: Spec | dict[str, Any]) -> Any:
    """Rebuild the cell, layer or model that a spec describes.

    Args:
        spec: a :class:`Spec`, or the dict that its ``to_dict`` gave (after a round trip through JSON, say).

    Returns:
        A Cell or a Layer that equals the one described: its functions compute the same.

    Raises:
        ValueError: for an unknown kind, or an option that this kind does not have.

    Example:
        >>> import jaxrnn as jr
        >>> model = jr.stack(jr.lstm(3, 8), jr.readout(8, 2))
        >>> jr.build(model.spec.to_dict()).spec == model.spec
        True
    """
    if not isinstance(spec, Spec):
        spec = Spec.from_dict(spec)
    if spec.kind not in FACTORIES:
        raise ValueError(
            f"build: no cell, layer or model is called {spec.kind!r}{nearest(spec.kind, FACTORIES)}; "
            f"known kinds: {', '.join(sorted(FACTORIES, key=str.lower))}."
        )
    factory = factory_of(spec.kind)
    known = inspect.signature(factory).parameters
    for name, _ in spec.options:
        if name not in known:
            raise ValueError(f"build: {spec.kind} has no option {name!r}{nearest(name, known)}.")
    options = {name: build(value) if isinstance(value, Spec) else value for name, value in spec.options}
    return factory(*map(build, spec.children), **options)
