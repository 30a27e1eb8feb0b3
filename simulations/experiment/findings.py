"""What an experiment found, gathered as it goes: for the terminal, for programs, for the page."""

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from protocol.files import write_atomically
from protocol.model.settings import TrainingSettings
from protocol.terminal import Outcome
from server.round import RoundReport
from simulations.experiment.page import write_page
from simulations.experiment.settings import ExperimentSettings


class Findings:
    """Figures by partition and seed, in plain JSON values."""

    def __init__(
        self,
        settings: ExperimentSettings,
        training: TrainingSettings,
        pairs: int,
        gallery: tuple[int, int],
    ) -> None:
        self._started = time.perf_counter()
        self._settings = settings
        self._training = training
        self._pairs = pairs
        self._gallery = gallery
        self._central: dict[int, dict[str, Any]] = {}
        self._runs: dict[str, list[dict[str, Any]]] = {}

    def add_central(self, seed: int, scores: dict[str, Any]) -> None:
        """Add what pooled data gave under ``seed``."""
        self._central[seed] = scores

    def add(
        self,
        name: str,
        seed: int,
        pairs: Mapping[str, int],
        federated: dict[str, Any],
        alone: Mapping[str, dict[str, Any]],
        reports: Sequence[RoundReport],
    ) -> None:
        """Add what one partition gave under one seed; ``pairs`` are those that each trains on."""
        self._runs.setdefault(name, []).append(
            {
                "seed": seed,
                "federated": federated,
                "alone": dict(alone),
                "pairs": dict(pairs),
                "rounds": [
                    {
                        "round": report.number,
                        "seconds": report.seconds,
                        "bytes_up": report.bytes_up,
                        "bytes_down": report.bytes_down,
                        "recall_at_10": report.val_recall_at_10,
                        "train_loss": report.train_loss,
                        "privacy_epsilon": max(
                            (i.privacy_epsilon or 0.0 for i in report.institutions), default=0.0
                        ),
                        "dropped": {one.name: one.dropped for one in report.dropped},
                    }
                    for report in reports
                ],
            }
        )

    def save(self, out: Path) -> dict[str, Any]:
        """Write ``experiment.json`` with what is known so far into ``out``, and return it."""
        partitions = {name: self._over_seeds(runs) for name, runs in self._runs.items()}
        training = {name.replace("-", "_"): v for name, v in self._training.to_run_config().items()}
        for own in ("seed", "quorum"):  # each run has its own
            del training[own]
        data = {
            "recall_at_10": next(iter(partitions.values()))["recall_at_10"],
            "partitions": partitions,
            "gallery": self._gallery[0],
            "queries": self._gallery[1],
            "pairs": self._pairs,
            "seeds": len(self._central),
            "settings": self._settings.model_dump(mode="json", exclude_none=True) | training,
            "command": self._command(),
            "seconds": time.perf_counter() - self._started,
            "report": str(out / "experiment.html"),
        }
        write_atomically(out / "experiment.json", json.dumps(data, indent=2, allow_nan=False))
        return data

    def finish(self, out: Path) -> Outcome:
        """Write ``experiment.json`` and ``experiment.html`` into ``out``; return what to print."""
        data = self.save(out)
        write_page(out / "experiment.html", data)
        return Outcome(_text(data), data)

    def _command(self) -> str:
        """The command that gives this again, with what was set by flag, environment or file."""
        given = self._settings.model_dump(mode="json", exclude_unset=True, exclude_none=True)
        words = ["blindsight", "experiment"]
        for name, value in given.items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                words += [f"--{flag}", str(value)]
        return shlex.join(words)

    def _over_seeds(self, runs: list[dict[str, Any]]) -> dict[str, Any]:
        """Means and standard deviations over seeds of one partition, and the runs themselves."""
        central = [self._central[run["seed"]]["recall_at_10"] for run in runs]
        federated = [run["federated"]["recall_at_10"] for run in runs]
        alone = [
            fmean(one["recall_at_10"] for one in run["alone"].values())
            for run in runs
            if run["alone"]
        ]
        names = [name for name in runs[0]["alone"] if all(name in run["alone"] for run in runs)]
        return {
            "recall_at_10": {
                "federated_over_central": fmean(federated) / fmean(central)
                if any(central)
                else None,
                "federated": fmean(federated),
                "central": fmean(central),
                "local": fmean(alone) if alone else None,
            },
            "deviation": {
                "federated": _spread(federated),
                "central": _spread(central),
                "local": _spread(alone),
            },
            "intervals": {
                "federated": runs[0]["federated"]["interval"],
                "central": self._central[runs[0]["seed"]]["interval"],
            },
            "institutions": {
                name: fmean(run["alone"][name]["recall_at_10"] for run in runs) for name in names
            },
            "bytes_up_a_round": fmean(one["bytes_up"] for run in runs for one in run["rounds"]),
            "seconds_a_round": fmean(one["seconds"] for run in runs for one in run["rounds"]),
            "runs": runs,
            "central_runs": [self._central[run["seed"]] for run in runs],
        }


def _text(data: Mapping[str, Any]) -> str:
    lines = [
        f"recall@10, text to image, {data['gallery']:,} test images and {data['queries']:,} "
        f"sentences, mean of {data['seeds']} seeds (± their deviation; 95 % interval of seed 0)",
        f"{'partition':16}{'pooled':>24}{'federated':>24}{'of pooled':>11}{'alone':>16}",
    ]
    for name, found in data["partitions"].items():
        recall, spread, interval = found["recall_at_10"], found["deviation"], found["intervals"]
        cells = [
            _cell(recall[who], spread[who]) + _interval(interval[who])
            for who in ("central", "federated")
        ]
        alone = "-" if recall["local"] is None else _cell(recall["local"], spread["local"])
        lines.append(
            f"{name:16}{cells[0]:>24}{cells[1]:>24}"
            f"{_ratio(recall['federated_over_central']):>11}{alone:>16}"
        )
    lines += [f"all in {data['seconds']:.0f} s", f"report: {data['report']}"]
    return "\n".join(lines)


def _cell(recall: float, spread: float | None) -> str:
    return f"{100 * recall:.1f}" + ("" if spread is None else f" ±{100 * spread:.1f}")


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(interval: Sequence[float]) -> str:
    return f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def _spread(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None
