"""``blindsight shell``: a search as a conversation, at a prompt or line by line from a pipe."""

import sys
import threading
from contextlib import ExitStack
from typing import Annotated, Any

import typer

from client.searcher.assistant_cli import AssistantModelOption, AssistantOption, open_assistant
from protocol.terminal import fail, say
from simulations.options import with_options
from simulations.searching import WHOM, PicturesOption, open_searcher


@with_options(WHOM)
def shell(
    k: Annotated[int, typer.Option("-k", "--k", help="How many pictures.")] = 10,
    pictures: PicturesOption = None,
    history: Annotated[
        bool, typer.Option(help="Keep what is typed in a file that you alone can read.")
    ] = True,
    assistant: AssistantOption = None,
    assistant_model: AssistantModelOption = None,
    **whom: Any,
) -> None:
    """Search as a conversation: sentences search, commands refine; help lists them."""
    try:
        with ExitStack() as stack:
            searcher = open_searcher(stack, **whom)
            from client.searcher.prompt import lines
            from client.searcher.shell import COMMANDS, Shell

            if sys.stdin.isatty():
                threading.Thread(target=searcher.warm, daemon=True).start()
                say(f"{', '.join(searcher.institutions)} can be asked; help lists the commands")
            helper = open_assistant(assistant, assistant_model, whom["home"])
            Shell(searcher, k, pictures, helper).run(
                lines(list(COMMANDS), searcher.institutions, history)
            )
    except (Exception, KeyboardInterrupt) as error:
        raise SystemExit(fail(error, as_json=False)) from None
