"""Whole federations in this process, on made-up scenes: Flower's apps, ours, and the baselines."""

import logging
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict, UserConfig

from client.institution.app import app, derive_seed
from client.institution.pairs import read_pairs, write_pairs
from client.institution.reading import Source
from client.institution.training import interrupted
from client.institution.training_set import Captions, PictureSet, TrainingSet, union
from protocol.errors import TrainingError, UsageError
from protocol.model.pretrained import EncoderChoice, Pretrained
from protocol.model.release import read_release
from protocol.model.settings import TrainingSettings
from protocol.model.tower_settings import TowerSettings
from protocol.model.towers import TwoTowers
from protocol.model.update import arrays_of, pack_model
from server.app import app as server_app
from server.round import RoundReport
from simulations.baselines import train_baselines
from simulations.grid import InProcessGrid, run_in_process
from simulations.scenes import write_scenes
from tests.protocol.test_encoders import PICTURES, TEXTS, saved

TINY = TowerSettings(
    image_size=16, dim=8, image_width=16, image_stages=1, text_width=16, buckets=256, max_tokens=8
)
SETTINGS = TrainingSettings(rounds=2, local_epochs=1, batch_size=16, quorum=2, towers=TINY)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three institutions with some twenty scenes each."""
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, 60, 3, 0)
    found = read_pairs(root)
    sites = {site: root / site for site in found.sites}
    for site, folder in sites.items():
        write_pairs(folder, [pair for pair in found.pairs if pair.site == site], root)
    return sites


def _sets(folders: dict[str, Path]) -> dict[str, TrainingSet]:
    model = TwoTowers.initial(TINY, 0)
    return {name: Source(f).read("train", model, SETTINGS).data for name, f in folders.items()}


def _bits(model: TwoTowers) -> bytes:
    return b"".join(values.numpy().tobytes() for values in model.state_dict().values())


def test_the_same_seed_gives_the_same_model_to_the_bit(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[RoundReport] = []
    first = run_in_process(
        folders, SETTINGS, releases=tmp_path / "a", workers=1, on_round=seen.append
    )
    again = run_in_process(folders, SETTINGS, releases=tmp_path / "b", workers=3)
    other = run_in_process(folders, replace(SETTINGS, seed=1), workers=3)
    assert _bits(first.model) == _bits(again.model) != _bits(other.model)
    assert first.release is not None and again.release is not None and other.release is None
    assert first.release.release_id == again.release.release_id
    assert _bits(read_release(first.release.path).load()) == _bits(first.model)
    assert set(first.release.metrics) == {"rounds", "val_recall_at_10"}
    assert tuple(seen) == first.reports and len(seen) == 2
    assert [report.name for report in seen[0].institutions] == list(folders)
    for mine, theirs in zip(first.reports, again.reports, strict=True):
        assert mine.institutions == theirs.institutions and mine.counted and not mine.dropped
        assert all(report.train_loss and report.examples for report in mine.institutions)
    assert not [record for record in caplog.records if record.name == "flwr"]
    assert logging.getLogger("flwr").level != logging.ERROR


def test_counts_stay_at_home_where_they_should(folders: dict[str, Path]) -> None:
    run = run_in_process(folders, replace(SETTINGS, rounds=1), share_counts=False)
    for report in run.reports[0].institutions:
        assert report.examples is None and report.pairs_skipped is None and report.train_loss
        recall = report.val_recall_at_10
        assert recall is not None and recall == round(recall, 2)


def test_an_institution_without_usable_data_is_named_and_nothing_leaks(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    write_pairs_of_one = tmp_path / "secret-patient"
    first = next(iter(folders.values()))
    write_pairs(write_pairs_of_one, read_pairs(first).split("train")[:1], first)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "metadata.jsonl").write_text('{"file_name": "a.png", "captions": "two lovers"}\n')
    sites = folders | {
        "single": write_pairs_of_one,
        "broken": broken,
        "absent": tmp_path / "nowhere",
    }
    run = run_in_process(sites, replace(SETTINGS, rounds=1))
    dropped = {report.name: report.dropped for report in run.reports[0].dropped}
    assert set(dropped) == {"single", "broken", "absent"}
    for why in dropped.values():
        assert why == (
            "error: data: the institution has no training data or encoders that can be used"
        )


def test_what_the_institution_is_sent_is_checked(folders: dict[str, Path]) -> None:
    name, data = next(iter(folders.items()))
    arrays = pack_model(arrays_of(TwoTowers.initial(TINY, 0)))
    good = ConfigRecord({**SETTINGS.to_run_config(), "server-round": 1})
    other = pack_model(arrays_of(TwoTowers.initial(replace(TINY, dim=16), 0)))
    contents = {
        "no model": RecordDict({"config": good}),
        "another model": RecordDict({"config": good, "arrays": other}),
        "no round": RecordDict(
            {"config": ConfigRecord(SETTINGS.to_run_config()), "arrays": arrays}
        ),
        "a late round": RecordDict(
            {"config": ConfigRecord({**good, "server-round": 3}), "arrays": arrays}
        ),
        "settings": RecordDict(
            {"config": ConfigRecord({**good, "learning-rate": 7.0}), "arrays": arrays}
        ),
    }
    with InProcessGrid(app, [{"name": name, "data": str(data)}]) as grid:
        for what, content in contents.items():
            for kind in ("train", "evaluate"):
                (reply,) = grid.send_and_receive([Message(content, 1, kind)], timeout=60)
                assert reply.has_error(), what
                assert reply.error.reason == (
                    "malformed_message: the coordinator's message was refused"
                )


def test_without_towers_the_encoders_that_are_named_are_the_towers(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """As ``flwr run`` has it: pyproject.toml names encoders, and no JSON of towers."""
    named = {"image-encoder": "scratch?size=32&mean=0.4"}
    config: UserConfig = {**SETTINGS.to_run_config(), **named, "releases": str(tmp_path)}
    del config["towers"]
    nodes: list[UserConfig] = [
        {"name": name, "data": str(data), **named} for name, data in folders.items()
    ]
    context = Context(1, 0, {}, RecordDict(), config | {"rounds": 1})
    with InProcessGrid(app, nodes, config) as grid:
        server_app(grid=grid, context=context)
    (path,) = tmp_path.iterdir()
    towers = read_release(path).settings
    assert (towers.image_size, towers.image_mean) == (32, (0.4, 0.4, 0.4))
    assert towers.dim == TowerSettings().dim


@pytest.mark.parametrize("mode", ["heads", "ffa-lora"])
def test_pretrained_encoders_are_federated(
    folders: dict[str, Path], tmp_path: Path, mode: str
) -> None:
    for kind, config in (("bert", TEXTS["bert"]()), ("vit", PICTURES["vit"]())):
        saved(tmp_path / kind, config)
    encoders = EncoderChoice(
        image_encoder=f"transformers:{tmp_path / 'vit'}",
        text_encoder=f"transformers:{tmp_path / 'bert'}",
        dim=8,
    )
    held = Pretrained.load(encoders)
    settings = replace(
        SETTINGS, rounds=1, train=mode, standardise=mode == "heads", towers=held.settings
    )
    own = {"cache": str(tmp_path / "features")}
    run = run_in_process(
        folders, settings, encoders=encoders, own=own, releases=tmp_path / "releases"
    )
    assert not run.reports[0].dropped and run.release is not None
    loaded = read_release(run.release.path).load()
    assert _bits(loaded) == _bits(run.model)
    state, begun = loaded.state_dict(), held.model(settings.seed).state_dict()
    changed = {name for name in begun if not torch.equal(state[name], begun[name])}
    assert {"image_head.linear.weight", "text_head.linear.weight"} <= changed
    assert ({"image_head.mean", "image_head.std"} <= changed) == (mode == "heads")
    assert any(name.startswith("image.net.") for name in changed) == (mode != "heads")
    assert (tmp_path / "features" / "features.sqlite").exists() == (mode == "heads")


def test_seeds_differ_by_run_institution_and_round() -> None:
    seeds = {derive_seed(*key) for key in ((0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2))}
    assert len(seeds) == 4 and all(0 <= seed < 2**63 for seed in seeds)


def test_a_quorum_that_cannot_be_is_refused_at_once(folders: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="quorum of 4"):
        run_in_process(folders, replace(SETTINGS, quorum=4))


def test_an_interrupt_ends_a_run_promptly(folders: dict[str, Path]) -> None:
    def interrupt(_: RoundReport) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_process(folders, replace(SETTINGS, rounds=1000), on_round=interrupt)
    assert not interrupted.is_set()
    assert not [t for t in threading.enumerate() if t.name.startswith("institution")]


def test_baselines_see_the_same_data_and_repeat_to_the_bit(folders: dict[str, Path]) -> None:
    seen: list[tuple[str, float]] = []
    before = torch.get_num_threads()
    sets, pretrained = _sets(folders), Pretrained(TINY, {}, "")
    first = train_baselines(
        sets,
        SETTINGS,
        pretrained,
        workers=1,
        on_progress=lambda name, done: seen.append((name, done)),
    )
    again = train_baselines(sets, SETTINGS, pretrained, workers=3)
    assert torch.get_num_threads() == before
    assert list(first.alone) == list(folders)
    assert {name for name, done in seen if done == 1} == {"central", *folders}
    assert _bits(first.central) == _bits(again.central)
    for name in folders:
        assert _bits(first.alone[name]) == _bits(again.alone[name]) != _bits(first.central)
    pooled = union(list(sets.values()))
    assert len(pooled) == sum(len(read_pairs(f).split("train")) for f in folders.values())


def test_a_baseline_that_fails_stops_the_others(folders: dict[str, Path]) -> None:
    sets = _sets(folders)
    single = PictureSet(np.zeros((1, 3, 16, 16), np.uint8), Captions((("alone",),)))
    # It has nothing to tell apart; the others would train for hours.
    with pytest.raises(TrainingError, match="fewer than two"):
        train_baselines(
            sets | {"single": single},
            replace(SETTINGS, rounds=10_000),
            Pretrained(TINY, {}, ""),
            workers=5,
        )
    assert not interrupted.is_set()
