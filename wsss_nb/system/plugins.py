"""Functions of the user's own, named ``module:function`` on a command line, in a notebook or through papermill."""

import contextlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from wsss_nb.system.code_version import code_version
from wsss_nb.system.errors import InputError, require
from wsss_nb.system.files import project_root, sha256_file

__all__ = ["is_plugin", "load_function", "plugin_hash"]


_PACKAGE = __name__.partition(".")[0] + "."
_seen: dict[str, str] = {}  # module -> hash of the source that was imported


def is_plugin(name: str) -> bool:
    """Whether ``name`` is a ``module:function`` and no name of a registry."""
    return ":" in name


def load_function(name: str, what: str = "function") -> Callable[..., Any]:
    """The function ``module:function``, imported from the search path or from the folder that one works in.

    Args:
        name: such as ``my_module:my_pooling``.
        what: what it is for, as errors name it.

    Raises:
        InputError: no such module or function, or the module does not import.

    Example:
        >>> load_function("math:sqrt")(9.0)
        3.0
    """
    module_name, _, function_name = name.partition(":")
    named = all(part.isidentifier() for part in [*module_name.split("."), function_name])
    require(named, f"{what}: expected module:function, got {name!r}")
    try:
        with _working_folder():
            module = importlib.import_module(module_name)
            file = getattr(module, "__file__", None)
            if file and file.endswith(".py") and not module_name.startswith(_PACKAGE):
                digest = sha256_file(file)
                if _seen.setdefault(module_name, digest) != digest:  # edited since, in a kernel that lives on
                    module, _seen[module_name] = importlib.reload(module), digest
    except Exception as error:  # a module of somebody else's may raise anything
        got = f"{type(error).__name__}: {error}"
        raise InputError(f"{what}: expected module {module_name} to import, got {got}") from error
    require(hasattr(module, function_name), f"{what}: expected a function {function_name} in {module_name}, got none")
    function: Callable[..., Any] = getattr(module, function_name)
    require(callable(function), f"{what}: expected a function, got {name} of type {type(function).__name__}")
    return function


def plugin_hash(name: str) -> str:
    """SHA-256 of the source that a plugin stands in: its module's file, or, of this package, the code behind the module."""
    function = load_function(name)
    module = name.partition(":")[0]
    if module.startswith(_PACKAGE):
        return code_version(module)
    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:  # compiled code, or an object that can be called
        file = getattr(sys.modules[module], "__file__", None)
    return sha256_file(file) if file and Path(file).is_file() else name


@contextlib.contextmanager
def _working_folder() -> Iterator[None]:
    """The folder one works in, at the end of the search path: a console script does not look there."""
    place = str(project_root())
    added = place not in sys.path
    if added:
        sys.path.append(place)
    try:
        yield
    finally:
        if added:
            sys.path.remove(place)
