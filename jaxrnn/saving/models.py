"""``save`` and ``load``: a model and its parameters in one file of the safetensors format."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax

from jaxrnn._base import Cell, Layer, PyTree, check_model, name_of
from jaxrnn._version import __version__
from jaxrnn.saving.digests import check_tensor, with_digests
from jaxrnn.saving.files import opened, read_named, safetensors_library, write_atomically
from jaxrnn.saving.parameters import as_jax, by_name, check_fit, fitting_arrays
from jaxrnn.saving.records import FORMAT, as_json, kept_in, model_of, spec_or_why


def save(
    path: str | os.PathLike[str], model: Cell | Layer, params: PyTree, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write a model and its parameters into one safetensors file, from which :func:`load` brings both back.

    The file takes its name when it is complete and on disk: whoever is killed on the way leaves the old file as it was
    (and a folder ``.jaxrnn-…`` beside it). Arrays on several devices are fetched. A SHA-256 digest of each tensor, and
    of what stands beside them, goes into the file, so that ``load`` sees a changed bit.

    Args:
        path: the file, usually ``….safetensors``; one of that name is replaced, the target of a symbolic link too.
        model: the Cell or Layer. A user's own one, or one with a function among its options, has no spec that a file
            can hold; its parameters are saved, and ``load`` needs the model.
        params: what ``model.init`` gives: names, shapes and kinds of numbers. Floats may be of another width than those
            of ``init``; each array is stored in its own dtype.
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

    Differs from pickled checkpoints (``torch.save``), which run code when they are opened, and from orbax, which keeps
    a training run: optimiser states, steps, many files.
    """
    library = safetensors_library()
    check_model("save", model)
    arrays = fitting_arrays(model, params)
    kept = {
        "format": FORMAT,
        "version": __version__,
        **spec_or_why(model),
        "metadata": as_json({} if metadata is None else metadata),
    }

    def write(unfinished: str) -> None:
        try:
            library.numpy.save_file(arrays, unfinished, {"jaxrnn": with_digests(kept, arrays)})
        except library.SafetensorError as error:
            raise OSError(f"save: {os.fspath(path)!r} cannot be written: {error}.") from error

    write_atomically("save", path, write)


def load(
    path: str | os.PathLike[str], model: Cell | Layer | None = None
) -> tuple[Cell | Layer, PyTree, dict[str, Any]]:
    """Read a file that :func:`save` wrote.

    Every tensor is compared with its digest in the file; files of jaxrnn 0.1.0 have none, and are read as they are. A
    digest tells damage, not who wrote the file.

    Args:
        path: the file.
        model: None rebuilds the model from the file. A model that is given must compute what the file's does: it may
            be run in another way (another ``plan``, a Cell in place of its scan, a chain in place of a stack) or
            compute in another dtype.

    Returns:
        ``(model, params, metadata)``: the model rebuilt, or the one given; its parameters in the dtypes of the file, on
        the default device; the metadata as given to ``save``, ``{}`` for none.

    Raises:
        ValueError: a file that is damaged, cut short or not one of ours, parameters that do not fit the model, a model
            that cannot be rebuilt or is another one. TypeError: dtypes of 64 bits while JAX's are off.
            FileNotFoundError: no such file. ImportError: no safetensors.

    Example:
        >>> import os, tempfile, jax, jaxrnn as jr
        >>> cell = jr.lstm(3, 4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jr.save(os.path.join(folder, "cell.safetensors"), cell, cell.init(jax.random.key(0)))
        ...     layer, params, _ = jr.load(os.path.join(folder, "cell.safetensors"), jr.scan(cell, plan="plain"))
        >>> layer.apply(params, jax.numpy.ones((7, 3)))[1].shape
        (7, 4)
    """
    if model is not None:
        check_model("load", model)
    with opened("load", path) as (file, header):
        kept = kept_in("load", path, header)
        fix = "fetch or save the file once more" if model is None else "give the model that was saved"
        model, expected = model_of("load", path, kept, model)
        wanted = by_name("load", expected)
        title = f"load: the parameters in {os.fspath(path)!r} do not fit the model ({name_of(model)})"
        check_fit(title, fix, header.tensors, wanted)
        arrays = []
        for name, a in zip(wanted, read_named("load", path, file, header, wanted), strict=True):
            check_tensor("load", path, kept, name, a)
            arrays.append(as_jax(a))
    return model, jax.tree.unflatten(jax.tree.structure(expected), arrays), kept.get("metadata", {})
