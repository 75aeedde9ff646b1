"""jr.decoder: its equations in NumPy, what is in the carry, what leaves the loop, batches with further axes, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import draw, randomised
from tests.user_cells import clockwork, fast_weights

T, S, B, I, H, M = 4, 5, 2, 3, 4, 6
LENGTHS = np.array([5, 3])
CLOSE = {"rtol": 2e-5, "atol": 1e-6}  # float32, four steps
GRADIENTS = {"rtol": 2e-4, "atol": 2e-5}  # sums over them, in another order

GENERAL = jr.attention.general(H, M)
LOCATION = jr.attention.location_sensitive(H, M, 5, filters=2, kernel_size=3)
LUONG = jr.decoder(jr.gru(I + H, H), attention=GENERAL)
BAHDANAU = jr.decoder(jr.gru(I + M, H), attention=LOCATION, form="bahdanau")
XS, MEMORY = draw((T, B, I), 1), draw((S, B, M), 2)


def params_of(decoder, seed=3):
    return randomised(decoder.init(jax.random.key(0)), seed)


def loops(decoder, params, memory, xs, lengths):
    """The equations of one sequence, step by step, in float64, for a GRU: (ys, weights, final state)."""
    form = "luong" if decoder is LUONG or params.W_c is not None else "bahdanau"
    W_xh, W_hh, b, *_ = params.cell
    h, fed, α, ys, looked = np.zeros(H), np.zeros(H), np.zeros(S), [], []
    σ = lambda a: 1 / (1 + np.exp(-a))

    def gru(h, x):
        r, z, n = np.split(x @ W_xh + b, 3)
        U_r, U_z, U_n = np.split(W_hh, 3, axis=1)
        r, z = σ(r + h @ U_r), σ(z + h @ U_z)
        n = np.tanh(n + (r * h) @ U_n)
        return (1 - z) * h + z * n

    def attend(query):
        if form == "luong":
            e = memory[:lengths] @ (params.attention.W_a @ query)
        else:
            W, U, bias, v, F, V = params.attention
            around = np.pad(α, 1)
            f = np.array([around[s : s + 3] @ F for s in range(lengths)])
            e = np.tanh(query @ W + memory[:lengths] @ U + f @ V + bias) @ v
        weights = np.zeros(S)
        weights[:lengths] = np.exp(e - e.max()) / np.exp(e - e.max()).sum()
        return weights, weights[:lengths] @ memory[:lengths]

    for x in xs:
        if form == "luong":
            h = gru(h, np.concatenate([x, fed]))
            α, c = attend(h)
            fed = np.tanh(np.concatenate([c, h]) @ params.W_c)
            ys.append(fed)
        else:
            α, c = attend(h)
            h = gru(h, np.concatenate([x, c]))
            ys.append(np.concatenate([h, c]))
        looked.append(α)
    return np.array(ys), np.array(looked), h


@functools.cache
def ran(name, plan="auto"):
    """One run and its gradients, of padding that holds NaN."""
    decoder = {"luong": LUONG, "bahdanau": BAHDANAU}[name]
    memory = jnp.where((np.arange(S)[:, None] < LENGTHS)[..., None], MEMORY, jnp.nan)

    def run(params, memory, xs):
        cell = decoder.bind(params, memory, lengths=LENGTHS)
        carry, ys = jr.scan(cell, plan=plan).apply(params, xs)
        return (ys**2).sum(), (carry, ys, jr.trace_gates(cell, params, xs))

    params = params_of(decoder)
    grad = jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True))
    (_, (carry, ys, gates)), gradients = grad(params, memory, XS)
    return params, carry, ys, gates, gradients


@pytest.mark.parametrize("name", ["luong", "bahdanau"])
def test_the_equations(name):
    params, carry, ys, gates, _ = ran(name)
    exact, xs, memory = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, XS, MEMORY))
    for b in range(B):
        expected, looked, h = loops(None, exact, memory[:, b], xs[:, b], LENGTHS[b])
        np.testing.assert_allclose(ys[:, b], expected, **CLOSE)
        np.testing.assert_allclose(gates.weights[:, b], looked, **CLOSE)
        np.testing.assert_allclose(carry.cell[b], h, **CLOSE)
        if name == "luong":
            np.testing.assert_allclose(carry.fed[b], expected[-1], **CLOSE)
            assert carry.attention == ()
        else:
            np.testing.assert_allclose(carry.attention[b], looked[-1], **CLOSE)
            np.testing.assert_allclose(gates.context[:, b], expected[:, H:], **CLOSE)
            assert carry.fed is None
    np.testing.assert_allclose(gates.cell[-1], carry.cell, **CLOSE)
    assert type(gates.gates).__name__ == "GRUGates"


@pytest.mark.parametrize("name", ["bahdanau", pytest.param("luong", marks=pytest.mark.full)])
def test_gradients_are_those_of_the_equations(name):
    """Of the projection in ``bind``, of the memory, of the rest: as central differences of the NumPy loop have them."""
    params, _, _, _, gradients = ran(name)
    exact, xs, memory = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, XS, MEMORY))

    def loss(params, memory):
        return sum((loops(None, params, memory[:, b], xs[:, b], LENGTHS[b])[0] ** 2).sum() for b in range(B))

    rng, small = np.random.default_rng(0), 1e-6
    for own, others in ((params.attention, "attention"), (params.cell, "cell")):
        way = jax.tree.map(lambda a: rng.normal(size=a.shape), own)
        moved = [
            loss(
                exact._replace(**{others: jax.tree.map(lambda a, w, s=s: a + s * w, getattr(exact, others), way)}),
                memory,
            )
            for s in (small, -small)
        ]
        got = sum(
            float((np.asarray(g) * w).sum())
            for g, w in zip(*map(jax.tree.leaves, (getattr(gradients[0], others), way)), strict=True)
        )
        np.testing.assert_allclose(got, (moved[0] - moved[1]) / (2 * small), **GRADIENTS)
    way = rng.normal(size=memory.shape)
    moved = [loss(exact, memory + s * way) for s in (small, -small)]
    of_memory = np.asarray(gradients[1])
    np.testing.assert_allclose((of_memory * way).sum(), (moved[0] - moved[1]) / (2 * small), **GRADIENTS)
    assert not of_memory[3:, 1].any()  # the padding
    by_plain = ran(name, "plain")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **GRADIENTS), gradients, by_plain[-1])
    np.testing.assert_allclose(by_plain[2], ran(name)[2], **CLOSE)


def ops_of(jaxpr, inside=False):
    """The products of a program: (whether inside of a loop, shape of what comes out)."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield inside, eqn.outvars[0].aval.shape
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner := getattr(inner, "jaxpr", inner), "eqns"):
                    yield from ops_of(inner, inside or eqn.primitive.name == "scan")


