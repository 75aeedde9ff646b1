"""Models to save, parameters for them, and the header and data of a file: what the tests of files share."""

import json

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn as jr

I, H = 3, 4

MODELS = {
    "cell": jr.lstm(I, H),
    "learned": jr.gru(I, H, reset="after", learned_carry=True),
    "reversed": jr.scan(jr.elman(I, H, output_size=2, activation="relu"), reverse=True),
    "narrow": jr.scan(jr.gru(I, H, param_dtype="bfloat16"), plan=jr.Plan(hoist=False), checkpoint=jr.Budget(5)),
    "no parameters": jr.scan(jr.dropout(0.3)),
    "deep": jr.stack(
        jr.embedding(7, I),
        jr.bidirectional(jr.gru(I, H), jr.peephole_lstm(I, H, peephole="full"), merge="sum"),
        jr.dropout(0.2),
        jr.residual(jr.normalized(jr.lstm(H, H))),
        jr.readout(H, 2),
    ),
    "branch": jr.branch(
        jr.gru(I, H), jr.dense(I, 2, activation="tanh", bias=False), jr.pointwise("relu"), merge="concat"
    ),
    "chain": jr.chain(jr.leaky(jr.elman(I, H), rate=0.3), jr.layer_norm(H)),
}


def randomised(model, seed=0):
    """Parameters in the dtypes of ``init``, none of them zero."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), shapes)


def assert_same(got, want):
    """The same bits in the same places."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert isinstance(a, jax.Array) and (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def write(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def contents(path):
    """The header, as JSON has it, and the data of a file."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:start]), raw[start:]


def saved(path, model=MODELS["cell"]):
    """The header and the data of a sound file, which is written."""
    jr.save(path, model, randomised(model))
    return contents(path)


def text_of(path):
    """What jaxrnn says in a file beside the tensors."""
    return json.loads(contents(path)[0]["__metadata__"]["jaxrnn"])


def with_text(header, **entries):
    """A header in which jaxrnn's text says other things, without digests, as in files of 0.1.0."""
    text = {**json.loads(header["__metadata__"]["jaxrnn"]), "sha256": "absent", **entries}
    text = json.dumps({name: value for name, value in text.items() if value != "absent"})
    return {**header, "__metadata__": {"jaxrnn": text}}
