"""Train the members of one model, seeds and settings of equal shapes, in one program; jaxrnn.training does the work."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec, SingleDeviceSharding

import jaxrnn as jr
from experiments.runner import config, directories, report
from experiments.runner.config import Train
from jaxrnn import training
from jaxrnn.devices.ensembles import Ensemble
from jaxrnn.training import TrainState, checkpoints

PyTree = Any
Measures = dict[str, jax.Array]  # scalars by name


def never(block: training.BlockResult) -> bool:
    return False


class Task(NamedTuple):
    """What is to be learned: pure functions, which see the arrays of ``shared`` as their last argument."""

    init: Callable[[jax.Array], PyTree]  # key -> params
    batch: Callable[[jax.Array, jax.Array, PyTree], PyTree] | None  # (key, number, shared) -> batch; None with ``feed``
    # (params, batch, key, shared) -> (loss, what else to record); the key is for dropout and its like
    loss: Callable[[PyTree, PyTree, jax.Array | None, PyTree], tuple[jax.Array, Measures]]
    evaluate: Callable[[PyTree, PyTree], Measures]  # (params, shared) -> measures on held-out data
    score: str  # the held-out measure that says which parameters are best
    lower: bool = True  # whether small scores are good
    shared: PyTree = ()  # data, the same for all members
    batch_axis: PyTree = 1  # where a batch is divided among devices: of each array of it, as in jr.devices.shard_batch
    stop_when: Callable[[training.BlockResult], bool] = never  # whether training may stop early
    until: str = "it has come to its end"  # what stop_when waits for, in words
    # Batches of several shapes, made by the host: seeds -> (step -> batch, each array leading with the seeds). A
    # function of seeds and step alone, so that a resumed run goes on with the batch that was due.
    feed: Callable[[Sequence[int]], Callable[[int], PyTree]] | None = None
    # Truncated BPTT over batches that follow each other: params -> what the first step is handed beside its batch. The
    # loss then gets (batch, carry) in place of the batch, and "carry" of its measures is what the next step is handed.
    initial_carry: Callable[[PyTree], PyTree] | None = None


class Member(NamedTuple):
    """One training among those that run as one program: what may differ without another compilation."""

    seed: int
    learning_rate: float
    clip_at: float
    label: Mapping[str, Any]  # what its rows in metrics.jsonl begin with


class State(NamedTuple):
    """Of one member."""

    train: TrainState
    best: training.Best
    carry: PyTree = ()  # what the next step is handed, where the task has an initial_carry


class Fit(NamedTuple):
    """One trained model."""

    result: report.Result
    params: PyTree  # after the last step, each leaf (members, …)
    best: training.Best  # those with the best score after a block


ALONE = config.Mesh()  # each batch on one device

CLIPPING: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "global_norm": optax.clip_by_global_norm,  # Pascanu et al. 2013
    "value": optax.clip,  # Mikolov 2012
    "adaptive": optax.adaptive_grad_clip,  # Brock et al. 2021: relative to the norm of each unit's weights
}


def optimizer(settings: Train, learning_rate: Any = None, clip_at: Any = None) -> optax.GradientTransformation:
    """The optimiser of ``[train]``, gradients clipped first; the two numbers stand in place of the table's."""
    rate: Any = settings.learning_rate if learning_rate is None else learning_rate
    if settings.schedule == "cosine":
        rate = optax.cosine_decay_schedule(rate, settings.steps)
    update = optax.adam(rate) if settings.optimizer == "adam" else optax.sgd(rate)
    if settings.clip == "none":
        return update
    return optax.chain(CLIPPING[settings.clip](settings.clip_at if clip_at is None else clip_at), update)


def members(settings: Train, model: str) -> list[Member]:
    """The seeds of a model."""
    return [
        Member(seed, settings.learning_rate, settings.clip_at, {"model": model, "seed": seed})
        for seed in settings.seeds
    ]


