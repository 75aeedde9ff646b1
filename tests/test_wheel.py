"""The wheel: what it holds, and that it works where the checkout is not to be seen."""

import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import jaxrnn as jr

ROOT = Path(__file__).parent.parent
RUN = {"capture_output": True, "text": True, "check": True}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet", "--wheel-dir"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(folder), str(ROOT)], **RUN)
    (made,) = folder.glob("jaxrnn-*.whl")
    return made


def test_the_wheel_holds_the_package_alone(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    library = (path for path in (ROOT / "jaxrnn").rglob("*") if path.suffix == ".py" or path.name == "py.typed")
    assert held == {path.relative_to(ROOT).as_posix() for path in library}


def test_one_version(wheel):
    (said,) = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert wheel.name.split("-")[1] == said == jr.__version__


def test_the_wheel_works_without_the_checkout(wheel, tmp_path):
    """Installed beside the packages that are here, but for the checkout itself; README's first block and the doctor."""
    venv.create(tmp_path / "env", symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    # Of the packages of this environment their files alone: ``.pth`` files, which point at checkouts, are not read.
    target = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], **RUN).stdout
    Path(target.strip(), "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--ignore-installed"]
    subprocess.run([*install, "--no-index", "--disable-pip-version-check", "--quiet", str(wheel)], **RUN)

    block = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)[1]
    program = tmp_path / "block.py"
    program.write_text(block + "\nprint(jr.__file__)\nprint(jnp.isfinite(gradient[0].forward.W_xh).all())\n")
    # As users compile: without the flags and the cache of the tests (conftest.py).
    ours = ("PYTHONPATH", "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    given = {name: value for name, value in os.environ.items() if name not in ours} | {"JAX_PLATFORMS": "cpu"}
    place, finite = subprocess.run([python, program], cwd=tmp_path, env=given, **RUN).stdout.split()
    assert Path(place).is_relative_to(tmp_path / "env") and finite == "True"
    doctor = subprocess.run([python, "-m", "jaxrnn", "doctor"], cwd=tmp_path, env=given, capture_output=True, text=True)
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert re.search(r"\blstm\b.*\bok\b", doctor.stdout)
