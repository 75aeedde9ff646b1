"""``python -m jaxrnn convert SOURCE TARGET``: the same weights in another file format.

What a source is, its content says, or else its suffix; what is written, the target's suffix: ``.safetensors`` is
jaxrnn's own, the others are those of the converters, which say by which options they are read. No code that a file
brings is run.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import jaxrnn as jr
from jaxrnn.commands._terminal import STATUS, format_of, guarded, say, suffix_of
from jaxrnn.commands.inspect import OURS, count, dtypes, sources, suffixes, tensors_of
from jaxrnn.interop.registry import Loaded, Option, formats
from jaxrnn.saving.files import read_header, write_atomically
from jaxrnn.saving.records import described, kept_in


def add_command(commands: Any) -> None:
    """Add ``convert`` to the subcommands of ``python -m jaxrnn``."""
    foreign = formats().get(OURS)
    parser = commands.add_parser(
        "convert",
        help="convert weights from one file format to another",
        description="Read a model with its weights and write it in another format, as its suffix says: from "
        f"{', '.join(sources())} to {' or '.join(suffixes())}. A {OURS} source is jaxrnn's own"
        + (f", or holds {foreign.title} as the safetensors library writes them." if foreign else "."),
        epilog=STATUS,
    )
    parser.add_argument("source", metavar="SOURCE", help="the file to read")
    parser.add_argument("target", metavar="TARGET", help="the file to write")
    parser.add_argument("--force", action="store_true", help="replace TARGET where it exists")
    for name, (titles, option) in _options().items():
        parser.add_argument(f"--{name}", choices=option.choices, help=f"of {titles}: {option.help}")

    def run(arguments: Any) -> int:
        options = {name: value for name in _options() if (value := getattr(arguments, name)) is not None}
        return guarded("convert", lambda: convert(arguments.source, arguments.target, arguments.force, **options))

    parser.set_defaults(run=run)


def convert(source: str, target: str, force: bool = False, **options: str) -> None:
    """Write the model in one file into another, and print what was written.

    Args:
        source, target: the files; the target's suffix says its format, the source's where its content does not.
        force: replace a target that exists.
        options: what the source does not say, as its format's ``options`` name it.

    Raises:
        ValueError: suffixes that are not known, a target that exists, models that the target cannot hold.
    """
    kind, wanted = format_of("convert", source, sources()), suffix_of("convert", target, suffixes())
    if not os.path.isfile(source):
        raise ValueError(f"convert: {source!r} is {'no file' if os.path.exists(source) else 'not there'}.")
    if os.path.exists(target) and os.path.samefile(source, target):
        raise ValueError(f"convert: {source!r} and {target!r} are one file; name another target.")
    if os.path.lexists(target) and not force:
        raise ValueError(f"convert: {target!r} exists; name another target, or replace it with --force.")
    loaded, metadata = _read(kind, source, options)
    for note in loaded.notes:
        say(note, file=sys.stderr)
    if wanted == OURS:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            jr.save(target, loaded.model, loaded.params, metadata)
        for warning in told:  # that the parameters are kept alone
            say(str(warning.message), file=sys.stderr)
    else:
        write = formats()[wanted].write
        assert write is not None
        write_atomically("convert", target, lambda path: write(path, loaded.model, loaded.params))
    tensors = tensors_of(loaded.params)
    made = described(loaded.model.spec) if loaded.model.spec else "a model of one's own"
    say(f"{target}: {made}, {count(tensors):,} parameters, {dtypes(tensors)}")


def _read(kind: str, source: str, options: dict[str, str]) -> tuple[Loaded, dict[str, Any]]:
    """The model in a file, and the metadata that the user gave to ``save``."""
    header = read_header("convert", source) if kind == OURS else None
    format = None if header is not None and header.is_ours else formats().get(kind)
    known = {} if format is None else format.options
    if strange := [name for name in options if name not in known]:
        titles = " and ".join(dict.fromkeys(_options()[name][0] for name in strange))
        flags = " and ".join(f"--{name}" for name in strange)
        raise ValueError(f"convert: {flags} are for {titles}, which {source!r} is not.")
    if format is not None:
        return format.read(source, **{name: options.get(name) for name in known}), {}
    assert header is not None
    kept_in("convert", source, header)  # says what the file is where it is not ours
    model, params, metadata = jr.load(source)
    return Loaded(model, params), metadata


def _options() -> dict[str, tuple[str, Option]]:
    """Every option that a format is read by, with the title of that format."""
    return {name: (format.title, option) for format in formats().values() for name, option in format.options.items()}
