"""What is wrong with the arguments of bucketed, padded, prefetch and fetch is said, with what to give."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn.training import bucketed, fetch, padded, prefetch

XS = [np.ones((n, 2)) for n in (3, 1, 2, 2)]
TOKENS = [np.zeros(n, int) for n in (3, 1, 2, 2)]
BATCHES = bucketed([3, 1, 2, 2], batch_size=2, seed=0)
ONE = bucketed([3, 1, 2, 2], batch_size=4, seed=0)
MAKE = dict(batch_size=2, seed=0)
ERRORS = {
    "float lengths": (
        lambda: bucketed([1.0, 2.0], **MAKE),
        TypeError,
        ["bucketed: lengths must be integers, got float64", "lengths.astype('int32')"],
    ),
    "negative length": (
        lambda: bucketed([3, -1], **MAKE),
        ValueError,
        ["bucketed: lengths must be 0 or more, got -1 for example 1", "len(sequence)"],
    ),
    "no lengths": (lambda: bucketed([], **MAKE), ValueError, ["at least one example, got none"]),
    "lengths of two axes": (lambda: bucketed([[1]], **MAKE), ValueError, ["must be (N,)", "got shape (1, 1)"]),
    "batch of none": (
        lambda: bucketed([1], batch_size=0, seed=0),
        ValueError,
        ["bucketed: batch_size must be a positive int, got 0"],
    ),
    "half a batch": (lambda: bucketed([1], batch_size=0.5, seed=0), TypeError, ["batch_size must be a positive int"]),
    "seed": (
        lambda: bucketed([1], batch_size=1, seed=-1),
        ValueError,
        ["bucketed: seed must be an int, 0 or above, got -1"],
    ),
    "key as seed": (
        lambda: bucketed([1], batch_size=1, seed="a"),
        TypeError,
        ["bucketed: seed must be an int, 0 or above, got 'a' (str)"],
    ),
    "no buckets": (lambda: bucketed([1], **MAKE, buckets=0), ValueError, ["bucketed: buckets must be a positive int"]),
    "float buckets": (
        lambda: bucketed([7], **MAKE, buckets=[2.5]),
        TypeError,
        ["bucketed: buckets must be a number of buckets, or the T of each as ints, got [2.5]", "[50, 100, 7]"],
    ),
    "descending": (
        lambda: bucketed([1], **MAKE, buckets=np.array([9, 5], np.uint64)),
        ValueError,
        ["bucketed: buckets must ascend from 1 or more, got [9, 5]; give [5, 9]."],
    ),
    "bucket of 0": (
        lambda: bucketed([1], **MAKE, buckets=[0, 9]),
        ValueError,
        ["bucketed: buckets must ascend from 1 or more, got [0, 9]; give [9]."],
    ),
    "too short": (
        lambda: bucketed([8, 2], **MAKE, buckets=[5]),
        ValueError,
        ["the longest example has 8 steps, more than the last bucket, 5", "add 8 to buckets"],
    ),
    "negative step": (lambda: BATCHES.at(-1), ValueError, ["bucketed.at: step must be 0 or more, got -1"]),
    "float step": (lambda: padded(BATCHES, XS)(1.0), TypeError, ["bucketed.at: step must be an int, got 1.0"]),
    "not batches": (lambda: padded([3], XS), TypeError, ["padded: batches must come from training.bucketed, got list"]),
    "processes": (
        lambda: padded(BATCHES, XS, process=(0, 3)),
        ValueError,
        ["padded: batch_size, 2, cannot be divided among 3 processes", "a multiple of 3, such as 3"],
    ),
    "process": (
        lambda: padded(BATCHES, XS, process=(2, 2)),
        ValueError,
        ["0 ≤ p < P, got (2, 2); the first of two is (0, 2)"],
    ),
    "too few": (lambda: padded(BATCHES, {"y": XS[1:]}), ValueError, ["data['y'] must hold 4 examples", "got 3"]),
    "too many labels": (
        lambda: padded(BATCHES, np.ones(5)),
        ValueError,
        ["padded: data must hold 4 examples", "got 5"],
    ),
    "other lengths": (
        lambda: padded(BATCHES, (XS, XS[::-1])),
        ValueError,
        ["padded: data[1] has 2 steps for example 0, but bucketed was given 3", "the lengths of these sequences"],
    ),
    "other lengths, loaded": (
        lambda: padded(ONE, lambda indices: [XS[n - 1] for n in indices])(0),
        ValueError,
        ["padded: data has", "steps for example", "but bucketed was given"],
    ),
    "too many, loaded": (lambda: padded(ONE, lambda indices: [*XS, XS[0]])(0), ValueError, ["4 examples", "got 5"]),
    "a list of labels": (
        lambda: padded(BATCHES, {"y": [1, 2, 3, 4]}),
        ValueError,
        ["data['y'] must be a list of sequences", "example 0 is a scalar", "np.array(data['y'])"],
    ),
    "a number": (lambda: padded(BATCHES, (XS, 3)), TypeError, ["padded: data[1] must be a list of", "got 3"]),
    "features": (
        lambda: padded(BATCHES, [*XS[:3], np.ones((2, 5))]),
        ValueError,
        ["data is float64 (2, 5) for example 3 but float64 (3, 2) for example 0; all must agree in dtype"],
    ),
    "dtype": (
        lambda: padded(BATCHES, [*XS[:3], np.ones((2, 2), np.int8)]),
        ValueError,
        ["data is int8 (2, 2) for example 3 but float64 (3, 2)"],
    ),
    "token": (
        lambda: padded(BATCHES, ([np.array([0, 4, 1]), *TOKENS[1:]], XS), below=(4, None)),
        ValueError,
        ["padded: data[0] holds 4 at step 1 of example 0, but must be from 0 to 3", "larger below"],
    ),
    "token below 0, loaded": (
        lambda: padded(ONE, lambda indices: [TOKENS[n] - (n == 2) for n in indices], below=4)(0),
        ValueError,
        ["padded: data holds -1 at step 0 of example 2, but must be from 0 to 3"],
    ),
    "label": (
        lambda: padded(BATCHES, {"xs": XS, "y": np.arange(8).reshape(4, 2) // 5 * 2}, below={"xs": None, "y": 2}),
        ValueError,
        ["padded: data['y'] holds 2 of example 2, but must be from 0 to 1"],
    ),
    "large label": (
        lambda: padded(BATCHES, np.array([0, 1, 2**40, 3]), below=10),
        ValueError,
        [f"padded: data holds {2**40} of example 2"],
    ),
    "below of floats": (
        lambda: padded(BATCHES, {"xs": XS, "y": np.arange(4)}, below=4),
        TypeError,
        ["padded: data['xs'] must be integers from 0 to 3, got float64", "None for what is neither"],
    ),
    "below 0": (
        lambda: padded(BATCHES, np.arange(4), below=0),
        ValueError,
        ["padded: below must be a positive int, got 0"],
    ),
    "below of another tree": (
        lambda: padded(BATCHES, {"xs": XS}, below={"y": 4}),
        ValueError,
        ["padded: below must be a number, or a tree like data, PyTreeDef({'xs': *})", "got {'y': 4}"],
    ),
    "size": (lambda: prefetch(XS, size=0), ValueError, ["prefetch: size must be a positive int, got 0"]),
    "put": (
        lambda: prefetch(XS, put=1),
        TypeError,
        ["prefetch: put must be a function, got 1 (int); give jax.device_put"],
    ),
    "items": (
        lambda: prefetch(3),
        TypeError,
        ["prefetch: items must be an iterable, got 3 (int); give map(at, range("],
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, error, words = ERRORS[name]
    with pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, words))):
        call()


def test_what_numpy_does_not_have_is_not_fetched():
    with pytest.raises(TypeError, match=r"training.fetch: tree\['a'\] is a key, .* give jax.random.key_data of it"):
        fetch({"a": jax.random.key(0), "b": jnp.ones(2)})


def test_tokens_and_labels_in_range_pass():
    data = {"xs": XS, "tokens": [tokens + 3 for tokens in TOKENS], "y": (np.arange(4), np.arange(4) > 1)}
    for below in (None, {"xs": None, "tokens": 4, "y": 4}, {"xs": None, "tokens": 4, "y": (4, 2)}):
        assert padded(BATCHES, data, below=below)(0).data["tokens"].max() == 3
