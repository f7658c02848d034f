"""`crossfade lab`: real brokers on this machine; their life, addresses and logs.

Words of progress go to stderr; stdout is data. The lab itself is imported when a command runs, because it needs
packages of the extra `lab`.
"""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from .lab_faults import fault_app
from .lab_names import Name, complete_controllers, complete_flavours, complete_shapes
from .lab_streams import streams_app
from .output import Column, Output, output_of

if TYPE_CHECKING:
    from ..lab.lab import Lab

lab_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Real brokers on this machine, to try everything on.",
    epilog="""\b
Examples:
  crossfade lab up                                three Kafka brokers and a Valkey, about 20 s
  eval "$(crossfade lab env)"                     KAFKA_BOOTSTRAP, REDIS_URL, ... in this shell
  crossfade lab fault kill kafka-2 --heal-after 10
  crossfade lab fault hold-replies redis-0        answers wait, requests arrive
  crossfade lab status
  crossfade lab down
""",
)
lab_app.add_typer(fault_app, name="fault")
lab_app.add_typer(streams_app)


@lab_app.command()
def up(
    context: typer.Context,
    name: Name = "default",
    brokers: Annotated[int | None, typer.Option(help="Kafka brokers: 1, 3, 5, or 0 for none. [default: 3]")] = None,
    controllers: Annotated[
        str | None,
        typer.Option(
            help="combined: the brokers vote; separate: nodes of their own. [default: combined]",
            autocompletion=complete_controllers,
        ),
    ] = None,
    redis: Annotated[
        str | None,
        typer.Option(
            help="standalone, replica, sentinel, cluster or none. [default: standalone]",
            autocompletion=complete_shapes,
        ),
    ] = None,
    redis_flavour: Annotated[
        str | None,
        typer.Option(
            help="valkey (9.1), redis7 (7.0) or redis8 (8.0); those two have TLS. [default: valkey]",
            autocompletion=complete_flavours,
        ),
    ] = None,
    secure: Annotated[bool | None, typer.Option("--secure", help="TLS, SCRAM and ACLs; Redis becomes redis7.")] = None,
    no_proxies: Annotated[
        bool | None, typer.Option("--no-proxies", help="Clients reach the servers directly: no link faults.")
    ] = None,
    kafka_version: Annotated[str | None, typer.Option(help="A version that has a lock. [default: the newest]")] = None,
    heap_mb: Annotated[int | None, typer.Option(help="Memory of each broker. [default: 512]")] = None,
    owner_pid: Annotated[
        int | None, typer.Option(help="End the lab, with its data, when this process is gone.")
    ] = None,
) -> None:
    """Start a lab, or start a stopped one again on its data (then without other options).

    The first time the servers are fetched by coordinates and checked against checksums; later starts need no network.
    """
    from ..lab import state
    from ..lab.lab import Lab

    output = output_of(context)
    asked = {
        "brokers": brokers,
        "controllers": controllers,
        "redis": redis,
        "redis_flavour": redis_flavour,
        "secure": secure,
        "proxies": None if no_proxies is None else not no_proxies,
        "kafka_version": kafka_version,
        "heap_mb": heap_mb,
    }
    given: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}
    is_there = (state.lab_dir(name) / "lab.json").exists()
    if is_there and not given:
        lab = Lab.resume(name, owner_pid=owner_pid, say=output.note)
    else:
        lab = Lab.up(name, owner_pid=owner_pid, say=output.note, **given)
    _print_env(output, lab)


@lab_app.command()
def down(
    context: typer.Context,
    name: Name = "default",
    keep: Annotated[bool, typer.Option("--keep", help="Keep the data, so that `up` starts quickly.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Every lab of this folder.")] = False,
) -> None:
    """Stop a lab and remove it."""
    from ..lab.lab import Lab

    output = output_of(context)
    stopped = Lab.names() if every else [name]
    for each in stopped:
        Lab.load(each).down(remove_data=not keep)
        output.note(f"lab {each} is down" + (", its data are kept" if keep else ""))
    if output.is_json:
        output.document({"down": stopped, "kept": keep}, "")


@lab_app.command()
def status(context: typer.Context, name: Name = "default") -> None:
    """Servers, links and helpers of a lab. Exit code 1 when not everything runs."""
    from ..lab.lab import Lab

    output = output_of(context)
    found = Lab.load(name).status()
    if output.is_json:
        output.document(found, "")
    else:
        columns = ("name", "state", "pid", "port", "memory_mb")
        output.table(found["servers"], [Column(each, right=each == "memory_mb") for each in columns])
        if found["links"]:
            shown = ("link", "port", "target", "mode", "heals_in_s", "connections", "held_bytes")
            output.table(found["links"], [Column(each, right=each.endswith(("_s", "s"))) for each in shown])
        for helper in found["helpers"]:
            if not helper["alive"]:
                output.note(
                    f"the {helper['name']} is gone; `crossfade lab down {name} --keep` and `up {name}` start it"
                )
    if not found["running"]:
        raise typer.Exit(1)


@lab_app.command()
def env(context: typer.Context, name: Name = "default") -> None:
    """Addresses and accounts as lines for a shell: eval "$(crossfade lab env)"."""
    from ..lab.lab import Lab

    _print_env(output_of(context), Lab.load(name))


def _print_env(output: Output, lab: Lab) -> None:
    found = lab.env()
    output.document({"env": found}, "\n".join(f"export {key}={shlex.quote(value)}" for key, value in found.items()))


@lab_app.command()
def logs(
    context: typer.Context,
    name: Name = "default",
    server: Annotated[str | None, typer.Argument(help="Only this log; without it, the files.")] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", help="The last lines of it.", min=1)] = 50,
) -> None:
    """Where the logs are, or the end of one of them."""
    from ..lab.lab import Lab

    output = output_of(context)
    found = Lab.load(name).logs()
    if server is None:
        output.table([{"log": log, "path": str(path)} for log, path in found.items()], [Column("log"), Column("path")])
        return
    chosen = [path for log, path in found.items() if log in (server, f"{server}.server")]
    if not chosen:
        raise UsageError(f"there is no log of {server!r}", hint=f"one of: {', '.join(found)}")
    text = [line for path in chosen for line in path.read_text(errors="replace").splitlines()[-lines:]]
    output.document({"log": server, "lines": text}, "\n".join(text))


if __name__ == "__main__":
    from .main import main

    main(["lab", *sys.argv[1:]])
