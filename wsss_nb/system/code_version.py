"""A fingerprint of the code behind a module: what a cached result depends on besides its inputs."""

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

__all__ = ["code_version", "imported_modules", "modules_behind"]

_PACKAGE = __name__.split(".", maxsplit=1)[0]
_ROOT = Path(__file__).resolve().parents[1]
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


# What cannot change a number: the ground floor (two processes give what one gives, see processes), settings (their
# values are in a step's key), labels (in the data's hash) and writers of folders.
_NEUTRAL_ROOM = f"{_PACKAGE}.system."
_NEUTRAL = frozenset({f"{_PACKAGE}.stages.config", f"{_PACKAGE}.data.layout", f"{_PACKAGE}.variants"})


def code_version(*modules: str) -> str:
    """Hash of the code that can change the numbers of the given modules.

    That is their syntax trees and those of all modules of wsss_nb that they import, at any depth of the file and
    transitively, without those that cannot change a number: the room ``system``, settings and image-level labels, whose
    values are hashed by themselves, and every ``__init__``, which only hands names on. Comments, docstrings and layout do
    not count, so that explaining the code better does not repeat hours of training. Other libraries are not followed: their
    versions are in the manifests. Python versions whose syntax trees differ give different values.

    Args:
        modules: dotted names, such as ``"wsss_nb.stages.cam"``.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: a name is not a module of wsss_nb.

    Example:
        >>> code_version("wsss_nb.cam") == code_version("wsss_nb.cam")
        True
    """
    digest = hashlib.sha256()
    for module in modules_behind(*modules):
        digest.update(f"{module}\n{_parsed(module)[0]}\n".encode())
    return digest.hexdigest()


def modules_behind(*modules: str) -> tuple[str, ...]:
    """The given modules and all modules of wsss_nb behind them that can change a number, sorted.

    Raises:
        ValueError: a name is not a module of wsss_nb.

    Example:
        >>> modules_behind("wsss_nb.cam")
        ('wsss_nb.cam',)
    """
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module in found:
            continue
        found.add(module)
        for name in _parsed(module)[1]:
            neutral = name.startswith(_NEUTRAL_ROOM) or name in _NEUTRAL
            if not neutral and _module_path(name) != _ROOT / "/".join(name.split(".")[1:]) / "__init__.py":
                waiting.append(name)
    return tuple(sorted(found))


def imported_modules(source: str, package: str = "") -> set[str]:
    """The modules of wsss_nb that a piece of Python source imports, directly.

    Imports under ``if TYPE_CHECKING:`` are left out, because they never run.

    Args:
        source: Python source without notebook magics.
        package: dotted name of the package that relative imports start from.

    Raises:
        SyntaxError: the source is not Python.

    Example:
        >>> sorted(imported_modules("from wsss_nb.system import files, errors"))
        ['wsss_nb.system', 'wsss_nb.system.errors', 'wsss_nb.system.files']
    """
    found: set[str] = set()
    for node in _running_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        found.update(name for name in names if _module_path(name) is not None)
    return found


def _running_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            node = ast.Module(node.orelse, [])
        yield node
        yield from _running_nodes(node)


def _module_path(module: str) -> Path | None:
    first, *rest = module.split(".")
    if first != _PACKAGE or not all(part.isidentifier() for part in rest):
        return None
    base = _ROOT.joinpath(*rest)
    places = (base / "__init__.py", base.with_name(base.name + ".py"))
    return next((path for path in places if path.is_file()), None)


def _parsed(module: str) -> tuple[str, frozenset[str]]:
    path = _module_path(module)
    if path is None:
        raise ValueError(f"module: expected a module of {_PACKAGE}, got {module!r}")
    status = path.stat()
    return _parsed_file(module, path, status.st_mtime_ns, status.st_size)


# Time and size are cache keys: a file edited while the process lives is read again.
@functools.cache
def _parsed_file(module: str, path: Path, _mtime: int, _size: int) -> tuple[str, frozenset[str]]:
    """Hash of the syntax tree without docstrings, and the modules of wsss_nb that it imports."""
    source = path.read_text(encoding="utf-8")
    imports = imported_modules(source, module if path.name == "__init__.py" else module.rpartition(".")[0])
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), frozenset(imports)
