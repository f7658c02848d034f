"""`crossfade lab fault`: one command for each fault of a lab.

Invariant: a fault command returns only after the effect was seen, and prints it. The lab itself is imported when a
command runs, because it needs packages of the extra `lab`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from .lab_names import InLab, Link, RedisServer, Server, Topic, complete_brokers
from .output import output_of

if TYPE_CHECKING:
    from ..lab.faults import Fault, Faults

fault_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Break something; what lasts heals by itself after --heal-after seconds, even if nobody asks.",
    epilog="""\b
Each command returns once the effect was seen, and prints it: the old pid is gone, the new leader, the bytes held.
Servers and links are named as `crossfade lab status` shows them. --wait returns after the heal.
""",
)

_HEAL_AFTER_S = 30.0
HealAfter = Annotated[float, typer.Option("--heal-after", metavar="SECONDS", help="When it heals by itself.")]
Wait = Annotated[bool, typer.Option("--wait", help="Return after the heal.")]


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
    server: Server,
    lab: InLab = "default",
    heal_after: HealAfter = _HEAL_AFTER_S,
    wait: Wait = False,
) -> None:
    """kill -9 a server; it is started again at the deadline."""
    _act(context, lab, lambda faults: faults.kill(server, heal_after_s=heal_after), wait=wait)


@fault_app.command("kill-leader")
def kill_leader(
    context: typer.Context,
    topic: Topic,
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
    server: Server,
    lab: InLab = "default",
    heal_after: HealAfter = _HEAL_AFTER_S,
    wait: Wait = False,
) -> None:
    """SIGSTOP a server; SIGCONT at the deadline."""
    _act(context, lab, lambda faults: faults.freeze(server, heal_after_s=heal_after), wait=wait)


@fault_app.command()
def restart(context: typer.Context, server: Server, lab: InLab = "default") -> None:
    """Stop a server gracefully and start it again."""
    _act(context, lab, lambda faults: faults.restart(server))


@fault_app.command()
def cut(
    context: typer.Context,
    link: Link,
    lab: InLab = "default",
    heal_after: HealAfter = _HEAL_AFTER_S,
    wait: Wait = False,
) -> None:
    """Reset the connections of a link and refuse new ones."""
    _act(context, lab, lambda faults: faults.cut(link, heal_after_s=heal_after), wait=wait)


@fault_app.command()
def delay(
    context: typer.Context,
    link: Link,
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
    link: Link,
    lab: InLab = "default",
    heal_after: HealAfter = _HEAL_AFTER_S,
    wait: Wait = False,
) -> None:
    """Connections stay and new ones are accepted, but nothing arrives."""
    _act(context, lab, lambda faults: faults.half_open(link, heal_after_s=heal_after), wait=wait)


@fault_app.command("hold-replies")
def hold_replies(
    context: typer.Context,
    link: Link,
    lab: InLab = "default",
    heal_after: HealAfter = _HEAL_AFTER_S,
    wait: Wait = False,
) -> None:
    """Requests arrive, answers only when it heals: applied, but unknown."""
    _act(context, lab, lambda faults: faults.hold_replies(link, heal_after_s=heal_after), wait=wait)


@fault_app.command("drop-replies")
def drop_replies(
    context: typer.Context,
    link: Link,
    lab: InLab = "default",
    heal_after: HealAfter = _HEAL_AFTER_S,
    wait: Wait = False,
) -> None:
    """Requests arrive, answers never do."""
    _act(context, lab, lambda faults: faults.drop_replies(link, heal_after_s=heal_after), wait=wait)


@fault_app.command("hold-requests")
def hold_requests(
    context: typer.Context,
    link: Link,
    lab: InLab = "default",
    heal_after: HealAfter = _HEAL_AFTER_S,
    wait: Wait = False,
) -> None:
    """Requests arrive when it heals, even if their client has gone: applied late."""
    _act(context, lab, lambda faults: faults.hold_requests(link, heal_after_s=heal_after), wait=wait)


@fault_app.command()
def reset(context: typer.Context, link: Link, lab: InLab = "default") -> None:
    """Reset the connections of a link, once."""
    _act(context, lab, lambda faults: faults.reset(link))


@fault_app.command("disk-full")
def disk_full(
    context: typer.Context,
    server: Server,
    lab: InLab = "default",
    heal_after: HealAfter = _HEAL_AFTER_S,
    wait: Wait = False,
) -> None:
    """Let no file of a server take another byte, as on a full disk; room is made at the deadline."""
    _act(context, lab, lambda faults: faults.disk_full(server, heal_after_s=heal_after), wait=wait)


@fault_app.command("cut-aof")
def cut_aof(context: typer.Context, server: RedisServer, size_bytes: int, lab: InLab = "default") -> None:
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
    topic: Topic,
    partition: int = 0,
    before: Annotated[int | None, typer.Option(help="The first offset that stays; without it none does.")] = None,
    lab: InLab = "default",
) -> None:
    """DeleteRecords of a partition."""
    _act(context, lab, lambda faults: faults.trim_topic(topic, partition, before=before))


@fault_app.command("recreate-topic")
def recreate_topic(context: typer.Context, topic: Topic, lab: InLab = "default") -> None:
    """Delete a topic and create it anew, empty."""
    _act(context, lab, lambda faults: faults.recreate_topic(topic))


@fault_app.command("recreate-key")
def recreate_key(context: typer.Context, key: str, lab: InLab = "default") -> None:
    """Delete a stream key and create it anew, empty."""
    _act(context, lab, lambda faults: faults.recreate_key(key))


@fault_app.command("move-leader")
def move_leader(
    context: typer.Context,
    topic: Topic,
    partition: int = 0,
    to: Annotated[
        str | None, typer.Option(help="An in-sync follower, such as kafka-2.", autocompletion=complete_brokers)
    ] = None,
    lab: InLab = "default",
) -> None:
    """Hand a partition to another broker without a crash."""
    _act(context, lab, lambda faults: faults.move_leader(topic, partition, to=to))
