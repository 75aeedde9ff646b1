"""``python -m jaxrnn inspect FILE``: what a file of weights holds.

The layers of the model with their cells, options, conventions and parameter counts, and the tensors. Nothing that runs
code when it is opened is read.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

import jaxrnn as jr
from jaxrnn._base import PyTree
from jaxrnn._spec import Spec, defaults_of
from jaxrnn.commands._terminal import STATUS, format_of, guarded, say
from jaxrnn.interop.registry import formats
from jaxrnn.saving.digests import check_tensor, has_digests
from jaxrnn.saving.files import Tensor, check_readable, opened, read_named
from jaxrnn.saving.parameters import by_name
from jaxrnn.saving.records import described, entries_of, fitting_model, kept_in

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
    parser.add_argument("file", metavar="FILE", help=f"a file with the suffix {', '.join(sources())}")
    parser.set_defaults(run=lambda arguments: guarded("inspect", lambda: show(arguments.file)))


def suffixes() -> list[str]:
    """Of the files that jaxrnn writes: its own, and those of converters that write files."""
    return [OURS, *(suffix for suffix, format in formats().items() if format.write is not None)]


def sources() -> list[str]:
    """The suffixes of the files that are read: what is written comes first."""
    return list(dict.fromkeys([*suffixes(), *formats()]))


class Part(NamedTuple):
    """A cell of a model, and where its parameters stand."""

    name: str  # of the layer, as the tensors' names begin
    spec: Spec
    around: tuple[str, ...]  # what it is wrapped in, from the outside
    tensors: dict[str, Tensor]


def show(path: str) -> None:
    """Print what a file holds, once all of it is known.

    Raises:
        ValueError: files that are damaged or of no known format.
    """
    check_readable("inspect", path)
    suffix = format_of("inspect", path, sources())
    if suffix != OURS:
        format = formats()[suffix]
        size = f"{os.path.getsize(path):,} bytes"
        report = [f"{path}: {format.title}, {size}"]
        if parts_in := format.parts(path) if format.parts else ():
            report += ["", "recurrent nodes", *(f"  {line}" for line in parts_in)]
        try:
            model, params, _ = format.read(path, **dict.fromkeys(format.options))
        except ValueError as error:
            if not parts_in:
                raise
            say("\n".join([*report, "", f"not one layer: {error}"]))
            return
        report += ["", "as jaxrnn loads it"]
        tensors = tensors_of(params)
        report += _layers(model.spec, tensors) if model.spec is not None else []
    else:
        report, tensors = _safetensors("inspect", path)
    own = [(name, str(tensor.shape), tensor.dtype, f"{tensor.size:,}") for name, tensor in tensors.items()]
    report += ["", table(("tensor", "shape", "dtype", "numbers"), own, right=(3,))]
    report += ["", f"{count(tensors):,} parameters in {len(tensors)} tensors, {dtypes(tensors)}"]
    say("\n".join(report))


def _safetensors(who: str, path: str) -> tuple[list[str], dict[str, Tensor]]:
    """Of a safetensors file the lines about the whole and about each model, and the tensors."""
    size = f"{os.path.getsize(path):,} bytes"
    with opened(who, path) as (file, header):
        if not header.is_ours:
            lines = [
                f"{path}: safetensors, {size}; foreign: not saved by jaxrnn, so its tensors are shown and no model"
            ]
            texts = sorted(header.metadata.items())
            return lines + [f"metadata  {name}: {' '.join(text.split())}" for name, text in texts], header.tensors
        kept = kept_in(who, path, header)
        lines = [f"{path}: safetensors, {size}; saved by jaxrnn {kept.get('version')}, format {kept['format']}"]
        if has_digests(kept):
            for name, a in zip(header.tensors, read_named(who, path, file, header, header.tensors), strict=True):
                check_tensor(who, path, kept, name, a)
            lines.append(f"digests: all {len(header.tensors)} tensors are as they were saved (sha256)")
        else:
            lines.append("digests: none; a changed bit is not seen")
    metadata = kept.get("metadata", {}).items()
    lines += [f"metadata  {name}: {json.dumps(value, ensure_ascii=False)}" for name, value in metadata]
    for name, entry in entries_of(kept).items():
        if "spec" in entry:
            model, _ = fitting_model(who, path, kept, header, name=name)
            assert model.spec is not None
            lines += _layers(model.spec, header.tensors, name)
        else:
            lines.append(f"no model{f' {name}' if name else ''}: {entry.get('no_spec', 'the file has no spec')}")
    return lines, header.tensors


def _layers(spec: Spec, tensors: Mapping[str, Tensor], name: str = "") -> list[str]:
    """A model, its cells as a table, and their conventions."""
    parts = parts_of(spec, tensors, name)
    rows = [
        (part.name, _in_words(part), _sizes(part.spec), f"{count(part.tensors):,}", dtypes(part.tensors))
        for part in parts
    ]
    said = {f"  {part.spec.kind}: {conventions(part)}" for part in parts if conventions(part)}
    lines = ["", f"model{f' {name}' if name else ''}: {described(spec)}", ""]
    lines.append(table(("layer", "cell", "sizes", "parameters", "dtype"), rows, right=(3,)))
    return [*lines, "", "conventions", *sorted(said)] if said else lines


def tensors_of(params: PyTree) -> dict[str, Tensor]:
    """The arrays of a params tree by name."""
    return {name: Tensor(a.shape, str(a.dtype)) for name, a in by_name("inspect", params).items()}


def parts_of(spec: Spec, tensors: Mapping[str, Tensor], name: str = "") -> list[Part]:
    """The cells of a model, in the order of its parameters, which begin with its name."""

    def walk(spec: Spec, owner: str, prefix: str, around: tuple[str, ...]) -> list[Part]:
        if spec.kind in ("stack", "chain", "branch"):
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

    before = f"{name}." if name else ""
    return walk(spec, before, before, ())


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
    carry = _carry_of(spec)
    if not jax.tree.leaves(carry):
        return ""
    order = _blocks(spec)
    words = [f"gates {' '.join(order)}"] if order else []
    words.append(f"carry ({', '.join(carry._fields)})" if hasattr(carry, "_fields") else f"carry {_bare(spec)}")
    if spec.kind in ("gru", "conv_gru"):
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


def _blocks(spec: Spec) -> tuple[str, ...]:
    """The gates that the fused arrays of this cell have, in their order."""
    order = jr.cells.gate_order(spec.kind)
    if spec.kind == "qrnn":
        return tuple(gate for gate in order if gate == "n" or gate in option(spec, "pooling"))
    return () if option(spec, "gated") is False else order


def _bare(spec: Spec) -> str:
    """What the equations of a cell call a carry that is one array."""
    if spec.kind == "ctrnn":
        return {"rate": "r", "current": "x"}[option(spec, "form")]
    return "c" if spec.kind in ("qrnn", "sru") else "h"


@functools.lru_cache
def _carry_of(spec: Spec) -> PyTree:
    """As shapes; a model may have a cell thousands of times."""
    cell = jr.build(spec)
    return jax.eval_shape(lambda: cell.initial_carry(cell.init(jax.random.key(0)), ()))


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
