"""What a simulation found, gathered as it goes: for the terminal, for programs, for the report."""

import datetime
import importlib.metadata
import json
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil

from client.institution.index import Index
from client.institution.pairs import Pair, Skip
from client.searcher.traffic import Traffic
from protocol.files import write_atomically
from protocol.model.settings import TrainingSettings
from protocol.terminal import Outcome
from server.round import EVERYBODY, InstitutionReport, RoundReport
from simulations.comparison import Comparison
from simulations.grid import FederatedRun
from simulations.report.page import write_report
from simulations.settings import SimulationSettings

_VERSIONS = ("blindsight", "flwr", "torch", "transformers", "torchvision", "tenseal", "faiss-cpu")
_KILOBYTE = 1024


class Summary:
    """Collects the findings of one run; the report's page says what shape they have."""

    def __init__(self, settings: SimulationSettings) -> None:
        self._settings = settings
        self._started = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._institutions: list[dict[str, Any]] = []
        self._found: dict[str, Any] = {}

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Book the time that the block takes under ``phase``."""
        start = time.perf_counter()
        yield
        self._seconds[phase] = time.perf_counter() - start

    def add_training(self, training: TrainingSettings, run: FederatedRun) -> None:
        """Add the rounds. A round's recall is of the model that came out of it."""
        after: list[Mapping[str, float | None]] = [
            {one.name: one.val_recall_at_10 for one in _speakers(report)}
            for report in run.reports[1:]
        ]
        after.append(run.recalls)
        self._found["settings"] = self._settings.model_dump(mode="json") | {
            name.replace("-", "_"): value for name, value in training.to_run_config().items()
        }
        self._found["rounds"] = [
            {
                "round": report.number,
                "seconds": report.seconds,
                "bytes_down": report.bytes_down,
                "bytes_up": report.bytes_up,
                "institutions": {
                    one.name: {
                        "train_loss": one.train_loss,
                        "recall_at_10": recalls.get(one.name),
                    }
                    for one in _speakers(report)
                },
                "masked": None if report.masked is None else asdict(report.masked),
                "dropped": {one.name: one.dropped for one in report.dropped},
            }
            for report, recalls in zip(run.reports, after, strict=True)
        ]

    def add_retrieval(self, retrieval: Mapping[str, Any]) -> None:
        """Add what ``simulations.standing`` measured."""
        self._found["retrieval"] = retrieval
        self._found["recall_at_10"] = {
            name: retrieval[name] and retrieval[name]["recall_at_10"]
            for name in ("federated", "central", "chance")
        } | {"local": [one["recall_at_10"] for one in retrieval["local"]]}

    def add_institution(self, name: str, pairs: Sequence[Pair], skips: Sequence[Skip]) -> None:
        """Add what one institution holds."""
        splits = Counter(pair.split for pair in pairs)
        self._institutions.append(
            {
                "name": name,
                **{split: splits[split] for split in ("train", "val", "test")},
                "indexed": len(pairs),
                "skipped": len(skips),
                "skips": [str(skip) for skip in skips],
            }
        )

    def add_search(self, comparison: Comparison, indexes: Mapping[str, Index]) -> None:
        """Add what encrypted search cost, and how it compares with plaintext."""
        layout = next(iter(indexes.values())).layout
        preset = layout.preset
        up = comparison.median(lambda one: one.upload_bytes)
        down = comparison.median(lambda one: one.download_bytes)
        phases = {
            phase: fmean(comparison.median(_milliseconds(phase)).values())
            for phase in ("keygen", "encrypt", "answer", "decrypt")
        }
        answers = comparison.median(_milliseconds("answer"))
        ms = comparison.median(lambda one: sum(one.milliseconds.values()))
        self._found["encrypted"] = {
            "preset": preset.name,
            "dim": layout.dim,
            "ring_degree": preset.ring_degree,
            "moduli_bits": [modulus.bit_length() for modulus in preset.data_moduli],
            "circuit_privacy_bits": min(
                preset.circuit_privacy_bits(one.layout.chunk_width) for one in indexes.values()
            ),
            "queries": comparison.queries,
            "overlap_at_10": comparison.overlap_at_10,
            "max_score_error": comparison.max_score_error,
            "rms_score_error": comparison.rms_score_error,
            "upload_bytes": sum(up.values()),
            "download_bytes": sum(down.values()),
            "query_ms": max(ms.values()),
            "phases_ms": phases,
            "institutions": [
                {
                    "name": name,
                    "items": index.layout.items,
                    "upload_bytes": up[name],
                    "download_bytes": down[name],
                    "answer_ms": answers[name],
                    "query_ms": ms[name],
                }
                for name, index in indexes.items()
            ],
        }

    def add_memory(self) -> None:
        """Add the peaks of this process and of the services that still run, summed."""
        peaks = [_peak_kilobytes(one.pid) for one in psutil.Process().children()]
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self._found["peak_memory_mb"] = (own + sum(peaks)) * _KILOBYTE / 1e6

    def add_examples(self, examples: list[dict[str, Any]]) -> None:
        """Add example searches with their pictures; these go into the report alone."""
        self._found["examples"] = examples

    def finish(self, out: Path) -> Outcome:
        """Write ``summary.json`` and ``report.html`` into ``out``; return what to print."""
        self._seconds["total"] = time.perf_counter() - self._started
        full = {
            "title": self._title(),
            "command": self._command(),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
            "seconds": self._seconds,
            "institutions": self._institutions,
            **self._found,
        }
        encrypted = self._found["encrypted"]
        report = out / "report.html"
        data = {name: value for name, value in full.items() if name != "examples"} | {
            "encrypted_plain_overlap_at_10": encrypted["overlap_at_10"],
            "max_score_error": encrypted["max_score_error"],
            "upload_bytes": encrypted["upload_bytes"],
            "download_bytes": encrypted["download_bytes"],
            "report": str(report),
        }
        write_atomically(out / "summary.json", json.dumps(data, indent=2, allow_nan=False))
        write_report(report, full)
        return Outcome(self._text(report), data)

    def _title(self) -> str:
        images = sum(one["indexed"] for one in self._institutions)
        source = self._settings.data.name if self._settings.data else "captioned scenes"
        return f"{len(self._institutions)} institutions, {images:,} images ({source})"

    def _command(self) -> str:
        given = self._settings.model_dump(mode="json", exclude_unset=True)
        flags = []
        for name, value in given.items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                flags.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                flags.append(f"--{flag} {value}")
        return " ".join(["blindsight simulate", *flags])

    def _text(self, report: Path) -> str:
        retrieval, encrypted = self._found["retrieval"], self._found["encrypted"]
        rows = [("federated", retrieval["federated"])]
        if retrieval["central"]:
            rows.append(("pooled data", retrieval["central"]))
        rows += [(f"{one['name']} alone", one) for one in retrieval["local"]]
        rows.append(("chance", retrieval["chance"]))
        lines = [
            self._title(),
            f"text to image over {retrieval['gallery']:,} test images, "
            f"{retrieval['queries']:,} sentences",
            f"{'':24}{'R@1':>8}{'R@5':>8}{'R@10':>8}{'median rank':>14}",
        ]
        lines += [
            f"{name[:24]:24}"
            + "".join(f"{100 * one[f'recall_at_{k}']:7.1f}%" for k in (1, 5, 10))
            + f"{one['median_rank']:14.1f}"
            for name, one in rows
        ]
        lines += [
            f"encrypted against plaintext, {encrypted['queries']} questions: top 10 agree on "
            f"{100 * encrypted['overlap_at_10']:.2f} % of places, largest score error "
            f"{encrypted['max_score_error']:.1e}",
            f"a question takes {encrypted['query_ms']:.0f} ms, sends "
            f"{encrypted['upload_bytes'] / 1e3:.0f} kB and receives "
            f"{encrypted['download_bytes'] / 1e3:.0f} kB over all institutions",
            f"all in {self._seconds['total']:.0f} s",
            f"report: {report}",
        ]
        return "\n".join(lines)


def _speakers(report: RoundReport) -> tuple[InstitutionReport, ...]:
    """Who said what in a round: under secure aggregation all of them together."""
    if report.masked is None:
        return report.institutions
    said = report.masked
    return (InstitutionReport(EVERYBODY, said.train_loss, said.val_recall_at_10),)


def _peak_kilobytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def _milliseconds(phase: str) -> Callable[[Traffic], float]:
    return lambda one: one.milliseconds[phase]
