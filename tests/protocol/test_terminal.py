"""Commands: the result on stdout, talk on stderr, one envelope, stable exit codes."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from protocol import errors
from protocol.errors import BlindsightError, DataError, ServiceError, StorageError
from protocol.terminal import Outcome, command, envelope, progress, say

ROOT = Path(__file__).parents[2]
KEYS = ["schema_version", "status", "error_code", "message", "hint", "data"]
CLASSES = [
    one
    for one in vars(errors).values()
    if isinstance(one, type) and issubclass(one, BlindsightError)
]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a function as a command; return its exit code, its stdout and its stderr."""
    monkeypatch.delenv("BLINDSIGHT_DEBUG", raising=False)

    def start(what: Outcome | BaseException, as_json: bool) -> tuple[int, str, str]:
        @command
        def function(as_json: bool = False) -> Outcome:
            if isinstance(what, BaseException):
                raise what
            return what

        code = 0
        try:
            function(as_json=as_json)
        except SystemExit as stop:
            assert isinstance(stop.code, int)
            # Python prints no chain of errors after it.
            assert stop.__cause__ is None and stop.__suppress_context__
            code = stop.code
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        return code, said.out, said.err

    return start


def only_envelope(out: str) -> dict[str, Any]:
    """The one line of stdout, as the envelope that it must be."""
    assert out.endswith("\n") and out.count("\n") == 1
    found: dict[str, Any] = json.loads(out, parse_constant=lambda name: pytest.fail(name))
    assert list(found) == KEYS
    assert found["schema_version"] == 1
    return found


# --- a result


def test_a_result_is_text_on_stdout(run: Run) -> None:
    assert run(Outcome("3 found", {"found": 3}), False) == (0, "3 found\n", "")


def test_a_result_is_one_envelope_under_json(run: Run) -> None:
    data = {"found": 3, "names": ["Zürich", "\u2028"], "nested": {"none": None}}
    code, out, err = run(Outcome("3 found", data), True)
    assert (code, err) == (0, "")
    found = only_envelope(out)
    assert found == {**dict.fromkeys(KEYS), "schema_version": 1, "status": "ok", "data": data}


def test_no_data_is_an_empty_object(run: Run) -> None:
    _, out, _ = run(Outcome("done"), True)
    assert only_envelope(out)["data"] == {}


# --- an error


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: str(kind.__name__))
def test_an_error_is_talk_with_its_hint_and_its_exit_code(
    run: Run, kind: type[BlindsightError]
) -> None:
    code, out, err = run(kind("it is broken", "Mend it."), False)
    assert code == kind.exit_code
    assert out == ""
    assert err == "blindsight: it is broken\n  what to do: Mend it.\n"


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: str(kind.__name__))
def test_an_error_is_one_envelope_under_json(run: Run, kind: type[BlindsightError]) -> None:
    code, out, err = run(kind("it is broken", "Mend it."), True)
    assert (code, err) == (kind.exit_code, "")
    found = only_envelope(out)
    assert found["status"] == "error"
    assert found["error_code"] == kind.code
    assert (found["message"], found["hint"]) == ("it is broken", "Mend it.")
    assert found["data"] is None


def test_an_error_without_a_hint(run: Run) -> None:
    assert run(DataError("it is broken"), False) == (2, "", "blindsight: it is broken\n")
    _, out, _ = run(DataError("it is broken"), True)
    assert only_envelope(out)["hint"] is None


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), AssertionError(), OSError("odd")])
def test_an_unforeseen_error_is_internal_and_says_how_to_report_it(
    run: Run, error: Exception, as_json: bool
) -> None:
    code, out, err = run(error, as_json)
    assert code == 1
    if as_json:
        found = only_envelope(out)
        assert (found["status"], found["error_code"], err) == ("error", "internal", "")
        out = f"{found['message']} {found['hint']}"
    else:
        assert out == ""
        out = err
    assert type(error).__name__ in out and str(error) in out
    assert "BLINDSIGHT_DEBUG=1" in out


def test_debugging_lets_an_unforeseen_error_through(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLINDSIGHT_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run(ZeroDivisionError("by zero"), True)
    assert run(DataError("it is broken"), False)[0] == 2


def test_a_full_disk_below_is_a_storage_error(run: Run) -> None:
    error = OSError(28, "No space left on device", "runs/model")
    code, out, _ = run(error, True)
    assert code == StorageError.exit_code
    found = only_envelope(out)
    assert found["error_code"] == "storage"
    assert "runs/model" in found["message"] and "Free some space" in found["hint"]


def test_an_interrupt_ends_with_130(run: Run) -> None:
    code, out, err = run(KeyboardInterrupt(), False)
    assert (code, out) == (130, "")
    assert err.startswith("blindsight: interrupted\n  what to do: Run the command again")
    code, out, err = run(KeyboardInterrupt(), True)
    assert (code, err) == (130, "")
    assert only_envelope(out)["error_code"] == "interrupted"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), {1, 2}, b"bytes", Path("a")])
