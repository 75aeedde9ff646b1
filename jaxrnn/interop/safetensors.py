"""A model and its parameters in one file of the safetensors format: no code in it, no pickle.

The safetensors library writes and reads the format, and judges files before their numbers are believed. What jaxrnn
adds is one text in the file's metadata, ``jaxrnn``: JSON with the model's spec, so that the file alone rebuilds the
model, and what else the user keeps. (One text, as the library writes several in any order, and the same model should
give the same bytes.)
"""

from __future__ import annotations

import collections
import contextlib
import errno
import inspect
import json
import math
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn as jr
from jaxrnn._base import Cell, Layer, PyTree, name_of
from jaxrnn._checks import check_params
from jaxrnn._spec import Spec, build
from jaxrnn.interop.conversion import as_jax, needs

FORMAT = 1  # of jaxrnn's text; raised when older versions of jaxrnn could misread it

# The dtypes that can be saved and loaded: the format's words for them, and NumPy's.
DTYPES = {
    **{"BOOL": "bool", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"},
    **{"U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F16": "float16", "BF16": "bfloat16"},
    **{"F32": "float32", "F64": "float64", "C64": "complex64"},
}


class Tensor(NamedTuple):
    """What a file says of a tensor."""

    shape: tuple[int, ...]
    dtype: str  # as NumPy calls it; the format's own word for one that is not in DTYPES

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Header(NamedTuple):
    tensors: dict[str, Tensor]  # in the order of their bytes
    metadata: dict[str, str]

    @property
    def is_ours(self) -> bool:
        return "jaxrnn" in self.metadata


# ---- save and load -----------------------------------------------------------------------------


def save(
    path: str | os.PathLike[str], model: Cell | Layer, params: PyTree, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write a model and its parameters into one safetensors file, from which :func:`load` brings both back.

    The file takes its name when it is complete and on disk: whoever is killed on the way leaves the old file as it was
    (and a folder ``.jaxrnn-…`` beside it). Arrays on several devices are fetched.

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
        >>> from jaxrnn.interop.safetensors import load, save
        >>> model = jr.stack(jr.gru(3, 4), jr.readout(4, 2))
        >>> params = model.init(jax.random.key(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(os.path.join(folder, "model.safetensors"), model, params, {"epoch": 7})
        ...     again, weights, metadata = load(os.path.join(folder, "model.safetensors"))
        >>> again.spec == model.spec, bool((weights[0].W_xh == params[0].W_xh).all()), metadata
        (True, True, {'epoch': 7})

    Differs from pickled checkpoints (``torch.save``), which run code when they are opened, and from orbax, which keeps
    a training run: optimiser states, steps, many files.
    """
    library, in_numpy = needs("safetensors", "interop"), needs("safetensors", "interop", "safetensors.numpy")
    check_model("save", model)
    arrays = _fitting(model, params)
    kept = {
        "format": FORMAT,
        "version": jr.__version__,
        **_spec_or_why(model),
        "metadata": _as_json({} if metadata is None else metadata),
    }

    def write(unfinished: str) -> None:
        try:
            in_numpy.save_file(arrays, unfinished, {"jaxrnn": json.dumps(kept, allow_nan=False)})
        except library.SafetensorError as error:
            raise OSError(f"save: {os.fspath(path)!r} cannot be written: {error}.") from error

    write_atomically("save", path, write)


def load(
    path: str | os.PathLike[str], model: Cell | Layer | None = None
) -> tuple[Cell | Layer, PyTree, dict[str, Any]]:
    """Read a file that :func:`save` wrote.

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
        >>> from jaxrnn.interop.safetensors import load, save
        >>> cell = jr.lstm(3, 4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(os.path.join(folder, "cell.safetensors"), cell, cell.init(jax.random.key(0)))
        ...     layer, params, _ = load(os.path.join(folder, "cell.safetensors"), jr.scan(cell, plan="plain"))
        >>> layer.apply(params, jax.numpy.ones((7, 3)))[1].shape
        (7, 4)
    """
    if model is not None:
        check_model("load", model)
    with _opened("load", path) as (file, header):
        kept = kept_in("load", path, header)
        fix = "fetch or save the file once more" if model is None else "give the model that was saved"
        model, expected = model_of("load", path, kept, model)
        wanted = by_name("load", expected)
        title = f"load: the parameters in {os.fspath(path)!r} do not fit the model ({name_of(model)})"
        _check_fit(title, fix, header.tensors, wanted)
        arrays = [as_jax(a) for a in _read("load", path, file, header, wanted)]
    return model, jax.tree.unflatten(jax.tree.structure(expected), arrays), kept.get("metadata", {})


def check_model(who: str, model: Any) -> None:
    if not isinstance(model, Cell | Layer):
        raise TypeError(f"{who}: expected a Cell or a Layer as model, got {type(model).__name__}.")


# ---- parameters and names ----------------------------------------------------------------------


def by_name(who: str, tree: PyTree) -> dict[str, Any]:
    """A tree's leaves by name: their paths, as in ``0.forward.W_xh``.

    Raises:
        ValueError: two leaves of one name.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    # A lone array has an empty path, but should be told from a missing name.
    names = [jax.tree_util.keystr(path, simple=True, separator=".") or "params" for path, _ in leaves]
    ambiguous = [name for name, times in collections.Counter([*names, "__metadata__"]).items() if times > 1]
    if ambiguous:
        raise ValueError(
            f"{who}: the parameters' names {', '.join(ambiguous)} are ambiguous in a file, where a tensor is named by "
            f"its path, joined by points; rename those keys."
        )
    return {name: leaf for name, (_, leaf) in zip(names, leaves, strict=True)}


def _fitting(model: Cell | Layer, params: PyTree) -> dict[str, np.ndarray]:
    """Parameters by name, in NumPy, once they are seen to be those of the model."""
    expected = _expected(model)
    leaves = by_name("save", params)
    for name, leaf in leaves.items():
        _check_array(name, leaf)
    fix = "pass what this model's own init(key) gave, as it is or trained"
    _check_fit(f"save: params do not fit the model ({name_of(model)})", fix, leaves, by_name("save", expected))
    check_params(f"save: {name_of(model)}", params, expected)  # a list in place of a tuple, say
    return {name: np.asarray(leaf, order="C") for name, leaf in leaves.items()}


def _expected(model: Cell | Layer) -> PyTree:
    """What the model's ``init`` gives, as shapes and dtypes."""
    return jax.eval_shape(model.init, jax.random.key(0))


def _check_array(name: str, leaf: Any) -> None:
    """An array that a file can hold."""
    if isinstance(leaf, jax.core.Tracer):
        raise TypeError(f"save: params {name} is traced and has no value yet; call save outside of jit, grad and vmap.")
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        raise TypeError(f"save: params {name} must be an array, got {type(leaf).__name__}; use jnp.asarray.")
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise TypeError(
            f"save: params {name} is a PRNG key ({leaf.dtype}), which is no tensor: its bits mean nothing without the "
            f"generator's name; keep jax.random.key_data(key) in its place, and jax.random.wrap_key_data it after load."
        )
    if leaf.dtype.name not in DTYPES.values():
        raise TypeError(
            f"save: params {name} is {leaf.dtype}, which a file cannot hold; cast it to one of "
            f"{', '.join(DTYPES.values())}."
        )


def _check_fit(title: str, fix: str, got: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Names, shapes and kinds of numbers agree; values have ``shape`` and ``dtype``."""
    faults = [f"{name} is missing, {_outline(a)}" for name, a in wanted.items() if name not in got]
    faults += [f"{name}, {_outline(a)}, is none of them" for name, a in got.items() if name not in wanted]
    for name in wanted.keys() & got.keys():
        ours, theirs = wanted[name], got[name]
        if tuple(ours.shape) != tuple(theirs.shape) or _kind(ours.dtype) != _kind(theirs.dtype):
            faults.append(f"{name} should be {_outline(ours)}, got {_outline(theirs)}")
    if faults:
        raise ValueError(f"{title}: {_few(sorted(faults), '; ')}. Fix: {fix}.")


def _outline(a: Any) -> str:
    return f"{a.dtype} {tuple(a.shape)}"


def _kind(dtype: Any) -> str:
    """Kinds of numbers that no cast may confuse; widths may differ."""
    try:
        dtype = jnp.dtype(dtype)
    except TypeError:  # a PRNG key, or one that NumPy lacks
        return str(dtype)
    kinds = (jnp.floating, jnp.integer, jnp.complexfloating)
    return next((kind.__name__ for kind in kinds if jnp.issubdtype(dtype, kind)), dtype.name)


# ---- jaxrnn's text in the metadata -------------------------------------------------------------


def _spec_or_why(model: Cell | Layer) -> dict[str, Any]:
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


def _as_json(metadata: Mapping[str, Any]) -> dict[str, Any]:
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
        holds = [f"{name} {_outline(tensor)}" for name, tensor in header.tensors.items()]
        raise ValueError(
            f"{who}: {os.fspath(path)!r} is a safetensors file, but not one that jaxrnn saved (its metadata lack "
            f"jaxrnn); it holds {_few(holds) or 'no tensors'}; {fix}."
        )
    try:
        kept = json.loads(header.metadata["jaxrnn"], parse_constant=int)  # which raises: NaN is no JSON
        if not isinstance(kept, dict) or not isinstance(kept.get("metadata", {}), dict):
            raise ValueError("expected a dict with a dict of metadata")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{who}: jaxrnn's part of the metadata in {os.fspath(path)!r} is damaged: {error}.") from error
    if kept.get("format") != FORMAT:
        raise ValueError(
            f"{who}: {os.fspath(path)!r} has the format {kept.get('format')!r} of jaxrnn {kept.get('version')}, and "
            f"this is jaxrnn {jr.__version__}, which reads {FORMAT}; upgrade jaxrnn."
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
        return model, _expected(model)
    try:
        spec = Spec.from_dict(kept["spec"])
        rebuilt = build(spec)
        check_model(who, rebuilt)  # a Plan has a spec too
        model = rebuilt if model is None else model
        expected = _expected(model)
    except Exception as error:  # a file can say anything, and factories are made for what code says
        raise ValueError(
            f"{who}: the model in {os.fspath(path)!r} cannot be rebuilt: {str(error).removesuffix('.')}. It was saved "
            f"by jaxrnn {kept.get('version')}; upgrade jaxrnn if that is newer than {jr.__version__}."
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
    defaults = inspect.signature(getattr(jr, spec.kind)).parameters
    options = {
        name: value
        for name, value in spec.options
        if name not in NO_EQUATION and not name.endswith("_init") and value != defaults[name].default
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


# ---- files -------------------------------------------------------------------------------------


def read_header(who: str, path: str | os.PathLike[str]) -> Header:
    """What any safetensors file says of itself."""
    with _opened(who, path) as (_, header):
        return header


def read_tensors(who: str, path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of any safetensors file, in NumPy."""
    with _opened(who, path) as (file, header):
        return dict(zip(header.tensors, _read(who, path, file, header, header.tensors), strict=True))


@contextlib.contextmanager
def _opened(who: str, path: str | os.PathLike[str]) -> Iterator[tuple[Any, Header]]:
    """The file, opened by the library, which judges the header against the format and the size of the file."""
    library = needs("safetensors", "interop")
    _check_regular(who, path)
    with open(path, "rb") as plain:  # the library says of whatever it cannot open that it is not there
        size = os.fstat(plain.fileno()).st_size
    try:
        # pread: mapped memory would count twice while it is copied, and kill the process if the file is cut meanwhile.
        with library.safe_open(path, framework="np", backend="pread") as file:
            tensors = {name: _tensor(file.get_slice(name)) for name in file.offset_keys()}
            yield file, Header(tensors, file.metadata() or {})
    except library.SafetensorError as error:
        what = str(error).removeprefix("Error while deserializing header: ")
        raise ValueError(
            f"{who}: {os.fspath(path)!r} ({size:,} bytes) is no sound safetensors file: {what}. If it was one, it was "
            f"cut short or changed; save or fetch it once more."
        ) from error


def _tensor(view: Any) -> Tensor:
    code = view.get_dtype()
    return Tensor(tuple(view.get_shape()), DTYPES.get(code, code))


def _read(who: str, path: Any, file: Any, header: Header, names: Iterable[str]) -> Iterator[np.ndarray]:
    """The named tensors, one after the other."""
    dtypes = {name: header.tensors[name].dtype for name in names}
    if unknown := [f"{name} ({dtype})" for name, dtype in dtypes.items() if dtype not in DTYPES.values()]:
        raise ValueError(
            f"{who}: {os.fspath(path)!r} holds dtypes that jaxrnn does not read: {_few(unknown)}; cast the tensors "
            f"before they are saved."
        )
    whole: dict[str, Any] = {}
    if any(dtype.startswith("float8") for dtype in dtypes.values()):  # the library looks for them in NumPy, in vain
        with open(path, "rb") as plain:
            whole = dict(needs("safetensors", "interop").deserialize(plain.read()))
    for name, dtype in dtypes.items():
        if whole:
            a = np.frombuffer(whole[name]["data"], jnp.dtype(dtype)).reshape(whole[name]["shape"])
        else:
            a = file.get_tensor(name)
        if dtype == "bool" and a.view(np.uint8).max(initial=0) > 1:
            raise ValueError(f"{who}: {name} in {os.fspath(path)!r} is boolean, but has bytes other than 0 and 1.")
        yield a


def write_atomically(who: str, path: str | os.PathLike[str], write: Callable[[str], Any]) -> None:
    """Give a file its name when ``write``, which takes a path, has written it and it is on disk."""
    target = os.path.realpath(path)  # a symbolic link stays one
    _check_regular(who, path)
    if os.path.exists(target) and not os.access(target, os.W_OK):  # as open would; a rename does not ask
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, f"{who}: cannot write in a folder that is not there", folder)
    with tempfile.TemporaryDirectory(prefix=".jaxrnn-", dir=folder) as private:
        unfinished = os.path.join(private, "unfinished")
        with open(unfinished, "wb"):
            mode = os.stat(target if os.path.exists(target) else unfinished).st_mode
        write(unfinished)
        with open(unfinished, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(unfinished, stat.S_IMODE(mode))  # the library makes private files
        os.replace(unfinished, target)


def _check_regular(who: str, path: str | os.PathLike[str]) -> None:
    if os.path.exists(path) and not os.path.isfile(path):
        what = "a directory" if os.path.isdir(path) else "no regular file"
        raise ValueError(f"{who}: {os.fspath(path)!r} is {what}; give the name of a file.")


def _few(items: Sequence[str], joint: str = ", ") -> str:
    more = [f"and {len(items) - 5} more"] if len(items) > 5 else []
    return joint.join([*items[:5], *more])
