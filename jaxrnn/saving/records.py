"""What jaxrnn writes beside the tensors: one JSON text with the models' specs, the user's metadata, and digests.

    {"format": 1, "version": …, "spec": {…}, "metadata": {…}, "sha256": {…}}                      one model
    {"format": 2, "version": …, "models": {"actor": {"spec": {…}}, …}, "metadata": {…}, …}        several, by name

In place of a spec, "no_spec" says why there is none. One text, as the safetensors library writes several in any order,
and the same model should give the same bytes.
"""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Mapping
from typing import Any

from jaxrnn._base import Cell, Layer, PyTree, check_model, name_of
from jaxrnn._checks import nearest
from jaxrnn._spec import Spec, build, defaults_of
from jaxrnn._version import __version__
from jaxrnn.saving.digests import ENTRY, check_text
from jaxrnn.saving.files import Header, Tensor, few
from jaxrnn.saving.parameters import by_name, check_fit, expected_params, outline

ONE, SEVERAL = 1, 2  # formats: of one model, and of several by name
# What the text says in each format; raised when older versions of jaxrnn could misread it.
ENTRIES = {
    ONE: {"format", "version", "spec", "no_spec", "metadata", ENTRY},
    SEVERAL: {"format", "version", "models", "metadata", ENTRY},
}


def spec_or_why(model: Cell | Layer) -> dict[str, Any]:
    """The spec as JSON has it, or why there is none."""
    if model.spec is None:
        return {"no_spec": f"it is a {name_of(model)}, or holds one, whose functions no file can hold"}
    try:
        spec = json.loads(json.dumps(model.spec.to_dict(), allow_nan=False))
        if build(spec).spec != model.spec:
            raise ValueError(f"{model.spec.kind} is not the same after a round trip through JSON")
    except (TypeError, ValueError, RecursionError) as error:
        return {"no_spec": str(error).removesuffix(".")}
    return {"spec": spec}


