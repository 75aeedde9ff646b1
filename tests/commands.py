"""The commands of ``python -m jaxrnn`` run in this process, and what they print."""

import json

from jaxrnn.__main__ import main


def run_command(capsys, *arguments):
    """The exit status, what was printed, and the lines of errors."""
    status = main(list(map(str, arguments)))
    printed = capsys.readouterr()
    return status, printed.out, printed.err.splitlines()


def lines_of(report, start):
    return [line for line in report.splitlines() if line.startswith(start)]


def words_of(report, start):
    (line,) = lines_of(report, start)
    return line.split()


def write(path, tensors):
    """A safetensors file as the format says it, without the library."""
    header, end = {}, 0
    for name, a in tensors.items():
        header[name] = {"dtype": "F64", "shape": a.shape, "data_offsets": [end, end + a.nbytes]}
        end += a.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(a.tobytes() for a in tensors.values()))
