"""Digests in saved files: whatever bit of a file changes, it is refused by name."""

import hashlib
import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import jaxrnn as jr
from tests.commands import run_command
from tests.saved import assert_same, contents, randomised, saved, text_of, write
from tests.test_files_of_0_1_0 import FOLDER

# Options and metadata in which one bit makes another sound value: rate 0.25 and 0.35, relu and no other, 7 and 5.
MODEL = jr.leaky(jr.elman(1, 2, activation="relu", param_dtype="bfloat16"), rate=0.25)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("bits", [1, pytest.param(8, marks=pytest.mark.full)])
def test_a_bit_that_changed_anywhere(bits, path):
    """Header, names, spec, metadata, digests and numbers: one bit of each byte in turn, and with --full every bit."""
    jr.save(path, MODEL, randomised(MODEL), {"epoch": 7})
    raw = path.read_bytes()
    data = 8 + int.from_bytes(raw[:8], "little")
    with open(path, "r+b", buffering=0) as file:
        for place, bit in ((n, bit) for n in range(len(raw)) for bit in random.Random(n).sample(range(8), bits)):
            file.seek(place)
            file.write(bytes([raw[place] ^ (1 << bit)]))
            with pytest.raises(ValueError, match=r"^load: ") as caught:
                jr.load(path)
            said = str(caught.value)
            assert repr(str(path)) in said and "\n" not in said
            assert place < data or "is damaged: its digest is another than when it was saved; fetch or save" in said
            file.seek(place)
            file.write(raw[place : place + 1])
    assert jr.load(path)[2] == {"epoch": 7}


def test_the_tensor_is_named(path):
    params = randomised(MODEL)
    jr.save(path, MODEL, params)
    header, data = contents(path)
    for name in ("W_xh", "W_hh", "b"):
        start, _ = header[name]["data_offsets"]
        write(path, header, data[:start] + bytes([data[start] ^ 1]) + data[start + 1 :])
        with pytest.raises(ValueError, match=rf"^load: the tensor {name} in '.*' is damaged: its digest"):
            jr.load(path)


def test_tensors_that_change_places(path):
    """Of one shape and dtype, with all their bytes: each goes with its name."""
    model = jr.gru(3, 3)
    header, data = saved(path, model)
    assert header["W_xh"]["shape"] == header["W_hh"]["shape"]
    header["W_xh"], header["W_hh"] = header["W_hh"], header["W_xh"]
    write(path, header, data)
    with pytest.raises(ValueError, match=r"the tensor W_[xh]h in .* is damaged"):
        jr.load(path)


@pytest.mark.filterwarnings("ignore:save:UserWarning")
def test_a_tensor_of_another_shape_and_width_with_the_same_bytes(path):
    """The model that is given sets no width, and a square of other sides may fit: name, dtype and shape count too."""
    own = jr.Cell(
        lambda key: jnp.ones(4, "bfloat16"), lambda params, batch_shape=(): (), lambda p, carry, x: (carry, x)
    )
    jr.save(path, own, jnp.ones(4, "bfloat16"))
    header, data = contents(path)
    header["params"]["dtype"] = "F16"
    write(path, header, data)
    with pytest.raises(ValueError, match=r"the tensor params in .* is damaged"):
        jr.load(path, own)


def test_the_digest_is_that_of_the_bytes_as_the_docstring_says(path):
    """Computed here from the file alone."""
    jr.save(path, MODEL, randomised(MODEL))
    digests = text_of(path)["sha256"]["tensors"]
    for name, a in safetensors.numpy.load_file(path).items():
        head = f'["{name}", "bfloat16", {list(a.shape)}]'.encode()
        assert digests[name] == hashlib.sha256(head + a.tobytes()).hexdigest()


def test_any_layout_and_order_of_bytes_has_one_digest(tmp_path):
    model = jr.elman(3, 4)
    params = jax.tree.map(np.asarray, randomised(model))
    odd = params._replace(W_xh=np.asfortranarray(params.W_xh), W_hh=params.W_hh.astype(">f4"))
    jr.save(tmp_path / "a", model, params)
    jr.save(tmp_path / "b", model, odd)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert_same(jr.load(tmp_path / "b")[1], jax.tree.map(jnp.asarray, params))


def test_files_without_digests_load_as_before(path):
    """Those of 0.1.0; a name that no text has is refused, as it may be that of the digests with a changed bit."""
    header, data = contents(FOLDER / "cell.safetensors")
    assert "sha256" not in json.loads(header["__metadata__"]["jaxrnn"])
    params = jr.load(FOLDER / "cell.safetensors")[1]
    write(path, header, data[:-1] + bytes([data[-1] ^ 1]))
    changed = jr.load(path)[1]
    assert_same(changed._replace(b=params.b), params)
    jr.save(path, jr.gru(2, 3), params)
    header, data = contents(path)
    header["__metadata__"]["jaxrnn"] = header["__metadata__"]["jaxrnn"].replace("sha256", "sha356")
    write(path, header, data)
    with pytest.raises(ValueError, match="is damaged: format 1 has no entry sha356"):
        jr.load(path)


def test_inspect_compares_too(path, capsys):
    jr.save(path, MODEL, randomised(MODEL))
    status, said, _ = run_command(capsys, "inspect", path)
    assert status == 0 and "digests: all 3 tensors are as they were saved (sha256)\n" in said
    path.write_bytes(path.read_bytes()[:-1] + b"\x99")
    status, said, errors = run_command(capsys, "inspect", path)
    assert (status, said, len(errors)) == (1, "", 1) and errors[0].startswith("inspect: the tensor b in ")
    status, said, _ = run_command(capsys, "inspect", FOLDER / "cell.safetensors")
    assert status == 0 and "digests: none; a changed bit is not seen\n" in said
