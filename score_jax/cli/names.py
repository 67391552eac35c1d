"""Names in a config: imports the objects that they stand for, with the settings these take.

A name is either a short one from the tables in `table` or the dotted path of a user's own object,
`package.module:name`.
"""

import contextlib
import importlib
import inspect
import operator
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from score_jax.cli.table import NAMING, SETTINGS, is_own, shown
from score_jax.reading import first_line


def resolve(table: Mapping[str, str], name: str, setting: str) -> Callable:
    """Imports the object that a setting names.

    Args:
        table: Short name -> dotted path.
        name: A short name, or a dotted path `package.module:name`. Modules in the current
            directory can be imported, too.
        setting: Name of the setting, for messages.

    Raises:
        ValueError: If the name is unknown, the module cannot be imported, or it has no such
            function.
    """
    path = table.get(name, name)
    module_name, colon, attribute = path.partition(":")
    if not colon:
        raise ValueError(
            f"config.{setting}={shown(name)} is not known: choose among {', '.join(table)}, or "
            "name your own as package.module:name"
        )
    if name not in table and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # Importing runs the user's code.
        raise ValueError(
            f"config.{setting}={shown(name)}: the module {module_name!r} cannot be imported "
            f"({_in_words(error)})"
        ) from error
    try:
        found = operator.attrgetter(attribute)(module)
    except AttributeError as error:
        raise ValueError(
            f"config.{setting}={name!r}: the module {module_name!r} defines no {attribute!r}"
        ) from error
    if not callable(found):
        raise ValueError(
            f"config.{setting}={name!r} is a {type(found).__name__}, but must be a function or a "
            "class"
        )
    return found


def arguments_of(
    function: Callable, section: str, settings: Mapping[str, Any], without: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The settings of a section that a function takes as arguments.

    These are the settings whose names are in its signature. Settings that the package does not
    define, which belong to a user's own function, must all be taken.

    Args:
        function: A function or class.
        section: Name of the section, such as "loss".
        settings: The section.
        without: Names to leave out.

    Raises:
        ValueError: If the function does not take a setting that the package does not define.
    """
    chosen = settings.get(NAMING[section].partition(".")[2])
    parameters = signature(function, f"config.{NAMING[section]}={shown(chosen)}").parameters
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    arguments = {}
    for name, value in settings.items():
        defined = f"{section}.{name}" in SETTINGS
        if name in without:
            continue
        if name in parameters or (takes_any and not defined):
            arguments[name] = tuple(value) if isinstance(value, list) else value
        elif not defined:
            raise ValueError(
                f"config.{section}.{name}={value!r} is not an argument of "
                f"{function.__module__}:{function.__qualname__}, which takes "
                f"{', '.join(parameters)}"
            )
    return arguments


@contextlib.contextmanager
def naming(*sections: str) -> Iterator[None]:
    """Lets errors of the library speak of settings.

    In messages of ValueError, OSError and FloatingPointError raised inside, `name=` becomes
    `config.section.name=` if `name` is a setting of one of these sections.
    """
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        if len(error.args) != 1:  # An error of the operating system
            raise
        named = _with_sections(str(error), sections)
        if named == str(error):
            raise
        raise type(error)(named) from error


def _with_sections(text: str, sections: tuple[str, ...]) -> str:
    def replacement(match: re.Match) -> str:
        for section in sections:
            if f"{section}.{match[1]}" in SETTINGS:
                return f"config.{section}.{match[1]}="
        return match[0]

    return re.sub(r"(?<![\w.\-])([a-z]\w*)=", replacement, text)


def takes(table: Mapping[str, str], name: str, setting: str, argument: str) -> bool:
    """True if the object that a setting names has an argument of this name."""
    function = resolve(table, name, setting)
    return argument in signature(function, f"config.{setting}={shown(name)}").parameters


def signature(function: Callable, what: str) -> inspect.Signature:
    """The signature of an object that a setting names; that of functions in C may be unknown.

    Raises:
        ValueError: If it is unknown.
    """
    try:
        return inspect.signature(function)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{what} has no signature that Python knows, so its settings cannot be passed by "
            "name: wrap it in a Python function"
        ) from error


@contextlib.contextmanager
def calling(setting: str, name: str, settings: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Turns errors of an object of the user's own into a ValueError that names the setting.

    Args:
        setting: The setting that names the object, such as "loss.name".
        name: Its value. Errors of the package's own objects pass unchanged.
        settings: Its section; those that the package does not define are shown.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        if not is_own(name) or (isinstance(error, ValueError) and "config." in str(error)):
            raise
        kind = OSError if isinstance(error, OSError) else ValueError
        section = setting.partition(".")[0]
        beside = "".join(
            f", config.{section}.{each}={shown(value)}"
            for each, value in (settings or {}).items()
            if each != setting.partition(".")[2]
            and (section == "model" or f"{section}.{each}" not in SETTINGS)
        )
        raise kind(
            f"config.{setting}={shown(name)}{beside[:200]} cannot be used ({_in_words(error)})"
        ) from error


def _in_words(error: BaseException) -> str:
    """The type and the first line of an error."""
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f"{kind}: {line}"
