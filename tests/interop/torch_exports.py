"""What PyTorch's exporters write of its recurrent layers: the files of ``FOLDER``, and any other on the spot.

The default exporter takes seconds for one, so tests read the files. ``python -m tests.interop.torch_exports`` writes
them anew, with onnxscript installed. Each says by which version of PyTorch it was written.
"""

import functools
import io
import itertools
import pathlib
import warnings

import numpy as np
import onnx

FOLDER = pathlib.Path(__file__).parent.parent / "fixtures" / "onnx_by_torch"
I, H, T, B, V, O = 5, 2, 4, 3, 7, 6  # all different, so that no size is taken for another
KINDS = ("RNN", "LSTM", "GRU")
EXPORTERS = ("old", "static", "dynamic")  # the one of TorchScript; torch.export without and with dynamic_shapes
OPSETS = range(17, 24)
NEWEST_OLD = 20  # the old exporter's last operator set

# (kind, exporter, operator set, layers, both ways, batch first): every two of these choices stand together in some row.
ROWS = [
    ("GRU", "dynamic", 18, 2, False, False),
    ("GRU", "dynamic", 20, 1, True, False),
    ("GRU", "dynamic", 21, 1, False, True),
    ("GRU", "dynamic", 23, 1, True, False),
    ("GRU", "old", 19, 2, False, False),
    ("GRU", "static", 17, 1, False, False),
    ("GRU", "static", 22, 1, True, True),
    ("LSTM", "dynamic", 19, 1, True, True),
    ("LSTM", "dynamic", 21, 1, False, True),
    ("LSTM", "dynamic", 22, 2, False, False),
    ("LSTM", "old", 17, 2, True, False),
    ("LSTM", "old", 18, 1, True, True),
    ("LSTM", "static", 20, 2, True, False),
    ("LSTM", "static", 23, 2, False, True),
    ("RNN", "dynamic", 17, 1, False, True),
    ("RNN", "dynamic", 23, 2, False, False),
    ("RNN", "old", 20, 2, False, True),
    ("RNN", "static", 18, 2, True, True),
    ("RNN", "static", 19, 1, False, False),
    ("RNN", "static", 21, 2, True, False),
    ("RNN", "static", 22, 1, False, True),
]


def name_of(row):
    kind, exporter, opset, layers, both, first = row
    return f"{kind}_{exporter}_{opset}_{layers}{'_both_ways' * both}{'_batch_first' * first}"


def possible(exporter, opset):
    return exporter != "old" or opset <= NEWEST_OLD


def every(kinds=KINDS, exporters=EXPORTERS, opsets=OPSETS):
    rows = itertools.product(kinds, exporters, opsets, (1, 2), (False, True), (False, True))
    return [row for row in rows if possible(*row[1:3])]


def layer_of(row):
    """The layer, with weights and biases that are drawn; half of the RNNs have ReLUs, every third layer no biases."""
    import torch

    kind, _, opset, layers, both, first = row
    more = {"nonlinearity": "relu" if (layers + first) % 2 else "tanh"} if kind == "RNN" else {}
    torch.manual_seed(opset)
    bias = opset % 3 != 0
    return getattr(torch.nn, kind)(I, H, layers, bidirectional=both, batch_first=first, bias=bias, **more)


def exported(row):
    """The bytes of the model."""
    import torch

    _, exporter, opset, _, _, first = row
    x = torch.ones((B, T, I) if first else (T, B, I))
    dims = {k: torch.export.Dim(name) for k, name in enumerate("BT" if first else "TB")}
    return written(layer_of(row), (x,), exporter, opset, (dims,))


def written(net, inputs, exporter, opset, dims):
    """The bytes of any network's model; ``dims`` are its inputs' sizes that stay open with "dynamic"."""
    import torch

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "old":
            options = {"input_names": ["x"], "dynamic_axes": {"x": {0: "first", 1: "second"}}}
            torch.onnx.export(net, inputs, file, dynamo=False, opset_version=opset, **options)
        else:
            shapes = dims if exporter == "dynamic" else None
            options = {"dynamo": True, "opset_version": opset, "dynamic_shapes": shapes, "verbose": False}
            torch.onnx.export(net, inputs, **options).save(file)
    return bare(onnx.load_model_from_string(file.getvalue()))


# ---- networks with more around the layer, as people train them -----------------------------------


def tagger():
    """Tokens (B, T) -> embedding -> LSTM both ways -> linear."""
    import torch

    class Tagger(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(V, I)
            self.lstm = torch.nn.LSTM(I, H, bidirectional=True, batch_first=True)
            self.linear = torch.nn.Linear(2 * H, O)

        def forward(self, tokens):
            return self.linear(self.lstm(self.embedding(tokens))[0])

    torch.manual_seed(1)
    open_sizes = {0: torch.export.Dim("B"), 1: torch.export.Dim("T")}
    return written(Tagger(), (torch.ones(B, T, dtype=torch.int64),), "dynamic", 18, (open_sizes,))


def states_passed(kind):
    """A layer of two levels, both ways, whose initial states are inputs."""
    import torch

    torch.manual_seed(2)
    state, dim = torch.ones(4, B, H), {1: torch.export.Dim("B")}
    lstm = kind == "LSTM"
    states, dims = ((state, 2 * state), (dim, dim)) if lstm else (state, dim)
    layer = getattr(torch.nn, kind)(I, H, 2, bidirectional=True)
    return written(layer, (torch.ones(T, B, I), states), "dynamic", 18, ({0: torch.export.Dim("T"), **dim}, dims))


NETS = {
    "tagger": tagger,
    "states_LSTM": functools.partial(states_passed, "LSTM"),
    "states_RNN": functools.partial(states_passed, "RNN"),
}


def bare(model):
    """The bytes of a model without what it says of the place where it was written."""
    graph = model.graph
    for entry in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        if "metadata_props" in entry.DESCRIPTOR.fields_by_name:
            del entry.metadata_props[:]
        entry.doc_string = ""
    return model.SerializeToString()


def stored(row):
    """The bytes of a file of ``FOLDER``, of a row or by its name."""
    return (FOLDER / f"{row if isinstance(row, str) else name_of(row)}.onnx").read_bytes()


def inputs_of(steps, sequences):
    return np.random.default_rng(steps).normal(size=(steps, sequences, I)).astype(np.float32)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for row in ROWS:
        if row[1] != "old":
            (FOLDER / f"{name_of(row)}.onnx").write_bytes(exported(row))
    for name, write in NETS.items():
        (FOLDER / f"{name}.onnx").write_bytes(write())