def fit(
    name: str,
    task: Task,
    settings: Train,
    *,
    mesh: config.Mesh = ALONE,
    among: Sequence[Member] | None = None,
    directory: Path | None = None,
    on_block: Callable[[training.BlockResult], None] = lambda block: None,
    made_by: Mapping[str, Any] | None = None,
) -> Fit:
    """Train all members of a model at once, in blocks of steps, divided among devices (``jr.devices.ensemble``).

    Args:
        name: of the model, for the report.
        task: what is to be learned.
        settings: ``[train]``.
        mesh: ``[mesh]``.
        among: the members; None means the seeds of ``settings``.
        directory: of the run: metrics.jsonl, and checkpoints from which a later call goes on. None writes nothing.
        on_block: called after each block with what was measured.
        made_by: the whole config; a run that was started with another is not resumed.
    """
    among = members(settings, name) if among is None else among
    hyper = hyperparameters(among)
    batch_of = None if task.feed is None else task.feed([member.seed for member in among])
    by = programs_of(task, settings, mesh.batch, device_mesh(mesh, len(among)))
    states = by.start(hyper, task.shared)

    def next_block(states: State) -> tuple[State, Measures, Measures]:
        if batch_of is None:
            return by.run((states, hyper), task.shared)
        state, steps = states.train, []
        first = int(training.fetch(state.step)[0])
        for number in range(first, first + settings.block):  # a program for each shape of a batch
            state, measures = by.step((state, hyper, batch_of(number)), task.shared)
            steps.append(measures)
        stacked = jax.tree.map(lambda *a: jnp.stack(a, axis=1), *steps)
        return by.measure((State(state, states.best), stacked), task.shared)

    stop = training.patience(task.score, settings.patience, lower=task.lower) if settings.patience else None
    fitted = training.fit(
        next_block,
        states,
        steps=settings.steps,
        block_steps=settings.block,
        records=None if directory is None else directories.records(directory, settings.tensorboard),
        labels=[member.label for member in among],
        checkpoint=None if directory is None else directories.checkpoint(directory, name),
        save_every=settings.save_every,
        nonfinite="stop" if settings.nonfinite == "stop" else "record",
        stop_when=lambda history: task.stop_when(history[-1]) or (stop is not None and stop(history)),
        on_block=on_block,
        config={**(made_by or {}), "members": [member.label for member in among]},
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(states.train.params)) // len(among)
    seeds = tuple(member.seed for member in among)
    ended = ended_early(task, settings, fitted.history)
    result = report.Result(name, seeds, parameters, fitted.history, fitted.seconds, fitted.already_finished, ended)
    return Fit(result, training.fetch(fitted.state.train.params), training.fetch(fitted.state.best))


class Programs(NamedTuple):
    """What trains all members of a task at once, each compiled at its first call."""

    start: Ensemble  # (hyper, shared) -> states
    run: Ensemble  # a block: ((states, hyper), shared) -> states, measures, what is not finite
    step: Ensemble  # ((train states, hyper, batch), shared) -> train states, measures (steps,)
    measure: Ensemble  # ((states, measures), shared), after a block of steps: what run returns


def programs_of(task: Task, settings: Train, batch_devices: int, devices: Mapping[str, Any]) -> Programs:
    """Those of the task before are used again where all is alike but the data, as of the folds of a split."""
    of = task._replace(shared=(), feed=None, stop_when=never, until=""), settings, batch_devices, *devices.items()
    try:
        return programs(*of)
    except TypeError:  # of a batch_axis that is a dict, say, which is no key of what is kept
        return programs.__wrapped__(*of)


