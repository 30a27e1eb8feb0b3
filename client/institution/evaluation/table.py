"""An evaluation as a table for people."""

from collections.abc import Mapping
from typing import Any

_CUTS = ("recall_at_1", "recall_at_5", "recall_at_10")


def table(found: Mapping[str, Any]) -> str:
    """What ``evaluate_folder`` found, a line for each direction; recalls with their intervals."""
    lines = [
        f"{found['images']:,} images of the split {found['split']}, {found['skipped']:,} skipped",
        f"{'':30}{'R@1':>20}{'R@5':>20}{'R@10':>20}{'median rank':>13}{'mAP':>8}",
    ]
    parts = [("", found), ("mean of folds of 1,000: ", found["folds_of_1000"])]
    for title, part in parts:
        if part is not None:
            lines += [
                _line(f"{title}{way.replace('_', ' ')}", part[way], part["intervals"][way])
                for way in ("text_to_image", "image_to_text")
            ]
    lines += [
        _line(f"chance, {way.replace('_', ' ')}", found["chance"][way], None)
        for way in ("text_to_image", "image_to_text")
    ]
    return "\n".join(lines)


def _line(title: str, row: Mapping[str, Any], intervals: Mapping[str, Any] | None) -> str:
    cells = "".join(
        f"{_cell(row[cut], None if intervals is None else intervals[cut]):>20}" for cut in _CUTS
    )
    mean_precision = 100 * row["mean_average_precision"]
    return f"{title:30}{cells}{row['median_rank']:>13.1f}{mean_precision:>7.1f}%"


def _cell(recall: float, interval: Any) -> str:
    said = f"{100 * recall:.1f}"
    return (
        said if interval is None else f"{said} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
    )
