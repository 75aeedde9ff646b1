"""Faults in files and converters, for table.py."""

from __future__ import annotations

from tests.faults.fault import Fault, tests

FAULTS = (
    # ---- files
    Fault(
        "a tensor's digest not compared",
        'if ENTRY in kept and kept[ENTRY]["tensors"].get(name) != digest_of(name, a):',
        'if ENTRY in kept and name not in kept[ENTRY]["tensors"]:',
        tests("test_digests"),
    ),
    Fault(
        "the digest of the spec and metadata not compared",
        'if digests.get("text") != _digest_of_text(kept):',
        'if "text" not in digests:',
        tests("test_digests", "changed_anywhere"),
    ),
    Fault(
        "a model's tensors not compared with the file's header",
        "    check_fit(title, fix, tensors, by_name(who, expected, name))",
        "    check_fit(title, fix, by_name(who, expected, name), by_name(who, expected, name))",
        tests("test_bounds", "beyond_the_file"),
    ),
    # ---- weights from and to other libraries
    Fault(
        "from_torch: the GRU's z not negated",
        'return reordered(a, old, new, negate=("z",))',
        "return reordered(a, old, new)",
        tests("interop/test_from_torch", "gru"),
    ),
    Fault(
        "onnx: an example's size taken for an open one anywhere",
        "if atoms or (settled and not _as_declared(sizes, made, declared, settled)):",
        "if atoms:",
        tests("interop/test_onnx_graphs", "open_sizes"),
    ),
    Fault(
        "onnx: the steps of a backward network rolled up as forward ones",
        'direction = "reverse" if like.reverse else "forward"',
        'direction = "forward"',
        tests("interop/test_onnx_torch", "test_load and RNN"),
    ),
    Fault(
        "onnx: zero points of quantised weights ignored",
        "return np.ascontiguousarray(((q.astype(np.int32) - z).astype(np.float32) * s).swapaxes(1, 2))",
        "return np.ascontiguousarray((q.astype(np.float32) * s).swapaxes(1, 2))",
        tests("interop/test_onnx_quantised", "quantised_lstms"),
    ),
    Fault(
        "from_torch: weight_norm without its norms",
        "return (g.astype(np.float64) * wide / norm).astype(v.dtype)",
        "return (wide / norm).astype(v.dtype)",
        tests("interop/test_torch_files", "folded_in"),
    ),
    Fault(
        "torch files: the pickle is run",
        'tree = tree_of(archive.read("data.pkl", LARGEST_PICKLE))',
        'tree = __import__("pickle").loads(archive.read("data.pkl", LARGEST_PICKLE))',
        tests("interop/test_torch_files", "never_run"),
    ),
    Fault(
        "Keras files: hard_sigmoid of Keras 3 whatever the version",
        '(name == "hard_sigmoid" and version < 3)',
        '(name == "hard_sigmoid" and version < 0)',
        tests("interop/test_old_keras", "keras_1_and_2"),
    ),
    Fault(
        "Keras files: kernels of CuDNN layers as they stand",
        "kernels = [W.reshape(H, -1).T for W in np.split(kernel, gates, axis=1)]",
        "kernels = list(np.split(kernel, gates, axis=1))",
        tests("interop/test_old_keras", "cudnn"),
    ),
    Fault(
        "Keras files: the gates of Keras 1 in the order of Keras 2",
        "order = {3: (0, 1, 2), 4: (0, 2, 1, 3)}[gates]",
        "order = range(gates)",
        tests("interop/test_old_keras", "keras_1_and_2"),
    ),
    Fault(
        "Flax: a carry_init forgotten",
        "return rows[0] if rows[0].any() else None",
        "return None",
        tests("interop/test_flax_layers", "fixed_carry_init"),
    ),
)
