"""Checkpoints come back bit by bit, or are refused with a reason; what went wrong leaves the older ones alone."""

import contextlib
import logging
import os
import resource
import shutil
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxrnn as jr
from jaxrnn.training import checkpoints
from jaxrnn.training.checkpoints import CheckpointError


def state(seed=0, hidden=3):
    """Parameters, an optimiser's state, typed keys, and a dtype of each width."""
    params = jr.lstm(2, hidden, learned_carry=True).init(jax.random.key(seed))
    others = {
        "key": jax.random.split(jax.random.key(seed), 3),
        "half": jnp.linspace(0, 1, 7, dtype=jnp.bfloat16) + seed,
        "flags": jnp.arange(5) % 2 == seed % 2,
        "bytes": jnp.arange(6, dtype=jnp.int8).reshape(2, 3) + seed,
        "count": jnp.asarray(seed),
        "none": jnp.zeros((0, 3)),
    }
    return {"params": params, "opt": optax.adam(1e-3).init(params), "others": others}


def bits(tree):
    def numeric(a):
        return jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a

    return jax.tree.map(lambda a: np.asarray(numeric(a)), tree)


def assert_same(came, expected):
    assert jax.tree.structure(came) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(came), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
    jax.tree.map(np.testing.assert_array_equal, bits(came), bits(expected))


def test_what_is_saved_comes_back_bit_by_bit(tmp_path):
    for step in (0, 7, 20):
        checkpoints.save(tmp_path, step, state(step), {"step": step, "words": "ä"})
    assert checkpoints.latest(tmp_path) == 20
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [7, 20]  # the newest two
    step, restored, note = checkpoints.restore(tmp_path, state(1))
    assert (step, note) == (20, {"step": 20, "words": "ä"}) == (20, checkpoints.note(tmp_path))
    assert_same(restored, state(20))
    checkpoints.save(tmp_path, 20, state(3))  # is there already
    assert_same(checkpoints.restore(tmp_path, state())[1], state(20))


def test_float64(tmp_path, x64):
    wide = {"w": jnp.asarray(np.random.default_rng(0).normal(size=5)), "z": jnp.asarray([1 + 2j, np.pi])}
    checkpoints.save(tmp_path, 1, wide)
    assert_same(checkpoints.restore(tmp_path, wide)[1], wide)


def test_nothing_there(tmp_path):
    for directory in (tmp_path, tmp_path / "missing"):
        assert checkpoints.latest(directory) is checkpoints.note(directory) is None
        assert checkpoints.restore(directory, state()) is None


def test_other_devices_read_what_these_have_written(tmp_path):
    mesh = jr.devices.batch_mesh(2)
    apart, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("batch",), ()))
    a = jnp.arange(24.0).reshape(4, 6)
    checkpoints.save(tmp_path, 1, {"a": jax.device_put(a, apart), "b": jax.device_put(a, everywhere)})
    for places in ((everywhere, apart), (a.sharding, a.sharding)):
        like = {
            name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place)
            for name, place in zip("ab", places, strict=True)
        }
        restored = checkpoints.restore(tmp_path, like)[1]
        assert_same(restored, {"a": a, "b": a})
        assert (restored["a"].sharding, restored["b"].sharding) == places


@pytest.mark.parametrize("damage", ["flipped", "halved", "gone"])
def test_damage_is_noticed(tmp_path, damage):
    """Whichever file it is: the state is right to the last bit, or refused."""
    saved = {"w": jax.random.normal(jax.random.key(0), (40, 30)), "n": jnp.asarray(3)}
    for step in (1, 2):
        checkpoints.save(tmp_path, step, saved)
    newest = tmp_path / "2"
    refused = []
    for path in sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size):
        content = path.read_bytes()
        middle = len(content) // 2
        if damage == "gone":
            path.unlink()
        else:
            changed = bytes([content[middle] ^ 0x11]) + content[middle + 1 :]
            path.write_bytes(content[:middle] + (changed if damage == "flipped" else b""))
        try:
            assert_same(checkpoints.restore(tmp_path, saved)[1], saved)
        except CheckpointError as error:
            refused.append(str(error))
        path.write_bytes(content)
    assert len(refused) >= 3
    for message in refused:
        assert message.startswith(f"{newest}: damaged")
        assert message.endswith(f"; remove {newest} to go on from step 1.")
    if damage == "flipped":  # what no other check has seen
        assert any("the checksum of its arrays is another" in message for message in refused)
    shutil.rmtree(newest)
    assert checkpoints.restore(tmp_path, saved).step == 1


def test_another_model_is_refused(tmp_path):
    checkpoints.save(tmp_path, 5, state())
    with pytest.raises(CheckpointError) as refused:
        checkpoints.restore(tmp_path, state(hidden=4))
    assert str(refused.value).startswith(
        f"{tmp_path / '5'}: holds another state than the one expected: opt.0.mu.W_xh is float32[2, 12] there and "
        f"float32[2, 16] here, "
    )
    with pytest.raises(CheckpointError, match=r"others.bytes is missing there and int8\[2, 3\] here"):
        without = state()
        checkpoints.save(tmp_path, 6, without | {"others": {"key": without["others"]["key"]}})
        checkpoints.restore(tmp_path, state())


