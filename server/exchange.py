"""One exchange: messages go out, replies come in, until all are there or the deadline passes.

Flower's own ``send_and_receive`` looks for replies every three seconds, in a deployment; a round
under masks is three exchanges and more, most of which are answered in one. Looking often costs the
superlink a query of its database, and no institution is asked for it.
"""

import logging
import time
from collections.abc import Iterable

from flwr.app import Message
from flwr.serverapp import Grid

#: The first pause between two looks, how the next ones grow, and the longest, in seconds.
_FIRST, _GROWTH, _LONGEST = 0.005, 1.3, 0.2
_log = logging.getLogger("blindsight.coordinator")


def exchange(grid: Grid, messages: Iterable[Message], seconds: float) -> list[Message]:
    """Send ``messages`` and return the replies that came within ``seconds``, in any order.

    A message that cannot be sent (its node is not registered any more) has no reply, and nobody
    waits for one. Raises what the grid raises when it cannot be reached.
    """
    deadline = time.monotonic() + seconds
    pushed = list(grid.push_messages(list(messages)))
    waiting = {one for one in pushed if one}
    if len(waiting) < len(pushed):
        _log.warning("%d messages could not be sent", len(pushed) - len(waiting))
    replies: list[Message] = []
    pause = _FIRST
    while waiting:
        came = list(grid.pull_messages(list(waiting)))
        replies += came
        waiting -= {one.metadata.reply_to_message_id for one in came}
        left = deadline - time.monotonic()
        if not waiting or left <= 0:
            break
        time.sleep(min(pause, left))
        pause = min(pause * _GROWTH, _LONGEST)
    return replies
