"""Spec: a frozen, hashable, JSON-able record of how a cell, layer or model was made; and who makes what it names."""

from __future__ import annotations

import functools
import inspect
import itertools
import reprlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import numpy as np

from jaxrnn._arguments import checks_arguments
from jaxrnn._checks import nearest

P = ParamSpec("P")
Made = TypeVar("Made")
Record = TypeVar("Record", bound=tuple[Any, ...])
Factory = TypeVar("Factory", bound=Callable[..., Any])

FACTORIES: dict[str, Callable[..., Any]] = {}  # by kind; ``registered`` enters them


class Spec(NamedTuple):
    """What ``jr.build`` rebuilds a cell, layer or model from.

    Fields:
        kind: the name of the factory, ``"lstm"``, ``"stack"`` …
        options: the factory's arguments that differ from their defaults, as sorted (name, value) pairs; a value that
            is a record, as a :class:`Plan` is, stands as a Spec.
        children: the specs of the cells and layers that went in.

    Specs are equal where they build the same: functions are compared by identity, those of ``functools.partial`` by
    what they hold; True is not 1, as ``checkpoint`` tells them apart.
    """

    kind: str
    options: tuple[tuple[str, Any], ...] = ()
    children: tuple[Spec, ...] = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spec) and _exact(self) == _exact(other)

    def __ne__(self, other: object) -> bool:  # a tuple has one of its own
        return not self == other

    def __hash__(self) -> int:
        try:
            return hash(_exact(self))
        except TypeError as error:
            raise TypeError(
                f"Spec: an option of {self.kind} cannot be hashed: {error}; give a function, a number or a string."
            ) from error

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
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: what is no spec; one nested deeper than 64, or of more than 4,096 members, which a file may hold
                but no model needs.
        """
        return _from_dict(data, 1, itertools.count(1))


DEEPEST, MOST = 64, 4096  # of what is nested in a spec from data, and of the specs in it


def _from_dict(data: Any, depth: int, number: Iterator[int]) -> Spec:
    """A spec at some depth of another; ``number`` counts them all."""

    def inner(name: str, value: Any, depth: int) -> Any:
        if not isinstance(value, dict | list | tuple):
            return _plain(name, value)
        if depth > DEEPEST:
            raise ValueError(f"Spec.from_dict: the spec is nested deeper than {DEEPEST}; build such a model in code.")
        if isinstance(value, dict):
            return _from_dict(value, depth, number)
        return tuple(inner(name, v, depth + 1) for v in value)

    if next(number) > MOST:
        raise ValueError(f"Spec.from_dict: the spec has more than {MOST:,} members; build such a model in code.")
    unknown = set(data) - set(Spec._fields) if isinstance(data, dict) else None
    if unknown is None or unknown or not isinstance(data.get("kind"), str):
        raise ValueError(
            f"Spec.from_dict: expected a dict with the keys kind, options and children, got {reprlib.repr(data)}."
        )
    options, children = data.get("options", {}), data.get("children", ())
    if not isinstance(options, dict):
        raise ValueError(
            f"Spec.from_dict: expected a dict of options for {data['kind']!r}, got {reprlib.repr(options)}."
        )
    if not isinstance(children, list | tuple) or not all(isinstance(child, dict) for child in children):
        raise ValueError(
            f"Spec.from_dict: expected a list of specs as the children of {data['kind']!r}, got "
            f"{reprlib.repr(children)}."
        )
    return Spec(
        data["kind"],
        tuple(sorted((name, inner(name, value, depth + 1)) for name, value in options.items())),
        tuple(inner("", child, depth + 1) for child in children),
    )


def _exact(value: Any) -> Any:
    """A value as ``==`` should see it: True is not 1, and ``functools.partial`` is what it holds."""
    if isinstance(value, tuple):
        return tuple(map(_exact, value))
    if isinstance(value, functools.partial):
        return functools.partial, value.func, _exact(value.args), _exact(tuple(sorted(value.keywords.items())))
    return (bool, value) if isinstance(value, bool) else value


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
    if hasattr(factory, "_fields"):
        _name_unknown_options(factory)
    return factory


def _name_unknown_options(record: Any) -> None:
    """A NamedTuple that is called, or replaced, with an option that it does not have names the nearest that it has."""
    make, replace = record.__new__, record._replace

    def unknown(options: Iterable[str]) -> str | None:
        for name in options:
            if name not in record._fields:
                known = f"; the options are {', '.join(record._fields)}."
                return f"{record.__name__}: unknown option {name!r}{nearest(name, record._fields, known)}"
        return None

    @functools.wraps(make)
    def __new__(cls: Any, *args: Any, **options: Any) -> Any:
        if (message := unknown(options)) is not None:
            raise TypeError(message)
        return make(cls, *args, **options)

    @functools.wraps(replace)
    def _replace(self: Any, /, **options: Any) -> Any:
        try:
            return replace(self, **options)
        except (TypeError, ValueError) as error:  # which one depends on the version of Python
            raise type(error)(unknown(options)) from None

    record.__new__, record._replace = __new__, _replace


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
            elif _exact(_plain(name, value)) != _exact(_plain(name, parameter.default)):
                options[name] = _plain(name, value)
        if any(child.spec is None for child in children):
            return made
        spec = Spec(factory.__name__, tuple(sorted(options.items())), tuple(child.spec for child in children))
        return _issue(made._replace(spec=spec))

    return registered(wrapper)


def _issue(made: Any) -> Any:
    """Note beside the function that does the work with which others a spec was issued."""
    run = _run_of(made)
    run.issued = (*getattr(run, "issued", ()), tuple(made))
    return made


def _run_of(made: Any) -> Any:
    """``step`` of a Cell, ``apply`` of a Layer."""
    return made[2]


def known_by_spec(record: type[Record]) -> type[Record]:
    """Cell and Layer: a spec stays with the functions that it was issued with, and records with a spec are known by it.

    ``record.spec`` is None where a function, or anything else, is another than the spec was issued with, by whatever
    way (``_replace``, a tree map …). Records with equal specs are equal, and are pickled as their spec; the others are
    equal where their fields are, functions by identity.
    """
    field: Any = record.spec  # type: ignore[attr-defined]

    def spec(self: Any) -> Spec | None:
        """What ``jr.build`` rebuilds this from; None for a user's own, and where a function was replaced."""
        return field.__get__(self) if tuple(self) in getattr(_run_of(self), "issued", ()) else None

    def __eq__(self: Any, other: object) -> bool:
        if type(self) is not type(other):
            return False
        spec, theirs = self.spec, other.spec  # type: ignore[attr-defined]
        return spec == theirs and (spec is not None or tuple(self)[:-1] == tuple(other)[:-1])  # type: ignore[arg-type]

    def __ne__(self: Any, other: object) -> bool:
        return not self == other

    def __hash__(self: Any) -> int:
        spec = self.spec
        return hash((type(self), tuple(filter(callable, self)) if spec is None else spec))

    def __reduce__(self: Any) -> tuple[Any, ...]:
        spec = self.spec
        return (type(self), tuple(self)[:-1]) if spec is None else (build, (spec,))

    def __deepcopy__(self: Any, memo: Any) -> Any:
        return self  # nothing in it changes; a copy of a function that is an option would be another function

    record.spec = property(spec)  # type: ignore[attr-defined]
    for method in (__eq__, __ne__, __hash__, __reduce__, __deepcopy__):
        setattr(record, method.__name__, method)
    return record


def _plain(name: str, value: Any) -> Any:
    """An option as JSON can hold it: dtypes by name, NumPy's numbers as Python's, records (a Plan …) as Specs; lists
    as tuples, which can be hashed."""
    if hasattr(value, "_fields"):
        fields = ((n, _plain(n, v)) for n, v in value._asdict().items() if v != value._field_defaults.get(n, ()))
        return Spec(type(value).__name__, tuple(sorted(fields)))
    if name.endswith("dtype") and value is not None:
        return np.dtype(value).name
    if isinstance(value, np.ndarray | jax.Array) and not isinstance(value, jax.core.Tracer):
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
        kinds = f"; known kinds: {', '.join(sorted(FACTORIES, key=str.lower))}."
        raise ValueError(
            f"build: no cell, layer or model is called {spec.kind!r}{nearest(spec.kind, FACTORIES, kinds)}"
        )
    factory = factory_of(spec.kind)
    known = inspect.signature(factory).parameters
    for name, _ in spec.options:
        if name not in known:
            raise ValueError(f"build: {spec.kind} has no option {name!r}{nearest(name, known)}")
    options = {name: build(value) if isinstance(value, Spec) else value for name, value in spec.options}
    return factory(*map(build, spec.children), **options)
