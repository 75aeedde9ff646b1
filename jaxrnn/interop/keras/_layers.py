"""Keras layers from what a file says of them, written by any version of Keras: with its weights, none of its code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from jaxrnn.interop.conversion import refuse
from jaxrnn.interop.keras._chains import chain_of
from jaxrnn.interop.keras._names import activation_named

Config = Mapping[str, Any]
RECURRENT = {"SimpleRNN": 1, "LSTM": 4, "GRU": 3, "CuDNNLSTM": 4, "CuDNNGRU": 3}  # and their gates
# What Keras 1 called the options.
OLD_NAMES = {
    "output_dim": "units",
    "inner_activation": "recurrent_activation",
    "bias": "use_bias",
    "dropout_W": "dropout",
    "dropout_U": "recurrent_dropout",
    "p": "rate",
}


class Stored:
    """A file's layers: their configs, the arrays of each layer of the outermost model, Keras' major version."""

    def __init__(self, keras: ModuleType, who: str, arrays: Mapping[str, Sequence[np.ndarray]], version: int):
        self.keras, self.who, self.version = keras, who, version
        self._arrays = arrays
        self._own: Iterator[np.ndarray] = iter(())  # of the outermost layer that is being made

    def model(self, config: Config) -> list[Any]:
        """The layers of a Sequential or a chain, built, with their weights."""
        layers: list[Any] = []
        for name, child in self._children(config):
            own = self._arrays.get(name, ())
            self._own = iter(own)
            layers += self._layers(child)
            if rest := [a.shape for a in self._own]:
                raise ValueError(f"{self.who}: {name} has {len(own)} arrays, of which {rest} belong to no part of it.")
        return layers

    def fill(self, layer: Any, name: str) -> None:
        """Give a built layer the arrays that stand under a name."""
        self._own = iter(self._arrays[name])
        kl = self.keras.layers
        if isinstance(layer, kl.Bidirectional):
            runs = (layer.forward_layer, layer.backward_layer)
            weights = [a for run in runs for a in self._weights_of(run, type(run).__name__)]
        elif isinstance(layer, kl.RNN):
            weights = self._weights_of(layer, type(layer).__name__)
        else:
            weights = []
        weights += self._own
        self._check(name, [a.shape for a in weights] == [w.shape for w in layer.get_weights()])
        layer.set_weights(weights)

    def _children(self, config: Config) -> list[tuple[str, Config]]:
        own = config["config"]
        if isinstance(own, list):  # a Sequential as Keras 1 and 2 began it
            return [(child["config"].get("name", ""), child) for child in own]
        children = {child.get("name", child["config"].get("name")): child for child in own["layers"]}
        if "output_layers" not in own:
            return list(children.items())
        return [(name, children[name]) for name in chain_of(self.who, own)]

    def _layers(self, config: Config) -> list[Any]:
        kind, own = config["class_name"], config["config"]
        if kind in ("Sequential", "Functional", "Model"):
            children = [child for _, child in self._children(config)]
            inner = [child["config"] for child in children if isinstance(child["config"], dict)]
            if len({options.get("trainable", True) for options in inner if "units" in options}) > 1:
                refuse(self.who, f"a {kind} in a model with a part that is frozen", "its arrays' order is not known")
            return [layer for child in children for layer in self._layers(child)]
        return [] if kind == "InputLayer" else [self._layer(kind, own)]

    def _layer(self, kind: str, own: Config) -> Any:
        own = {OLD_NAMES.get(name, name): value for name, value in own.items()} if self.version < 2 else own
        kl, name = self.keras.layers, str(own.get("name", kind))
        if kind in RECURRENT or kind == "RNN":
            layer = self._recurrent(kind, own)
            return self._filled(layer, self._weights_of(layer, kind))
        if kind == "Bidirectional":
            ahead = self._recurrent(own["layer"]["class_name"], own["layer"]["config"])
            back_config = own.get("backward_layer") or {
                **own["layer"],
                "config": own["layer"]["config"] | {"go_backwards": not own["layer"]["config"].get("go_backwards")},
            }
            back = self._recurrent(back_config["class_name"], back_config["config"])
            weights = self._weights_of(ahead, own["layer"]["class_name"])
            weights += self._weights_of(back, back_config["class_name"])
            merge = own.get("merge_mode", "concat")
            both = kl.Bidirectional(ahead, merge_mode=merge, backward_layer=back, dtype=_dtype(own), name=_safe(name))
            return self._filled(both, weights)
        if kind == "TimeDistributed":
            return kl.TimeDistributed(self._layer(own["layer"]["class_name"], own["layer"]["config"]), name=_safe(name))
        if kind in ("Dense", "TimeDistributedDense"):
            units, use_bias = own.get("units", own.get("output_dim")), own.get("use_bias", True)
            W = self._next(name, 2)
            weights = [W, self._next(name, 1)] if use_bias else [W]
            self._check(name, W.shape[1:] == (units,) and (not use_bias or weights[1].shape == (units,)))
            options = {"use_bias": use_bias, "activation": self._activation(own, "activation", "linear")}
            return self._filled(kl.Dense(units, kernel_initializer="zeros", **options, **self._common(own)), weights)
        if kind == "Embedding":
            table = self._next(name, 2)
            self._check(name, table.shape == (own["input_dim"], own.get("output_dim", own.get("units"))))
            masks = bool(own.get("mask_zero"))
            made = kl.Embedding(*table.shape, mask_zero=masks, embeddings_initializer="zeros", **self._common(own))
            made.build(None)
            made.set_weights([table])
            return made
        if kind == "Dropout":
            noise = own.get("noise_shape")
            return kl.Dropout(own["rate"], noise_shape=noise if noise is None else tuple(noise), **self._common(own))
        if kind == "Masking":
            return kl.Masking(own.get("mask_value", 0.0), name=_safe(name))
        known = "SimpleRNN, LSTM, GRU, CuDNNLSTM, CuDNNGRU, RNN, Bidirectional, Dense, Embedding, Dropout, Masking"
        refuse(self.who, f"{name} ({kind})", f"{known}, in Sequential and chains, are read; convert the rest apart")

    def _recurrent(self, kind: str, own: Config) -> Any:
        """A recurrent layer, not built."""
        name, kl = str(own.get("name", kind)), self.keras.layers
        how = {"go_backwards": bool(own.get("go_backwards")), "return_sequences": bool(own.get("return_sequences"))}
        if kind == "RNN":
            return kl.RNN(self._cell(own["cell"]), **how, **self._common(own))
        if kind not in RECURRENT:
            refuse(self.who, f"{name} ({kind})", f"of recurrent layers {', '.join(RECURRENT)} and RNN are read")
        made = kind.removeprefix("CuDNN")
        return getattr(kl, made)(**self._cell_options(kind, own), **how, **self._common(own))

    def _cell(self, config: Config) -> Any:
        kind, own = config["class_name"], config["config"]
        if kind == "StackedRNNCells":
            return self.keras.layers.StackedRNNCells([self._cell(cell) for cell in own["cells"]], **self._common(own))
        if kind.removesuffix("Cell") not in ("SimpleRNN", "LSTM", "GRU"):
            refuse(
                self.who, f"the cell {kind}", "of cells SimpleRNNCell, LSTMCell, GRUCell and StackedRNNCells are read"
            )
        options = self._cell_options(kind.removesuffix("Cell"), own) | self._common(own)
        return getattr(self.keras.layers, kind)(**options)

    def _cell_options(self, kind: str, own: Config) -> dict[str, Any]:
        own = {OLD_NAMES.get(name, name): value for name, value in own.items()} if self.version < 2 else own
        options = {
            "units": own["units"],
            "use_bias": own.get("use_bias", True),
            "activation": self._activation(own, "activation", "tanh"),
            "dropout": own.get("dropout") or 0.0,
            "recurrent_dropout": own.get("recurrent_dropout") or 0.0,
            "kernel_initializer": "zeros",  # Keras' own take seconds to compile
            "recurrent_initializer": "zeros",
        }
        if kind != "SimpleRNN":
            default = "sigmoid" if kind.startswith("CuDNN") else "hard_sigmoid"  # as it was where no file said it
            options["recurrent_activation"] = self._activation(own, "recurrent_activation", default)
        if kind in ("GRU", "CuDNNGRU"):
            options["reset_after"] = kind == "CuDNNGRU" or bool(own.get("reset_after"))
        return options

    def _activation(self, own: Config, option: str, default: str) -> Any:
        said = own.get(option, default)
        name = said.get("config") if isinstance(said, Mapping) and said.get("class_name") == "function" else said
        made = activation_named(self.keras, "linear" if name is None else name, self.version)
        if made is None:
            refuse(self.who, f"{own.get('name')}'s {option}={said!r}", "it is none of Keras' own functions")
        return made

    def _common(self, own: Config) -> dict[str, Any]:
        return {"dtype": _dtype(own), "name": _safe(str(own.get("name", "layer")))}

    def _weights_of(self, layer: Any, kind: str) -> list[np.ndarray]:
        """The arrays of a recurrent layer, as Keras 3 has them."""
        if isinstance(layer.cell, self.keras.layers.StackedRNNCells):
            cells = layer.cell.cells
            return [a for cell in cells for a in self._cell_weights(layer.name, cell, type(cell).__name__)]
        return self._cell_weights(layer.name, layer.cell, kind if kind != "RNN" else type(layer.cell).__name__)

    def _cell_weights(self, name: str, cell: Any, kind: str) -> list[np.ndarray]:
        kind, H = kind.removesuffix("Cell"), cell.units
        gates = RECURRENT[kind]
        parts = [self._next(name, None) for _ in range(3 if cell.use_bias else 2)]
        if gates > 1 and parts[0].shape[1:] == (H,):  # Keras 1: three arrays a gate, an LSTM's as i, c, f, o
            parts += [self._next(name, None) for _ in range(3 * (gates - 1))]
            order = {3: (0, 1, 2), 4: (0, 2, 1, 3)}[gates]
            parts = [np.concatenate([parts[3 * gate + part] for gate in order], axis=-1) for part in range(3)]
        kernel, recurrent, *bias = parts
        self._check(name, kernel.shape[1:] == (gates * H,) and recurrent.shape == (H, gates * H))
        cudnn = gates > 1 and [b.shape for b in bias] == [(2 * gates * H,)]
        shape = (2 * gates * H,) if cudnn else (2, gates * H) if getattr(cell, "reset_after", False) else (gates * H,)
        self._check(name, all(b.shape == shape for b in bias) and cudnn >= kind.startswith("CuDNN"))
        return from_cudnn(gates, *parts) if cudnn else parts

    def _next(self, name: str, ndim: int | None) -> np.ndarray:
        a = next(self._own, None)
        self._check(name, a is not None and ndim in (None, a.ndim))
        assert a is not None
        return a

    def _check(self, name: str, fits: bool) -> None:
        if not fits:
            raise ValueError(
                f"{self.who}: the arrays of {name} do not fit what the file says of it; it is damaged, or was written "
                f"by a version of Keras that is not known here."
            )

    def _filled(self, layer: Any, weights: list[np.ndarray]) -> Any:
        layer.build((None, None, weights[0].shape[0]))
        layer.set_weights(weights)
        return layer


def from_cudnn(gates: int, kernel: np.ndarray, recurrent: np.ndarray, *bias: np.ndarray) -> list[np.ndarray]:
    """The arrays of CuDNNLSTM or CuDNNGRU as those of LSTM or GRU(reset_after=True).

    cuDNN reads the bytes of a gate's kernel as a matrix (H, I) that multiplies a column, whatever shape (I, H) the
    array has; of the two biases an LSTM's are added, a GRU's stand apart.
    """
    H = recurrent.shape[0]
    kernels = [W.reshape(H, -1).T for W in np.split(kernel, gates, axis=1)]
    recurrents = [W.reshape(H, H).T for W in np.split(recurrent, gates, axis=1)]
    biases = [b.reshape(2, -1) for b in bias]
    biases = [b.sum(0) for b in biases] if gates == 4 else biases
    return [np.concatenate(kernels, axis=1), np.concatenate(recurrents, axis=1), *biases]


def _dtype(own: Config) -> str | None:
    """The name of a dtype, or of a policy as Keras 2 and 3 write it."""
    said = own.get("dtype")
    said = said.get("config", {}).get("name") if isinstance(said, Mapping) else said
    return said if isinstance(said, str) else None


def _safe(name: str) -> str:
    return name.replace("/", "_")
