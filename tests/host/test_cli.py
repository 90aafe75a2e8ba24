"""The command line: results on stdout, everything else on stderr, exit codes, no tracebacks."""

from __future__ import annotations

import json
import logging
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from tactician import cli, errors
from tactician.cli import COMMANDS, EXIT_BUG, main

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., tuple[int, str, str]]


def test_help_lists_every_command_with_its_own_first_line(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for name, summary in COMMANDS.items():
        assert re.search(rf"{name}\s+{re.escape(summary)}", out)
        command = cli.cli.get_command(click.Context(cli.cli), name)
        assert command is not None
        assert (command.help or "").splitlines()[0] == summary
        assert command.name == name
        for sub in getattr(command, "commands", {"": command}).values():
            assert "as_json" in {p.name for p in sub.params}


def test_every_option_of_every_command_is_explained() -> None:
    for name in COMMANDS:
        pending = [cli.cli.get_command(click.Context(cli.cli), name)]
        while pending:
            command = pending.pop()
            assert command is not None
            pending += getattr(command, "commands", {}).values()
            for parameter in command.params:
                if isinstance(parameter, click.Option):
                    assert parameter.help, f"{name} {parameter.opts}"


def test_unknown_commands_and_options_exit_with_2(run: Run) -> None:
    assert run("bild")[0] == 2
    assert run("build", "--no-such-option")[0] == 2
    assert run("build")[0] == 2
    assert run()[0] == 2


def test_the_reference_in_the_documentation_is_up_to_date() -> None:
    make = runpy.run_path(str(ROOT / "docs" / "make_cli_reference.py"))
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert make["updated"](text) == text, "run `python docs/make_cli_reference.py`"


def test_the_exit_codes_in_the_documentation() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    classes = [
        c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.TacticianError)
    ]
    assert documented == {0, 2, EXIT_BUG} | {c.exit_code for c in classes}


def test_an_error_is_one_line_and_its_exit_code(run: Run) -> None:
    code, out, err = run("plugins", "info", "nothing")
    assert (code, out) == (1, "")
    assert err.startswith("error: plugin 'nothing' is not installed")
    assert "Traceback" not in err


def test_an_error_under_json_is_a_document(run: Run) -> None:
    code, out, err = run("plugins", "info", "nothing", "--json")
    assert json.loads(out)["error"] == {
        "type": "UnknownPluginError",
        "message": err.removeprefix("error: ").strip(),
        "exit_code": code,
    }


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (KeyError("x"), EXIT_BUG, "TACTICIAN_DEBUG=1"),
        (KeyboardInterrupt(), 130, "cancelled"),
        (errors.BuildCancelledError("cancelled"), 130, "cancelled"),
        (errors.LockMismatchError("differs"), 5, "differs"),
        (errors.AccuracyError("far off"), 3, "far off"),
        (RecursionError("deep"), EXIT_BUG, "bug"),
    ],
)
def test_whatever_a_command_raises(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, text: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("tactician.plugins.manager.survey_plugins", fail)
    result, out, err = run("plugins")
    assert (result, out) == (code, "")
    assert text in err
    assert "Traceback" not in err
    if isinstance(error, Exception):
        monkeypatch.setenv("TACTICIAN_DEBUG", "1")
        with pytest.raises(type(error)):
            main(["plugins"])


def test_what_plugins_print_stays_out_of_the_result(run: Run, tmp_path: Path) -> None:
    (tmp_path / "chatty.py").write_text("print('hello from a plugin')\n")
    code, out, err = run("plugins", "--load", "-p", "./chatty.py", "--json")
    assert code == 0
    assert {p["name"] for p in json.loads(out)} >= {"builtin", "chatty"}
    assert "hello from a plugin" in err


def test_warnings_of_the_library_reach_stderr_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from tactician.plugins import manager

    def survey(_: object) -> dict[str, Any]:
        for _ in range(3):
            logging.getLogger("tactician.some.part").warning("look %s", "here")
        return {}

    monkeypatch.setattr(manager, "survey_plugins", survey)
    _, out, err = run("plugins", "--json")
    assert json.loads(out) == []
    assert err == "warning: look here\n"


def test_colour_follows_no_color(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from tactician.cli import main; main(['plugins', 'info', 'nothing'])"]
    done = subprocess.run(
        command, capture_output=True, cwd=tmp_path, env={**os.environ, "NO_COLOR": "1"}, timeout=60
    )
    assert b"\x1b" not in done.stderr


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    code = "from tactician.cli import main; raise SystemExit(main(['tactics']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