def test_the_memory_is_projected_outside_of_the_loop():
    params = params_of(BAHDANAU)

    def run(params, memory, xs):
        return jr.scan(BAHDANAU.bind(params, memory), plan="plain").apply(params, xs)[1]

    products = list(ops_of(jax.make_jaxpr(run)(params, MEMORY, XS).jaxpr))
    projected = (S, B, 5)  # U_a m
    assert [inside for inside, shape in products if shape == projected] == [False]
    assert sum(inside for inside, _ in products) > 4
    cell = BAHDANAU.bind(params, MEMORY)
    (scan,) = jr.explain(jr.scan(cell), params, XS).scans
    for step in scan.programs.values():
        kinds, ops = step.primal.program.kinds, step.primal.parts().each_step
        shapes = [kinds[n].shape for op in ops if op.name == "dot_general" for n in op.outputs]
        assert len(shapes) > 4 and projected not in shapes


def test_masks_resets_and_chunks():
    """A reset starts from the initial carry, what it saw and fed included; the memory stays."""
    params = params_of(BAHDANAU)
    cell = BAHDANAU.bind(params, MEMORY, lengths=LENGTHS)
    layer = jr.scan(cell)

    @jax.jit
    def runs(xs):
        resets = jnp.zeros((T, B), bool).at[2].set(True)
        mask = jnp.array([[True, True], [True, False], [True, True], [True, True]])
        carry, ys = layer.apply(params, xs, mask=mask, resets=resets)
        first, _ = layer.apply(params, xs[:2], mask=mask[:2])
        end, rest = layer.apply(params, xs[2:])
        held, _ = layer.apply(params, xs[:1])
        begun, chunk = layer.apply(params, xs[:3])
        done, last = layer.apply(params, xs[3:], begun, start=3)
        return carry, ys, first, end, rest, held, (done, jnp.concatenate([chunk, last])), layer.apply(params, xs)

    carry, ys, first, end, rest, held, chunked, whole = runs(XS)
    close = functools.partial(jax.tree.map, lambda a, b: np.testing.assert_allclose(a, b, **CLOSE))
    close((carry, ys[2:]), (end, rest))
    close(jax.tree.map(lambda a: a[1], first), jax.tree.map(lambda a: a[1], held))  # step 1 of sequence 1 is masked
    assert not ys[1, 1].any()
    close(chunked, whole)


