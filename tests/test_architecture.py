"""The house: imports run one way, there is no circle, and nothing that draws needs torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "wsss_nb"
# lower floors first; what stands on one floor may import its own floor as long as there is no circle
FLOORS = [
    {"system"},
    {"fast", "cam", "sampling", "similarity", "log_sum_exp", "binomial", "variants", "counts", "metrics", "pseudo_labels",
     "affinity", "crf"},
    {"models", "data"},
    {"stages"},
    {"run"},
    {"show", "teach"},
    {"cli"},
]  # fmt: skip
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MODULES = {
    ".".join(["wsss_nb", *path.relative_to(PACKAGE).with_suffix("").parts]): path
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
}
INITS = {path for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE}


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, at any depth, under TYPE_CHECKING as well."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("wsss_nb")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("wsss_nb"):
            assert node.module is not None
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in names if name in MODULES} or {node.module}
    return found


GRAPH = {module: imported(path) for module, path in MODULES.items()}


def test_every_file_stands_on_a_floor() -> None:
    assert {module.split(".")[1] for module in MODULES} == set(FLOOR_OF)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_run_downwards_and_name_the_module_that_defines(module: str) -> None:
    for other in GRAPH[module]:
        assert other in MODULES, f"{module} imports {other}: expected the module that defines the name"
        assert FLOOR_OF[other.split(".")[1]] <= FLOOR_OF[module.split(".")[1]], (
            f"{module} imports {other}, which stands above"
        )


def test_there_is_no_circle() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"circle: {' -> '.join([*path[path.index(module) :], module])}"
        if module not in done:
            for other in GRAPH.get(module, ()):
                visit(other, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("path", sorted(INITS), ids=lambda path: path.parent.name)
def test_an_init_only_hands_names_on(path: Path) -> None:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_names = (
            isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__"
        )
        assert isinstance(node, (ast.Import, ast.ImportFrom)) or is_docstring or is_names, ast.unparse(node)


@pytest.mark.parametrize("module", ["wsss_nb.show", "wsss_nb.show.verify", "wsss_nb.run.run", "wsss_nb.run.provenance"])
def test_what_draws_and_reads_does_not_load_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_does_not_load_torch() -> None:
    code = "import sys; from wsss_nb.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0


def test_the_package_is_thin() -> None:
    """Code lines, without blank ones, comments and docstrings."""
    total = 0
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        docs: set[int] = set()
        for node in ast.walk(ast.parse(text)):
            kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            if isinstance(node, kinds) and ast.get_docstring(node) is not None:
                docs |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
        lines = enumerate(text.splitlines(), 1)
        total += sum(1 for n, line in lines if line.strip() and n not in docs and not line.strip().startswith("#"))
    files = len(list(PACKAGE.rglob("*.py")))
    assert total <= 9_000 and files <= 85
