"""The figures for people: phases, peers with their ratios, and the floor."""

import io
from typing import Any

from rich.console import Console
from rich.table import Table

_WIDTH = 110


def render(data: dict[str, Any]) -> str:
    """Return the text of what ``ScoreBench`` measured."""
    out = io.StringIO()
    console = Console(file=out, width=_WIDTH, no_color=True, highlight=False)
    settings = data["settings"]
    console.print(
        f"{settings['items']:,} vectors of width {settings['dim']}, preset {settings['preset']}, "
        f"threads for scoring: {settings['threads']}"
    )
    console.print(_phases(data), _peers(data))
    for line in _lines(data):
        console.print(line, soft_wrap=True)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _phases(data: dict[str, Any]) -> Table:
    table = Table("phase", title_justify="left", title=f"one question, {_questions(data)}")
    for column in ("median ms", "least ms"):
        table.add_column(column, justify="right")
    sides = (
        ("in_process", "in this process", None),
        ("over_grpc", "over gRPC, mutual TLS", "query_ms"),
        ("ahead", "over gRPC, keys made ahead", "query_ahead_ms"),
    )
    for side, title, whole in sides:
        table.add_section()
        table.add_row(f"[bold]{title}[/]")
        for phase, times in data["phases"][side].items():
            name = "server, whole" if phase == "server" else phase
            table.add_row(f"  {name}", f"{times['median_ms']:.2f}", f"{times['min_ms']:.2f}")
        if whole:
            table.add_row("  [bold]query, whole[/]", f"{data[whole]:.2f}")
    return table


def _questions(data: dict[str, Any]) -> str:
    count = data["settings"]["queries"]
    return "once" if count == 1 else f"over {count} questions"


def _peers(data: dict[str, Any]) -> Table:
    table = Table("engine", title="server time", title_justify="left")
    for column in ("us/document", "over ours", "largest error"):
        table.add_column(column, justify="right")
    table.add_column("threads", justify="right")
    table.add_column("measured on")
    each = 1e3 * data["server_ms"] / data["settings"]["items"]
    error = f"{data['accuracy']['max_error']:.1e}"
    threads = data["settings"]["threads"]
    table.add_row("Blindsight", f"{each:.3f}", "1", error, str(threads), "the whole index")
    for row in data["peers"]:
        table.add_row(
            row["name"],
            _or_dash(row["microseconds"], ",.3f"),
            _or_dash(row["over_server"], ",.4g"),
            _or_dash(row["max_error"], ".1e"),
            _or_dash(row["threads"], "d"),
            row["sample"],
        )
    return table


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _lines(data: dict[str, Any]) -> list[str]:
    roof, memory, pack = data["roofline"], data["memory"], data["pack"]
    return [
        f"roofline    the scan reads {roof['bytes'] / 1e6:,.1f} MB; at "
        f"{roof['bandwidth_gb_s']:.1f} GB/s, threads: {roof['threads']}, that takes "
        f"{roof['floor_ms']:.2f} ms; it took {roof['scan_ms']:.2f} ms: "
        f"{data['scan_bandwidth_fraction']:.0%} of the bandwidth "
        f"(one thread reads {roof['one_thread_gb_s']:.1f} GB/s)",
        f"FAISS       server over FAISS on one thread: {data['server_over_faiss']:.2f}; recall@10 "
        f"against it {data['recall_at_10']:.1%}; rms error {data['rms_error']:.1e}",
        f"bytes       {data['upload_bytes']:,} up, {data['download_bytes']:,} down",
        f"memory      the service holds {memory['idle_mb']:.1f} MB at rest and "
        f"{data['resident_mb']:.1f} MB more while it scores, beside the mapped index",
        f"packing     {pack['us_per_document_core']:.1f} us a document and core; the whole index "
        f"took {pack['index_s']:.1f} s",
    ]
