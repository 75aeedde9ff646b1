"""The rooms of the library: who may import whom, and how long a file may be."""

import ast
import functools
import itertools
import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
LIBRARY = sorted((ROOT / "jaxrnn").rglob("*.py"))
OURS = [*LIBRARY, *sorted((ROOT / "experiments").rglob("*.py")), *sorted((ROOT / "tests").rglob("*.py"))]
GROUND_FLOOR = tuple(
    f"jaxrnn._{name}"
    for name in ("affine", "arguments", "base", "checks", "deprecated", "dtypes", "narrowing", "spec", "version")
)
LONGEST = 450


def module_of(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in OURS}


parsed = functools.cache(lambda path: ast.parse(path.read_text()))


@functools.cache
def imports_of(path: pathlib.Path, *, at_import: bool = False) -> set[str]:
    """The project's own modules that a file imports; ``at_import``: those alone that importing it runs."""
    tree = parsed(path)
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if at_import and (is_function or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")):
            skipped.update(itertools.islice(ast.walk(node), 1, None))
    found = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = inner & MODULES.keys()
            found.update(modules or {node.module})
    return {name for name in found if name in MODULES}


def test_private_modules_are_private_to_their_folder():
    wrong = []
    for module, path in MODULES.items():
        folder = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for name in imports_of(path):
            home, _, last = name.rpartition(".")
            private = last.startswith("_") and not last.endswith("__")
            if private and name not in GROUND_FLOOR and home != folder:
                wrong.append(f"{module} imports {name}, which is private to {home}")
    assert not wrong, "use what public modules offer, or move what both need to one:\n" + "\n".join(wrong)


def test_rooms_import_what_the_table_allows():
    """CONTRIBUTING.md says which room of the library may import which; what only type checkers see does not count."""
    table = re.findall(r"^\| (`.+`) \| .* \| (.*)\|$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M)
    may = {room: re.findall(r"`(\w+)`", cell) for rooms, cell in table for room in re.findall(r"`(\w+)`", rooms)}
    root = {room for rooms, cell in table if "the root" in cell for room in re.findall(r"`(\w+)`", rooms)}
    wrong = []
    for module, path in MODULES.items():
        if not module.startswith("jaxrnn.") or (room := module.split(".")[1]).startswith("_"):
            continue
        assert room in may, f"CONTRIBUTING.md: add {room} to the table of rooms"
        for name in imports_of(path):
            other = name.split(".")[1] if "." in name else ""
            allowed = room in root if not other else other.startswith("_") or other in (room, *may[room])
            if name.startswith("jaxrnn") and not allowed:
                wrong.append(f"{module} imports {name}; by the table in CONTRIBUTING.md {room} may import {may[room]}")
    assert not wrong, "\n".join(wrong)


def test_no_circles():
    needs = {name: imports_of(path, at_import=True) - {name} for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, "modules import each other in a circle: " + " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for other in sorted(needs[name]):
                visit(other, (*way, name))
            done.add(name)

    for name in needs:
        visit(name, ())


def test_no_file_outgrows_its_name():
    lengths = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    long = [f"{module}: {length} lines" for module, length in lengths.items() if length > LONGEST]
    assert not long, f"longer than {LONGEST} lines, split by subject:\n" + "\n".join(long)
