"""torch.nn's modules, with packed sequences."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from experiments.parity.compare import Draw, H, I, Make, Outcome, Source, T, in_words
from jaxrnn._base import flatten


def torch_source(kind: str, layers: int, directions: int, options: dict[str, Any], draw: Draw) -> Source:
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    from jaxrnn.interop.torch import from_torch

    dtype = getattr(torch, draw(1).dtype.name)
    net = getattr(torch.nn, kind)(I, H, layers, bidirectional=directions == 2, **options).to(dtype)
    names = list(net.state_dict())
    weights = [draw(*w.shape) for w in net.state_dict().values()]

    def loaded(weights):
        net.load_state_dict({name: torch.tensor(w) for name, w in zip(names, weights, strict=True)})
        return net

    def run(weights, xs, carry, lengths, loss):
        _, w_carry, w_ys = loss
        leaves, treedef = flatten(carry)
        parts = 2 if kind == "LSTM" else 1  # our leaves come layer by layer, direction by direction: h, c, h, c …
        states = [torch.tensor(np.stack(leaves[n::parts]), requires_grad=True) for n in range(parts)]
        inputs, module = torch.tensor(xs, requires_grad=True), loaded(weights)
        module.zero_grad()
        packed = pack_padded_sequence(inputs, torch.tensor(lengths), enforce_sorted=False)
        packed, end = module(packed, tuple(states) if parts == 2 else states[0])
        ys, _ = pad_packed_sequence(packed, total_length=T)
        ends = list(end) if parts == 2 else [end]
        w_ends = [torch.tensor(np.stack(jax.tree.leaves(w_carry)[n::parts])) for n in range(parts)]
        value = (ys * torch.tensor(w_ys)).sum()
        for a, w in zip(ends, w_ends, strict=True):
            value = value + (a * w).sum()
        value.backward()

        def as_ours(states):
            rows = [list(s) for s in states]
            return treedef.unflatten([a.numpy() for of_run in zip(*rows, strict=True) for a in of_run])

        return Outcome(
            ys.detach().numpy(),
            as_ours([s.detach() for s in ends]),
            inputs.grad.numpy(),
            as_ours([s.grad for s in states]),
            [p.grad.numpy().copy() for p in module.parameters()],
        )

    said = [f"{name}={value}" for name, value in options.items()]
    return Source(
        "PyTorch", f"nn.{kind}", in_words(layers, directions, *said), weights, lambda w: from_torch(loaded(w)), run
    )


def sources() -> Iterator[Make]:
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("RNN", {}),
        ("RNN", {"nonlinearity": "relu"}),
        ("LSTM", {}),
        ("LSTM", {"proj_size": 2}),
        ("GRU", {}),
    ]
    for kind, options in kinds:
        for layers, directions in ((1, 1), (1, 2), (2, 2)):
            yield functools.partial(torch_source, kind, layers, directions, options)
    for kind in ("LSTM", "GRU"):
        yield functools.partial(torch_source, kind, 1, 1, {"bias": False})
