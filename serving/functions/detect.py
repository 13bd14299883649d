"""What a Revision's source is: a Python function in a folder, a program in a folder, or a command line.

Looks at names in the file system and runs nothing. Every refusal says what was looked for, and where.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from core.errors import InvalidInput

__all__ = ["PYTHON_FILES", "NotRecognised", "Program", "PythonFunction", "expand", "recognise"]

#: Where a Python function is looked for, in this order.
PYTHON_FILES: Final = ("function.py", "main.py", "app.py")

_HANDLER: Final = re.compile(r"(?P<module>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<attribute>[A-Za-z_]\w*)\Z")
_VARIABLE: Final = re.compile(
    r"\$(?:\$|\((?P<k8s>[A-Za-z_]\w*)\)|\{(?P<braced>[A-Za-z_]\w*)\}|(?P<plain>[A-Za-z_]\w*))"
)


class NotRecognised(InvalidInput):
    """The source is nothing that can be run. `reason` is the CamelCase word for a condition."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class PythonFunction(msgspec.Struct, frozen=True):
    """`module` of `folder`; `attribute` "" means: ``handle``, else ``app``."""

    folder: str
    module: str
    attribute: str = ""


class Program(msgspec.Struct, frozen=True):
    """A command to run in `folder`. `$PORT` and other variables in it are still to be expanded."""

    folder: str
    argv: tuple[str, ...]


def recognise(
    source: str,
    *,
    root: Path,
    command: Sequence[str] = (),
    args: Sequence[str] = (),
    handler: str = "",
    path: str | None = None,
) -> PythonFunction | Program:
    """What `source` is. Relative paths are relative to `root`; `path` is the PATH on which programs are looked for.

    - A folder, with the container's `command` given: that command (and `args`), run in the folder.
    - A folder without: a Python function, in `PYTHON_FILES` or where `handler` (``module:attribute``) says.
    - Anything else: a command line, run in `root`.

    Raises NotRecognised.
    """
    folder = (root / source).resolve()
    if folder.is_dir():
        if command:
            return _program(tuple(command) + tuple(args), folder, path)
        return _python(folder, handler)
    if folder.exists() and not os.access(folder, os.X_OK):
        raise NotRecognised("SourceNotRunnable", f"{folder} is a file that is not executable. Name its folder instead.")
    try:
        words = tuple(shlex.split(source))
    except ValueError as error:
        raise NotRecognised("SourceNotRunnable", f"The command line {source!r} cannot be read: {error}.") from error
    if not words:
        raise NotRecognised("SourceMissing", "The source is empty. Name a folder or a command.")
    try:
        return _program(words + tuple(args), root, path)
    except NotRecognised as error:
        if len(words) > 1:
            raise
        message = f"The source {source!r} is neither a folder ({folder} does not exist) nor a program on the PATH."
        raise NotRecognised("SourceMissing", message) from error


def expand(argv: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """`argv` with ``$(NAME)``, ``${NAME}`` and ``$NAME`` replaced; unknown names stay; ``$$`` is a ``$``."""

    def value(match: re.Match[str]) -> str:
        name = match["k8s"] or match["braced"] or match["plain"]
        return "$" if name is None else environment.get(name, match[0])

    return [_VARIABLE.sub(value, word) for word in argv]


def _python(folder: Path, handler: str) -> PythonFunction:
    if handler:
        match = _HANDLER.match(handler)
        if match is None:
            message = f"The handler {handler!r} is not of the form module:attribute, such as function:handle."
            raise NotRecognised("HandlerInvalid", message)
        module, attribute = match["module"], match["attribute"]
        place = folder.joinpath(*module.split("."))
        if not place.with_suffix(".py").is_file() and not (place / "__init__.py").is_file():
            message = f"The handler's module {module} is not in {folder}: there is no {module.replace('.', '/')}.py."
            raise NotRecognised("HandlerMissing", message)
        return PythonFunction(str(folder), module, attribute)
    for name in PYTHON_FILES:
        if (folder / name).is_file():
            return PythonFunction(str(folder), name.removesuffix(".py"))
    looked = ", ".join(PYTHON_FILES)
    message = (
        f"The folder {folder} holds no function: none of {looked} is there. Add one, name another with the annotation "
        "penstock.dev/handler, or give the container a command."
    )
    raise NotRecognised("FunctionMissing", message)


def _program(argv: tuple[str, ...], folder: Path, path: str | None) -> Program:
    name = argv[0]
    if "$" not in name:
        found = shutil.which(str(folder / name), path="") if "/" in name else shutil.which(name, path=path)
        if found is None:
            where = str(folder / name) if "/" in name else f"{name} on the PATH"
            raise NotRecognised("CommandMissing", f"The command {shlex.join(argv)!r} cannot run: no program {where}.")
        argv = (found, *argv[1:])
    return Program(str(folder), argv)
