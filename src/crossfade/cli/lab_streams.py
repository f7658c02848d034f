"""`crossfade lab topic | workload`: a topic to copy into, and records to copy."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from .output import output_of

streams_app = typer.Typer()


@streams_app.command()
def topic(
    context: typer.Context,
    lab: Annotated[str, typer.Argument(help="The lab's name.")],
    topic: Annotated[str, typer.Argument(help="Name of the topic.")],
    partitions: Annotated[int, typer.Option(min=1, help="How many lanes it has.")] = 16,
) -> None:
    """Create a topic with three copies (where there are three brokers).

    Example: crossfade lab topic default messages.v1 --partitions 16
    """
    from ..lab.lab import Lab

    Lab.load(lab).create_topic(topic, partitions)
    output_of(context).note(f"topic {topic} has {partitions} partitions")


@streams_app.command()
def workload(
    context: typer.Context,
    lab: Annotated[str, typer.Argument(help="The lab's name.")],
    pattern: Annotated[
        str, typer.Option(help="Redis stream keys; <lane> stands for 0, 1, 2 ...")
    ] = "msg:stream:<lane>",
    lanes: Annotated[int, typer.Option(min=1, help="How many stream keys.")] = 16,
    records: Annotated[int, typer.Option(min=1, help="How many records.")] = 100_000,
    rate: Annotated[int, typer.Option(min=0, help="Records/s; 0 = as fast as it goes.")] = 5_000,
    history: Annotated[Path | None, typer.Option(help="Keep what became of every send in this file.")] = None,
) -> None:
    """Write unique, keyed records of about 512 bytes to Redis stream keys; prints what was acknowledged.

    Example: crossfade lab workload default --pattern 'orders:<lane>' --lanes 4 --records 20000
    """
    from ..lab.lab import Lab

    found = Lab.load(lab).env().get("REDIS_URL")
    if found is None:
        raise UsageError(f"lab {lab!r} has no Redis", hint="start one with `crossfade lab up`")
    with tempfile.TemporaryDirectory() as folder:
        file = history or Path(folder) / "history.bin"
        where = ["--redis", found, "--pattern", pattern, "--lanes", str(lanes), "--history", str(file)]
        command = [
            sys.executable,
            "-m",
            "crossfade.lab.workload",
            *where,
            "--records",
            str(records),
            "--rate",
            str(rate),
        ]
        code = subprocess.run(command, check=False).returncode
    if code:
        raise typer.Exit(code if code > 0 else 1)