def test_foreign_checkpoints_are_refused(tmp_path):
    with ocp.CheckpointManager(tmp_path / "theirs") as manager:
        manager.save(3, args=ocp.args.StandardSave({"w": jnp.ones(3)}))
    with pytest.raises(CheckpointError, match="3: damaged, or not a checkpoint of jaxrnn"):
        checkpoints.restore(tmp_path / "theirs", {"w": jnp.ones(3)})

    checkpoints.save(tmp_path / "ours", 3, {"w": jnp.ones(3)})
    record = tmp_path / "ours/3/note/metadata"
    record.write_text(record.read_text().replace(checkpoints.FORMAT, "jaxrnn-checkpoint-9"))
    with pytest.raises(CheckpointError, match="format 'jaxrnn-checkpoint-1', got 'jaxrnn-checkpoint-9'"):
        checkpoints.restore(tmp_path / "ours", {"w": jnp.ones(3)})


@contextlib.contextmanager
def full_disk(left):
    """No file of this process may grow beyond ``left`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, before[1]))  # Python ignores the signal that comes with it
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_older_ones(tmp_path):
    saved = {"w": jax.random.normal(jax.random.key(0), (100, 100))}
    for older in (None, 1):
        if older:
            checkpoints.save(tmp_path, older, saved)
        with full_disk(2000), pytest.raises(CheckpointError) as refused:
            checkpoints.save(tmp_path, 2, saved)
        kept = "the checkpoint of step 1 is intact" if older else "no older checkpoint exists"
        message = str(refused.value)
        assert message.startswith(f"{tmp_path}: the checkpoint of step 2 could not be written: ")
        assert message.endswith(f"File too large; {kept}.")
        assert os.listdir(tmp_path) == ([str(older)] if older else [])  # nothing half-written takes up the space
    checkpoints.save(tmp_path, 2, saved)
    assert_same(checkpoints.restore(tmp_path, saved)[1], saved)


def test_what_a_killed_save_leaves_is_no_checkpoint(tmp_path):
    checkpoints.save(tmp_path, 1, state())
    shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp")
    assert checkpoints.restore(tmp_path, state()).step == 1
    checkpoints.save(tmp_path, 3, state())
    assert sorted(os.listdir(tmp_path)) == ["1", "3"]


def test_a_reader_leaves_the_writer_alone(tmp_path, monkeypatch):
    """What is being written beside it, and a step that is replaced while it is read."""
    checkpoints.save(tmp_path, 1, state(1))
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    assert checkpoints.restore(tmp_path, state()).step == 1
    assert (tmp_path / "2.orbax-checkpoint-tmp").is_dir()

    record = checkpoints._record

    def replaced(where, fix):
        if where.name == "1":
            checkpoints.save(tmp_path, 2, state(2))
            shutil.rmtree(where)
        return record(where, fix)

    monkeypatch.setattr(checkpoints, "_record", replaced)
    step, restored, _ = checkpoints.restore(tmp_path, state())
    assert step == 2
    assert_same(restored, state(2))


def test_what_is_not_orbaxs_own_gets_through_during_a_save(tmp_path, monkeypatch, caplog):
    """Another thread's records, though it works with orbax too, and errors in destructors."""
    saving, done, unraisable = threading.Event(), threading.Event(), []
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: unraisable.append(str(raised.exc_value)))
    log, all_steps = logging.getLogger("absl"), ocp.CheckpointManager.all_steps

    def log_as_orbax(message):
        log.handle(log.makeRecord("absl", logging.ERROR, ocp.__file__, 1, message, (), None))

    def work():
        saving.wait()
        log_as_orbax("of another thread")
        done.set()

    class Broken:
        def __del__(self):
            raise OSError("of somebody's object")

    def in_the_middle(manager):
        monkeypatch.setattr(ocp.CheckpointManager, "all_steps", all_steps)
        log_as_orbax("of the save")
        log.error("of somebody else in this thread")
        saving.set()
        assert done.wait(timeout=60)
        Broken()
        return all_steps(manager)

    monkeypatch.setattr(ocp.CheckpointManager, "all_steps", in_the_middle)
    other = threading.Thread(target=work)
    other.start()
    hook = sys.unraisablehook
    checkpoints.save(tmp_path, 1, {"a": jnp.ones(3)})
    other.join()
    assert sys.unraisablehook is hook and unraisable == ["of somebody's object"]
    assert checkpoints.restore(tmp_path, {"a": jnp.ones(3)}).step == 1  # of which orbax warns
    said = [record.getMessage() for record in caplog.records if record.name == "absl"]
    assert said == ["of somebody else in this thread", "of another thread"]
    log_as_orbax("afterwards")
    assert caplog.records[-1].getMessage() == "afterwards"


def test_leaves_are_arrays_with_paths_of_their_own(tmp_path):
    with pytest.raises(TypeError, match=r"expected JAX arrays, got int at step; jnp.asarray it"):
        checkpoints.save(tmp_path, 1, {"step": 3})
    with pytest.raises(ValueError, match=r"two arrays of the state have the same path a\.b"):
        checkpoints.save(tmp_path, 1, {"a.b": jnp.ones(1), "a": {"b": jnp.ones(1)}})


@pytest.mark.parametrize("step", [1.5, True, "2"])
def test_steps_are_whole_numbers(step, tmp_path):
    with pytest.raises(TypeError, match=r"^checkpoints\.save: step must be an int, "):
        checkpoints.save(tmp_path, step, {"a": jnp.ones(1)})
    assert not os.listdir(tmp_path)


def test_missing_orbax_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r"needs orbax-checkpoint: pip install 'jaxrnn\[train\]'"):
        checkpoints.save(tmp_path, 1, state())
