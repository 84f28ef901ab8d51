"""A fingerprint of the code behind a module: what a cached result depends on besides its inputs."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

__all__ = ["code_version", "imported_modules", "modules_behind"]

_PACKAGE = __name__.split(".", maxsplit=1)[0]
_ROOT = Path(__file__).resolve().parent


def code_version(*modules: str) -> str:
    """Hash of the syntax trees of the given modules and of all of wsss_nb that they import.

    Comments, docstrings and layout do not count, so that explaining the code better does not repeat hours
    of training. Imports are read from the source without running it, at any depth of the file, and followed
    transitively together with the ``__init__`` of every package on the way (Python runs those too).
    Other libraries are not followed: their versions are in the manifests. Python versions whose syntax
    trees differ give different values.

    Args:
        modules: dotted names, such as ``"wsss_nb.stages.cam"``.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: a name is not a module of wsss_nb.

    Example:
        >>> code_version("wsss_nb.errors") == code_version("wsss_nb.errors")
        True
    """
    digest = hashlib.sha256()
    for module in modules_behind(*modules):
        path = _module_path(module)
        assert path is not None
        digest.update(f"{module}\n{_tree_hash(path, *_stamp(path))}\n".encode())
    return digest.hexdigest()


def modules_behind(*modules: str) -> tuple[str, ...]:
    """The given modules and every module of wsss_nb that importing them would run, sorted.

    Raises:
        ValueError: a name is not a module of wsss_nb.

    Example:
        >>> modules_behind("wsss_nb.files")
        ('wsss_nb', 'wsss_nb.errors', 'wsss_nb.files')
    """
    for module in modules:
        if _module_path(module) is None:
            raise ValueError(f"module: expected a module of {_PACKAGE}, got {module!r}")
    found: set[str] = set()
    waiting = [name for module in modules for name in _with_parents(module)]
    while waiting:
        module = waiting.pop()
        path = _module_path(module)
        if module in found or path is None:
            continue
        found.add(module)
        for imported in _imports_of_file(module, path, *_stamp(path)):
            waiting.extend(_with_parents(imported))
    return tuple(sorted(found))


def imported_modules(source: str, module: str = "", *, is_package: bool = False) -> set[str]:
    """The modules of wsss_nb that a piece of Python source imports, directly.

    Imports under ``if TYPE_CHECKING:`` are left out, because they never run.

    Args:
        source: Python source without notebook magics.
        module: dotted name of the source's own module, needed for relative imports.
        is_package: whether that module is a package's ``__init__``.

    Raises:
        SyntaxError: the source is not Python.

    Example:
        >>> sorted(imported_modules("from wsss_nb import files, errors"))
        ['wsss_nb', 'wsss_nb.errors', 'wsss_nb.files']
    """
    found: set[str] = set()
    for node in _running_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, is_package)
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        found.update(name for name in names if _module_path(name) is not None)
    return found


def _running_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            for other in node.orelse:
                yield other
                yield from _running_nodes(other)
            continue
        yield node
        yield from _running_nodes(node)


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if node.level == 0:
        return node.module or ""
    package = module if is_package else module.rpartition(".")[0]
    return importlib.util.resolve_name("." * node.level + (node.module or ""), package)


def _with_parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def _module_path(module: str) -> Path | None:
    first, *rest = module.split(".")
    if first != _PACKAGE or not all(part.isidentifier() for part in rest):
        return None
    base = _ROOT.joinpath(*rest)
    for path in (base / "__init__.py", base.with_name(base.name + ".py")):
        if path.is_file():
            return path
    return None


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


# The stamps are cache keys: a file edited while the process lives is read again.
@functools.cache
def _imports_of_file(module: str, path: Path, _mtime: int, _size: int) -> frozenset[str]:
    source = path.read_text(encoding="utf-8")
    return frozenset(imported_modules(source, module, is_package=path.name == "__init__.py"))


@functools.cache
def _tree_hash(path: Path, _mtime: int, _size: int) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            and ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()
