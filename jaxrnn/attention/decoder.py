"""A cell that attends to a memory: ``jr.decoder``."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import Cell, InitFn, PyTree, expect_cell, name_of
from jaxrnn._checks import check_choice, check_key, check_params
from jaxrnn.attention.attention import Attention
from jaxrnn.attention.bound import Attending, DecoderParams, bound_cell
from jaxrnn.attention.scores import drawn
from jaxrnn.attention.weighting import as_memory, positions, without_padding
from jaxrnn.running.scan import shapes_of_params


class BindFn(Protocol):
    """``bind(params, memory, *, lengths=None, mask=None) -> cell``: the decoder, with what it is to attend to."""

    def __call__(self, params: PyTree, memory: jax.Array, /, *, lengths: Any = None, mask: Any = None) -> Cell:
        """Project the memory, and close a Cell over it.

        Args:
            params: what ``init`` returned; the steps are then given the same.
            memory: (S, *B, M), positions first.
            lengths: (*B) integers, the valid positions of each memory.
            mask: (S, *B) booleans, True where a position is valid.

        Returns:
            A Cell.
        """


class Decoder(NamedTuple):
    """What ``jr.decoder`` returns, as pure functions.

    init(key) -> params
    bind(params, memory, *, lengths=None, mask=None) -> cell
    """

    init: InitFn
    bind: BindFn
    input_size: int | None = None  # of what the bound cell reads
    output_size: int | None = None


@checks_arguments
def decoder(
    cell: Cell,
    *,
    attention: Attention,
    form: str = "luong",
    input_feeding: bool = True,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> Decoder:
    """A cell that attends to a memory at every step.

        form="luong"                                          form="bahdanau"
        carry, h_t = cell(carry, [x_t, h~_{t-1}])             c_t = attend(s_{t-1})
        c_t        = attend(h_t)                              carry, h_t = cell(carry, [x_t, c_t])
        y_t = h~_t = tanh([c_t, h_t] W_c)                     y_t = [h_t, c_t]

    Without ``input_feeding`` the cell reads x_t alone in both. s_{t-1} is the state in the cell's carry: the carry
    where it is one array, else its h; of a tuple, as ``jr.chain`` has it, that of the last member with a state; of
    ``jr.every``, that of the cell inside.

    Args:
        cell: a Cell that reads what is said above: x_t and H, or M, features more.
        attention: an Attention: ``jr.attention.dot``, ``general``, ``additive``, ``location_sensitive``, or your own.
        form: "luong" attends by the new output, "bahdanau" by the state before it.
        input_feeding: whether the cell reads what attention found.
        dtype: the compute dtype of the product with W_c; None computes in its own.
        param_dtype: the dtype of the W_c that ``init`` makes.

    Returns:
        ``Decoder(init, bind)``. ``init(key)`` makes DecoderParams; ``bind(params, memory, *, lengths=None, mask=None)``
        projects a memory (S, *B, M) once and returns a Cell of the same params, closed over it: ``jr.scan`` of it is
        teacher forcing, one step of it is decoding. Its carry is DecoderCarry, which holds nothing of the memory:
        resets put a fresh one in place, and beams copy it. Its gates are DecoderGates. A batch of the memory's
        axes and further ones, (*B, width), attends to the same memory along the further ones, as beams do. What stands
        in the memory's padding, NaN included, reaches neither values nor gradients; with nothing to attend to, c_t
        is 0.

    Raises:
        ValueError, TypeError: sizes that do not fit together; while tracing, memories, lengths, masks, inputs and
            carries that do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> decoder = jr.decoder(jr.gru(3 + 5, 5), attention=jr.attention.general(5, 6))
        >>> params = decoder.init(jax.random.key(0))
        >>> memory = jnp.ones((9, 2, 6))  # of an encoder: S = 9
        >>> cell = decoder.bind(params, memory, lengths=jnp.array([9, 4]))
        >>> carry, ys = jr.scan(cell).apply(params, jnp.ones((7, 2, 3)))
        >>> ys.shape, jr.trace_gates(cell, params, jnp.ones((7, 2, 3))).weights.shape
        ((7, 2, 5), (7, 2, 9))

    Reference:
        Bahdanau, Cho & Bengio, "Neural machine translation by jointly learning to align and translate", ICLR 2015;
        Luong, Pham & Manning, "Effective approaches to attention-based neural machine translation", EMNLP 2015.

    Differs from: TensorFlow Addons' ``AttentionWrapper``, whose state holds the memory, and whose
    ``BahdanauAttention`` attends by the new state.
    """
    expect_cell("decoder", cell)
    check_choice("decoder", "form", form, ("luong", "bahdanau"))
    Q, M = attention.query_size, attention.memory_size
    if Q is None or M is None:
        raise ValueError(
            f"decoder: attention must say its query_size and memory_size, got {Q} and {M}; give them to "
            f"jr.attention.Attention or jr.attention.scored."
        )
    if form == "luong" and cell.output_size not in (None, Q):
        raise ValueError(
            f"decoder: attention has query_size={Q}, but cell ({name_of(cell)}) puts out {cell.output_size} features, "
            f"which are the query; build the attention with query_size={cell.output_size}."
        )
    if not isinstance(cell.x_ndim, int) or (input_feeding and cell.x_ndim != 1):
        raise ValueError(
            f"decoder: cell must read vectors, to which what attention found is joined, got x_ndim={cell.x_ndim!r}; "
            f"put jr.embedding and its like in front of the bound cell, by jr.chain."
        )
    fed_size = 0 if not input_feeding else Q if form == "luong" else M
    input_size = None if cell.input_size is None else cell.input_size - fed_size
    if input_size is not None and input_size < 1:
        raise ValueError(
            f"decoder: cell ({name_of(cell)}) has input_size={cell.input_size}, but reads {fed_size} features of "
            f"attention beside x; build it with input_size=I + {fed_size}."
        )
    attending = Attending(cell, attention, form, input_feeding, dtype, input_size)
    H = cell.output_size
    output_size = Q if form == "luong" else None if H is None else H + M

    def init(key):
        check_key("decoder", key)
        k_cell, k_attention, k_c = jax.random.split(key, 3)
        W_c = drawn(k_c, (M + Q, Q), param_dtype) if form == "luong" else None
        return DecoderParams(cell.init(k_cell), attention.init(k_attention), W_c)

    @functools.cache
    def expected():
        return shapes_of_params(Decoder(init, bind))

    def check(params):
        if not isinstance(params, DecoderParams):
            raise ValueError(
                f"decoder: params must be DecoderParams(cell, attention, W_c), got {type(params).__name__}; pass what "
                f"this decoder's own init returned."
            )
        check_params("decoder", params, expected())

    def bind(params, memory, *, lengths=None, mask=None):
        check(params)
        memory = as_memory("decoder", "memory", memory)
        if memory.shape[-1] != M:
            raise ValueError(
                f"decoder: memory must be (S, *B, {M}), as the attention expects, got shape {memory.shape}; build the "
                f"attention with memory_size={memory.shape[-1]}."
            )
        valid = positions("decoder", memory, lengths, mask)
        keys = attention.prepare(params.attention, without_padding(memory, valid), valid)
        return bound_cell(attending, keys, memory.shape[1:-1], check)._replace(init=init, output_size=output_size)

    return Decoder(init, bind, input_size, output_size)
