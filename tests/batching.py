"""What the tests of batches share: hypothesis' lengths and sizes, and comparison of trees."""

import jax
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

few = settings(max_examples=30, derandomize=True, deadline=None)
LENGTHS = st.lists(st.integers(0, 30), min_size=1, max_size=40)
SIZES = {"batch_size": st.integers(1, 8), "seed": st.integers(0, 2**70), "buckets": st.integers(1, 6)}


def assert_same(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)
