"""torch: ``nn.RNN``, ``nn.LSTM``, ``nn.GRU``, on every core; on a GPU where JAX runs on one and torch sees it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.ours import floor_operands
from experiments.benchmarks.problems import READOUT, NotOffered, Problem, check_weights, data
from experiments.benchmarks.programs import Program


def torch_on_all_cores() -> Any:
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    return torch


def placed() -> tuple[Any, Callable[[np.ndarray], Any], Callable[[], None]]:
    """``(torch, array -> tensor, wait)``, on the processor that JAX uses."""
    torch = torch_on_all_cores()
    if jax.default_backend() != "gpu":
        return torch, torch.from_numpy, lambda: None
    if not torch.cuda.is_available():
        raise NotOffered("this torch sees no GPU")
    return torch, lambda array: torch.from_numpy(array).cuda(), torch.cuda.synchronize


def network(torch: Any, problem: Problem, seed: int = 0) -> Any:
    """With the weights of torch's own init: U(-1/√H, 1/√H), as the other contestants'."""
    torch.manual_seed(seed)
    kind = {"elman": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[problem.cell]
    net = kind(problem.I, problem.H, bidirectional=problem.variant == "bidirectional")
    check_weights(problem, [parameter.detach().numpy() for parameter in net.parameters()])
    return net.cuda() if jax.default_backend() == "gpu" else net


def sequence(problem: Problem, quantity: str) -> Program:
    """The forward pass under ``inference_mode``; or the loss and its gradient by parameters and inputs."""
    torch, tensor, wait = placed()
    arrays = data(problem._replace(dtype="float32"))  # torch takes no bfloat16 from NumPy
    dtype = getattr(torch, problem.dtype)
    xs, cotangent = tensor(arrays.xs).to(dtype), tensor(arrays.cotangent).to(dtype)
    net = network(torch, problem).to(dtype)
    params = list(net.parameters())
    lengths = None if arrays.lengths is None else torch.from_numpy(arrays.lengths).long()

    def apply(xs):
        if lengths is None:
            return net(xs)[0]
        packed = torch.nn.utils.rnn.pack_padded_sequence(xs, lengths, enforce_sorted=False)
        return torch.nn.utils.rnn.pad_packed_sequence(net(packed)[0], total_length=problem.T)[0]

    def forward():
        with torch.inference_mode():
            ys = apply(xs)
        wait()
        return Numpy(ys)

    def train():
        inputs = xs.detach().requires_grad_(True)
        loss = (apply(inputs) * cotangent).sum()
        by_xs, *by_params = torch.autograd.grad(loss, [inputs, *params])
        wait()
        return Numpy(loss), ([Numpy(gradient) for gradient in by_params], Numpy(by_xs))

    return Program({"forward": forward, "train": train}[quantity])


class Numpy:
    """A tensor that turns into an array only when a check asks for it, so that timing copies nothing."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor
        self.shape = tuple(tensor.shape)
        self.size = tensor.numel()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        tensor = self.tensor.detach().cpu()
        return (tensor.float() if tensor.dtype.itemsize < 4 else tensor).numpy()  # NumPy has no bfloat16


def ensemble(problem: Problem, members: int) -> Program:
    """A loop: for each member the gradient of its loss by its own parameters."""
    torch, tensor, wait = placed()
    xs, cotangent, _ = (None if a is None else tensor(a) for a in data(problem))
    nets = [network(torch, problem, seed) for seed in range(members)]

    def call():
        gradients = []
        for net in nets:
            loss = (net(xs)[0] * cotangent).sum()
            gradients.append(torch.autograd.grad(loss, list(net.parameters())))
        wait()
        return [[Numpy(gradient) for gradient in member] for member in gradients]

    return Program(call)


def step(problem: Problem) -> Program:
    torch, tensor, wait = placed()
    torch.manual_seed(0)
    cells = {"elman": torch.nn.RNNCell, "lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell}
    cell = cells[problem.cell](problem.I, problem.H)
    readout = torch.nn.Linear(problem.H, problem.H) if problem.variant == READOUT else None
    net = torch.nn.ModuleList([cell] if readout is None else [cell, readout])
    check_weights(problem, [parameter.detach().numpy() for parameter in net.parameters()])
    if jax.default_backend() == "gpu":
        net.cuda()
    x = tensor(data(problem).xs[0])
    carry = None

    def call():
        nonlocal carry
        with torch.inference_mode():
            carry = cell(x, carry)
            h = carry[0] if problem.cell == "lstm" else carry
            y = h if readout is None else readout(h)
        wait()
        return Numpy(y)

    return Program(call)


def floor(problem: Problem, quantity: str) -> Program:
    """The products of ``ours.floor``, by torch."""
    torch, tensor, wait = placed()
    A, W, D = ([tensor(a) for a in operands] for operands in floor_operands(problem))

    def forward():
        with torch.inference_mode():
            out = [a @ w for a, w in zip(A, W, strict=True)]
        wait()
        return out

    def train():
        with torch.inference_mode():
            out = [(a @ w, d @ w.T, a.T @ d) for a, w, d in zip(A, W, D, strict=True)]
        wait()
        return out

    return Program({"forward": forward, "train": train}[quantity])
