"""What a round of training costs: learning itself, and what Flower's runtime adds to it.

Both sides train the same institutions on the same batches, one after the other on one thread, and
measure the validation recall of every model that is sent out; only who carries the model
from one to the next differs.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from client.institution.app import derive_seed, recall_at_10
from client.institution.pairs import read_pairs, write_pairs
from client.institution.reading import Held, source_of
from client.institution.training import train_epochs
from protocol.model.pretrained import Pretrained
from protocol.model.settings import TrainingSettings
from protocol.model.update import Arrays, arrays_of, load_arrays
from protocol.terminal import Outcome, progress
from simulations.grid import run_in_process
from simulations.options import encoders_of, own_of, training_of
from simulations.partition import parse_partition, partition, take

_THREADS = 1


def bench_training(
    data: Path, institutions: int, limit: int | None, options: Mapping[str, Any]
) -> Outcome:
    """Time ``options['rounds']`` rounds among ``institutions``, in a plain loop and by Flower."""
    encoders, own = encoders_of(options), own_of(options)
    pretrained = Pretrained.load(encoders)
    settings = training_of(options, pretrained.settings, quorum=1)
    source = source_of(data, own)
    folder = take(read_pairs(data, source.group_key), limit, 0)
    shares = partition(folder, parse_partition("iid"), institutions, 0)
    model = pretrained.start(settings)
    with progress("reading, and features of frozen encoders", None):
        held = {
            name: {
                split: source.of(folder, [p for p in pairs if p.split == split], model, settings)
                for split in ("train", "val")
            }
            for name, pairs in shares.items()
        }
    torch.set_num_threads(_THREADS)
    with TemporaryDirectory() as root, progress("training", 2) as show:
        homes = {name: Path(root) / name for name in shares}
        for name, pairs in shares.items():
            write_pairs(homes[name], pairs, folder)
        # Once for nothing: what is read and compiled first is not of any round.
        warm = training_of({**options, "rounds": 1}, pretrained.settings, quorum=1)
        run_in_process(homes, warm, encoders=encoders, own=own, workers=1)
        plain, learning = _plain(pretrained, settings, held)
        show(1)
        started = time.perf_counter()
        run = run_in_process(homes, settings, encoders=encoders, own=own, workers=1)
        total = time.perf_counter() - started
        show(2)
    flower = sum(report.seconds for report in run.reports)
    pairs_seen = sum(len(one["train"].data) for one in held.values()) * settings.epochs
    found = {
        "pairs": sum(len(one["train"].data) for one in held.values()),
        "institutions": institutions,
        "rounds": settings.rounds,
        "seconds_per_10000_pairs_and_epoch": learning / pairs_seen * 10_000,
        "plain_loop_s": plain,
        "flower_rounds_s": flower,
        "flower_total_s": total,
        "flower_over_plain": flower / plain,
        "bytes_up_a_round": run.reports[0].bytes_up,
        "settings": {name.replace("-", "_"): v for name, v in settings.to_run_config().items()},
    }
    return Outcome(_text(found), found)


def _plain(
    pretrained: Pretrained, settings: TrainingSettings, held: Mapping[str, Mapping[str, Held]]
) -> tuple[float, float]:
    """Seconds of federated averaging in a loop, and of its learning alone."""
    model = pretrained.start(settings)
    current = arrays_of(model)
    total = sum(len(one["train"].data) for one in held.values())
    started, learning = time.perf_counter(), 0.0
    for number in range(1, settings.rounds + 1):
        mean: Arrays = {name: values * 0 for name, values in current.items()}
        for name, one in held.items():
            load_arrays(model, current)
            recall_at_10(model, one["val"])
            generator = torch.Generator().manual_seed(derive_seed(settings.seed, name, number))
            since = time.perf_counter()
            train_epochs(
                model,
                one["train"].data,
                settings,
                generator,
                settings.local_epochs,
                ((number - 1) / settings.rounds, number / settings.rounds),
            )
            learning += time.perf_counter() - since
            share = len(one["train"].data) / total
            for key, values in arrays_of(model).items():
                mean[key] += values * share
        current = mean
    return time.perf_counter() - started, learning


def _text(found: Mapping[str, Any]) -> str:
    return "\n".join(
        [
            f"{found['institutions']} institutions, {found['pairs']:,} training pairs, "
            f"{found['rounds']} rounds, one thread",
            f"learning: {found['seconds_per_10000_pairs_and_epoch']:.2f} s for 10,000 pairs and "
            "an epoch",
            f"rounds in a plain loop {found['plain_loop_s']:.2f} s, by Flower in process "
            f"{found['flower_rounds_s']:.2f} s: {found['flower_over_plain']:.2f} times",
            f"{found['bytes_up_a_round'] / 1e6:.2f} MB sent by all institutions a round",
        ]
    )
