"""The shape of the package: who may import whom, and how big a file or a function may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "vmr_ray"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
FILE_LINES, FUNCTION_LINES = 400, 80

# (who, whom it must not import, except these modules). A prefix stands for a module and all below it.
FORBIDDEN = [
    *(
        (who, "ray", frozenset[str]())
        for who in ("vmr_ray.video", "vmr_ray.encoders", "vmr_ray.model", "vmr_ray.annotations")
    ),
    ("vmr_ray.search", "ray", frozenset({"vmr_ray.search.build"})),
    ("vmr_ray.features", "ray", frozenset[str]()),
    ("vmr_ray", "vmr_ray.cli", frozenset({"vmr_ray.cli"})),
    ("vmr_ray.serve", "vmr_ray.training", frozenset[str]()),
    ("vmr_ray.model", "vmr_ray.training", frozenset[str]()),
    ("vmr_ray.model", "vmr_ray.features", frozenset[str]()),
    ("vmr_ray.annotations", "vmr_ray.features", frozenset[str]()),
]


def below(module: str, prefix: str) -> bool:
    return f"{module}.".startswith(f"{prefix}.")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything a file imports at run time, also inside functions."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def module_of(name: str) -> str:
    """The module of this package that an imported name is, or is defined in; else ""."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def edges() -> dict[str, set[str]]:
    """Module -> the modules of this package that it imports."""
    return {
        name: {m for _, n in imports(path) if (m := module_of(n)) not in ("", "vmr_ray", name)}
        for name, path in MODULES.items()
    }


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The nodes of some circle in order, the first one again at the end; [] if there is none."""
    done: set[str] = set()

    def follow(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for target in sorted(graph.get(node, ())):
            if found := follow(target, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := follow(node, []))), [])


def test_the_circle_finder_finds_circles():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize(("who", "whom", "but"), FORBIDDEN, ids=lambda value: str(value)[:40])
def test_imports_go_one_way(who: str, whom: str, but: frozenset[str]):
    modules = [name for name in MODULES if below(name, who) and not any(below(name, b) for b in but)]
    assert modules
    wrong = [
        f"{MODULES[name].relative_to(ROOT)}:{line} imports {imported}"
        for name in modules
        for line, imported in imports(MODULES[name])
        if below(imported, whom)
    ]
    assert not wrong


def test_no_circle_of_files():
    assert circle(edges()) == []


def test_no_circle_of_folders():
    folders: dict[str, set[str]] = {}
    for name, targets in edges().items():
        top = name.split(".")[1] if "." in name else ""
        folders.setdefault(top, set()).update(t.split(".")[1] for t in targets if t.split(".")[1] != top)
    assert circle(folders) == []


def test_files_are_short():
    long = {
        str(path.relative_to(ROOT)): lines
        for path in MODULES.values()
        if (lines := len(path.read_text().splitlines())) > FILE_LINES
    }
    assert not long


def test_functions_are_short():
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name} ({node.end_lineno - node.lineno + 1} lines)"
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= FUNCTION_LINES
    ]
    assert not long


def test_no_module_is_hidden_by_a_name_of_its_package():
    """`import a.b` must not give the function `b` that `a/__init__.py` imports from the module `a.b`."""
    hidden = []
    for path in PACKAGE.rglob("__init__.py"):
        modules = {file.stem for file in path.parent.glob("*.py")} | {
            folder.parent.name for folder in path.parent.glob("*/__init__.py")
        }
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                package = ".".join(path.parent.relative_to(ROOT).parts)
                names = {alias.asname or alias.name for alias in node.names}
                hidden += [f"{package}.{n}" for n in names & modules if node.module != package]
    assert not hidden


def test_no_test_imports_another():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in (ROOT / "tests").rglob("*.py")
        for line, name in imports(path)
        if name.rpartition(".")[2].startswith("test_") and name.startswith("tests.")
    ]
    assert not wrong


def test_unit_tests_lie_where_their_module_does():
    """tests/unit/ has the folders of vmr_ray/; `benchmarks` and `repository` test what lies next to it."""
    wrong = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests" / "unit").rglob("test_*.py")
        if (folder := path.parent.relative_to(ROOT / "tests" / "unit")).parts
        and folder.parts[0] not in ("benchmarks", "repository")
        and not (PACKAGE / folder).is_dir()
    ]
    assert not wrong