@functools.lru_cache(maxsize=1)
def programs(task: Task, settings: Train, batch_devices: int, *devices: tuple[str, Any]) -> Programs:
    def block(member: tuple[State, Mapping[str, jax.Array]], shared: PyTree) -> tuple[State, Measures, Measures]:
        (before, best, carry), hyper = member
        draw = task.batch
        assert draw is not None, "a task has batch or feed"

        def batch_at(key: jax.Array, number: jax.Array) -> PyTree:
            return divided(draw(key, number, shared), task.batch_axis, batch_devices)

        loop = steps_of(task, settings, hyper, shared)
        if task.initial_carry is None:
            state, measures = loop.run(before, batch_at, settings.block)
        else:
            state, carry, measures = run_with_carry(loop, before, carry, batch_at, settings.block)
        return measured((State(state, best, carry), measures), shared)

    def one_step(member: tuple[TrainState, Mapping[str, jax.Array], PyTree], shared: PyTree) -> Any:
        state, hyper, batch = member
        return steps_of(task, settings, hyper, shared).step(state, divided(batch, task.batch_axis, batch_devices))

    def measured(member: tuple[State, Measures], shared: PyTree) -> tuple[State, Measures, Measures]:
        """What a block comes to: its measures (steps,), and those that are held out, of the parameters after it."""
        (state, best, carry), measures = member
        watched = {"loss": measures["loss"], "gradient": measures["grad_norm"]}
        held_out = task.evaluate(state.params, shared)
        assert not set(held_out) & {*measures, "skipped"}, "a held-out measure has the name of another"
        if settings.nonfinite == "skip":
            taken = jnp.isfinite(watched["loss"]) & jnp.isfinite(watched["gradient"])
            means = {name: jnp.mean(values, where=taken) for name, values in measures.items()}
            means["skipped"] = state.skipped
            watched = {}
        else:
            means = jax.tree.map(jnp.mean, measures)
        nonfinite = jax.tree.map(training.first_nonfinite, watched)
        # The last update shows in no loss yet.
        finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)]).all()
        nonfinite["parameters"] = jnp.where(finite, 0, settings.block)
        best = training.update_best(best, held_out[task.score], state.step, state.params, lower=task.lower)
        return State(state, best, carry), {**means, **held_out}, nonfinite

    first = functools.partial(start, task, settings)
    return Programs(*(jr.devices.ensemble(of, **dict(devices)) for of in (first, block, one_step, measured)))


def ended_early(task: Task, settings: Train, history: Sequence[training.BlockResult]) -> str:
    """In words, why a training ended before its last step; nothing where it did not."""
    last = history[-1]
    if last.step >= settings.steps:
        return ""
    if task.stop_when(last):
        why = task.until
    else:
        blocks = f"{settings.patience} blocks of {settings.block:,} steps"
        why = f"for {blocks} no seed had a better {task.score.replace('_', ' ')}"
    return f"stopped early, after step {last.step:,} of {settings.steps:,}: {why}"


def stored(name: str, task: Task, settings: Train, directory: Path) -> tuple[int, PyTree, training.Best]:
    """What the newest checkpoint of a run holds of a model: the step, the parameters, the best ones; by seed.

    Raises:
        directories.RunError: there is none. checkpoints.CheckpointError: it cannot be read.
    """
    hyper = hyperparameters(members(settings, name))
    shapes = jax.eval_shape(jax.vmap(functools.partial(start, task, settings), in_axes=(0, None)), hyper, task.shared)
    here = SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), shapes)
    restored = checkpoints.restore(directories.checkpoint(directory, name), like)
    if restored is None:
        raise directories.RunError(
            f"{directory}: no checkpoint of {name} yet; train it first, with run --resume {directory}"
        )
    return restored.step, restored.state.train.params, restored.state.best


def hyperparameters(among: Sequence[Member]) -> dict[str, jax.Array]:
    """What differs between the members, each array leading with their number."""
    return {
        "key": jnp.stack([jax.random.key(member.seed) for member in among]),
        "learning_rate": jnp.array([member.learning_rate for member in among], jnp.float32),
        "clip_at": jnp.array([member.clip_at for member in among], jnp.float32),
    }


def steps_of(task: Task, settings: Train, hyper: Mapping[str, jax.Array], shared: PyTree) -> training.Loop:
    """The steps of one member."""
    return training.loop(
        task.init,
        lambda params, batch, key: task.loss(params, batch, key, shared),
        optimizer(settings, hyper["learning_rate"], hyper["clip_at"]),
        accumulate=settings.accumulate,
        nonfinite="skip" if settings.nonfinite == "skip" else "keep",
    )


