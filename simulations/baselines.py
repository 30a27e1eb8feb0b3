"""What federation is measured against: each institution alone, and all data in one place.

The same towers from the same first weights, the same ``train_epochs``, the same number of looks
at each example; only who shares with whom differs.
"""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from client.institution.app import derive_seed
from client.institution.pairs import read_pairs
from client.institution.training import TrainingSet, interrupted, read_split, train_epochs
from protocol.model.settings import TrainingSettings
from protocol.model.towers import TwoTowers

OnProgress = Callable[[str, float], None]
CENTRAL = "central"


@dataclass(frozen=True, slots=True)
class Baselines:
    """The model trained on the union, and by institution the one that it trains alone."""

    central: TwoTowers
    alone: Mapping[str, TwoTowers]


def read_union(folders: Mapping[str, Path], split: str, image_size: int) -> TrainingSet:
    """One split of all folders, one after the other: a gallery, or what central training sees."""
    parts = [read_split(read_pairs(folder), split, image_size)[0] for folder in folders.values()]
    return TrainingSet(
        np.concatenate([part.pixels for part in parts]),
        tuple(captions for part in parts for captions in part.captions),
    )


def train_local(
    folder: Path, settings: TrainingSettings, name: str, watch: Callable[[float], None] | None
) -> TwoTowers:
    """One institution, ``settings.epochs`` passes over its own training split."""
    data, _ = read_split(read_pairs(folder), "train", settings.towers.image_size)
    return _train(data, settings, name, watch)


def train_central(
    folders: Mapping[str, Path],
    settings: TrainingSettings,
    watch: Callable[[float], None] | None = None,
) -> TwoTowers:
    """The union of all training splits, ``settings.epochs`` passes."""
    return _train(
        read_union(folders, "train", settings.towers.image_size), settings, CENTRAL, watch
    )


def train_baselines(
    folders: Mapping[str, Path],
    settings: TrainingSettings,
    *,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
) -> Baselines:
    """Trains them all, ``workers`` at a time, each on one torch thread.

    ``on_progress`` is told, from the threads, the name ("central" or an institution's) and how
    far it is, from 0 to 1. Raises what ``train_epochs`` and ``read_pairs`` raise.
    """
    pool = ThreadPoolExecutor(
        workers or os.cpu_count() or 1, initializer=torch.set_num_threads, initargs=(1,)
    )

    def watch(name: str) -> Callable[[float], None] | None:
        return None if on_progress is None else lambda done: on_progress(name, done)

    # The longest first: it takes as long as all the others together.
    central = pool.submit(train_central, folders, settings, watch(CENTRAL))
    alone = {
        name: pool.submit(train_local, folder, settings, name, watch(name))
        for name, folder in folders.items()
    }
    try:
        done, _ = wait([central, *alone.values()], return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()  # one that failed must not wait for the others
        return Baselines(
            central.result(), {name: future.result() for name, future in alone.items()}
        )
    finally:
        interrupted.set()
        pool.shutdown(wait=True, cancel_futures=True)
        interrupted.clear()


def _train(
    data: TrainingSet, settings: TrainingSettings, name: str, watch: Callable[[float], None] | None
) -> TwoTowers:
    model = TwoTowers.initial(settings.towers, settings.seed)
    generator = torch.Generator().manual_seed(derive_seed(settings.seed, name, 0))
    train_epochs(model, data, settings, generator, settings.epochs, watch=watch)
    return model.eval()