@pytest.mark.parametrize("name", ["bahdanau", pytest.param("luong", marks=pytest.mark.full)])
def test_further_axes_attend_to_the_same_memory(name):
    """(*B, width), as beams have it, and a memory without batch that a batch shares: as if it were repeated."""
    decoder = {"luong": LUONG, "bahdanau": BAHDANAU}[name]
    params, W = params_of(decoder), 3
    xs = draw((T, B, W, I), 7)

    @jax.jit
    def runs(memory, xs):
        carry, ys = jr.scan(decoder.bind(params, memory, lengths=LENGTHS)).apply(params, xs)
        alone = [jr.scan(decoder.bind(params, memory, lengths=LENGTHS)).apply(params, xs[:, :, w]) for w in range(W)]
        shared = jr.scan(decoder.bind(params, memory[:, 0])).apply(params, xs[:, 0])[1]
        mapped = jax.vmap(lambda m, x: jr.scan(decoder.bind(params, m)).apply(params, x)[1], (1, 1), 1)(memory, xs)
        return carry, ys, alone, shared, mapped

    carry, ys, alone, shared, mapped = runs(MEMORY, xs)
    for w, (end, expected) in enumerate(alone):
        np.testing.assert_allclose(ys[:, :, w], expected, **CLOSE)
        jax.tree.map(lambda a, b, w=w: np.testing.assert_allclose(a[:, w], b, **CLOSE), carry, end)
    np.testing.assert_allclose(shared, mapped[:, 0], **CLOSE)
    np.testing.assert_allclose(ys[:, 0], mapped[:, 0], **CLOSE)  # the first sequence's memory is whole


CELLS = {  # the form, a cell, and the features of its output
    "chain": ("bahdanau", jr.chain(jr.lstm(I + M, 5), jr.gru(5, H), jr.dropout(0.5)), H),
    "lstm": ("luong", jr.lstm(I + H, H), H),
    "clockwork": ("bahdanau", clockwork(I + M, H), H),
    "fast weights": ("luong", fast_weights(I + H, H), H),
    "every": ("bahdanau", jr.every(jr.lstm(I + M, H), period=2), H),
    "linear": ("luong", jr.min_gru(I + H, H), H),
}


@pytest.mark.parametrize("name", ["chain", *(pytest.param(n, marks=pytest.mark.full) for n in CELLS if n != "chain")])
def test_any_cell(name):
    """A run equals its steps, auto equals plain, and noise is drawn for the cell inside."""
    form, cell, size = CELLS[name]
    decoder = jr.decoder(cell, attention=GENERAL, form=form)
    params = params_of(decoder)

    @jax.jit
    def runs(params, xs):
        bound = decoder.bind(params, MEMORY, lengths=LENGTHS)
        carry, stepped = bound.initial_carry(params, (B,)), []
        for x in xs:
            carry, y = bound.step(params, carry, x)
            stepped.append(y)
        by_auto, by_plain = (jr.scan(bound, plan=plan).apply(params, xs) for plan in ("auto", "plain"))
        noisy = jr.scan(bound).apply(params, xs, key=jax.random.key(1))[1] if bound.noise else None
        return (carry, jnp.stack(stepped)), by_auto, by_plain, noisy

    stepped, by_auto, by_plain, noisy = runs(params, XS)
    assert by_auto[1].shape == (T, B, size + (M if form == "bahdanau" else 0))
    for other in (by_auto, by_plain):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), other, stepped)
    assert (noisy is None) == (cell.noise is None)
    if noisy is not None:
        dropped = np.asarray(noisy[..., :H])
        assert ((dropped == 0) | (np.abs(dropped) > 0)).all() and 0 < (dropped == 0).mean() < 1


