"""``save`` and ``load``: models and their parameters in one file of the safetensors format."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import Cell, Layer, PyTree, check_model
from jaxrnn._version import __version__
from jaxrnn.saving.digests import check_tensor, with_digests
from jaxrnn.saving.files import opened, read_named, safetensors_library, write_atomically
from jaxrnn.saving.parameters import as_jax, by_name, fitting_arrays
from jaxrnn.saving.records import (
    ONE,
    SEVERAL,
    alone,
    as_json,
    call_with_model,
    fitting_model,
    kept_in,
    spec_or_why,
)


@checks_arguments
def save(
    path: str | os.PathLike[str],
    model: Cell | Layer | Mapping[str, tuple[Cell | Layer, PyTree]],
    params: PyTree = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a model and its parameters, or several by name, into one safetensors file, that :func:`load` reads.

    The file takes its name when it is complete and on disk: whoever is killed on the way leaves the old file as it was
    (and a folder ``.jaxrnn-…`` beside it). Arrays on several devices are fetched. A SHA-256 digest of each tensor, and
    of what stands beside them, goes into the file, so that ``load`` sees a changed bit.

    Args:
        path: the file, usually ``….safetensors``; one of that name is replaced, the target of a symbolic link too.
        model: the Cell or Layer, or a dict of several, each with its parameters, ``{"actor": (cell, params), …}``, by
            names without points. A user's own model, or one with a function among its options, has no spec that a file
            can hold: its parameters alone are saved, with a warning, and ``load`` needs the model.
        params: what ``model.init`` gives: names, shapes and kinds of numbers. Floats may be of another width than those
            of ``init``; each array is stored in its own dtype. Left out where they stand in a dict.
        metadata: anything else to keep, as JSON has it: text, numbers, booleans, None, lists and dicts with text keys.

    Raises:
        ValueError, TypeError: parameters that are not the model's, dtypes that the format lacks, PRNG keys, metadata
            that would not come back equal. OSError: a place that cannot be written. ImportError: no safetensors.

    Example:
        >>> import os, tempfile, jax, jaxrnn as jr
        >>> model = jr.stack(jr.gru(3, 4), jr.readout(4, 2))
        >>> params = model.init(jax.random.key(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jr.save(os.path.join(folder, "model.safetensors"), model, params, {"epoch": 7})
        ...     again, weights, metadata = jr.load(os.path.join(folder, "model.safetensors"))
        >>> again.spec == model.spec, bool((weights[0].W_xh == params[0].W_xh).all()), metadata
        (True, True, {'epoch': 7})

        Several models in one file:

        >>> critic = jr.elman(3, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "agent.safetensors")
        ...     jr.save(path, {"actor": (model, params), "critic": (critic, critic.init(jax.random.key(1)))})
        ...     jr.load(path, "critic")[0].spec == critic.spec
        True

    Differs from pickled checkpoints (``torch.save``), which run code when they are opened, and from orbax, which keeps
    a training run: optimiser states, steps, many files.
    """
    library = safetensors_library()
    models = _by_name(model, params) if isinstance(model, Mapping) else {"": (model, params)}
    arrays: dict[str, np.ndarray] = {}
    entries: dict[str, dict[str, Any]] = {}
    for name, (own, weights) in models.items():
        check_model("save" if not name else f"save: {name}", own)
        arrays |= fitting_arrays(own, weights, name)
        entries[name] = spec_or_why(own)
    kept = {
        "format": SEVERAL if isinstance(model, Mapping) else ONE,
        "version": __version__,
        **({"models": entries} if isinstance(model, Mapping) else entries[""]),
        "metadata": as_json({} if metadata is None else metadata),
    }

    def write(unfinished: str) -> None:
        try:
            library.numpy.save_file(arrays, unfinished, {"jaxrnn": with_digests(kept, arrays)})
        except library.SafetensorError as error:
            raise OSError(f"save: {os.fspath(path)!r} cannot be written: {error}.") from error

    write_atomically("save", path, write)
    for name, entry in entries.items():
        if "no_spec" in entry:
            warnings.warn(
                f"save: {os.fspath(path)!r} holds {alone(name)}: {entry['no_spec']}. Keep the code that makes it; "
                f"{call_with_model(name)} needs it.",
                stacklevel=3,  # past the check of the arguments
            )