def test_data_that_json_cannot_say_is_an_error_and_still_one_envelope(run: Run, bad: Any) -> None:
    code, out, _ = run(Outcome("fine", {"bad": bad}), True)
    assert code == 1
    found = only_envelope(out)
    assert (found["status"], found["data"]) == ("error", None)


def test_an_exit_that_was_asked_for_passes_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    @command
    def function() -> Outcome:
        raise SystemExit(42)

    with pytest.raises(SystemExit) as caught:
        function()
    assert caught.value.code == 42
    assert capsys.readouterr() == ("", "")


def test_a_message_of_several_lines_is_one_line_under_json() -> None:
    text = envelope(code="data", message="one\ntwo", hint='a "hint"\u2028')
    assert "\n" not in text
    assert json.loads(text)["message"] == "one\ntwo"


# --- through typer, as users call it


def typer_app() -> typer.Typer:
    app = typer.Typer()

    @app.command()
    @command
    def greet(name: str, as_json: Annotated[bool, typer.Option("--json")] = False) -> Outcome:
        """Greet somebody."""
        if name == "nobody":
            raise ServiceError("nobody answers", "Call somebody.")
        return Outcome(f"hello {name}", {"name": name})

    return app


def test_typer_sees_the_flags_of_the_function() -> None:
    app, runner = typer_app(), CliRunner()
    plain = runner.invoke(app, ["you"])
    assert (plain.exit_code, plain.stdout, plain.stderr) == (0, "hello you\n", "")
    found = runner.invoke(app, ["you", "--json"])
    assert only_envelope(found.stdout)["data"] == {"name": "you"}
    refused = runner.invoke(app, ["nobody", "--json"])
    assert refused.exit_code == ServiceError.exit_code
    assert only_envelope(refused.stdout)["error_code"] == "service"
    assert re.search("Greet somebody", runner.invoke(app, ["--help"]).stdout)


# --- in a process of its own

CHILD = f"""
import os, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
from protocol.errors import DataError
from protocol.terminal import Outcome, command

@command
def go(as_json=False):
    what = sys.argv[1]
    if what == "known":
        raise DataError("it is broken", "Mend it.")
    if what == "unforeseen":
        raise ZeroDivisionError("by zero")
    if what == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    return Outcome("fine " * 5000, {{"fine": "fine " * 5000}})

go(as_json=sys.argv[2] == "json")
"""


def child(what: str, form: str, **streams: Any) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if "BLINDSIGHT" not in name}
    return subprocess.run(
        [sys.executable, "-c", CHILD, what, form],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},
        text=True,
        check=False,
        env=environment,
        timeout=60,
    )


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    ("what", "code"), [("fine", 0), ("known", 2), ("unforeseen", 1), ("interrupt", 130)]
)
def test_a_process_ends_with_its_code_and_never_a_traceback(
    what: str, code: int, form: str
) -> None:
    done = child(what, form)
    assert done.returncode == code
    assert "Traceback" not in done.stdout + done.stderr
    if form == "json":
        assert only_envelope(done.stdout)["status"] == ("ok" if code == 0 else "error")
        assert done.stderr == ""
    else:
        assert bool(done.stdout) is (code == 0)
        assert bool(done.stderr) is (code != 0)


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("broken", ["closed", "full"])
def test_a_stdout_that_takes_nothing_is_not_a_traceback(form: str, broken: str) -> None:
    if broken == "full":
        if not Path("/dev/full").exists():
            pytest.skip("needs /dev/full")
        target = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, target = os.pipe()
        os.close(reader)
    try:
        done = child("fine", form, stdout=target)
    finally:
        os.close(target)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


# --- talk


def test_talk_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    say("one moment")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "one moment\n")


@pytest.mark.parametrize("total", [3, None])
def test_progress_is_silent_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, total: int | None
) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    with progress("counting", total) as step:
        step(1)
        step(3)
    assert capsys.readouterr() == ("", "")


def test_progress_lets_errors_through() -> None:
    with pytest.raises(DataError), progress("counting", 3):
        raise DataError("it is broken")
