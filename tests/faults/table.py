"""Faults to plant in the library one at a time, each with the tests that must notice it."""

from __future__ import annotations

from tests.faults import files, lanes, plans
from tests.faults.fault import Fault, tests

FAULTS = (
    # ---- equations
    Fault(
        "lstm: forget and input gate swapped",
        "i, f, g, o = σ(a.i), σ(a.f), act(a.g), σ(a.o)",
        "f, i, g, o = σ(a.i), σ(a.f), act(a.g), σ(a.o)",
        tests("test_equations", "lstm"),
    ),
    Fault(
        "gru: z inverted",
        "h = (1 - z) * h + z * n\n        return",
        "h = z * h + (1 - z) * n\n        return",
        tests("test_equations", "gru"),
    ),
    Fault(
        "gru: the bias of the recurrent product outside the reset",
        "H))\n            r, z = σ(u.r + a.r), σ(u.z + a.z)\n            n = act(a.n + r * plus_bias(u.n, b_hh))",
        "H))\n            r, z = σ(u.r + a.r), σ(u.z + a.z)\n            n = act(plus_bias(a.n + r * u.n, b_hh))",
        tests("test_equations", "gru"),
    ),
    Fault(
        "peephole_lstm: the output gate reads the old memory",
        "project(x, W_xh, dtype), b))\n        i, f, g = σ(a.i + peep(c, U_i)), σ(a.f + peep(c, U_f)), act(a.g)\n"
        "        c = f * c + i * g\n        o = σ(a.o + peep(c, U_o))\n",
        "project(x, W_xh, dtype), b))\n        i, f, g = σ(a.i + peep(c, U_i)), σ(a.f + peep(c, U_f)), act(a.g)\n"
        "        o = σ(a.o + peep(c, U_o))\n        c = f * c + i * g\n",
        tests("test_equations", "peephole"),
    ),
    Fault("cifg_lstm: i is f", "i = 1 - f\n", "i = f\n", tests("test_equations", "cifg")),
    Fault(
        "forget bias on the input gate",
        'f = block(order, "f", hidden_size)',
        "f = block(order, order[0], hidden_size)",
        tests("test_initial_values", "forget_bias"),
    ),
    # ---- sequences
    Fault(
        "mask not applied to the outputs",
        "return select(inputs.valid, new, before), select(inputs.valid, y, jax.tree.map(jnp.zeros_like, y))",
        "return select(inputs.valid, new, before), y",
        tests("test_contract", "padding_never_leaks"),
    ),
    Fault(
        "rows of a kernel in the wrong order",
        "[jnp.moveaxis(a, 0, side) for a in jax.lax.map(of_row, rows)]",
        "[jnp.moveaxis(a[::-1], 0, side) for a in jax.lax.map(of_row, rows)]",
        tests("test_one_kernel", "loops_are_kernels"),
    ),
    Fault(
        "under vmap the form for one CPU",
        "made = jax.vmap(otherwise, axes)(*arrays)",
        "made = jax.vmap(jaxpr_as_fun(jaxpr), axes)(*arrays)",
        tests("test_one_kernel", "form_for_one_cpu"),
    ),
    Fault(
        "mask not applied to the carry",
        "return select(inputs.valid, new, before), select(inputs.valid, y, jax.tree.map(jnp.zeros_like, y))",
        "return new, select(inputs.valid, y, jax.tree.map(jnp.zeros_like, y))",
        tests("test_contract", "equals_the_plain_loop"),
    ),
    Fault(
        "padding read by the cell",
        "xs = select(valid, xs, jax.tree.map(jnp.zeros_like, xs))\n        noise",
        "pass\n        noise",
        tests("test_contract", "padding_never_leaks"),
    ),
    Fault(
        "a reset read one step late",
        "return None if resets is None else resets[:T]",
        "return None if resets is None else jnp.roll(resets[:T], 1, axis=0)",
        tests("test_contract", "resets_make_independent_runs"),
    ),
    Fault(
        "a reset to the carry argument",
        "carry = initial if given is None else shard_like_batch(given, run.xs, len(run.batch_shape))",
        "initial = carry = initial if given is None else shard_like_batch(given, run.xs, len(run.batch_shape))",
        tests("test_contract", "resets_make_independent_runs"),
    ),
    Fault(
        "a reversed run resets at the wrong end of an episode",
        "return jnp.concatenate([resets[1:], jnp.zeros_like(resets[:1])])",
        "return resets",
        tests("test_contract", "resets_make_independent_runs"),
    ),
    Fault(
        "a learned carry gets no gradient from resets",
        "carry = select(resets, initial_carry_of(run, params_t) if params.per_step else initial, carry)",
        "carry = select(resets, jax.lax.stop_gradient(initial_carry_of(run, params_t) if params.per_step "
        "else initial), carry)",
        tests("test_contract", "learned_initial_carry"),
    ),
    Fault(
        "the start of a chunk ignored",
        "times = start + jnp.arange(T, dtype=jnp.int32)\n        valid = valid_steps",
        "times = jnp.arange(T, dtype=jnp.int32)\n        valid = valid_steps",
        tests("test_contract", "chunks_equal_the_whole"),
    ),
    Fault(
        "lengths one too long",
        "within = times.reshape(-1, *(1,) * lengths.ndim) < lengths[None]",
        "within = times.reshape(-1, *(1,) * lengths.ndim) <= lengths[None]",
        tests("test_contract", "padded_sequences_equal"),
    ),
    Fault(
        "noise drawn by the time within a chunk",
        "noise = cell.noise(now, key, times, x)",
        "noise = cell.noise(now, key, times - start, x)",
        tests("test_running", "noise_is_a_function_of_key_and_absolute_time"),
    ),
    Fault(
        "held steps move where there is noise",
        "new, (y, before) = step(carry, inputs.x, inputs.starts, inputs.resets, *noise_t)",
        "new, (y, before) = step(carry, inputs.x, inputs.starts, inputs.resets, *noise_t)\n        "
        "before = new if noise_t else before",
        tests("test_running", "a_held_step_overrides_zoneout"),
    ),
    Fault(
        "bfloat16 gradients not summed in float32",
        "wide = [a.astype(jnp.float32) if n else a for a, n in zip(arrays, narrow, strict=True)]",
        "wide = arrays",
        tests("test_running", "equal_contributions or narrow_biases"),
    ),
    Fault(
        "the carry kept in the weights' own dtype",
        "return accumulator(W.dtype, *(() if dtype is None else (dtype,)))",
        "return W.dtype if dtype is None else jnp.promote_types(W.dtype, dtype)",
        tests("test_running", "bfloat16"),
    ),
    Fault(
        "segments of a reversed run joined in the wrong order",
        "order = (ys_left, ys) if reverse else (ys, ys_left)",
        "order = (ys, ys_left)",
        tests("test_segments", "agree_with_the_whole"),
    ),
    Fault(
        "segments of a reversed run taken forwards",
        "carry, ys = jax.lax.scan(in_loop, carry, whole, reverse=reverse)",
        "carry, ys = jax.lax.scan(in_loop, carry, whole)",
        tests("test_segments", "agree_with_the_whole"),
    ),
    Fault(
        "segments not checkpointed",
        "in_loop = jax.checkpoint(segment, prevent_cse=False)",
        "in_loop = segment",
        tests("test_segments", "saves_memory"),
    ),
    Fault(
        "tbptt: the window one step too long",
        "overlap = window - stride",
        "overlap = window - stride + 1",
        tests("test_tbptt", "plain_loop_over_blocks or beyond_the_window"),
    ),
    Fault(
        "tbptt: the carry handed on with its gradient",
        "handed_on = jax.lax.stop_gradient(carry)",
        "handed_on = carry",
        tests("test_tbptt", "plain_loop_over_blocks or beyond_the_window"),
    ),
    Fault(
        "last: the step after the last",
        "index = jnp.clip(lengths - 1, 0, T - 1)",
        "index = jnp.clip(lengths, 0, T - 1)",
        tests("test_sequences", "last"),
    ),
    Fault(
        "masked_mean divides by all steps",
        "return (total / jnp.maximum(on.sum(), 1).astype(total.dtype)).astype(_dtype_of_mean(losses))",
        "return (total / losses.size).astype(_dtype_of_mean(losses))",
        tests("test_sequences", "masked_mean"),
    ),
    Fault(
        "the mean of integers is an integer",
        "return a.dtype if jnp.issubdtype(a.dtype, jnp.inexact) else jnp.float32",
        "return a.dtype",
        tests("test_sequence_dtypes", "reductions"),
    ),
    Fault(
        "large lengths wrap round",
        "lengths = lengths.clip(max(info.min, -LONGEST), LONGEST)",
        "pass",
        tests("test_large_integers", "clamped"),
    ),
    Fault(
        "wrappers leave complex numbers alone",
        "return jnp.issubdtype(jnp.result_type(a), jnp.inexact)",
        "return jnp.issubdtype(jnp.result_type(a), jnp.floating)",
        tests("test_complex_carries", "real_form"),
    ),
    Fault(
        "a token of as many passes",
        "outside = np.argwhere((array < 0) | (array >= limit))",
        "outside = np.argwhere((array < 0) | (array > limit))",
        tests("test_errors_of_batches", "token or label"),
    ),
    Fault(
        "a merge of zeros stands in the padding",
        'ys = zeroed_padding("bidirectional", ys, xs, **options)',
        "pass",
        tests("test_invalid_steps", "outputs_are_zero"),
    ),
    Fault(
        "stream: a slot's next session meets the state of the last",
        "self._started[slot] = False",
        "self._free.add(slot)",
        tests("test_stream", "slots"),
    ),
    # ---- combining and wrapping
    Fault(
        "bidirectional: outputs merged in the wrong order",
        "merge_outputs(ys_ahead, ys_back)",
        "merge_outputs(ys_back, ys_ahead)",
        tests("test_contract", "bidirectional and equals_the_plain_loop"),
    ),
    Fault(
        "bidirectional: both directions draw the same noise",
        "end_back, ys_back = back.apply(params.backward, xs, carry.backward, key=k_back, **options)",
        "end_back, ys_back = back.apply(params.backward, xs, carry.backward, key=k_ahead, **options)",
        tests("test_running", "directions_draw_apart"),
    ),
    Fault(
        "bidirectional: members' parameters swapped",
        "return BiParams(*init_each((forward, backward), key))",
        "return BiParams(*init_each((backward, forward), key))",
        tests("test_contract", "bidirectional and equals_the_plain_loop"),
    ),
    Fault(
        "residual: padding passes by a layer",
        "return carry, add(xs if on is None else select(on, xs, jnp.zeros_like(xs)), ys)",
        "return carry, add(xs, ys)",
        tests("test_running", "residual"),
    ),
    Fault(
        "chain: members share a key",
        "own_key = jax.random.fold_in(key, index)",
        "own_key = key",
        tests("test_running", "stack_and_chain_drop_the_same"),
    ),
    Fault(
        "dropout: what is kept is not scaled up",
        "return carry, x if keep is None else jnp.where(keep, x / (1 - rate), 0)",
        "return carry, x if keep is None else jnp.where(keep, x, 0)",
        tests("test_running", "dropout_keeps"),
    ),
    Fault(
        "recurrent_dropout: a mask for each step",
        "keep_h = jax.random.bernoulli(k_h, 1 - rate, (1, *h.shape)) if rate else None",
        "keep_h = jax.random.bernoulli(k_h, 1 - rate, (len(times), *h.shape)) if rate else None",
        tests("test_recurrent_dropout", "recurrent_dropout_draws_once or recurrent_dropout_by_hand"),
    ),
    Fault(
        "weight_drop: what is kept is not scaled up",
        "jnp.where(placed_like(keep, W), W / (1 - rate), 0) for",
        "jnp.where(placed_like(keep, W), W, 0) for",
        tests("test_weight_wrappers", "weight_drop_by_hand"),
    ),
    Fault(
        "dilated: the newest state is read",
        "jax.lax.index_in_dim(a, 0, axis, keepdims=False)",
        "jax.lax.index_in_dim(a, -1, axis, keepdims=False)",
        tests("test_state_wrappers", "dilated_by_hand"),
    ),
    Fault(
        "zoneout: the mean of the wrong shares",
        "mixed = rate * old + (1 - rate) * new if keeps is None",
        "mixed = rate * new + (1 - rate) * old if keeps is None",
        tests("test_wrappers", "zoneout_in_evaluation"),
    ),
    Fault(
        "a model with another step keeps its spec",
        'return field.__get__(self) if tuple(self) in getattr(_run_of(self), "issued", ()) else None',
        "return field.__get__(self)",
        tests("test_known_by_spec", "replaced"),
    ),
    Fault(
        "a learned carry handed out as the parameter itself",
        "return state if isinstance(state, jax.core.Tracer) else jnp.copy(state)",
        "return state",
        tests("test_donated_carries"),
    ),
    Fault(
        "a product in the compute dtype, the state in the parameters'",
        "preferred_element_type=accumulator(dtype)).astype(kept)",
        "preferred_element_type=accumulator(dtype))",
        tests("test_dtypes"),
    ),
    # ---- instruments and gradients
    Fault(
        "norms of rows that cancel taken from rounding",
        "unsafe = jnp.any(cancel | far | ~jnp.isfinite(squares))",
        "unsafe = jnp.any(far | ~jnp.isfinite(squares))",
        tests("test_flow", "rows_that_cancel"),
    ),
    Fault(
        "contributions of a reversed run at the wrong steps",
        "value = loss(*layer.apply(jax.tree.map(PerStep, params_over_time), xs, carry, **options))",
        "value = loss(*layer.apply(jax.tree.map(lambda a: PerStep(a[::-1]), params_over_time), xs, carry, **options))",
        tests("test_contract", "contributions_step_by_step"),
    ),
    Fault(
        "singular values of a product in the wrong order of time",
        "return Q, d, ratio @ jnp.take_along_axis(R, order[..., :, None], axis=-2)",
        "return Q, d, ratio @ R",
        tests("test_jacobians", "products"),
    ),
    # ---- devices
    Fault(
        "a sum over devices in the loop",
        "if n in of_consts and kinds[n].shape != kind.shape and kinds[n].ndim == kind.ndim:",
        "if n is None and kinds[n].shape != kind.shape and kinds[n].ndim == kind.ndim:",
        tests("test_meshes", "sharded_batches and Auto"),
    ),
    Fault(
        "tbptt: a sum over devices in the loop over blocks",
        "params, xs = vary_alike(params, xs)",
        "(xs,) = vary_alike(xs)",
        tests("test_tbptt", "no_collective"),
    ),
    Fault(
        "the initial carry loses the sharding of its batch",
        "    return shard_like_batch(carry, run.xs, len(run.batch_shape))",
        "    return carry",
        tests("test_meshes", "sharded_batches"),
    ),
    # ---- training
    Fault(
        "accumulated gradients summed in their own dtype",
        "zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, accumulator(a.dtype)), shapes)",
        "zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)",
        tests("test_fitting", "half_precision"),
    ),
    Fault(
        "noise of every step from one key",
        "key = jax.random.fold_in(jax.random.fold_in(state.key, NOISE), state.step)",
        "key = jax.random.fold_in(state.key, NOISE)",
        tests("test_fitting", "keys_of_their_own"),
    ),
    Fault(
        "a skipped step moves the optimiser",
        "params, opt_state = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)",
        "params = jax.tree.map(lambda a, b: jnp.where(good, a, b), new[0], old[0])",
        tests("test_fitting", "skipped_and_counted"),
    ),
    Fault(
        "a second training in the same directory",
        "_fcntl.LOCK_EX | _fcntl.LOCK_NB",
        "_fcntl.LOCK_SH | _fcntl.LOCK_NB",
        tests("test_locks", "two_trainings"),
    ),
    Fault(
        "an equal measure counts as a better one",
        "(losses.argmin(0) == len(history) - 1)",
        "(losses[-1] == losses.min(0))",
        tests("test_stopping", "best_is_kept"),
    ),
    *files.FAULTS,
    *lanes.FAULTS,
    *plans.FAULTS,
)
