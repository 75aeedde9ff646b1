"""A small training to be killed, which saves after every block."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrnn as jr
from jaxrnn import training
from jaxrnn.training.records import Records

STEPS = 2  # of a block


def fit(directory, blocks, *, save=True, on_block=lambda result: None):
    """Two seeds; noise, batches, Adam's moments and the learning rate of a step all depend on what was before."""
    model = jr.stack(jr.gru(2, 3), jr.dropout(0.3), jr.readout(3, 1))

    def loss(params, xs, key):
        ys = model.apply(params, xs, key=key)[1]
        return ((ys - xs.sum(-1, keepdims=True)) ** 2).mean(), {"largest": jnp.abs(ys).max()}

    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, STEPS * blocks))
    learn = training.loop(model.init, loss, optimizer)

    def block(member, _):
        state, best = member

        def batch(key, n):
            return jax.random.normal(jax.random.fold_in(key, n), (4, 2, 2))

        state, measures = learn.run(state, batch, STEPS)
        best = training.update_best(best, measures["loss"][-1], state.step, state.params)
        nonfinite = {"loss": training.first_nonfinite(measures["loss"])}
        return (state, best), {name: values[-1] for name, values in measures.items()}, nonfinite

    def start(key):
        state = learn.init(key)
        return state, training.init_best(state.params)

    run = jr.devices.ensemble(block)
    return training.fit(
        lambda states: run(states, ()),
        jr.devices.ensemble(start)(jax.random.split(jax.random.key(5), 2)),
        steps=STEPS * blocks,
        block_steps=STEPS,
        records=Records(directory / "metrics.jsonl"),
        labels=[{"seed": 0}, {"seed": 1}],
        checkpoint=directory / "checkpoints" if save else None,
        save_every=1,
        on_block=on_block,
    )


def numbers(fitted):
    """Every number of the final state, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(fitted.state)

    def numeric(a):
        return jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a

    return {jax.tree_util.keystr(path): np.asarray(numeric(leaf)) for path, leaf in leaves}


def train(directory, blocks, save):
    """All of a process: its training, and then the numbers of the final state in a file."""
    jax.config.update("jax_num_cpu_devices", 1)
    jax.config.update("jax_disable_most_optimizations", True)
    np.savez(directory / "final.npz", **numbers(fit(directory, blocks, save=save)))
