"""Docstrings of the method and of the networks' functions: each says what it takes, raises and comes from; examples run."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

NAMES = ("cam", "sampling", "similarity", "crf", "affinity", "pseudo_labels", "counts", "metrics")
METHOD = {name: importlib.import_module(f"wsss_nb.{name}") for name in NAMES}
FUNCTIONS_OF_MODELS = {
    "backbone": ("folded_batch_norm",),
    "checkpoint": ("load_checkpoint", "read_mxnet_params", "read_state_dict", "resnet38_names"),
    "affinity_net": ("create_affinity_net",),
    "deeplab": ("create_deeplab",),
    "networks": (
        "create_backbone",
        "create_cam_net",
        "create_imagenet_classifier",
        "create_seam_net",
        "pixel_correlation",
    ),
}
MODELS = [
    (importlib.import_module(f"wsss_nb.models.{module}"), name)
    for module, names in FUNCTIONS_OF_MODELS.items()
    for name in names
]
PUBLIC = [
    (module, name)
    for module in METHOD.values()
    for name in module.__all__
    if getattr(thing := getattr(module, name), "__module__", None) == module.__name__  # no re-export
    and (inspect.isroutine(thing) or inspect.isclass(thing) or hasattr(thing, "__wrapped__"))
] + MODELS
MODULES = {module.__name__: module for module, _ in PUBLIC}
SHAPE = re.compile(r"\((?:\.\.\.|[A-Zn][\w+*-]*)(?:, (?:\.\.\.|[A-Zhnw\d][\w+* -]*))*,?\)|[Ss]calar|\(\.\.\.\)")
# A place in the paper, authors or a year, a file of the release, or that there is none.
SOURCE = re.compile(
    r"(Eq|Sec|Fig)\. \d|(Section|Table|Algorithm) \d|et al\.|\b(19|20)\d\d\b|[Ii]n neither|[Nn]either .* nor"
)
PUBLISHED, RELEASED = re.compile(r"[Pp]aper|[Pp]ubli|et al\."), re.compile(r"[Rr]elease")
# An equation stands in double backticks or on an indented line; ``name=value`` is an option, no equation.
FORMULA = re.compile(r"``[^`]* (?:=|~|<-) [^`]*``|^ {4}.* (?:=|~|<-|\+) .*$", re.MULTILINE)
UNITS = {
    "sigma": "pixel",
    "offsets": "pixel",
    "radius": "pixel",
    "tolerance": "pixel",
    "height": "pixel",
    "width": "pixel",
    "bilateral_sxy": "pixel",
    "gaussian_sxy": "pixel",
    "bilateral_srgb": "grey levels",
    "matches": "pixel",
}
LOSSES_IN_NATS = {
    "affinity_loss",
    "classification_loss",
    "expected_image_level_loss",
    "image_level_loss",
    "image_level_loss_with_logits",
}


def ident(value: Any) -> str:
    return value.__name__.rpartition(".")[2] if isinstance(value, ModuleType) else str(value)


def documentation(module: ModuleType, name: str) -> str:
    return inspect.getdoc(getattr(module, name)) or ""


def section(text: str, title: str) -> str:
    """The indented part under ``title:``, empty if there is none."""
    match = re.search(rf"^{title}:\n((?:[ ]{{4}}.*\n?|\n)+)", text, re.MULTILINE)
    return match[1] if match else ""


def entries(text: str) -> dict[str, str]:
    """Argument -> its words, of an ``Args:`` section."""
    found = re.split(r"^[ ]{4}(\w+): ", section(text, "Args"), flags=re.MULTILINE)
    return dict(zip(found[1::2], found[2::2], strict=True))


def definitions(module: ModuleType) -> dict[str, ast.AST]:
    tree = ast.parse(Path(inspect.getfile(module)).read_text())
    return {n.name: n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}


def raising(module: ModuleType) -> set[str]:
    """Functions and classes that raise, themselves or through others of these modules that they call."""
    nodes = definitions(module)
    found = {"require"}
    for name in module.__dict__:
        origin = getattr(getattr(module, name), "__module__", None)
        if origin != module.__name__ and origin in MODULES and name in raising(MODULES[origin]):
            found.add(name)
    for name, node in nodes.items():
        if any(isinstance(inner, ast.Raise) for inner in ast.walk(node)):
            found.add(name)
    while True:
        more = {
            name
            for name, node in nodes.items()
            if name not in found
            for inner in ast.walk(node)
            if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name) and inner.func.id in found
        }
        if not more:
            return found
        found |= more


RAISING = {name: raising(module) for name, module in MODULES.items()}


def test_what_raises_is_found_through_calls() -> None:
    assert "check_maps" in RAISING["wsss_nb.cam"]
    assert {"importance_sample", "classification_loss"} <= RAISING["wsss_nb.sampling"]
    assert "spatial_weight" in RAISING["wsss_nb.similarity"]
    assert "feature_similarity" not in RAISING["wsss_nb.similarity"]
    assert "create_seam_net" in RAISING["wsss_nb.models.networks"]
    assert "create_affinity_net" in RAISING["wsss_nb.models.affinity_net"]
    assert "winner_take_all" not in RAISING["wsss_nb.pseudo_labels"]
    assert len(PUBLIC) - len(MODELS) > 40
    assert {"read_mxnet_params", "load_checkpoint", "create_cam_net"} <= {name for _, name in MODELS}


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("``L = -N sum_ij w_ij g_ij f_ij``, mean over the batch", True),
        ("Draws ``(i, j) ~ p_k(i, j)`` of Eq. 4.", True),
        ("The energy is\n\n    compat * exp(-|p_i - p_j|^2 / 2) + other\n\nwith p in pixels.", True),
        ("Takes num_samples of soft_max maps, max_bytes at most.", False),
        ("With ``num_samples=None`` the mean.", False),
        ("Here mu = 2.5 and sigma = 5 are fixed.", False),
        ("A map |a| of ``class_activation_map`` and of ``p_k``.", False),
    ],
)
def test_what_counts_as_an_equation(text: str, is_one: bool) -> None:
    assert bool(FORMULA.search(text)) == is_one


def test_a_mere_mention_of_the_paper_is_no_source() -> None:
    for text in ("As in the paper.", "Paper and release agree.", "The release's 255."):
        assert not SOURCE.search(text)
    for text in ("(Eq. 4)", "Section 3.2", "Wu et al., 2019", "In neither the paper nor the release."):
        assert SOURCE.search(text)


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=ident)
def test_docstring_says_everything(module: ModuleType, name: str) -> None:
    text = documentation(module, name)
    thing = getattr(module, name)
    assert SHAPE.search(text) or not takes_arrays(thing), "shapes"
    assert SOURCE.search(text), "where it comes from"
    assert PUBLISHED.search(text) and RELEASED.search(text), "how paper and release stand to it"
    assert FORMULA.search(text.partition("\nArgs:")[0]) or not takes_arrays(thing), "the equation"
    assert section(text, "Example").lstrip().startswith(">>> "), "an example"
    if name in RAISING[module.__name__]:
        assert re.search(r"^ {4}\w+(Error|Exception): ", section(text, "Raises"), re.MULTILINE), "Raises"
    described = entries(text)
    assert set(described) == parameters(thing), "arguments"
    for argument, words in described.items():
        if argument in UNITS:
            assert UNITS[argument] in words, f"the unit of {argument}"
    if name in LOSSES_IN_NATS:
        assert "nats" in section(text, "Returns")


def parameters(thing: Any) -> set[str]:
    """Names a caller may give."""
    if inspect.isclass(thing) and issubclass(thing, tuple):
        return set(thing._fields)  # type: ignore[attr-defined]
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {name for name, p in inspect.signature(thing).parameters.items() if p.kind not in kinds}


def takes_arrays(thing: Any) -> bool:
    if inspect.isclass(thing):
        return hasattr(thing, "update") or hasattr(thing, "forward")
    annotations = inspect.get_annotations(inspect.unwrap(thing))
    words = " ".join(str(annotation) for name, annotation in annotations.items() if name != "return")
    return any(word in words for word in ("Tensor", "ndarray", "Array", "LabelMap"))


@pytest.mark.parametrize("module", METHOD.values(), ids=ident)
def test_constants_and_types_say_what_they_are(module: ModuleType) -> None:
    body = ast.parse(Path(inspect.getfile(module)).read_text()).body
    for node, following in pairwise(body):
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id in module.__all__:
                words = following.value if isinstance(following, ast.Expr) else None
                assert isinstance(words, ast.Constant) and isinstance(words.value, str), target.id


@pytest.mark.parametrize("module", METHOD.values(), ids=ident)
def test_examples_run(module: ModuleType) -> None:
    import torch

    result = doctest.testmod(module, extraglobs={"torch": torch, "np": np})
    assert result.failed == 0
    assert result.attempted >= sum(owner is module for owner, _ in PUBLIC)


@pytest.mark.parametrize(("name", "equations"), [("cam", "12"), ("sampling", "345"), ("similarity", "678")])
def test_every_equation_of_the_paper_has_its_function(name: str, equations: str) -> None:
    module = METHOD[name]
    for number in equations:
        assert any(f"(Eq. {number})" in documentation(module, public) for public in module.__all__), number


def test_the_section_on_gradients_stands_where_one_looks_for_it() -> None:
    assert "Where gradients flow" in (METHOD["sampling"].__doc__ or "")
    assert "gradient flows through the drawn value" in documentation(METHOD["sampling"], "importance_sample")
    assert "Gradients flow to" in documentation(METHOD["similarity"], "feature_similarity_loss")