def as_json(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The user's metadata, once they are seen to come back from JSON equal."""
    try:
        back = json.loads(json.dumps(dict(metadata), allow_nan=False))
        same = back == metadata
    except (TypeError, ValueError, RecursionError) as error:
        said = f"save: metadata {reprlib.repr(metadata)} cannot be kept as JSON: {error}; use text, numbers …"
        raise TypeError(said) from error
    if not same:
        raise TypeError(
            f"save: metadata {metadata!r} would come back from JSON as {back!r}; use lists in place of tuples and text "
            f"as keys."
        )
    return back


def kept_in(who: str, path: Any, header: Header) -> dict[str, Any]:
    """What ``save`` wrote beside the tensors: version, spec or no_spec or models, and the user's metadata.

    Raises:
        ValueError: a file that is not ours, or is newer than this library, or where this is damaged.
    """
    if not header.is_ours:
        torch = any(name.rpartition(".")[2].startswith("weight_ih_l") for name in header.tensors)
        fix = (
            "these are torch's names: python -m jaxrnn convert, or jaxrnn.interop.torch.from_torch"
            if torch
            else "read it with the safetensors library, and give its tensors to the params of a model of your own"
        )
        holds = [f"{name} {outline(tensor)}" for name, tensor in header.tensors.items()]
        raise ValueError(
            f"{who}: {os.fspath(path)!r} is a safetensors file, but not one that jaxrnn saved (its metadata lack "
            f"jaxrnn); it holds {few(holds) or 'no tensors'}; {fix}."
        )
    try:
        kept = json.loads(header.metadata["jaxrnn"], parse_constant=int)  # which raises: NaN is no JSON
        if not isinstance(kept, dict) or not isinstance(kept.get("metadata", {}), dict):
            raise ValueError("expected a dict with a dict of metadata")
        if (known := ENTRIES.get(kept.get("format", 0))) is not None:  # what a later format may say is not known here
            if unknown := sorted(kept.keys() - known):  # a name that changed must not hide what it names
                raise ValueError(f"format {kept['format']} has no entry {few(unknown)}")
            check_text(kept)
            models = entries_of(kept)
            if not isinstance(models, dict) or not models or not all(isinstance(m, dict) for m in models.values()):
                raise ValueError("expected models to be a dict of dicts")
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{who}: jaxrnn's part of the metadata in {os.fspath(path)!r} is damaged: {error}.") from error
    if known is None:
        raise ValueError(
            f"{who}: {os.fspath(path)!r} has the format {kept.get('format')!r} of jaxrnn {kept.get('version')}, and "
            f"this is jaxrnn {__version__}, which reads {ONE} and {SEVERAL}; upgrade jaxrnn."
        )
    return kept


def entries_of(kept: Mapping[str, Any]) -> dict[str, Any]:
    """What the text says of each model, a dict with spec or no_spec, by name; one alone has the name ""."""
    return kept.get("models", {}) if kept["format"] == SEVERAL else {"": kept}


def _tensors_of(kept: Mapping[str, Any], name: str, header: Header) -> dict[str, Tensor]:
    """The tensors of one model, and those that are nobody's."""
    others = tuple(f"{other}." for other in entries_of(kept) if other != name)
    return {tensor: entry for tensor, entry in header.tensors.items() if not tensor.startswith(others)}


def entry_of(who: str, path: Any, kept: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What the text says of a model; ``name`` is "" where none was given.

    Raises:
        ValueError: a file of several models without a name, of one model with one, a name that is not there.
    """
    entries = entries_of(kept)
    if name in entries:
        return entries[name]
    if "" in entries:
        raise ValueError(f"{who}: {os.fspath(path)!r} holds one model, which has no name; leave {name!r} out.")
    lacks, fix = f", not {name!r}" if name else "", f"; name one of them: load(path, {next(iter(entries))!r})."
    raise ValueError(
        f"{who}: {os.fspath(path)!r} holds the models {few([*map(repr, entries)])}{lacks}{nearest(name, entries, fix)}"
    )


def fitting_model(
    who: str, path: Any, kept: Mapping[str, Any], header: Header, model: Cell | Layer | None = None, *, name: str = ""
) -> tuple[Cell | Layer, PyTree]:
    """A model of a file of ours, or the one given where it computes the same, and the shapes of its ``init``.

    The shapes are those that the header gives, so whoever reads the tensors reads what the file has, however large the
    spec says that the model is.
    """
    fix = "fetch or save the file once more" if model is None else "give the model that was saved"
    tensors = _tensors_of(kept, name, header)
    model, expected = _model_of(who, path, kept, entry_of(who, path, kept, name), model, len(tensors), name)
    title = f"{who}: the parameters in {os.fspath(path)!r} do not fit the model ({name_of(model)})"
    check_fit(title, fix, tensors, by_name(who, expected, name))
    return model, expected


def _model_of(
    who: str,
    path: Any,
    kept: Mapping[str, Any],
    entry: Mapping[str, Any],
    model: Cell | Layer | None,
    tensors: int,
    name: str,
) -> tuple[Cell | Layer, PyTree]:
    if "spec" not in entry or (model is not None and model.spec is None):
        if model is None:
            raise ValueError(
                f"{who}: {os.fspath(path)!r} holds {alone(name)}: {entry.get('no_spec', 'the file has no spec')}. "
                f"Make the model in code, as it was when it was saved, and pass it: {call_with_model(name)}."
            )
        return model, expected_params(model)
    try:
        spec = Spec.from_dict(entry["spec"])
        if (cells := _with_weights(spec)) > tensors:  # before any of them is traced, which takes time
            raise ValueError(f"it has {cells:,} cells with parameters, but the file has {tensors:,} tensors for them")
        rebuilt = build(spec)
        check_model(who, rebuilt)  # a Plan has a spec too
        model = rebuilt if model is None else model
        expected = expected_params(model)
    except Exception as error:  # a file can say anything, and factories are made for what code says
        raise ValueError(
            f"{who}: the model in {os.fspath(path)!r} cannot be rebuilt: {str(error).removesuffix('.')}. It was saved "
            f"by jaxrnn {kept.get('version')}; upgrade jaxrnn if that is newer than {__version__}."
        ) from error
    assert model.spec is not None
    if spec != model.spec and _equations(spec) != _equations(model.spec):
        raise ValueError(
            f"{who}: {os.fspath(path)!r} holds the parameters of {described(spec)}, but the model given is "
            f"{described(model.spec)}, which computes something else; load the file without a model, or fix the model."
        )
    return model, expected


def alone(name: str) -> str:
    return f"the parameters of {name!r} without their model" if name else "parameters without their model"


def call_with_model(name: str) -> str:
    return f"load(path, {name!r}, model=model)" if name else "load(path, model=model)"


def _with_weights(spec: Spec) -> int:
    """How many cells of a spec have parameters, at the least."""
    own = not spec.children and any(option in ("input_size", "vocabulary_size") for option, _ in spec.options)
    return own + sum(map(_with_weights, spec.children))


# Options that say how a run goes or how parameters are drawn, and not what is computed from them.
NO_EQUATION = {"plan", "unroll", "checkpoint", "run", "dtype", "param_dtype", "forget_bias", "T_max"}
# Wrappers whose values are those of what they wrap.
NO_VALUE = {"tbptt", "cotangent_clip"}
# Kinds that compute what another does, from the same parameters.
SAME = {"chain": "stack", "dense": "readout"}


def _equations(spec: Spec) -> Any:
    """What two specs share that compute the same values, without noise, from the same parameters."""
    defaults = defaults_of(spec.kind)
    options = {
        name: value
        for name, value in spec.options
        if name not in NO_EQUATION and not name.endswith("_init") and value != defaults.get(name, ...)
    }
    if spec.kind in NO_VALUE or (spec.kind == "scan" and not options):
        return _equations(spec.children[0])
    if spec.kind == "dropout":
        options = {}
    if spec.kind == "dense" and options.get("activation") == "identity":
        del options["activation"]
    return SAME.get(spec.kind, spec.kind), sorted(options.items()), [_equations(child) for child in spec.children]


def described(spec: Spec) -> str:
    """A spec as the call that makes it: ``stack(gru(input_size=3, hidden_size=4))``."""
    first = {"input_size": 0, "vocabulary_size": 0, "hidden_size": 1}  # as they are read
    options = sorted(spec.options, key=lambda option: first.get(option[0], 2))
    given = [f"{name}={described(value) if isinstance(value, Spec) else repr(value)}" for name, value in options]
    return f"{spec.kind}({', '.join([*map(described, spec.children), *given])})"