def test_without_input_feeding_the_cell_reads_x_alone():
    plain = jr.gru(I, H)
    for form in ("luong", "bahdanau"):
        decoder = jr.decoder(plain, attention=GENERAL, form=form, input_feeding=False)
        params = params_of(decoder)
        assert decoder.input_size == I
        cell = decoder.bind(params, MEMORY)
        carry, ys = jr.scan(cell).apply(params, XS)
        end, hs = jr.scan(plain).apply(params.cell, XS)
        np.testing.assert_allclose(carry.cell, end, **CLOSE)
        assert carry.fed is None
        queries = hs if form == "luong" else jnp.concatenate([jnp.zeros_like(hs[:1]), hs[:-1]])
        context, _ = jr.attend(queries, MEMORY @ params.attention.W_a, values=MEMORY, scale=1.0)
        if form == "luong":
            np.testing.assert_allclose(ys, jnp.tanh(jnp.concatenate([context, hs], -1) @ params.W_c), **CLOSE)
        else:
            np.testing.assert_allclose(ys, jnp.concatenate([hs, context], -1), **CLOSE)


def test_nothing_to_attend_to():
    """Length 0 and S = 0: the context is 0, and gradients are finite."""
    params = params_of(BAHDANAU)

    @jax.jit
    def runs(params):
        def loss(params, memory, lengths):
            cell = BAHDANAU.bind(params, memory, lengths=lengths)
            return (jr.scan(cell).apply(params, XS)[1] ** 2).sum()

        return [
            jax.value_and_grad(loss)(params, memory, lengths)
            for memory, lengths in ((MEMORY, jnp.zeros(B, int)), (MEMORY[:0], None))
        ]

    (none, of_none), (empty, of_empty) = runs(params)
    np.testing.assert_allclose(none, empty, **CLOSE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **GRADIENTS), of_none, of_empty)
    assert of_none.cell.W_hh.any() and not jax.tree.leaves(of_none.attention)[0].any()


def test_narrow_dtypes():
    """bfloat16 computes in bfloat16, and carries float32."""
    dtype = jnp.bfloat16
    attention = jr.attention.general(H, M, dtype=dtype)
    decoder = jr.decoder(jr.gru(I + H, H, dtype=dtype), attention=attention, dtype=dtype)
    params = params_of(LUONG)
    cell = decoder.bind(params, MEMORY.astype(dtype), lengths=LENGTHS)
    carry, ys = jr.scan(cell).apply(params, XS.astype(dtype))
    assert ys.dtype == dtype and {leaf.dtype.name for leaf in jax.tree.leaves(carry)} == {"float32"}
    exact = jr.scan(LUONG.bind(params, MEMORY, lengths=LENGTHS)).apply(params, XS)[1]
    np.testing.assert_allclose(ys.astype(jnp.float32), exact, rtol=0, atol=0.05)  # 8 bits, four steps


def bound(**options):
    params = params_of(LUONG)
    return LUONG.bind(params, MEMORY, **options), params


