"""The memory_rl experiment: tasks by hand, the replay of carries, the update by NumPy, the files that it leaves."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import memory_rl
from experiments.memory_rl import environments, ppo
from experiments.runner.command import main
from tests.experiments.tiny import left_by_a_run

MAZE = environments.t_maze(3, discount=0.9)
DECK = environments.repeat_previous(symbols=3, lag=2, length=6, discount=0.5)


def played(environment, choose, episodes=80):
    """The returns and lengths of episodes, where ``choose`` takes the observations so far."""
    returns, lengths = [], []
    reset, step = jax.jit(environment.reset), jax.jit(environment.step)
    for key in jax.random.split(jax.random.key(0), episodes):
        state, observation = reset(key)
        seen, total, done = [np.asarray(observation)], 0.0, False
        while not done:
            state, observation, reward, done = step(state, choose(seen), jax.random.fold_in(key, len(seen)))
            seen.append(np.asarray(observation))
            total += float(reward)
        returns.append(total)
        lengths.append(len(seen) - 1)
    return np.array(returns), np.array(lengths)


def test_t_maze():
    by_cue = lambda seen: 0 if not seen[-1][1] else (1 if seen[0][0] > 0 else 2)
    returns, lengths = played(MAZE, by_cue, 20)
    assert (returns == 1).all() and (lengths == 4).all()
    returns, _ = played(MAZE, lambda seen: 0 if not seen[-1][1] else 1)
    assert set(returns) == {1.0, -1.0} and abs(returns.mean() - MAZE.chance) < 0.4  # 80 coins: 3.6 standard errors
    for standing, cost in ((lambda seen: 1, 0.8), (lambda seen: 0, 0.5)):  # at the entrance, at the junction
        returns, lengths = played(MAZE, standing, 3)
        np.testing.assert_allclose(returns, -cost, rtol=1e-5)
        assert (lengths == MAZE.longest).all()


def test_repeat_previous():
    returns, lengths = played(DECK, lambda seen: seen[-3 if len(seen) > 2 else 0].argmax(), 20)
    np.testing.assert_allclose(returns, 1, rtol=1e-5)
    assert (lengths == DECK.longest).all()
    returns, _ = played(DECK, lambda seen: seen[-1].argmax())
    assert abs(returns.mean() - DECK.chance) < 0.18  # 80 · 4 answers right with 1/3: 3.4 standard errors
    wrong, _ = played(DECK, lambda seen: (seen[-3 if len(seen) > 2 else 0].argmax() + 1) % 3, 3)
    np.testing.assert_allclose(wrong, -1, rtol=1e-5)


@functools.lru_cache
def rolled(environment):
    """``(policy, params, rollout, returns)``, the second rollout: it begins in the middle of episodes."""
    policy = ppo.policy_of(environment, 5)
    params = jax.tree.map(
        lambda a: a + 0.4 * jax.random.normal(jax.random.key(2), a.shape), policy.init(jax.random.key(0))
    )

    @jax.jit
    def two_rollouts(params, key):
        actors = ppo.start(environment, policy, params, 4, key)
        actors, _, _ = ppo.collect(environment, policy, params, actors, 3, key)
        return ppo.collect(environment, policy, params, actors, 9, jax.random.fold_in(key, 1))

    _, rollout, returns = two_rollouts(params, jax.random.key(1))
    return policy, params, rollout, returns


@pytest.mark.parametrize(("plan", "tolerance"), [("plain", 0), ("auto", 1e-5)])
@pytest.mark.parametrize("environment", [MAZE, DECK], ids=["maze", "deck"])
def test_replay_gives_the_log_probabilities_of_the_rollout(environment, plan, tolerance):
    """Bitwise for the same batch under "plain"; one by one to 1e-5; and neither carry nor resets may be left out."""
    policy, params, rollout, _ = rolled(environment)
    assert rollout.resets[1:].any() and not rollout.resets[0].all() and jnp.abs(rollout.start[0]).max() > 0.1

    @jax.jit
    def again(params, rollout):
        logits, values = ppo.replay(policy, params, rollout, plan=plan)
        return ppo.log_prob(logits, rollout.actions), values

    log_probs, values = again(params, rollout)
    np.testing.assert_allclose(log_probs, rollout.log_probs, rtol=0, atol=tolerance)
    np.testing.assert_allclose(values, rollout.values, rtol=0, atol=tolerance)
    some = again(params, ppo.of_members(rollout, jnp.array([3, 1])))[0]
    np.testing.assert_allclose(some, rollout.log_probs[:, [3, 1]], rtol=0, atol=1e-5)
    without = (
        rollout._replace(start=jax.tree.map(jnp.zeros_like, rollout.start)),
        rollout._replace(resets=rollout.resets & False),
    )
    for other in without:
        assert np.abs(again(params, other)[0] - rollout.log_probs).max() > 1e-3


@pytest.mark.parametrize("environment", [MAZE, DECK], ids=["maze", "deck"])
def test_episodes_follow_each_other_in_a_rollout(environment):
    _, _, rollout, returns = rolled(environment)
    np.testing.assert_array_equal(rollout.resets[1:], rollout.dones[:-1])
    np.testing.assert_array_equal(~np.isnan(returns), rollout.dones)
    for b in range(4):  # episodes that begin and end within the rollout
        for begin, end in itertools.pairwise(np.flatnonzero(rollout.dones[:, b])):
            total = rollout.rewards[begin + 1 : end + 1, b].sum()
            np.testing.assert_allclose(returns[end, b], total, rtol=1e-5, atol=1e-6)


def numpy_advantages(r, next_value, discount, trace):
    """As they are defined: sums of δ over what is left of the episode."""
    values = np.concatenate([r.values, next_value[None]])
    ends = np.asarray(r.dones, float)
    delta = r.rewards + discount * values[1:] * (1 - ends) - r.values
    gains = np.zeros_like(delta)
    for t in range(len(delta)):
        weight = np.ones(delta.shape[1])
        for k in range(t, len(delta)):
            gains[t] += weight * delta[k]
            weight *= discount * trace * (1 - ends[k])
    return gains


def test_advantages_and_loss_by_numpy():
    policy, params, rollout, _ = rolled(MAZE)
    next_value = jnp.linspace(-1, 1, 4)
    gains = ppo.advantages(rollout, next_value, 0.9, 0.8)
    want = numpy_advantages(jax.tree.map(np.asarray, rollout), np.asarray(next_value), 0.9, 0.8)
    np.testing.assert_allclose(gains, want, rtol=1e-5, atol=1e-6)

    settings = ppo.PPO(clip=0.1, value_weight=0.3, entropy_weight=0.2)
    moved = jax.tree.map(lambda a: 1.3 * a, params)
    got = jax.jit(lambda p: ppo.loss(policy, p, rollout, gains, gains + 1, settings))(moved)
    logits, values = map(np.asarray, ppo.replay(policy, moved, rollout))
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    ratio = np.take_along_axis(p, np.asarray(rollout.actions)[..., None], -1)[..., 0] / np.exp(rollout.log_probs)
    a = (want - want.mean()) / want.std()
    clipped = np.where(a > 0, np.minimum(ratio, 1.1), np.maximum(ratio, 0.9)) * a
    assert (clipped != ratio * a).any()
    entropy = -(p * np.log(p)).sum(-1).mean()
    expected = -clipped.mean() + 0.3 * np.square(values - want - 1).mean() - 0.2 * entropy
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_small_run_learns_and_leaves_files_that_agree(tmp_path, capsys):
    path = tmp_path / "small.toml"
    path.write_text(
        'experiment = "memory_rl"\ntasks = ["t_maze"]\nnetworks = ["gru"]\nhidden_size = 16\nseeds = [7]\n'
        "episodes = 50\nt_maze = {length = 2}\n"
        "ppo = {updates = 60, environments = 16, steps = 16, learning_rate = 1e-2}\n"
    )
    assert main(["run", str(path), "--out", str(tmp_path)]) == 0
    run = tmp_path / "memory_rl-001"
    assert {file.name for file in run.iterdir()} == left_by_a_run("curves")
    trained = json.loads((run / "summary.json").read_text())["trained"]
    assert [(t["task"], t["network"], t["returns"]) for t in trained] == [("t_maze", "gru", [1.0])]
    assert np.shape(trained[0]["curve"]) == (1, 60) and trained[0]["curve"][0][0] < 0.3
    row = (run / "table.md").read_text().splitlines()[2]
    assert row.startswith("| t_maze | gru | 1,028 | 1.000 | 1.000 | 0.0 | 15,360 |")
    assert f"written to {run}" in capsys.readouterr().out


@pytest.mark.full
def test_as_configured_a_memory_reaches_the_optimum_and_none_reaches_chance():
    config = memory_rl.Config(experiment="memory_rl")
    for task in config.tasks:
        chance = memory_rl.environment_of(config, task).chance
        gru, memoryless = (memory_rl.fit(config, task, network).evaluated for network in config.networks)
        assert len(gru) == 5 and gru.min() >= 0.95
        assert np.abs(memoryless - chance).max() < 0.2  # T-maze: 512 coins, 4.5 standard errors


def test_configs_that_ask_for_nothing():
    with pytest.raises(ValueError, match=r"expected a length above the lag \(4\), got 4"):
        memory_rl.RepeatPrevious(length=4)
    with pytest.raises(ValueError, match="a number of environments that 3 minibatches divide, got 32"):
        ppo.PPO(minibatches=3)
