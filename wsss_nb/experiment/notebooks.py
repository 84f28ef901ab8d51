"""What the runner knows of a notebook before it runs: parameters, the code it imports, what it waits for."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsss_nb.code_version import imported_modules
from wsss_nb.errors import InputError
from wsss_nb.files import atomic_path

if TYPE_CHECKING:
    from nbformat import NotebookNode

__all__ = [
    "Notebook",
    "Parameter",
    "check_parameters",
    "find_notebooks",
    "keep_outputs",
    "own_cells",
    "parse_parameter",
    "read_notebook",
]

Parameter = str | int | float | bool | None

# 01-03 stand alone; each stage follows the one before; figures and tables read what all three wrote.
_NEEDS = {"05": ("04",), "06": ("05",), "07": ("04", "05", "06"), "08": ("04", "05", "06")}
_DRAW = frozenset({"07", "08"})
_PAPERMILL_TAGS = frozenset({"injected-parameters", "papermill-error-cell-tag"})


@dataclass(frozen=True)
class Notebook:
    """A numbered notebook as it is on disk, without what earlier executions left in it.

    Attributes:
        path: the file.
        parameters: names and default values of its parameters cell.
        source_hash: SHA-256 of its cells' sources; outputs, execution counts and metadata do not count.
        modules: the modules of wsss_nb that its cells import.
        cells: how many cells it has.
        needs: names of the notebooks whose results it reads.
    """

    path: Path
    parameters: Mapping[str, Parameter]
    source_hash: str
    modules: frozenset[str]
    cells: int = 0
    needs: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """File name without suffix, such as ``04_train_cam``."""
        return self.path.stem

    @property
    def number(self) -> str:
        """The two digits the name begins with."""
        return self.name[:2]

    @property
    def reads_results(self) -> bool:
        """Whether it only draws from what the stages wrote, so that its input is results.json."""
        return self.number in _DRAW


def find_notebooks(folder: Path) -> list[Notebook]:
    """The notebooks ``NN_name.ipynb`` of a folder, in the order of their numbers.

    Raises:
        InputError: there are none, two share a number, or one cannot be read.
    """
    paths = sorted(path for path in folder.glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise InputError(f"{folder}: expected numbered notebooks such as 01_name.ipynb, got none")
    by_number = {path.name[:2]: path for path in paths}
    if len(by_number) < len(paths):
        raise InputError(
            f"{folder}: expected one notebook per number, got {', '.join(p.name for p in paths)}"
        )
    return [
        read_notebook(path, tuple(by_number[n].stem for n in _NEEDS.get(number, ()) if n in by_number))
        for number, path in by_number.items()
    ]


def read_notebook(path: Path, needs: tuple[str, ...] = ()) -> Notebook:
    """Read a notebook and check that its parameters cell holds flat literals only.

    Raises:
        InputError: not a notebook, not one cell tagged ``parameters``, or more than ``name = literal`` in it.
    """
    import nbformat

    try:
        content: NotebookNode = nbformat.read(path, as_version=4)
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected a notebook, got none") from error
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a notebook, got {str(error).splitlines()[0]}") from error
    tagged = [cell for cell in content.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise InputError(f"{path}: expected one cell tagged 'parameters', got {len(tagged)}")
    own = own_cells(content)
    cells = [[cell.cell_type, cell.source, sorted(cell.metadata.get("tags", []))] for cell in own]
    code = [cell.source for cell in own if cell.cell_type == "code"]
    return Notebook(
        path=path,
        parameters=_literals(path, tagged[0].source),
        source_hash=hashlib.sha256(json.dumps(cells).encode()).hexdigest(),
        modules=_modules(code),
        cells=len(cells),
        needs=needs,
    )


def own_cells(content: NotebookNode) -> list[NotebookNode]:
    """The cells of a notebook without those that papermill puts in."""
    return [cell for cell in content.cells if not _PAPERMILL_TAGS & set(cell.metadata.get("tags", []))]


def keep_outputs(path: Path, executed: Path) -> None:
    """Put the outputs of an executed copy into the notebook itself, for readers who do not run it.

    Sources, tags and parameters stay as they are, and so does everything `read_notebook` looks at.

    Raises:
        InputError: the copy has other cells.
    """
    import nbformat

    content, copy = nbformat.read(path, as_version=4), nbformat.read(executed, as_version=4)
    content.cells, done = own_cells(content), own_cells(copy)
    if [cell.source for cell in content.cells] != [cell.source for cell in done]:
        raise InputError(f"{executed}: expected the cells of {path}, got others; run it again")
    count = 0
    for cell, other in zip(content.cells, done, strict=True):
        if cell.cell_type == "code":
            count += bool(other.source.strip())
            cell.outputs = _joined(other.outputs)
            cell.execution_count = count if other.source.strip() else None
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = count
    content.metadata.pop("widgets", None)
    if "widgets" in copy.metadata:
        content.metadata["widgets"] = copy.metadata.widgets
    with atomic_path(path) as temporary:
        nbformat.write(content, temporary)


def _joined(outputs: list[Any]) -> list[Any]:
    """Outputs with neighbouring pieces of one stream as one; how a stream was cut is an accident of timing."""
    joined: list[Any] = []
    for output in outputs:
        last = joined[-1] if joined else None
        if (
            last is not None
            and "stream" == last.output_type == output.output_type
            and last.name == output.name
        ):
            last.text += output.text
        else:
            joined.append(output)
    return joined


def _literals(path: Path, source: str) -> dict[str, Parameter]:
    try:
        lines = ast.parse(source).body
    except SyntaxError as error:
        raise InputError(
            f"{path}: parameters: expected Python, got {(error.text or source).strip()!r}"
        ) from error
    found: dict[str, Parameter] = {}
    for line in lines:
        try:
            name, value = _literal(line)
        except ValueError as error:
            expected = "expected lines like name = literal"
            raise InputError(f"{path}: parameters: {expected}, got {ast.unparse(line)!r}") from error
        found[name] = value
    return found


def _literal(line: ast.stmt) -> tuple[str, Parameter]:
    if (
        not isinstance(line, ast.Assign)
        or len(line.targets) != 1
        or not isinstance(line.targets[0], ast.Name)
    ):
        raise ValueError("not an assignment to one name")
    value = ast.literal_eval(line.value)
    if value is not None and not isinstance(value, (str, int, float)):
        raise ValueError("not a flat value")
    return line.targets[0].id, value


def _modules(cells: list[str]) -> frozenset[str]:
    from IPython.core.inputtransformer2 import TransformerManager

    transform = TransformerManager().transform_cell
    found: set[str] = set()
    for source in cells:
        try:
            found |= imported_modules(transform(source))
        except SyntaxError:
            continue  # the cell cannot import anything either: running the notebook reports it
    return frozenset(found)


def check_parameters(notebook: Notebook, given: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """The values a notebook will run with: its defaults, replaced by what is given.

    Papermill itself only warns of a name the notebook does not have, and never compares types.

    Raises:
        InputError: an unknown name, or a value of another type than the default's.

    Example:
        >>> notebook = Notebook(Path("04_x.ipynb"), {"seed": 0}, "", frozenset())
        >>> check_parameters(notebook, {"seed": 3})
        {'seed': 3}
    """
    unknown = sorted(set(given) - set(notebook.parameters))
    if unknown:
        raise InputError(
            f"{notebook.path.name}: {unknown[0]}: expected one of {', '.join(notebook.parameters)}, "
            "got an unknown parameter"
        )
    values: dict[str, Parameter] = {}
    for name, value in given.items():
        default = notebook.parameters[name]
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if default is not None and type(value) is not type(default):
            expected = type(default).__name__
            raise InputError(f"{notebook.path.name}: {name}: expected {expected}, got {value!r}")
        values[name] = value
    return {**notebook.parameters, **values}


def parse_parameter(name: str, text: str, default: Parameter) -> Parameter:
    """Read a parameter's value from the command line, as the type of its default.

    Raises:
        InputError: the text is not of that type.

    Example:
        >>> parse_parameter("seed", "3", 0), parse_parameter("profile", "3", "quick")
        (3, '3')
    """
    if default is None or isinstance(default, str):
        return text
    if isinstance(default, bool):
        if text.lower() in {"true", "false"}:
            return text.lower() == "true"
        raise InputError(f"{name}: expected true or false, got {text!r}")
    try:
        return type(default)(text)
    except ValueError as error:
        raise InputError(f"{name}: expected {type(default).__name__}, got {text!r}") from error
