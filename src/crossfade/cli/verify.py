"""`crossfade verify`: the independent audit of a route, its verdict in words or JSON, and its state in a file.

Hides which of the ways to audit was asked for. Nothing is claimed and nothing is written to a broker.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from .output import output_of
from .routes import OneRoute, chosen_routes
from .runtime import keep_freed_memory
from .verify_parts import Workers
from .verify_repair import Repair, repair_routes
from .verify_run import audit_route
from .verify_scope import Scope, Store, parse_limit
from .verify_watch import watch_routes
from .verify_words import NO_VERDICT, VERDICTS, exit_code_of, incomplete_text, text_of

verify_app = typer.Typer()

#: more are worth it only where brokers have as many cores to spare; --processes may ask for them
_PROCESSES_MAX = 16

#: option, what it does nothing without, and the way out
_NEEDS = (
    ("--metrics-port", "--watch", "add --watch SECONDS"),
    ("--yes", "--repair apply", "add --repair apply"),
)
#: option, what does not go with it, and why
_ALONE = (
    ("--repair", ("--watch", "--resume", "--complete"), "audits once, from the beginning, and says what to do"),
    ("--watch", ("--complete", "--settled", "--from", "--to"), "follows live streams to their ends"),
)

#: this thread, those of the Kafka client and the one that takes records from it; with fewer they wait for each other
_ARENAS = 4


@verify_app.command()
def verify(
    context: typer.Context,
    route: OneRoute = None,
    lanes: Annotated[str | None, typer.Option("--lanes", help="Only these source lanes, such as 0,3-5.")] = None,
    settled: Annotated[
        bool,
        typer.Option("--settled", help="Nothing is on its way: what the target's end lacks is missing, not pending."),
    ] = False,
    since: Annotated[
        str | None,
        typer.Option(
            "--from", help="Only from here on: time:2026-01-01T00:00:00Z, or position:ID with one lane in --lanes."
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option("--to", help="Only up to here: time:... (records before it) or position:ID (that one too)."),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1, max=256, help="Share the lanes among so many processes; default: the cores, for a large audit."
        ),
    ] = None,
    complete: Annotated[
        bool,
        typer.Option(
            "--complete",
            help="No verdict (exit code 1) unless every record was there to compare.",
        ),
    ] = False,
    watch: Annotated[
        float | None,
        typer.Option(
            "--watch",
            min=0.1,
            metavar="SECONDS",
            help="Audit again every so many seconds from where the last audit ended, until Ctrl-C.",
        ),
    ] = None,
    metrics_port: Annotated[
        int, typer.Option(min=0, max=65535, help="With --watch: port of /metrics, /livez, /readyz; 0 = none.")
    ] = 0,
    repair: Annotated[
        Repair | None,
        typer.Option(
            "--repair", help="list: what each difference needs; apply: remove from a Redis target what is too much."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="With --repair apply: do not ask.")] = False,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Keep the audit's state here, and go on from it the next time.")
    ] = None,
) -> None:
    """Prove both sides of a route equal, or name every record that differs.

    Reads both sides anew and uses nothing of the copying loop; it shares the brokers' readers and the mapping with it.
    Live streams may be verified while they are copied: what is not yet on the target is pending, never a difference.
    After writers and relays have stopped, use --settled.
    What retention removed at either beginning cannot be compared and is counted; with --complete it is no proof.
    Exits with 0 when nothing differs, with 3 when something does, with 1 when a lane could not be compared to its end
    or there was nothing to compare.

    \b
    Examples:
      crossfade verify
      crossfade verify forward --settled -o json
      crossfade verify forward --lanes 0-3 --resume audit.json
      crossfade verify forward --from time:2026-01-31T12:00:00Z --to time:2026-01-31T13:00:00Z
      crossfade verify forward --lanes 3 --from position:1769860800000-0
      crossfade verify forward --repair list
      crossfade verify --watch 10 --metrics-port 9188
    """
    scope = Scope(lanes, parse_limit("--from", since), parse_limit("--to", until), settled)
    scope.check(is_kept=resume is not None)
    _check_choice(
        {
            "--watch": watch is not None,
            "--metrics-port": bool(metrics_port),
            "--repair": repair is not None,
            "--repair apply": repair is Repair.APPLY,
            "--yes": yes,
            "--complete": complete,
            "--resume": resume is not None,
            "--settled": settled,
            "--from": since is not None,
            "--to": until is not None,
        }
    )
    keep_freed_memory(_ARENAS)
    output = output_of(context)
    config = output.config()
    names = chosen_routes(config, None if route is None else [route])
    store = Store(resume)
    shares = processes is not None
    with Workers(config, (processes or _processes()) - 1) as workers:
        if workers.shortage is not None and shares:
            output.note(f"{1 + len(workers)} of {processes} processes: {workers.shortage.strerror}")
        if repair is not None:
            code = asyncio.run(repair_routes(config, output, names, scope, repair, workers, yes=yes))
            raise typer.Exit(code)
        if watch is not None:
            watching = watch_routes(
                config,
                output,
                names,
                scope,
                store,
                every_s=watch,
                port=metrics_port,
                workers=workers,
                shares=shares,
            )
            raise typer.Exit(asyncio.run(watching))
        reports = {
            name: asyncio.run(audit_route(config, output, name, scope, store, workers, shares=shares)) for name in names
        }
    audited = list(reports.values())
    is_complete = all(report.is_complete for report in audited)
    text = [text_of(name, report) for name, report in reports.items()]
    code = exit_code_of(audited)
    is_ok = code == 0
    if is_ok and complete and not is_complete:
        code = NO_VERDICT
        text.append(incomplete_text(audited))
    body = {
        "ok": is_ok,
        "verdict": VERDICTS[code],
        "complete": is_complete,
        "exit_code": code if store.failure is None else store.failure.exit_code,
        "routes": [{"route": name, **report.as_dict()} for name, report in reports.items()],
    }
    output.document(body, "\n".join(text))
    if store.failure is not None:
        raise store.failure
    if code:
        raise typer.Exit(code)


def _check_choice(given: Mapping[str, bool]) -> None:
    """Raises UsageError for options that would do nothing beside the others, or without one."""
    for option, needed, hint in _NEEDS:
        if given[option] and not given[needed]:
            raise UsageError(f"{option} needs {needed}", hint=hint)
    for option, others, why in _ALONE:
        for other in others:
            if given[option] and given[other]:
                raise UsageError(f"{other} does not go with {option}, which {why}", hint=f"leave out {other}")


def _processes() -> int:
    """How many processes at most, where nobody says it: one on each core that this one may use."""
    return min(
        _PROCESSES_MAX, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
