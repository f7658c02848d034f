"""`crossfade lab topic | workload`: a topic to copy into, and records to copy."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from .lab_names import LAB_DEFAULT, LAB_VARIABLE, Name, complete_lab_before_topic
from .output import output_of

streams_app = typer.Typer()


@streams_app.command()
def topic(
    context: typer.Context,
    # As many as are there, so that the topic is the last word: `lab topic orders` and `lab topic default orders`.
    lab: Annotated[
        list[str],
        typer.Argument(
            default_factory=lambda: [LAB_DEFAULT],
            show_default=LAB_DEFAULT,
            envvar=LAB_VARIABLE,
            help="The lab's name.",
            autocompletion=complete_lab_before_topic,
        ),
    ],
    topic: Annotated[str, typer.Argument(help="Name of the topic.")],
    partitions: Annotated[int, typer.Option(min=1, help="How many lanes it has.")] = 16,
) -> None:
    """Create a topic with three copies (where there are three brokers).

    Example: crossfade lab topic default messages.v1 --partitions 16
    """
    from ..lab.lab import Lab

    if len(lab) != 1:
        raise UsageError(
            f"{', '.join(lab)}: a topic is created in one lab", hint="crossfade lab topic [LAB] TOPIC: one topic a call"
        )
    Lab.load(lab[0]).create_topic(topic, partitions)
    output = output_of(context)
    output.note(f"topic {topic} has {partitions} partitions")
    if output.is_json:
        output.document({"lab": lab[0], "topic": topic, "partitions": partitions}, "")


@streams_app.command()
def workload(
    context: typer.Context,
    lab: Name = LAB_DEFAULT,
    pattern: Annotated[
        str, typer.Option(help="Redis stream keys; <lane> stands for 0, 1, 2 ...")
    ] = "msg:stream:<lane>",
    lanes: Annotated[int, typer.Option(min=1, max=65_536, help="How many stream keys.")] = 16,
    records: Annotated[int, typer.Option(min=1, help="How many records.")] = 100_000,
    rate: Annotated[int, typer.Option(min=0, help="Records/s; 0 = as fast as it goes.")] = 5_000,
    history: Annotated[Path | None, typer.Option(help="Keep what became of every send in this file.")] = None,
) -> None:
    """Write unique, keyed records of about 512 bytes to Redis stream keys; prints what was acknowledged.

    Example: crossfade lab workload default --pattern 'orders:<lane>' --lanes 4 --records 20000
    """
    from ..lab.lab import Lab
    from ..lab.workload import play

    output = output_of(context)
    where = ["--redis", Lab.load(lab).primary_url(), f"--pattern={pattern}", "--lanes", str(lanes)]
    with tempfile.TemporaryDirectory() as folder:
        file = history or Path(folder) / "history.bin"
        result, ended_by = play([*where, f"--history={file}", "--records", str(records), "--rate", str(rate)])
    output.document({"lab": lab, **result}, json.dumps(result))
    if ended_by:
        raise typer.Exit(128 + ended_by)
