"""The assistant as commands have it: two flags, what the profile says, and the question first."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protocol.errors import UsageError

if TYPE_CHECKING:
    from client.searcher.assistant import Assistant, Disclosure
    from client.searcher.results import Results

AssistantOption = Annotated[
    str | None,
    typer.Option(help="Address of a language model's server, such as http://127.0.0.1:11434/v1."),
]
AssistantModelOption = Annotated[
    str | None, typer.Option(help="What the assistant's model is called there.")
]

RerankOption = Annotated[
    bool, typer.Option("--rerank", help="Let the assistant order the pictures found; it asks.")
]


def open_assistant(
    url: str | None = None, model: str | None = None, home: Path | None = None
) -> "Assistant | None":
    """The assistant that the flags name, or else the profile in ``home``; None without either.

    The profile's key goes to the profile's address alone. Raises UsageError.
    """
    from client.searcher.profile import Profile
    from client.searcher.settings import SearcherSettings, settings_path

    profile = Profile.open(home)
    path, key = settings_path(profile), None
    if path.exists():
        settings = SearcherSettings.load(path)
        model = model or settings.assistant_model
        if not url or url == settings.assistant_url:
            url = settings.assistant_url
            key = settings.assistant_key_file
    if not url:
        return None
    from client.searcher.assistant import Assistant
    from client.searcher.chat import read_key

    return Assistant(url, model or "", agree, read_key(profile.root / key) if key else None)


def reranked(found: "Results", url: str | None, model: str | None, home: Path | None) -> "Results":
    """What was found, in the assistant's order. Raises what ``Assistant.rerank`` does."""
    assistant = open_assistant(url, model, home)
    if assistant is None:
        raise UsageError("there is no assistant", "Name one: --assistant, --assistant-model.")
    return assistant.rerank(str(found.query), found)


def agree(what: "Disclosure") -> bool:
    """Ask on the terminal whether this may go there; where there is none, it may not."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    return typer.confirm(f"{what} Go on?", err=True)
