"""Options of the train command, generated from the fields and the docstring of ``Settings``."""

import inspect
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any

import cyclopts
from docstring_parser import parse

from hibana.cli.common import Integer
from hibana.train.settings import CHOICES, OF_FILES, Settings

__all__ = ["with_settings"]


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with an option for each of the settings, in place of its parameter ``**options``."""
    signature = inspect.signature(command)
    parameters = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    descriptions = {each.arg_name: each.description or "" for each in parse(Settings.__doc__ or "").params}
    groups = {
        False: cyclopts.Group("Settings", sort_key=1),
        True: cyclopts.Group("Data of your own", sort_key=2),
    }
    for field in fields(Settings):
        choices = CHOICES.get(field.name)
        words = re.sub(r"(?::\w+:)?`+~?([^`]*)`+", r"\1", " ".join(descriptions[field.name].split()))
        option = cyclopts.Parameter(
            help=words + (f" One of {', '.join(choices)}." if choices else ""),
            group=groups[field.name in OF_FILES],
        )
        default = None if "Default:" in words else field.default  # of other recipes, too
        kind: Any = Integer if field.type is int else field.type
        if default is None:
            kind = kind | None  # a default is held against its type, where pydantic is loaded
        annotation = Annotated[kind, option]
        parameters.append(
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )
        )
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters} | {"return": None}
    return command
