"""Every field of a profile as a command line flag, generated from the typed models."""

from __future__ import annotations

import argparse
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel

from wsss_nb.errors import InputError

__all__ = [
    "Option",
    "add_profile_flags",
    "override",
    "overrides_in",
    "parameters_in",
    "profile_options",
]


@dataclass(frozen=True)
class Option:
    """One settable field of a profile.

    Attributes:
        name: dotted name, such as ``cam.optimizer.learning_rate``; the flag is ``--`` and the name.
        kind: what a value looks like, for the help text.
        description: the field's description, if it has one.
        is_text: whether values are text, so that ``2012`` stays a name.
        is_list: whether values are lists, so that ``0,1,2`` needs no brackets.
    """

    name: str
    kind: str
    description: str = ""
    is_text: bool = False
    is_list: bool = False


def profile_options(model: type[BaseModel], prefix: str = "") -> Iterator[Option]:
    """All fields of a profile model and of the models inside it, depth first.

    Example:
        >>> from wsss_nb.experiment.profiles import Profile
        >>> "cam.epochs" in {option.name for option in profile_options(Profile)}
        True
    """
    for field, info in model.model_fields.items():
        name = f"{prefix}{field}"
        annotation = info.annotation
        nested = _model_in(annotation)
        if nested is not None:
            if _can_be_none(annotation):
                yield Option(name, "null", f"null leaves {name} out")
            yield from profile_options(nested, f"{name}.")
        elif name != "name":
            listed = typing.get_origin(_bare(annotation)) is tuple
            text = _is_text(annotation)
            yield Option(name, _kind(annotation), info.description or "", is_text=text, is_list=listed)


def add_profile_flags(parser: argparse.ArgumentParser, model: type[BaseModel]) -> None:
    """Give a parser ``--FIELD VALUE`` for every field, ``--set`` and ``--config``, all into ``overrides``."""
    options = {option.name: option for option in profile_options(model)}
    group = parser.add_argument_group(
        "fields of the profile",
        "lists are written 0,0.5,1; what a field means is in the profile's documentation",
    )
    parser.set_defaults(overrides=[])
    parser.add_argument(
        "--set", dest="overrides", action=_FieldAction, options=options, metavar="FIELD=VALUE",
        help="set a field of the profile, as the flags below do; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--config",
        dest="overrides",
        action=_ConfigAction,
        metavar="FILE.yaml",
        help="set the fields in this file",
    )
    for option in options.values():
        group.add_argument(
            f"--{option.name}", dest="overrides", action=_SetAction, option=option, metavar=option.kind,
            help=option.description.replace("%", "%%") or None,
        )  # fmt: skip


def override(text: str, option: Option | None = None, name: str = "") -> str:
    """One override in the form that survives being joined with spaces: ``field=value``.

    Args:
        text: the value of ``option``, or with no option ``FIELD=VALUE``.
        option: the field.
        name: field name where there is no option object at hand but ``text`` is a plain value.

    Raises:
        InputError: not a YAML value, or text with spaces, which notebook parameters cannot carry.

    Example:
        >>> override("cam.epochs=3"), override("0, 1", Option("seeds", "INT,...", is_list=True))
        ('cam.epochs=3', 'seeds=[0,1]')
    """
    field = option.name if option is not None else name
    if not field:
        field, equals, text = text.partition("=")
        if not equals or not field:
            raise InputError(f"--set: expected FIELD=VALUE, got {field!r}")
    if (
        option is not None
        and option.is_list
        and text.strip() not in {"null", "~"}
        and not text.lstrip().startswith("[")
    ):
        text = f"[{text}]"
    try:
        value = text if option is not None and option.is_text and text != "null" else yaml.safe_load(text)
        value = json.dumps(value, separators=(",", ":"))
    except (yaml.YAMLError, TypeError) as error:
        raise InputError(f"{field}: expected a value such as 3, true, text or [0,1], got {text!r}") from error
    if any(character.isspace() for character in value):
        raise InputError(f"{field}: expected a value without spaces, got {text!r}")
    return f"{field}={value}"


def overrides_in(path: str) -> list[str]:
    """The overrides of a YAML file with nested or dotted fields.

    Raises:
        InputError: the file is missing or is not a YAML mapping.
    """
    content = _mapping(path)
    return [override(json.dumps(value), name=name) for name, value in _flat(content)]


def parameters_in(path: str) -> dict[str, str | int | float | bool | None]:
    """Notebook parameters of a YAML file, with flat values.

    Raises:
        InputError: the file is missing or is not a YAML mapping, or a value is a list or nested.
    """
    content = _mapping(path)
    for name, value in content.items():
        if not isinstance(name, str) or (value is not None and not isinstance(value, (str, int, float))):
            raise InputError(f"{path}: {name}: expected text, a number, true, false or null, got {value!r}")
    return content


def _mapping(path: str) -> dict[Any, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except OSError as error:
        raise InputError(f"{path}: expected a YAML file, got {error.strerror or error}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: expected a YAML file, got {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected fields and values, got {type(content).__name__}")
    return content


def _flat(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _added(given: Sequence[str], items: Sequence[str]) -> list[str]:
    """Overrides with later ones in place of earlier ones of the same field."""
    fields = {item.partition("=")[0] for item in items}
    return [*(item for item in given if item.partition("=")[0] not in fields), *items]


class _SetAction(argparse.Action):
    def __init__(self, *args: Any, option: Option | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.option = option

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        namespace.overrides = _added(namespace.overrides, [override(values, self.option)])


class _FieldAction(argparse.Action):
    """``FIELD=VALUE`` read as ``--FIELD VALUE`` is."""

    def __init__(self, *args: Any, options: Mapping[str, Option], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields = options

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        field, equals, value = values.partition("=")
        option = self.fields.get(field) if equals else None
        item = override(values) if option is None else override(value, option)
        namespace.overrides = _added(namespace.overrides, [item])


class _ConfigAction(argparse.Action):
    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        namespace.overrides = _added(namespace.overrides, overrides_in(values))


def _bare(annotation: Any) -> Any:
    """The annotation without Annotated and without None."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _bare(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        rest = [argument for argument in typing.get_args(annotation) if argument is not type(None)]
        return _bare(rest[0]) if len(rest) == 1 else annotation
    return annotation


def _can_be_none(annotation: Any) -> bool:
    return type(None) in typing.get_args(annotation)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    bare = _bare(annotation)
    return bare if isinstance(bare, type) and issubclass(bare, BaseModel) else None


def _is_text(annotation: Any) -> bool:
    bare = _bare(annotation)
    literals = typing.get_args(bare) if typing.get_origin(bare) is typing.Literal else ()
    return bare is str or (bool(literals) and all(isinstance(value, str) for value in literals))


def _kind(annotation: Any) -> str:
    bare = _bare(annotation)
    origin, arguments = typing.get_origin(bare), typing.get_args(bare)
    if origin is typing.Literal:
        kind = "|".join(str(value) for value in arguments)
    elif origin is tuple:
        kind = f"{_kind(arguments[0])},..."
    else:
        kind = {bool: "true|false", int: "INT", float: "FLOAT", str: "TEXT"}.get(bare, "VALUE")
    return f"{kind}|null" if _can_be_none(annotation) else kind
