"""Every command's help: what it does, the options that hold everywhere, and the exit codes; and that it has JSON."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

import pytest

from crossfade import cli, errors
from crossfade.cli.main import COMMANDS, EXIT_CODES, INTERRUPTED, load_command, run

#: commands that print nothing on stdout in either form: what `relay run` tells, it logs to stderr
WITHOUT_DATA = {"relay run"}
#: how a command prints data in the form that is wanted (see cli/output.py)
PRINTING = {"table", "document"}


def leaves(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield name, command
    for child_name, child in (children or {}).items():
        yield from leaves(f"{name} {child_name}", child)


LEAVES = {path: command for name in COMMANDS for path, command in leaves(name, load_command(name))}


def functions() -> dict[str, list[FunctionType]]:
    """The functions of the command modules by name, those of a class under the name of the class.

    Without the commands: none calls another, but an attribute such as `side.topic` has the name of one.
    """
    commands = {inspect.unwrap(command.callback) for command in LEAVES.values()}
    found: dict[str, list[FunctionType]] = {}
    for info in pkgutil.iter_modules(cli.__path__):
        module = importlib.import_module(f"crossfade.cli.{info.name}")
        if info.name in ("main", "output"):
            continue
        for name, member in vars(module).items():
            if getattr(member, "__module__", None) == module.__name__:
                inner = vars(member).values() if isinstance(member, type) else [member]
                own = [each for each in inner if isinstance(each, FunctionType) and each not in commands]
                found.setdefault(name, []).extend(own)
    return found


def names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_in(constant)


def names_reached(start: FunctionType) -> set[str]:
    """All names that a command's function uses, and the functions of the command modules that it calls."""
    known, seen, reached = functions(), set(), set()
    waiting = [start]
    while waiting:
        function = waiting.pop()
        if function in seen:
            continue
        seen.add(function)
        for name in names_in(function.__code__):
            reached.add(name)
            own = function.__globals__.get(name)
            waiting += [own] if isinstance(own, FunctionType) and own in known.get(name, []) else known.get(name, [])
    return reached


def test_no_command_is_missing_here() -> None:
    assert {"init", "doctor", "relay run", "verify", "uninstall", "lab up", "lab fault kill"} <= set(LEAVES)
    assert {path.partition(" ")[0] for path in LEAVES} == set(COMMANDS)


@pytest.mark.parametrize("path", LEAVES)
def test_every_help_says_what_it_does_and_how_it_ends(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*path.split(), "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert (LEAVES[path].help or "").strip(), "no help text"
    assert " ".join(LEAVES[path].help.split()[:5]) in shown
    assert "-c/--config FILE, -o/--output text|json, --set KEY=VALUE, --verbose" in shown
    assert shown.count("Exit codes:") == 1
    assert shown.endswith(EXIT_CODES)


@pytest.mark.parametrize("path", LEAVES)
def test_every_command_with_data_has_it_in_json(path: str) -> None:
    reached = names_reached(inspect.unwrap(LEAVES[path].callback))
    assert bool(reached & PRINTING) is (path not in WITHOUT_DATA)


def test_the_exit_codes_are_those_of_the_errors() -> None:
    codes, waiting = {INTERRUPTED}, [errors.CrossfadeError]
    while waiting:
        kind = waiting.pop()
        codes.add(kind.exit_code)
        waiting += kind.__subclasses__()
    named = {int(word) for word in EXIT_CODES.replace(",", " ").split() if word.isdigit()}
    assert named == codes | {0, 3}  # 3 is no error: a verdict


def test_the_top_names_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    assert EXIT_CODES in " ".join(capsys.readouterr().out.split())
