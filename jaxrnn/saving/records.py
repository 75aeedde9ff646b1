"""What jaxrnn writes beside the tensors: one JSON text with the model's spec, the user's metadata, and digests.

One text, as the safetensors library writes several in any order, and the same model should give the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from jaxrnn._base import Cell, Layer, PyTree, check_model, name_of
from jaxrnn._spec import Spec, build, defaults_of
from jaxrnn._version import __version__
from jaxrnn.saving.digests import ENTRY, check_text
from jaxrnn.saving.files import Header, few
from jaxrnn.saving.parameters import expected_params, outline

FORMAT = 1  # of jaxrnn's text; raised when older versions of jaxrnn could misread it
ENTRIES = {"format", "version", "spec", "no_spec", "metadata", ENTRY}


def spec_or_why(model: Cell | Layer) -> dict[str, Any]:
    """The spec as JSON has it, or why there is none."""
    if model.spec is None:
        return {"no_spec": f"it is a {name_of(model)}, or holds one, whose functions no file can hold"}
    try:
        spec = json.loads(json.dumps(model.spec.to_dict(), allow_nan=False))
        if build(spec).spec != model.spec:
            raise ValueError(f"{model.spec.kind} is not the same after a round trip through JSON")
    except (TypeError, ValueError) as error:
        return {"no_spec": str(error).removesuffix(".")}
    return {"spec": spec}


def as_json(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The user's metadata, once they are seen to come back from JSON equal."""
    if not isinstance(metadata, Mapping):
        raise TypeError(f"save: metadata must be a dict, got {type(metadata).__name__}; use {{'note': …}}.")
    try:
        back = json.loads(json.dumps(dict(metadata), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"save: metadata {metadata!r} cannot be kept as JSON: {error}; use text, numbers …") from error
    if back != metadata:
        raise TypeError(
            f"save: metadata {metadata!r} would come back from JSON as {back!r}; use lists in place of tuples and text "
            f"as keys."
        )
    return back


def kept_in(who: str, path: Any, header: Header) -> dict[str, Any]:
    """What ``save`` wrote beside the tensors: version, spec or no_spec, and the user's metadata.

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
        if kept.get("format") == FORMAT:  # what a later one may say is not known here
            if unknown := sorted(kept.keys() - ENTRIES):  # a name that changed must not hide what it names
                raise ValueError(f"format {FORMAT} has no entry {few(unknown)}")
            check_text(kept)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{who}: jaxrnn's part of the metadata in {os.fspath(path)!r} is damaged: {error}.") from error
    if kept.get("format") != FORMAT:
        raise ValueError(
            f"{who}: {os.fspath(path)!r} has the format {kept.get('format')!r} of jaxrnn {kept.get('version')}, and "
            f"this is jaxrnn {__version__}, which reads {FORMAT}; upgrade jaxrnn."
        )
    return kept


def model_of(
    who: str, path: Any, kept: Mapping[str, Any], model: Cell | Layer | None = None
) -> tuple[Cell | Layer, PyTree]:
    """The model of a file of ours, or the one given where it computes the same, and the shapes of its ``init``."""
    if "spec" not in kept or (model is not None and model.spec is None):
        if model is None:
            raise ValueError(
                f"{who}: {os.fspath(path)!r} holds parameters without their model: "
                f"{kept.get('no_spec', 'the file has no spec')}. Make the model in code, as it was when it was saved, "
                f"and pass it: load(path, model=model)."
            )
        return model, expected_params(model)
    try:
        spec = Spec.from_dict(kept["spec"])
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


# Options that say how a run goes or how parameters are drawn, and not what is computed from them.
NO_EQUATION = {"plan", "unroll", "checkpoint", "run", "dtype", "param_dtype", "forget_bias", "T_max"}
# Wrappers whose values are those of what they wrap.
NO_VALUE = {"tbptt", "cotangent_clip"}


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
    kind = "stack" if spec.kind == "chain" else spec.kind
    return kind, sorted(options.items()), [_equations(child) for child in spec.children]


def described(spec: Spec) -> str:
    """A spec as the call that makes it: ``stack(gru(input_size=3, hidden_size=4))``."""
    first = {"input_size": 0, "vocabulary_size": 0, "hidden_size": 1}  # as they are read
    options = sorted(spec.options, key=lambda option: first.get(option[0], 2))
    given = [f"{name}={described(value) if isinstance(value, Spec) else repr(value)}" for name, value in options]
    return f"{spec.kind}({', '.join([*map(described, spec.children), *given])})"
