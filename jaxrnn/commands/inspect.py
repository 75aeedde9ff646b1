"""``python -m jaxrnn inspect FILE``: what a file of weights holds.

The layers of the model with their cells, options, conventions and parameter counts, and the tensors. Nothing that runs
code when it is opened is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

import jaxrnn as jr
from jaxrnn._base import PyTree
from jaxrnn._spec import Spec, defaults_of
from jaxrnn.commands._terminal import STATUS, guarded, say, suffix_of
from jaxrnn.interop.registry import formats
from jaxrnn.saving.files import Header, Tensor, read_header
from jaxrnn.saving.parameters import by_name
from jaxrnn.saving.records import described, kept_in, model_of

OURS = ".safetensors"


def add_command(commands: Any) -> None:
    """Add ``inspect`` to the subcommands of ``python -m jaxrnn``."""
    parser = commands.add_parser(
        "inspect",
        help="show what a file of weights holds",
        description="Print the layers of a model with their cells, options, conventions and parameter counts, and the "
        "tensors with their shapes and dtypes. Of safetensors files that jaxrnn did not save: the tensors.",
        epilog=STATUS,
    )
    parser.add_argument("file", metavar="FILE", help=f"a file with the suffix {' or '.join(suffixes())}")
    parser.set_defaults(run=lambda arguments: guarded("inspect", lambda: show(arguments.file)))


def suffixes() -> list[str]:
    """Of the files that jaxrnn writes: its own, and those of converters that write files."""
    return [OURS, *(suffix for suffix, format in formats().items() if format.write is not None)]


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
    if (suffix := suffix_of("inspect", path, suffixes())) != OURS:
        format = formats()[suffix]
        size = f"{os.path.getsize(path):,} bytes" if os.path.isfile(path) else "no file"
        if parts_in := format.parts(path) if format.parts else ():
            say(f"{path}: {format.title}, {size}\n\nrecurrent nodes\n" + "\n".join(f"  {line}" for line in parts_in))
        try:
            model, params, _ = format.read(path)
        except ValueError as error:
            if not parts_in:
                raise
            say(f"\nnot one layer: {error}")
            return
        spec, tensors = model.spec, tensors_of(params)
        say("\nas jaxrnn loads it" if parts_in else f"{path}: {format.title}, {size}; as jaxrnn loads it")
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
    return dict(spec.options).get(name, defaults_of(spec.kind).get(name))


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


def conventions(part: Part) -> str:
    """What libraries do in different ways, in words: gate order, carry, reset, biases. Empty for what has none."""
    spec, own = part.spec, {name.rpartition(".")[2] for name in part.tensors}
    order = jr.cells.gate_order(spec.kind)
    words = [f"gates {' '.join(order)}"] if order else []
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
