"""What a file of weights holds, and the same weights in another format.

    python -m jaxrnn inspect FILE
    python -m jaxrnn convert SOURCE TARGET

The suffixes say what the files are: ``.safetensors`` (jaxrnn's, or a torch state dict), ``.onnx``, ``.keras``. Nothing
that runs code when it is opened is read.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax

import jaxrnn as jr
from jaxrnn._base import Cell, Layer, PyTree
from jaxrnn._spec import Spec
from jaxrnn.interop.conversion import needs
from jaxrnn.saving.files import Header, Tensor, read_header, read_tensors, write_atomically
from jaxrnn.saving.parameters import by_name
from jaxrnn.saving.records import described, kept_in, model_of

TARGETS = (".safetensors", ".onnx")
SOURCES = (*TARGETS, ".keras")

# What is refused, by its suffix, and the way round.
REFUSED = {
    **dict.fromkeys(
        (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"),
        "it is a pickle, which can run code when it is opened; in Python, read what you trust with torch.load(…, "
        "weights_only=True), then use jaxrnn.interop.torch.from_torch and jr.save",
    ),
    **dict.fromkeys(
        (".weights.h5", ".h5", ".hdf5"),
        "it holds weights without the layers' options; in Python, build the Keras model, load_weights, then "
        "model.save('….keras'), or jaxrnn.interop.keras.from_keras and jr.save",
    ),
}


# ---- the commands ------------------------------------------------------------------------------


def add_command(commands: Any) -> None:
    """Add ``inspect`` and ``convert`` to the subcommands of ``python -m jaxrnn``."""
    status = "The exit status is 0 where all went well, 1 for an error, 2 for wrong arguments."
    parser = commands.add_parser(
        "inspect",
        help="show what a file of weights holds",
        description="Print the layers of a model with their cells, options, conventions and parameter counts, and the "
        "tensors with their shapes and dtypes. Of safetensors files that jaxrnn did not save: the tensors.",
        epilog=status,
    )
    parser.add_argument("file", metavar="FILE", help=f"a file with the suffix {' or '.join(TARGETS)}")
    parser.set_defaults(run=lambda arguments: guarded("inspect", lambda: show(arguments.file)))

    parser = commands.add_parser(
        "convert",
        help="convert weights from one file format to another",
        description="Read a model with its weights and write it in another format, as the suffixes say: from "
        f"{', '.join(SOURCES)} to {' or '.join(TARGETS)}. A .safetensors source is jaxrnn's own, or a torch state dict "
        "as safetensors.torch writes it.",
        epilog=status,
    )
    parser.add_argument("source", metavar="SOURCE", help="the file to read")
    parser.add_argument("target", metavar="TARGET", help="the file to write")
    parser.add_argument("--force", action="store_true", help="replace TARGET where it exists")
    parser.add_argument(
        "--prefix", help="of a torch state dict: read the recurrent module whose keys start so, as encoder.rnn."
    )
    parser.add_argument(
        "--nonlinearity", choices=("tanh", "relu"), help="of an nn.RNN's state dict, which does not say it"
    )
    parser.set_defaults(run=lambda arguments: guarded("convert", lambda: convert(**_options(arguments))))


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in ("source", "target", "force", "prefix", "nonlinearity")}


def guarded(who: str, command: Callable[[], None]) -> int:
    """The exit status of a command; an error becomes one line."""
    try:
        with jax.enable_x64(True):  # weights keep their dtype
            command()
    except Exception as error:  # readers of other libraries raise anything
        known = isinstance(error, OSError) and error.strerror and error.filename
        text = f"{error.strerror}: {error.filename!r}" if known else str(error)  # type: ignore[attr-defined]
        text = " ".join(text.split()) or type(error).__name__
        say(text if text.startswith(f"{who}: ") else f"{who}: {text}", file=sys.stderr)
        return 1
    return 0


def say(text: str, file: TextIO | None = None) -> None:
    """Print lines; what a file says cannot steer the terminal."""
    print("".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text), file=file)


# ---- convert -----------------------------------------------------------------------------------


def convert(
    source: str, target: str, *, force: bool = False, prefix: str | None = None, nonlinearity: str | None = None
) -> None:
    """Write the model in one file into another, and print what was written.

    Args:
        source, target: the files; their suffixes say the formats.
        force: replace a target that exists.
        prefix, nonlinearity: of a torch state dict, as ``from_torch`` takes them.

    Raises:
        ValueError: suffixes that are not known, a target that exists, models that the target cannot hold.
    """
    kind, wanted = suffix_of("convert", source, SOURCES), suffix_of("convert", target, TARGETS)
    if not os.path.isfile(source):
        raise ValueError(f"convert: {source!r} is {'no file' if os.path.exists(source) else 'not there'}.")
    if os.path.exists(target) and os.path.samefile(source, target):
        raise ValueError(f"convert: {source!r} and {target!r} are one file; name another target.")
    if os.path.lexists(target) and not force:
        raise ValueError(f"convert: {target!r} exists; name another target, or replace it with --force.")
    metadata: dict[str, Any] = {}
    if kind == ".safetensors" and not read_header("convert", source).is_ours:
        model, params = _from_state_dict(source, prefix, nonlinearity)
    else:
        given = {"--prefix": prefix, "--nonlinearity": nonlinearity}
        if said := [name for name, value in given.items() if value is not None]:
            raise ValueError(f"convert: {' and '.join(said)} are for torch state dicts, which {source!r} is not.")
        model, params, metadata = READERS[kind](source)
    if wanted == ".safetensors":
        jr.save(target, model, params, metadata)
    else:
        from jaxrnn.interop.onnx import export

        learned = model.spec is not None and _is_learned(model.spec)
        proto = export(model, params, carry=not learned)  # a learned carry stands in the graph, and is no input of it
        write_atomically("convert", target, lambda path: Path(path).write_bytes(proto.SerializeToString()))
    tensors = tensors_of(params)
    made = described(model.spec) if model.spec else "a model of one's own"
    say(f"{target}: {made}, {count(tensors):,} parameters, {dtypes(tensors)}")


def _from_onnx(source: str) -> tuple[Cell | Layer, PyTree, dict[str, Any]]:
    from jaxrnn.interop.onnx import load

    return *load(source), {}


def _from_keras(source: str) -> tuple[Cell | Layer, PyTree, dict[str, Any]]:
    if not zipfile.is_zipfile(source):
        raise ValueError(f"convert: {source!r} is no .keras file, which is a zip archive; save or fetch it once more.")
    # Keras takes TensorFlow where nothing is said, installed or not; any backend reads weights.
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = needs("keras", "interop")
    from jaxrnn.interop.keras import from_keras

    theirs = keras.saving.load_model(source, compile=False, safe_mode=True)  # safe: no code that the file brings
    return *from_keras(theirs), {}


READERS: dict[str, Callable[[str], tuple[Cell | Layer, PyTree, dict[str, Any]]]] = {
    ".safetensors": jr.load,
    ".onnx": _from_onnx,
    ".keras": _from_keras,
}


def _from_state_dict(source: str, prefix: str | None, nonlinearity: str | None) -> tuple[Cell | Layer, PyTree]:
    """The recurrent module of a torch state dict."""
    from jaxrnn.interop.torch import from_torch

    header = read_header("convert", source)
    found = [re.fullmatch(r"(|.*\.)weight_ih(_l0)?", name) for name in header.tensors]
    modules = sorted({match[1] for match in found if match})
    if not modules:
        kept_in("convert", source, header)  # says what the file is
    if prefix is None and len(modules) > 1:
        raise ValueError(
            f"convert: {source!r} holds {len(modules)} recurrent modules; choose one with --prefix: "
            f"{', '.join(modules)}."
        )
    prefix = modules[0] if prefix is None else prefix
    if prefix not in modules:
        raise ValueError(f"convert: {source!r} has no {prefix}weight_ih_l0; --prefix may be {', '.join(modules)}.")
    state = read_tensors("convert", source)
    own = {name: a for name, a in state.items() if name.startswith(prefix)}
    model, params = from_torch(own, prefix=prefix, nonlinearity=nonlinearity)
    if nonlinearity is None and "elman" in _kinds(model.spec):
        raise ValueError(
            f"convert: {source!r} is the state dict of an nn.RNN, which does not say its nonlinearity; give "
            f"--nonlinearity tanh or relu, as the module had it."
        )
    if rest := [name for name in state if name not in own]:
        say(f"left out, as no part of {prefix or 'the recurrent module'}: {', '.join(rest)}", file=sys.stderr)
    return model, params


def _is_learned(spec: Spec) -> bool:
    return bool(dict(spec.options).get("learned_carry")) or any(map(_is_learned, spec.children))


def _kinds(spec: Spec | None) -> set[str]:
    return set() if spec is None else {spec.kind}.union(*map(_kinds, spec.children))


def suffix_of(who: str, path: str, known: Sequence[str]) -> str:
    """The suffix of a path, one of those known.

    Raises:
        ValueError: another one, with the way round where there is one.
    """
    name = os.path.basename(path).lower()
    for suffix in sorted(REFUSED, key=len, reverse=True):
        if name.endswith(suffix):
            raise ValueError(f"{who}: {path!r} is not taken: {REFUSED[suffix]}.")
    suffix = os.path.splitext(name)[1]
    if suffix not in known:
        raise ValueError(f"{who}: {path!r} should end with one of {', '.join(known)}, which say the format.")
    return suffix


# ---- inspect -----------------------------------------------------------------------------------


class Part(NamedTuple):
    """A cell of a model, and where its parameters stand."""

    name: str  # of the layer, as the tensors' names begin
    spec: Spec
    around: tuple[str, ...]  # what it is wrapped in, from the outside
    tensors: dict[str, Tensor]


def show(path: str) -> None:
    """Print what a file holds.

    Raises:
        ValueError: files that are damaged or of no known format.
    """
    spec: Spec | None
    if suffix_of("inspect", path, TARGETS) == ".onnx":
        model, params, _ = _from_onnx(path)
        spec, tensors = model.spec, tensors_of(params)
        say(f"{path}: ONNX, {os.path.getsize(path):,} bytes; as jaxrnn loads it")
    else:
        header = read_header("inspect", path)
        tensors = header.tensors
        spec = _show_header(path, header)
    if spec is not None:
        parts = parts_of(spec, tensors)
        say(f"\nmodel: {described(spec)}\n")
        rows = [
            (part.name, _in_words(part), _sizes(part.spec), f"{count(part.tensors):,}", dtypes(part.tensors))
            for part in parts
        ]
        say(table(("layer", "cell", "sizes", "parameters", "dtype"), rows, right=(3,)))
        lines = {f"  {part.spec.kind}: {conventions(part)}" for part in parts if conventions(part)}
        if lines:
            say("\nconventions\n" + "\n".join(sorted(lines)))
    say("")
    own = [(name, str(tensor.shape), tensor.dtype, f"{tensor.size:,}") for name, tensor in tensors.items()]
    say(table(("tensor", "shape", "dtype", "numbers"), own, right=(3,)))
    say(f"\n{count(tensors):,} parameters in {len(tensors)} tensors, {dtypes(tensors)}")


def _show_header(path: str, header: Header) -> Spec | None:
    """What the header of a safetensors file says of the whole; the model's spec, where there is one."""
    size = f"{os.path.getsize(path):,} bytes"
    if not header.is_ours:
        say(f"{path}: safetensors, {size}; foreign: not saved by jaxrnn, so its tensors are shown and no model")
        for name, text in sorted(header.metadata.items()):
            say(f"metadata  {name}: {' '.join(text.split())}")
        return None
    kept = kept_in("inspect", path, header)
    say(f"{path}: safetensors, {size}; saved by jaxrnn {kept.get('version')}, format {kept['format']}")
    for name, value in kept.get("metadata", {}).items():
        say(f"metadata  {name}: {json.dumps(value, ensure_ascii=False)}")
    if "spec" not in kept:
        say(f"no model: {kept.get('no_spec', 'the file has no spec')}")
        return None
    return model_of("inspect", path, kept)[0].spec