ERRORS = {
    "query_size": (
        lambda: jr.decoder(jr.gru(I + H, H + 1), attention=GENERAL),
        r"decoder: attention has query_size=4, but cell \(gru\) puts out 5 features, which are the query; build the",
    ),
    "input_size": (
        lambda: jr.decoder(jr.gru(H, H), attention=GENERAL),
        r"decoder: cell \(gru\) has input_size=4, but reads 4 features of attention beside x; build it with",
    ),
    "a cell of tokens": (
        lambda: jr.decoder(jr.chain(jr.embedding(9, I), jr.gru(I, H)), attention=GENERAL),
        "decoder: cell must read vectors, .* got x_ndim=0; put jr.embedding and its like in front of the bound cell",
    ),
    "a layer": (lambda: jr.decoder(jr.scan(jr.gru(I, H)), attention=GENERAL), "decoder: expected a Cell, got"),
    "unknown sizes": (
        lambda: jr.decoder(jr.gru(I, H), attention=GENERAL._replace(query_size=None)),
        "decoder: attention must say its query_size and memory_size, got None and 6",
    ),
    "form": (lambda: jr.decoder(jr.gru(I, H), attention=GENERAL, form="loung"), "did you mean 'luong'"),
    "params": (lambda: LUONG.bind((), MEMORY), r"decoder: params must be DecoderParams\(cell, attention, W_c\), got"),
    "memory of another size": (
        lambda: LUONG.bind(params_of(LUONG), MEMORY[..., 1:]),
        r"decoder: memory must be \(S, \*B, 6\), as the attention expects, got shape \(5, 2, 5\)",
    ),
    "lengths": (lambda: bound(lengths=jnp.array([1, 2, 3])), r"decoder: lengths must have the batch shape \(2,\)"),
    "mask": (lambda: bound(mask=jnp.ones((B, S), bool)), r"decoder: mask must have shape \(5, 2\), that is \(S, \*B\)"),
    "inputs of another batch": (
        lambda: jr.scan(bound()[0]).apply(bound()[1], jnp.ones((T, B + 1, I))),
        r"decoder: memory was bound with the batch axes \(2,\), but the batch is \(3,\); bind the memory of these",
    ),
    "carry of another batch": (
        lambda: bound()[0].step(bound()[1], bound()[0].initial_carry(bound()[1], (B, 3)), jnp.ones((B, I))),
        r"decoder: carry.* should have shape \(2, 4\), got \(2, 3, 4\)",
    ),
    "inputs of another size": (
        lambda: bound()[0].step(bound()[1], bound()[0].initial_carry(bound()[1], (B,)), jnp.ones((B, I + 1))),
        r"decoder: expected x of shape \(\*B, 3\), got 4 features",
    ),
    "a state without a name": (
        lambda: _stepped(
            jr.decoder(fast_weights(I + M, H)._replace(initial_carry=_named), attention=GENERAL, form="bahdanau")
        ),
        "decoder: cell \\(user cell\\) must have a carry that is one array of floats .* or use form='luong'",
    ),
    # The last field of these is no state, whatever its size: a stabiliser, the last inputs, several states.
    **{
        f"a carry without h, {came}": (
            lambda cell=cell, Q=Q: _stepped(jr.decoder(cell, attention=jr.attention.general(Q, M), form="bahdanau")),
            rf"must have a carry that is one array of floats \(\*B, H\), or has such an h, .* got {came}",
        )
        for cell, Q, came in (
            (jr.mlstm(I + M, H, heads=2), 2, "MLSTMCarry"),
            (jr.qrnn(I + M, H, window=2), I + M, "QRNNCarry"),
            (jr.dilated(jr.gru(I + M, H), dilation=2), H, "DilatedCarry"),
        )
    },
    "a state of another rank": (
        lambda: _stepped(
            jr.decoder(fast_weights(I + M, H)._replace(initial_carry=_square), attention=GENERAL, form="bahdanau")
        ),
        r"must have a carry that is one array of floats \(\*B, H\), .* got float32 of shape \(2, 4, 4\)",
    ),
}


def _square(params, batch_shape=()):
    return jnp.zeros((*batch_shape, H, H))


def _named(params, batch_shape=()):
    return {"S": jnp.zeros((*batch_shape, H, H))}


def _stepped(decoder):
    params = decoder.init(jax.random.key(0))
    cell = decoder.bind(params, MEMORY)
    cell.step(params, cell.initial_carry(params, (B,)), jnp.ones((B, I)))


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    call, message = ERRORS[case]
    with pytest.raises((ValueError, TypeError), match=message):
        call()
