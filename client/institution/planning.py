"""The table of ``blindsight index plan``."""

import io

from rich.console import Console
from rich.table import Table

from protocol.plan import Plan, best
from protocol.terminal import Outcome

_COLUMNS = ("", "d2", "d1", "blocks", "keys", "up kB", "down kB", "index MB")
_TIMES = ("server ms", "searcher ms", "network ms", "all ms")


def outcome(choices: list[Plan], goal: str) -> Outcome:
    """Return every choice as a row, the best for ``goal`` marked."""
    chosen = best(choices, goal)
    layout, costs = chosen.layout, chosen.costs
    title = f"{layout.items:,} items of {layout.dim} coordinates, preset {layout.preset.name}"
    table = Table(title=title, title_justify="left")
    for name in (*_COLUMNS, *_TIMES):
        table.add_column(name, justify="right")
    for one in choices:
        table.add_row(
            "->" if one is chosen else "",
            str(one.layout.chunk_width),
            str(one.layout.chunks),
            f"{one.layout.blocks:,}",
            str(one.layout.public_keys),
            f"{one.layout.upload_bytes / 1e3:,.0f}",
            f"{one.layout.download_bytes / 1e3:,.0f}",
            f"{one.index_bytes / 1e6:,.1f}",
            *(f"{value:,.0f}" for value in _times(one)),
        )
    least = "the fewest bytes" if goal == "bytes" else "the shortest time"
    why = (
        f"d2 = {layout.chunk_width} takes {least}: {chosen.total_bytes / 1e6:,.2f} MB and about "
        f"{chosen.latency_ms:,.0f} ms for a question at {costs.up_mbit:g} Mbit/s up and "
        f"{costs.down_mbit:g} down, scoring on {costs.threads} of this design's reference cores."
    )
    text = io.StringIO()
    console = Console(file=text, width=120)
    console.print(table)
    console.print(why, highlight=False)
    rows = [_row(one) for one in choices]
    return Outcome(text.getvalue().rstrip(), {"goal": goal, "chosen": _row(chosen), "all": rows})


def _times(one: Plan) -> tuple[float, float, float, float]:
    return one.server_ms, one.searcher_ms, one.network_ms, one.latency_ms


def _row(one: Plan) -> dict[str, float]:
    times = zip(_TIMES, _times(one), strict=True)
    return {
        "chunk_width": one.layout.chunk_width,
        "chunks": one.layout.chunks,
        "blocks": one.layout.blocks,
        "public_keys": one.layout.public_keys,
        "upload_bytes": one.layout.upload_bytes,
        "download_bytes": one.layout.download_bytes,
        "index_bytes": one.index_bytes,
        **{name.replace(" ", "_"): value for name, value in times},
    }