def tensors_of(params: PyTree) -> dict[str, Tensor]:
    """The arrays of a params tree by name."""
    return {name: Tensor(a.shape, str(a.dtype)) for name, a in by_name("inspect", params).items()}


def parts_of(spec: Spec, tensors: Mapping[str, Tensor]) -> list[Part]:
    """The cells of a model, in the order of its parameters."""

    def walk(spec: Spec, owner: str, prefix: str, around: tuple[str, ...]) -> list[Part]:
        if spec.kind in ("stack", "chain"):
            inner = [f"{prefix}{index}." for index in range(len(spec.children))]
        elif spec.kind == "bidirectional":
            inner = [f"{prefix}forward.", f"{prefix}backward."]
        elif len(spec.children) == 1:
            word = "reversed" if spec.kind == "scan" and option(spec, "reverse") else _word(spec)
            around = around if word == "scan" else (*around, word)
            keeps_own = any(name.startswith(f"{prefix}cell.") for name in tensors)  # beside those of its cell
            return walk(spec.children[0], owner, f"{prefix}cell." if keeps_own else prefix, around)
        else:
            held = {name: tensor for name, tensor in tensors.items() if name.startswith(owner)}
            return [Part(owner.removesuffix(".") or "-", spec, around, held)]
        words = [around] * len(inner)
        if spec.kind == "bidirectional":
            words[1] = (*around, "reversed")
        parts: list[Part] = []
        for child, name, wrapped in zip(spec.children, inner, words, strict=True):
            parts += walk(child, name, name, wrapped)
        return parts

    return walk(spec, "", "", ())


