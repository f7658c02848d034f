"""`crossfade lab`: real brokers on this machine, and the faults to try on them.

Words of progress go to stderr; stdout is data. The lab itself is imported when a command runs, because it needs
packages of the extra `lab`. Invariant: a fault command returns only after the effect was seen, and prints it.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from .lab_streams import streams_app
from .output import Column, Output, output_of

if TYPE_CHECKING:
    from ..lab.faults import Fault, Faults
    from ..lab.lab import Lab

lab_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Real brokers on this machine, to try everything on.",
    epilog="""\b
Examples:
  crossfade lab up                                three Kafka brokers and a Valkey, about 15 s
  eval "$(crossfade lab env)"                     KAFKA_BOOTSTRAP, REDIS_URL, ... in this shell
  crossfade lab fault kill kafka-2 --heal-after 10
  crossfade lab fault hold-replies redis-0        answers wait, requests arrive
  crossfade lab status
  crossfade lab down
""",
)
fault_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Break something; it heals by itself after --heal-after seconds, even if nobody asks.",
    epilog="""\b
Each command returns once the effect was seen, and prints it: the old pid is gone, the new leader, the bytes held.
Servers and links are named as `crossfade lab status` shows them. --wait returns after the heal.
""",
)
lab_app.add_typer(fault_app, name="fault")
lab_app.add_typer(streams_app)

_HEAL_AFTER_S = 30.0


def complete_labs(incomplete: str) -> list[str]:
    """Names of labs for the shell."""
    from ..lab.lab import Lab

    return [name for name in Lab.names() if name.startswith(incomplete)]


#: what `crossfade lab env` exports: the other commands of that shell mean the same lab
_LAB = "CROSSFADE_LAB"
Name = Annotated[str, typer.Argument(envvar=_LAB, help="The lab's name.", autocompletion=complete_labs)]
InLab = Annotated[str, typer.Option("--lab", envvar=_LAB, help="The lab's name.", autocompletion=complete_labs)]
HealAfter = Annotated[float, typer.Option("--heal-after", metavar="SECONDS", help="When it heals by itself.")]
Wait = Annotated[bool, typer.Option("--wait", help="Return after the heal.")]


@lab_app.command()
def up(
    context: typer.Context,
    name: Name = "default",
    brokers: Annotated[int | None, typer.Option(help="Kafka brokers: 1, 3, 5, or 0 for none. [default: 3]")] = None,
    controllers: Annotated[
        str | None, typer.Option(help="combined: the brokers vote; separate: nodes of their own. [default: combined]")
    ] = None,
    redis: Annotated[
        str | None, typer.Option(help="standalone, replica, sentinel, cluster or none. [default: standalone]")
    ] = None,
    redis_flavour: Annotated[
        str | None,
        typer.Option(help="valkey (9.1), redis7 (7.0) or redis8 (8.0); those two have TLS. [default: valkey]"),
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
                output.note(f"the {helper['name']} is gone")
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


# -- faults


def _act(context: typer.Context, lab: str, act: Callable[[Faults], Fault], *, wait: bool = False) -> None:
    from ..lab.lab import Lab

    output = output_of(context)
    fault = act(Lab.load(lab).faults)
    heals = "" if fault.heal_after_s is None else f", heals after {fault.heal_after_s:g} s"
    output.note(f"{fault.kind} of {fault.subject} took effect{heals}")
    if wait:
        output.note(f"healed after {fault.wait_healed():.1f} s")
    fault.observe()
    seen = "\n".join(f"{key} {json.dumps(value)}" for key, value in fault.observed.items())
    output.document(fault.as_dict(), seen)


@fault_app.command()
def kill(
    context: typer.Context,
    server: str,
    lab: InLab = "default",
    heal_after: HealAfter = _HEAL_AFTER_S,
    wait: Wait = False,
) -> None:
    """kill -9 a server; it is started again at the deadline."""
    _act(context, lab, lambda faults: faults.kill(server, heal_after_s=heal_after), wait=wait)


@fault_app.command("kill-leader")
def kill_leader(
    context: typer.Context,
    topic: str,
    partition: int = 0,
    lab: InLab = "default",
    heal_after: HealAfter = _HEAL_AFTER_S,
    wait: Wait = False,
) -> None:
    """kill -9 the broker that leads a partition, and wait for the new leader."""
    _act(context, lab, lambda faults: faults.kill_leader(topic, partition, heal_after_s=heal_after), wait=wait)


@fault_app.command()
def freeze(
    context: typer.Context,
    server: str,
    lab: InLab = "default",
    heal_after: HealAfter = _HEAL_AFTER_S,
    wait: Wait = False,
) -> None:
    """SIGSTOP a server; SIGCONT at the deadline."""
    _act(context, lab, lambda faults: faults.freeze(server, heal_after_s=heal_after), wait=wait)


@fault_app.command()
def restart(context: typer.Context, server: str, lab: InLab = "default") -> None:
    """Stop a server gracefully and start it again."""
    _act(context, lab, lambda faults: faults.restart(server))


@fault_app.command()
def cut(
    context: typer.Context,
    link: str,
    lab: InLab = "default",
    heal_after: HealAfter = _HEAL_AFTER_S,
    wait: Wait = False,
) -> None:
    """Reset the connections of a link and refuse new ones."""
    _act(context, lab, lambda faults: faults.cut(link, heal_after_s=heal_after), wait=wait)


@fault_app.command()
def delay(
    context: typer.Context,
    link: str,
    delay_ms: Annotated[float, typer.Argument(min=0.1, help="One way.")],
    lab: InLab = "default",
    heal_after: HealAfter = _HEAL_AFTER_S,
    wait: Wait = False,
) -> None:
    """Every byte of a link arrives later, in both directions."""
    _act(context, lab, lambda faults: faults.delay(link, delay_ms, heal_after_s=heal_after), wait=wait)


@fault_app.command("half-open")
def half_open(
    context: typer.Context,
    link: str,
    lab: InLab = "default",
    heal_after: HealAfter = _HEAL_AFTER_S,
    wait: Wait = False,
) -> None:
    """Connections stay and new ones are accepted, but nothing arrives."""
    _act(context, lab, lambda faults: faults.half_open(link, heal_after_s=heal_after), wait=wait)


@fault_app.command("hold-replies")
def hold_replies(
    context: typer.Context,
    link: str,
    lab: InLab = "default",
    heal_after: HealAfter = _HEAL_AFTER_S,
    wait: Wait = False,
) -> None:
    """Requests arrive, answers only when it heals: applied, but unknown."""
    _act(context, lab, lambda faults: faults.hold_replies(link, heal_after_s=heal_after), wait=wait)


@fault_app.command("drop-replies")
def drop_replies(
    context: typer.Context,
    link: str,
    lab: InLab = "default",
    heal_after: HealAfter = _HEAL_AFTER_S,
    wait: Wait = False,
) -> None:
    """Requests arrive, answers never do."""
    _act(context, lab, lambda faults: faults.drop_replies(link, heal_after_s=heal_after), wait=wait)


@fault_app.command("hold-requests")
def hold_requests(
    context: typer.Context,
    link: str,
    lab: InLab = "default",
    heal_after: HealAfter = _HEAL_AFTER_S,
    wait: Wait = False,
) -> None:
    """Requests arrive when it heals, even if their client has gone: applied late."""
    _act(context, lab, lambda faults: faults.hold_requests(link, heal_after_s=heal_after), wait=wait)


@fault_app.command()
def reset(context: typer.Context, link: str, lab: InLab = "default") -> None:
    """Reset the connections of a link, once."""
    _act(context, lab, lambda faults: faults.reset(link))


@fault_app.command("disk-full")
def disk_full(
    context: typer.Context,
    server: str,
    lab: InLab = "default",
    heal_after: HealAfter = _HEAL_AFTER_S,
    wait: Wait = False,
) -> None:
    """Let no file of a server take another byte, as on a full disk; room is made at the deadline."""
    _act(context, lab, lambda faults: faults.disk_full(server, heal_after_s=heal_after), wait=wait)


@fault_app.command("cut-aof")
def cut_aof(context: typer.Context, server: str, size_bytes: int, lab: InLab = "default") -> None:
    """Lose the last bytes of a Redis server's append-only file, as a power cut does."""
    _act(context, lab, lambda faults: faults.cut_aof_tail(server, size_bytes))


