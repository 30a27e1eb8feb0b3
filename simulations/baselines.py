"""What federation is measured against: each institution alone, and all data in one place.

The same towers from the same first weights, the same ``train_epochs``, the same number of looks
at each example; only who shares with whom differs.
"""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import torch

from client.institution.app import derive_seed
from client.institution.training import interrupted, train_epochs
from client.institution.training_set import FeatureSet, TrainingSet, union
from protocol.model.adapters import merge
from protocol.model.pretrained import Pretrained
from protocol.model.settings import TrainingSettings
from protocol.model.statistics import Statistics, Sums
from protocol.model.towers import TwoTowers

OnProgress = Callable[[str, float], None]
CENTRAL = "central"


@dataclass(frozen=True, slots=True)
class Baselines:
    """The model trained on the union, and by institution the one that it trains alone."""

    central: TwoTowers
    alone: Mapping[str, TwoTowers]


def train_baselines(
    data: Mapping[str, TrainingSet],
    settings: TrainingSettings,
    pretrained: Pretrained,
    *,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
) -> Baselines:
    """Trains on the union and on each institution's own, ``settings.epochs`` passes each.

    ``workers`` at a time, each on one torch thread. ``on_progress`` is told, from the threads,
    the name ("central" or an institution's) and how far it is, from 0 to 1. Raises what
    ``train_epochs`` raises.
    """

    def watch(name: str) -> Callable[[float], None] | None:
        return None if on_progress is None else lambda done: on_progress(name, done)

    # The longest first: it takes as long as all the others together.
    sets = {CENTRAL: union(list(data.values())), **data}
    models = train_together(sets, settings, pretrained, workers=workers, watch=watch)
    return Baselines(models.pop(CENTRAL), models)


def train_together(
    data: Mapping[str, TrainingSet],
    settings: TrainingSettings,
    pretrained: Pretrained,
    *,
    workers: int | None = None,
    watch: Callable[[str], Callable[[float], None] | None] = lambda name: None,
    on_done: Callable[[int], None] = lambda done: None,
) -> dict[str, TwoTowers]:
    """``train_alone`` for each, ``workers`` at a time, each on one torch thread.

    ``watch`` gives what is told how far a name is; ``on_done`` is told how many are done.
    """
    pool = ThreadPoolExecutor(
        workers or os.cpu_count() or 1, initializer=torch.set_num_threads, initargs=(1,)
    )
    futures = {
        name: pool.submit(train_alone, own, settings, pretrained, name, watch(name))
        for name, own in data.items()
    }
    try:
        for done, future in enumerate(as_completed(futures.values()), 1):
            future.result()  # one that failed must not wait for the others
            on_done(done)
        return {name: future.result() for name, future in futures.items()}
    finally:
        interrupted.set()
        pool.shutdown(wait=True, cancel_futures=True)
        interrupted.clear()


def train_alone(
    data: TrainingSet,
    settings: TrainingSettings,
    pretrained: Pretrained,
    name: str,
    watch: Callable[[float], None] | None = None,
) -> TwoTowers:
    """One model on ``data`` without any federation, standardised by its own statistics."""
    model = pretrained.start(settings)
    if settings.standardise and isinstance(data, FeatureSet):
        found = Statistics.combine([Sums.of(data.plain_images())])
        model.standardise(torch.from_numpy(found.mean), torch.from_numpy(found.std))
    generator = torch.Generator().manual_seed(derive_seed(settings.seed, name, 0))
    train_epochs(model, data, settings, generator, settings.epochs, watch=watch)
    return merge(model)