SIZES = ("input_size", "hidden_size", "output_size", "vocabulary_size")


def option(spec: Spec, name: str) -> Any:
    """An option of a spec, or its factory's default; None where the factory has no such option."""
    parameter = inspect.signature(getattr(jr, spec.kind)).parameters.get(name)
    return dict(spec.options).get(name, parameter.default if parameter else None)


def _word(spec: Spec) -> str:
    """A kind with its options, but for its sizes: ``leaky(rate=0.1)``."""
    options = [f"{name}={value!r}" for name, value in spec.options if name not in SIZES]
    return f"{spec.kind}({', '.join(options)})" if options and spec.kind != "scan" else spec.kind


def _in_words(part: Part) -> str:
    return ", ".join((_word(part.spec), *(word if word == "reversed" else f"in {word}" for word in part.around)))


def _sizes(spec: Spec) -> str:
    """``I -> H``, and ``-> O`` where the output is another; what is not known is left out."""
    sizes = [option(spec, name) for name in ("vocabulary_size", "input_size", "hidden_size", "output_size")]
    return " -> ".join(str(size) for size in sizes if isinstance(size, int)) or "-"


GATES = {
    "lstm": "i f g o",
    "peephole_lstm": "i f g o",
    "conv_lstm": "i f g o",
    "cifg_lstm": "f g o",
    "gru": "r z n",
    "mgu": "f n",
}


