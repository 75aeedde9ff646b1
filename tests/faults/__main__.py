"""Plant each fault into a copy of the tree and say whether its tests notice: ``python -m tests.faults``."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.fault import Fault, place_of
from tests.faults.table import FAULTS

ROOT = Path(__file__).parent.parent.parent
COPIED = ("jaxrnn", "tests", "experiments", "configs", "docs", "README.md", "CONTRIBUTING.md", "pyproject.toml")


def copy(tree: Path, folder: Path) -> None:
    for name in COPIED:
        if (tree / name).is_dir():
            shutil.copytree(tree / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (tree / name).exists():
            shutil.copy(tree / name, folder / name)


def is_caught(fault: Fault, tree: Path, compiled: Path) -> bool:
    """Whether a test fails once the fault stands in the tree, which is left as it was."""
    path = place_of(fault, tree)
    text = path.read_text()
    path.write_text(text.replace(fault.old, fault.new))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *fault.tests]
    # What a fault leaves as it is was compiled for the fault before.
    given = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(compiled), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=tree, env=os.environ | given, capture_output=True, text=True)
    finally:
        path.write_text(text)
    if done.returncode not in (0, 1):  # 0: all passed, 1: a test failed, else: pytest did not come to run them
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}\n{fault.name}: the tests did not run")
    return done.returncode == 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--only", metavar="TEXT", default="", help="the faults whose names hold this text")
    parser.add_argument("--tree", type=Path, default=ROOT, help="another checkout to plant them in")
    arguments = parser.parse_args()
    chosen = [fault for fault in FAULTS if arguments.only in fault.name]
    if not chosen:
        sys.exit(f"no fault's name holds {arguments.only!r}; there are:\n" + "\n".join(fault.name for fault in FAULTS))
    caught = 0
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        tree, compiled = Path(folder, "tree"), Path(folder, "compiled")
        tree.mkdir()
        copy(arguments.tree, tree)
        for fault in chosen:
            start = time.perf_counter()
            noticed = is_caught(fault, tree, compiled)
            caught += noticed
            took = time.perf_counter() - start
            print(f"{'caught' if noticed else 'MISSED'}  {took:5.0f} s  {fault.name}", flush=True)
    print(f"{caught} of {len(chosen)} faults were caught")
    sys.exit(caught < len(chosen))


if __name__ == "__main__":
    main()
