"""The rules no other test sees: dependencies in step, no stubs, no machine's paths anywhere."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from wsss_nb.run.notebooks import find_notebooks

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "wsss_nb"
MODULES = sorted(PACKAGE.rglob("*.py"))


def pyproject() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def tracked_files() -> list[Path]:
    """Files that are or would be committed."""
    answer = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True
    )
    if answer.returncode == 0:
        names = answer.stdout.splitlines()
    else:
        hidden = {".venv", "runs", "build", "dist"}
        names = [
            path.relative_to(ROOT).as_posix()
            for path in ROOT.rglob("*")
            if not (hidden & set(path.parts) or "__pycache__" in path.parts or path.suffix == ".pyc")
        ]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def test_conda_environment_has_the_same_packages() -> None:
    content = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(entry["pip"] for entry in content["dependencies"] if isinstance(entry, dict))
    conda = [entry for entry in content["dependencies"] if isinstance(entry, str)]
    assert "-e ." in pip
    found = {}
    for text in [*conda, *(entry for entry in pip if not entry.startswith("-"))]:
        requirement = Requirement(text)
        found[{"pytorch": "torch"}.get(requirement.name, requirement.name)] = str(requirement.specifier)
    project = pyproject()
    needed = [*project["dependencies"], *project["optional-dependencies"]["crf"]]
    wanted = {(entry := Requirement(text)).name: str(entry.specifier) for text in needed}
    wanted |= {"python": str(project["requires-python"]), "pip": "", "cxx-compiler": ""}
    assert found == wanted


def test_every_file_beside_the_modules_is_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    beside = {path for path in tracked_files() if PACKAGE in path.parents and path.suffix != ".py"}
    installed = {path for pattern in settings["package-data"]["wsss_nb"] for path in PACKAGE.glob(pattern)}
    assert beside == installed and len(beside) > 5


def test_constraints_pin_torch_within_its_bounds() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
    pins = {entry.name: entry.specifier for entry in map(Requirement, lines)}
    bounds = next(entry for entry in map(Requirement, pyproject()["dependencies"]) if entry.name == "torch")
    (pin,) = pins["torch"]
    assert pin.operator == "==" and Version(pin.version) in bounds.specifier
    makefile = (ROOT / "Makefile").read_text()
    assert "-c constraints.txt" in makefile
    assert makefile.index("$(PIP) torch") < makefile.index("$(PIP) -e")


def test_setup_is_repeated_when_dependencies_change(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())

    def stamp() -> str:
        plan = subprocess.run(["make", "-n", "lint"], cwd=tmp_path, capture_output=True, text=True, check=True)
        return re.findall(r"touch (\S+)", plan.stdout)[0]

    first = stamp()
    assert "-c constraints.txt torch" in subprocess.check_output(["make", "-n", "test"], cwd=tmp_path, text=True)
    (tmp_path / first).parent.mkdir()
    (tmp_path / first).touch()
    plan = subprocess.check_output(["make", "-n", "test"], cwd=tmp_path, text=True)
    assert "pip" not in plan and "pytest" in plan
    with open(tmp_path / "constraints.txt", "a") as file:
        file.write("numpy<3\n")
    assert stamp() != first


@pytest.mark.parametrize("compiler", [True, False])
def test_setup_without_a_compiler_leaves_out_what_needs_one(tmp_path: Path, compiler: bool) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / ".venv/bin").mkdir(parents=True)
    python = tmp_path / ".venv/bin/python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    command = ["make", "setup", "PIP=echo installs", f"CXX={'true' if compiler else 'no-such-compiler'}"]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    installed = [line.removeprefix("installs -e ") for line in answer.stdout.splitlines() if "-e " in line]
    assert installed[-1] == (".[test]" if compiler else ".[dev]")
    said = [line for line in answer.stdout.splitlines() if "no C++ compiler" in line]
    assert len(said) == (not compiler) and all("computed in torch" in line for line in said)
    extras = pyproject()["optional-dependencies"]
    native = {Requirement(text).name for text in extras["crf"]}
    assert native == {"pydensecrf2"} and Requirement(extras["test"][0]).extras == {"crf", "dev"}
    assert not native & {Requirement(text).name for text in [*extras["dev"], *pyproject()["dependencies"]]}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_modules_read_alike(path: Path) -> None:
    source = path.read_text()
    tree = ast.parse(source)
    assert ast.get_docstring(tree), "a module says what it is about"
    assert source.count("\n") < 600, "one concept per module, a few hundred lines at most"
    if len(tree.body) == 1 or any("import *" in ast.unparse(node) for node in tree.body):
        return
    assigned = {
        target.id
        for node in tree.body
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    assert "__all__" in assigned


BANNED = {
    "unfinished work": r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b",
    "a stub": r"raise\s+NotImplemented" + "Error",
    "a skipped test": r"pytest\.mark\." + r"(skip|xfail)\b|pytest\." + r"skip\(",
    "unsafe loading": "allow_pickle" + "=True|weights_only" + "=False",
    "an ignored type error without its code": r"# type: " + r"ignore(?!\[)",
}
MACHINE = re.compile(
    r"(?<![\w.:/])/(?:wo" + r"rk|ro" + r"ot|opt/py" + r"pi)/|/ho" + r"me/(?!me\b)\w|/Us" + r"ers/\w|\.\./sha" + r"red"
)


def test_nothing_unfinished_or_unsafe() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {what}: {match[0]}"
        for path in tracked_files()
        if path.suffix == ".py"
        for what, pattern in BANNED.items()
        for match in re.finditer(pattern, path.read_text())
    ]
    assert not found


def test_no_path_of_any_machine_in_the_tree() -> None:
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {text[m.start() : m.start() + 60]!r}" for m in MACHINE.finditer(text)]
    assert not found


def test_machine_paths_are_recognised() -> None:
    for text in ("'/wo" + "rk/main/x'", "see ../sha" + "red/data", "/ho" + "me/ann/x", '"/ro' + 'ot/.local"'):
        assert MACHINE.search(text), text
    for text in ("runs/wo" + "rk/x", "https://example.org/wo" + "rk/", "net/ro" + "ot/x", "/ho" + "me/me/photos"):
        assert not MACHINE.search(text), text


def test_notebooks_are_fit_for_the_runner() -> None:
    notebooks = find_notebooks(ROOT / "notebooks")
    assert [notebook.number for notebook in notebooks] == [f"{number:02}" for number in range(1, 9)]
    for notebook in notebooks:
        content = nbformat.read(notebook.path, as_version=4)
        assert content.metadata.kernelspec.name == "python3", notebook.name
        for cell in content.cells:
            if cell.cell_type == "code":
                assert not re.search(r"^\s*(!|%%(bash|sh))|sys\.path", cell.source, re.MULTILINE), cell.source


def test_citation_prefers_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["version"] == pyproject()["version"]
    paper = citation["preferred-citation"]
    assert paper["title"] == "Importance Sampling CAMs for Weakly-Supervised Segmentation"
    assert [author["family-names"] for author in paper["authors"]] == ["Jonnarth", "Felsberg"]
    assert (ROOT / "LICENSE").read_text().startswith("MIT License") and citation["license"] == "MIT"
