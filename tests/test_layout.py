"""The packages import one way only: experiments -> pipeline -> export -> benchmarks -> kdedge."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("kdedge", "benchmarks", "export", "pipeline", "experiments")  # from the ground up


def modules():
    """Return the file of every module by its import name, with the floor that it is on."""
    found = {}
    for floor in FLOORS:
        prefix = () if floor in ("kdedge", "experiments") else ("kdedge",)
        for path in sorted((ROOT / floor).rglob("*.py")):
            if not any(parent.is_symlink() for parent in path.parents if parent.is_relative_to(ROOT)):
                parts = path.relative_to(ROOT).with_suffix("").parts
                found[".".join((*prefix, *parts)).removesuffix(".__init__")] = (path, floor)
    return found


MODULES = modules()


def imported(tree, *, functions):
    """Return the names of our modules that a file imports; without ``functions`` only those at its import."""
    names = set()
    nodes = ast.walk(tree) if functions else _at_import(tree)
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names & MODULES.keys()


def _at_import(tree):
    for node in tree.body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield from (child for child in ast.walk(node) if not isinstance(node, ast.FunctionDef | ast.ClassDef))


def test_there_are_modules_on_every_floor():
    assert {floor for _, floor in MODULES.values()} == set(FLOORS)
    assert len(MODULES) > 120


def test_no_import_points_up():
    up = [
        f"{name} imports {other}"
        for name, (path, floor) in MODULES.items()
        for other in imported(ast.parse(path.read_text(encoding="utf-8")), functions=True)
        if FLOORS.index(MODULES[other][1]) > FLOORS.index(floor) and name not in ALLOWED
    ]
    assert not up, "\n".join(up)


# The front doors: `import kdedge` and `python -m kdedge`.
ALLOWED = {"kdedge", "kdedge.__main__"}


def test_no_circle_of_files():
    graph = {
        name: imported(ast.parse(path.read_text(encoding="utf-8")), functions=False) - {name}
        for name, (path, _) in MODULES.items()
    }
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            path.append(name)
            for other in sorted(graph[name]):
                visit(other)
            path.pop()
            done.add(name)

    for name in graph:
        visit(name)


def test_nothing_is_imported_by_its_folder():
    tops = {"pipeline", "export", "benchmarks"}
    for folder in (*FLOORS, "tests", "docs"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                assert not tops & {name.partition(".")[0] for name in names}, f"{path}:{getattr(node, 'lineno', 0)}"