def _by_name(models: Mapping[str, tuple[Cell | Layer, PyTree]], params: PyTree) -> dict[str, tuple[Any, PyTree]]:
    """Several models, each with its parameters, once they are seen to have that form."""
    if params is not None:
        raise TypeError(
            f"save: in a dict of models params stand beside each of them; got {type(params).__name__} as well: leave "
            f"it out, or give it as metadata=…."
        )
    if not models:
        raise ValueError("save: the dict of models is empty; give {'name': (model, params)}.")
    for name, pair in models.items():
        if not isinstance(name, str) or not name or "." in name:
            raise ValueError(
                f"save: a model's name must be a text without points, which stand in the names of its tensors, got "
                f"{name!r}; rename it."
            )
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(
                f"save: expected {name!r} to be a pair (model, params), got {type(pair).__name__}"
                f"{f' of {len(pair)}' if type(pair) in (tuple, list) else ''}; give {{{name!r}: (model, params)}}."
            )
    return dict(models)


@checks_arguments
def load(
    path: str | os.PathLike[str], name: str | Cell | Layer | None = None, model: Cell | Layer | None = None
) -> tuple[Cell | Layer, PyTree, dict[str, Any]]:
    """Read a model from a file that :func:`save` wrote.

    Every tensor is compared with its digest in the file; files of jaxrnn 0.1.0 have none, and are read as they are. A
    digest tells damage, not who wrote the file.

    Args:
        path: the file.
        name: of the model, in a file of several; the others are not read. In a file of one the model may stand here.
        model: None rebuilds the model from the file. A model that is given must compute what the file's does: it may
            be run in another way (another ``plan``, a Cell in place of its scan, a chain in place of a stack) or
            compute in another dtype.

    Returns:
        ``(model, params, metadata)``: the model rebuilt, or the one given; its parameters in the dtypes of the file, on
        the default device; the metadata as given to ``save``, ``{}`` for none.

    Raises:
        ValueError: a file that is damaged, cut short or not one of ours, parameters that do not fit the model, a model
            that cannot be rebuilt or is another one; no name, or a wrong one, for a file of several. TypeError: dtypes
            of 64 bits while JAX's are off. FileNotFoundError: no such file. ImportError: no safetensors.

    Example:
        >>> import os, tempfile, jax, jaxrnn as jr
        >>> cell = jr.lstm(3, 4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jr.save(os.path.join(folder, "cell.safetensors"), cell, cell.init(jax.random.key(0)))
        ...     layer, params, _ = jr.load(os.path.join(folder, "cell.safetensors"), jr.scan(cell, plan="plain"))
        >>> layer.apply(params, jax.numpy.ones((7, 3)))[1].shape
        (7, 4)
    """
    if isinstance(name, Cell | Layer):
        if model is not None:
            raise TypeError("load: got two models; give one, after the name of a model in a file of several.")
        name, model = None, name
    if name is not None and not isinstance(name, str):
        raise TypeError(f"load: expected the name of a model, or a Cell or a Layer, got {type(name).__name__}.")
    if model is not None:
        check_model("load", model)
    with opened("load", path) as (file, header):
        kept = kept_in("load", path, header)
        model, expected = fitting_model("load", path, kept, header, model, name=name or "")
        wanted = by_name("load", expected, name or "")
        arrays = []
        for tensor, a in zip(wanted, read_named("load", path, file, header, wanted), strict=True):
            check_tensor("load", path, kept, tensor, a)
            arrays.append(as_jax("load", a))
    return model, jax.tree.unflatten(jax.tree.structure(expected), arrays), kept.get("metadata", {})