def run_with_carry(
    loop: training.Loop,
    state: TrainState,
    carry: PyTree,
    batch_at: Callable[[jax.Array, jax.Array], PyTree],
    steps: int,
) -> tuple[TrainState, PyTree, Measures]:
    """As ``loop.run``, but that each step hands a carry on to the next; a step that is skipped, what it was handed."""

    def one(before: tuple[TrainState, PyTree], _: None) -> tuple[tuple[TrainState, PyTree], Measures]:
        state, carry = before
        after, measures = loop.step(state, (batch_at(state.key, state.step), carry))
        taken = after.skipped == state.skipped
        carry = jax.tree.map(lambda new, old: jnp.where(taken, new, old), measures.pop("carry"), carry)
        return (after, carry), measures

    (state, carry), measures = jax.lax.scan(one, (state, carry), length=steps)
    return state, carry, measures


def start(task: Task, settings: Train, hyper: Mapping[str, jax.Array], shared: PyTree) -> State:
    """A member before its first step."""
    state = steps_of(task, settings, hyper, shared).init(hyper["key"])
    carry = () if task.initial_carry is None else task.initial_carry(state.params)
    return State(state, training.init_best(state.params, lower=task.lower), carry)


def device_mesh(settings: config.Mesh, members: int) -> dict[str, Any]:
    """The mesh of ``[mesh]``, and which of its axes divides the members: options of ``jr.devices.ensemble``.

    Raises:
        config.ConfigError: there are not so many devices, or they do not divide the members.
    """
    most = max(jax.device_count() // settings.batch, 1)
    groups = settings.members or max(d for d in range(1, min(most, members) + 1) if members % d == 0)
    if members % groups:
        raise config.ConfigError(f"mesh.members: expected a divisor of the {members} members, got {groups}")
    if groups * settings.batch > jax.device_count():
        raise config.ConfigError(
            f"mesh: expected at most {jax.device_count()} devices, all that there are, got members = {groups} times "
            f"batch = {settings.batch}"
        )
    try:
        if settings.batch == 1:
            return {"mesh": jr.devices.batch_mesh(groups, axis="member")}
        return {"mesh": jr.devices.batch_mesh(settings.batch, members=groups), "axes": "member"}
    except ValueError as error:
        raise config.ConfigError(f"[mesh]: {error}") from None


def divided(batch: PyTree, batch_axis: PyTree, devices: int) -> PyTree:
    """The batch, divided along its axis among the devices of the mesh's axis "batch"."""
    if devices == 1:
        return batch
    axes = jax.tree.broadcast(batch_axis, batch)

    def divide(a: jax.Array, axis: int) -> jax.Array:
        return jax.lax.with_sharding_constraint(a, PartitionSpec(*[None] * axis, "batch"))

    return jax.tree.map(divide, batch, axes)


def epoch_batch(examples: int, batch_size: int, key: jax.Array, number: jax.Array) -> jax.Array:
    """(batch_size,) indices of the examples of a batch.

    Every epoch goes through a new permutation of the examples and leaves out the few that fill no batch. It
    is drawn anew for each batch of the epoch, so that a batch depends on nothing but ``key`` and ``number``; that
    costs far less than the step itself.
    """
    epoch, place = jnp.divmod(number, examples // batch_size)
    order = jax.random.permutation(jax.random.fold_in(key, epoch), examples)
    return jax.lax.dynamic_slice_in_dim(order, place * batch_size, batch_size)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean over the batch of logits (B, C) and integer labels (B,)."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The share of the batch whose largest logit is the label's; logits that are not finite are wrong."""
    # argmax of NaNs is 0: without the second condition a diverged model would be right about the class 0.
    right = (logits.argmax(-1) == labels) & jnp.isfinite(logits).all(-1)
    return right.mean()