def conventions(part: Part) -> str:
    """What libraries do in different ways, in words: gate order, carry, reset, biases. Empty for what has none."""
    spec, own = part.spec, {name.rpartition(".")[2] for name in part.tensors}
    words = [f"gates {GATES[spec.kind]}"] if spec.kind in GATES else []
    cell = jr.build(spec)
    carry = jax.eval_shape(lambda: cell.initial_carry(cell.init(jax.random.key(0)), ()))
    if not jax.tree.leaves(carry):
        return ""
    words.append(f"carry ({', '.join(carry._fields)})" if hasattr(carry, "_fields") else "carry h")
    if spec.kind == "gru":
        words += [f"reset {option(spec, 'reset')} the product", "z multiplies the candidate"]
    if spec.kind == "mgu":
        words += [f"reset={option(spec, 'reset')!r}", f"keep={option(spec, 'keep')!r}"]
    if spec.kind == "cifg_lstm":
        words.append("i = 1 - f")
    if spec.kind == "peephole_lstm":
        words.append(f"{option(spec, 'peephole')} peepholes")
    if "b_hh" in own:
        words.append("biases b, and b_hh inside the reset product")
    else:
        words.append("one bias b" if "b" in own else "no bias")
    if option(spec, "learned_carry"):
        words.append("initial carry learned")
    return "; ".join(words)


def count(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.size for tensor in tensors.values())


def dtypes(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(sorted({tensor.dtype for tensor in tensors.values()})) or "-"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Columns as wide as they need to be, those of numbers aligned on the right."""
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    cells = [
        [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    ]
    return "\n".join("  ".join(line).rstrip() for line in cells)