@fault_app.command("trim-stream")
def trim_stream(
    context: typer.Context,
    key: str,
    keep: Annotated[int, typer.Option(help="Records that stay.", min=0)] = 0,
    lab: InLab = "default",
) -> None:
    """XTRIM a stream key."""
    _act(context, lab, lambda faults: faults.trim_stream(key, keep_records=keep))


@fault_app.command("trim-topic")
def trim_topic(
    context: typer.Context,
    topic: str,
    partition: int = 0,
    before: Annotated[int | None, typer.Option(help="The first offset that stays; without it none does.")] = None,
    lab: InLab = "default",
) -> None:
    """DeleteRecords of a partition."""
    _act(context, lab, lambda faults: faults.trim_topic(topic, partition, before=before))


@fault_app.command("recreate-topic")
def recreate_topic(context: typer.Context, topic: str, lab: InLab = "default") -> None:
    """Delete a topic and create it anew, empty."""
    _act(context, lab, lambda faults: faults.recreate_topic(topic))


@fault_app.command("recreate-key")
def recreate_key(context: typer.Context, key: str, lab: InLab = "default") -> None:
    """Delete a stream key and create it anew, empty."""
    _act(context, lab, lambda faults: faults.recreate_key(key))


@fault_app.command("move-leader")
def move_leader(
    context: typer.Context,
    topic: str,
    partition: int = 0,
    to: Annotated[str | None, typer.Option(help="An in-sync follower, such as kafka-2.")] = None,
    lab: InLab = "default",
) -> None:
    """Hand a partition to another broker without a crash."""
    _act(context, lab, lambda faults: faults.move_leader(topic, partition, to=to))


if __name__ == "__main__":
    from .main import main

    main(["lab", *sys.argv[1:]])
