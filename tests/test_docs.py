"""The documentation is in step: its commands exist, its links lead somewhere, its code is there."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer.main

from simulations.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every blindsight command that a page shows, as arguments."""
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line)
                if words and words[0] == "blindsight":
                    yield f"{page.name}: {line}", words[1:]


@pytest.mark.parametrize("arguments", [pytest.param(words, id=name) for name, words in commands()])
def test_every_command_shown_is_understood(arguments: list[str]) -> None:
    """Parsed by the real command line; tests/e2e/test_walkthrough.py also runs them."""
    command: click.Command = typer.main.get_command(app)
    context = click.Context(command)
    rest = list(arguments)
    while isinstance(command, click.Group):
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None, name
        command, context = found, click.Context(found, context, name)
    command.parse_args(context, rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_is_named_exists(page: Path) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`", page.read_text())
    assert not [name for name in named if not (ROOT / name).is_file()]


def test_every_module_stands_in_the_architecture() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    modules = [
        one
        for room in ("protocol", "server", "client", "simulations")
        for one in (ROOT / room).rglob("*.py")
        if one.stem != "__init__" and "_pb2" not in one.name and "report" not in one.parts
    ]
    assert not [str(one.relative_to(ROOT)) for one in modules if f"`{one.stem}`" not in text]


def test_every_make_target_shown_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    shown = {
        name
        for page in PAGES
        for name in re.findall(
            r"\bmake (demo|test|check|stubs|lock|help|clean)\b", page.read_text()
        )
    }
    assert {"demo", "test"} <= shown
    assert all(f"\n{name}:" in makefile for name in shown)
