"""Whatever is added is found everywhere: each list that names kinds is complete, or the test says which line to add."""

import ast
import importlib
import inspect
import pathlib
import pkgutil
import re

import pytest

import jaxrnn as jr
from jaxrnn import _spec
from tests.cases import CELLS, ELSEWHERE, WRAPPERS

ROOT = pathlib.Path(__file__).parents[1]
REGISTER = {"built_in", "specified", "registered"}  # the decorators


def written() -> dict[str, str]:
    """The kinds that the library's files define, and the module of each: from the text, whether imported or not."""
    found = {}
    for path in sorted((ROOT / "jaxrnn").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            decorators = {ast.unparse(d) for d in getattr(node, "decorator_list", ())}
            if decorators & REGISTER:
                found[node.name] = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return found


WRITTEN = written()
IN_CELLS = [kind for kind, module in WRITTEN.items() if module.startswith("jaxrnn.cells.")]
IN_WRAPPERS = [kind for kind, module in WRITTEN.items() if module.startswith("jaxrnn.wrappers.")]


def assert_none(missing: list[str]) -> None:
    assert not missing, "\n" + "\n".join(missing)


def test_kinds_are_found_in_the_text():
    assert (
        {"elman", "gru", "dropout"} <= set(IN_CELLS) and "zoneout" in IN_WRAPPERS and {"Plan", "stack"} <= set(WRITTEN)
    )


def test_every_kind_is_a_name_of_the_root():
    missing = []
    for kind, module in WRITTEN.items():
        if kind not in _spec.FACTORIES or getattr(jr, kind, None) is not _spec.FACTORIES[kind]:
            missing.append(f"jaxrnn/__init__.py: add the line `from {module} import {kind}`")
        if kind not in jr.__all__:
            missing.append(f'jaxrnn/__init__.py: add "{kind}" to __all__, under the comment of its subject')
    assert_none(missing)


def test_every_registered_kind_is_found_in_the_text():
    """Otherwise the tests of this file would not see it: a factory is a function of a module, decorated."""
    ours = {kind for kind, factory in _spec.FACTORIES.items() if factory.__module__.startswith("jaxrnn.")}
    assert ours <= set(WRITTEN), ours - set(WRITTEN)


def test_every_cell_and_wrapper_is_a_file_of_its_own():
    assert all(WRITTEN[kind].rpartition(".")[2] == kind for kind in (*IN_CELLS, *IN_WRAPPERS))


@pytest.mark.parametrize("face", ["cells", "wrappers"])
def test_every_record_is_a_name_of_its_face(face):
    """The records of parameters, carries and gates: the NamedTuples of a folder's public modules."""
    package, missing = getattr(jr, face), []
    for info in pkgutil.iter_modules(package.__path__, f"jaxrnn.{face}."):
        if info.name.rpartition(".")[2].startswith("_"):
            continue
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            is_record = inspect.isclass(value) and issubclass(value, tuple) and value.__module__ == info.name
            if is_record and name not in package.__all__:
                missing.append(
                    f'jaxrnn/{face}/__init__.py: add the line `from {info.name} import {name}`, and "{name}" to __all__'
                )
    assert_none(missing)


def kinds_of(spec) -> set[str]:
    return set() if spec is None else {spec.kind}.union(*map(kinds_of, spec.children))


def test_the_contract_runs_every_cell_and_wrapper():
    run = set().union(*(kinds_of(cell.spec) for cell in CELLS.values()))
    assert_none(
        [
            f'tests/cases.py: add a line `"{k}": jr.{k}(I, H),` to CELLS'
            for k in IN_CELLS
            if k not in run | set(ELSEWHERE)
        ]
        + [f'tests/cases.py: add a line "{k}" to WRAPPERS' for k in IN_WRAPPERS if k not in WRAPPERS]
        + [f'tests/cases.py: take the line "{k}" out of ELSEWHERE' for k in ELSEWHERE if k in run or k not in WRITTEN]
    )
    for kind, why in ELSEWHERE.items():
        for file in re.findall(r"tests/\w+\.py", why):
            assert f"jr.{kind}" in (ROOT / file).read_text(encoding="utf-8"), f"{file} does not test {kind}"


def test_the_gate_order_of_no_cell():
    with pytest.raises(ValueError, match=r"gate_order: no kind of cell is called 'grru'; did you mean 'gru'\?"):
        jr.cells.gate_order("grru")


def test_every_gated_cell_states_its_gate_order():
    made = [cell for cell in CELLS.values() if cell.spec is not None and cell.spec.kind in IN_CELLS]
    gated = {cell.spec.kind: cell.gates is not None for cell in sorted(made, key=lambda cell: cell.gates is not None)}
    assert_none(
        [
            f"{WRITTEN[kind].replace('.', '/')}.py: add a line `GATES = (…)`, the gates in the order of the blocks of "
            f"W_xh, W_hh and b"
            for kind, has_gates in gated.items()
            if bool(jr.cells.gate_order(kind)) != has_gates
        ]
    )


def test_every_cell_and_wrapper_is_in_the_documents():
    """In the tables of what there is; tests/test_api_pages.py looks after the reference."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    assert_none(
        [
            f"README.md: add `{kind}` to the table of what there is, in the row of {row}"
            for row, kinds in (("cells", IN_CELLS), ("wrappers", IN_WRAPPERS))
            for kind in kinds
            if f"`{kind}`" not in text
        ]
    )


# ---- the registry --------------------------------------------------------------------------------


def made_in(module: str):
    def gru(size):
        """Is registered, and never called."""

    gru.__module__ = module
    return gru


def test_a_kind_that_is_registered_twice_is_refused():
    known = _spec.FACTORIES
    before = dict(known)
    message = (
        r"the kind 'gru' is registered twice, by jaxrnn\.cells\.gru and by somewhere\.else; give one of them another"
    )
    with pytest.raises(ValueError, match=message):
        _spec.specified(made_in("somewhere.else"))
    assert known == before


def test_a_module_that_is_reloaded_registers_its_own_again(monkeypatch):
    monkeypatch.setitem(_spec.FACTORIES, "gru", jr.gru)  # put back afterwards
    again = _spec.registered(made_in("jaxrnn.cells.gru"))
    assert _spec.FACTORIES["gru"] is again


def test_records_in_options_are_rebuilt_by_the_registry():
    layer = jr.scan(jr.gru(2, 3), plan=jr.Plan(hoist=True), checkpoint=jr.Budget(5))
    options = dict(layer.spec.options)
    assert jr.build(options["plan"]) == jr.Plan(hoist=True) and jr.build(options["checkpoint"]) == jr.Budget(5)
    assert jr.build(layer.spec.to_dict()).spec == layer.spec
