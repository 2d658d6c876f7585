"""The house's one direction: what imports what, read from the sources."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

from tests.helpers import REPO
from tests.order import LONGEST

PACKAGE = REPO / "mhe_fairseq"

TOOLS = ("analysis", "bench", "cli")

#: What each may not import.
CLOSED = {
    "coding": ("heads", "models", "criterions", "search", "tasks", "fairseq_fixes", *TOOLS),
    "heads": ("models", "criterions", "search", "tasks", "fairseq_fixes", *TOOLS),
    "search": ("criterions", "tasks", *TOOLS),
    "models": ("criterions", "tasks", *TOOLS),
    "criterions": ("tasks", *TOOLS),
    "tasks": TOOLS,
    "fairseq_fixes": ("criterions", "tasks", *TOOLS),
}


def modules() -> dict[str, Path]:
    """Name -> file of all modules of the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(REPO).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, known: set[str], anywhere: bool) -> set[str]:
    """Modules of the package that a file imports when it is imported, or ``anywhere`` in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    todo: list[ast.AST] = [tree]
    names: set[str] = set()
    while todo:
        node = todo.pop()
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.add(full if full in known else node.module)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        for child in ast.iter_child_nodes(node):
            later = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and not anywhere
            # What only types need is not imported.
            typing = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            if not later and not typing:
                todo.append(child)
    return names & known


def test_the_longest_tests_have_these_names() -> None:
    assert [name for name in LONGEST if not (REPO / "tests" / name).is_file()] == []


def test_imports_go_one_way() -> None:
    known = modules()
    for name, path in known.items():
        layer = name.split(".")[1] if "." in name else ""
        for other in imported(path, set(known), anywhere=True):
            target = other.split(".")[1] if "." in other else ""
            assert target not in CLOSED.get(layer, ()), f"{name} imports {other}"


def test_no_two_modules_import_each_other() -> None:
    known = modules()
    graph = {name: imported(path, set(known), anywhere=False) - {name} for name, path in known.items()}
    for name in graph:
        # A package that offers names of its modules is imported with each of them.
        graph[name] -= {name.rpartition(".")[0]}
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_only_three_modules_stand_at_the_root() -> None:
    assert sorted(path.name for path in PACKAGE.glob("*.py")) == ["__init__.py", "errors.py", "version.py"]


def test_every_repair_of_fairseq_is_on_the_list() -> None:
    from mhe_fairseq.fairseq_fixes import FIXES

    files = {path.stem for path in (PACKAGE / "fairseq_fixes").glob("*.py")} - {"__init__"}
    assert files == set(FIXES) and len(FIXES) == len(set(FIXES))
    for name in FIXES:
        text = ast.get_docstring(
            ast.parse((PACKAGE / "fairseq_fixes" / f"{name}.py").read_text(encoding="utf-8"))
        )
        assert text and ("Can go when" in text or text.endswith("It stays.")), name


def test_files_are_one_idea() -> None:
    long = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    assert {name: lines for name, lines in long.items() if lines > 400} == {}
