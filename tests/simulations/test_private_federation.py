"""Federations with differential privacy: what institutions say, and what they refuse."""

from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict, UserConfig

from client.institution.app import app
from client.institution.pairs import read_pairs, write_pairs
from client.institution.policy import TEMPLATE
from client.institution.privacy.ledger import Ledger
from client.institution.site import Site
from protocol.audit import AuditLog
from protocol.errors import MalformedMessage, PolicyError, TrainingError
from protocol.model.settings import TrainingSettings
from protocol.model.tower_settings import TowerSettings
from server.coordinator import coordinate
from server.deployment.status import describe_round
from simulations.grid import InProcessGrid, run_in_process
from simulations.scenes import write_scenes

TINY = TowerSettings(
    image_size=16, dim=8, image_width=16, image_stages=1, text_width=16, buckets=256, max_tokens=8
)
SETTINGS = TrainingSettings(
    rounds=2, local_epochs=1, batch_size=16, quorum=2, towers=TINY, privacy_noise=3.0
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, 40, 2, 0)
    found = read_pairs(root)
    sites = {site: root / site for site in found.sites}
    for site, folder in sites.items():
        write_pairs(folder, [pair for pair in found.pairs if pair.site == site], root)
    return sites


def test_epsilon_is_reported_and_neither_losses_nor_counts_of_pairs(
    folders: dict[str, Path],
) -> None:
    run = run_in_process(folders, SETTINGS)
    first, last = (report.institutions for report in run.reports)
    for before, after in zip(first, last, strict=True):
        assert before.privacy_epsilon is not None and after.privacy_epsilon is not None
        assert 0 < before.privacy_epsilon < after.privacy_epsilon
        assert after.train_loss is None and after.pairs_skipped is None
    quiet = run_in_process(folders, replace(SETTINGS, rounds=1), share_counts=False)
    assert all(one.privacy_epsilon is None for one in quiet.reports[0].institutions)


def test_rounds_are_charged_on_disk_and_the_one_beyond_the_budget_sends_nothing(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    nodes: list[UserConfig] = [
        {"name": name, "data": str(folder), "state": str(tmp_path / name)}
        for name, folder in folders.items()
    ]
    settings = replace(SETTINGS, rounds=1)
    with InProcessGrid(app, nodes) as grid:
        (report,) = coordinate(grid, settings).reports
    spent = report.institutions[0].privacy_epsilon
    assert spent is not None
    assert all(len(Ledger(tmp_path / name).read()) == 1 for name in folders)
    limited = [{**node, "privacy-budget-epsilon": spent * 1.01} for node in nodes]
    with InProcessGrid(app, limited) as grid, pytest.raises(TrainingError) as refused:
        coordinate(grid, settings)
    # A fixed sentence: neither the budget nor what was spent goes to the coordinator.
    assert "privacy_budget: the round would exceed the institution's privacy budget" in (
        refused.value.message
    )
    assert f"{spent:.3f}" not in refused.value.message
    with InProcessGrid(app, limited) as grid, pytest.raises(TrainingError, match="privacy budget"):
        coordinate(grid, replace(settings, privacy_noise=0.0))
    assert all(len(Ledger(tmp_path / name).read()) == 1 for name in folders)


def test_central_noise_moves_the_model(folders: dict[str, Path]) -> None:
    settings = replace(SETTINGS, rounds=1, privacy_noise=0.0, central_noise=5.0, central_clip=0.1)
    one, two = (run_in_process(folders, settings).model.state_dict() for _ in range(2))
    apart = (one["image_head.linear.weight"] - two["image_head.linear.weight"]).std()
    # z S / n in each of the two runs
    assert 0.5 < float(apart) / (2**0.5 * 5.0 * 0.1 / 2) < 2


def test_central_noise_under_masks_moves_the_model_and_is_reported(
    folders: dict[str, Path],
) -> None:
    masked = replace(
        SETTINGS, privacy_noise=0.0, central_noise=5.0, central_clip=0.1,
        secure_aggregation=True, max_weight=1,
    )  # fmt: skip
    one, two = (run_in_process(folders, masked) for _ in range(2))
    name = "image_head.linear.weight"
    apart = (one.model.state_dict()[name] - two.model.state_dict()[name]).std()
    # z S / n in each of two runs of two rounds; what the second round adds is trained from noise.
    assert 0.5 < float(apart) / (4**0.5 * 5.0 * 0.1 / 2) < 2
    first, last = one.reports
    assert first.central_epsilon is not None and last.central_epsilon is not None
    assert 0 < first.central_epsilon < last.central_epsilon
    assert "central epsilon" in describe_round(last)
    assert all(report.central_epsilon is None for report in run_in_process(
        folders, replace(masked, central_noise=0.0, rounds=1)
    ).reports)  # fmt: skip


def test_central_noise_under_masks_wants_all_to_weigh_one() -> None:
    with pytest.raises(MalformedMessage, match="max-weight: expected 1") as refused:
        replace(SETTINGS, privacy_noise=0.0, central_noise=5.0, secure_aggregation=True)
    assert "--max-weight 1" in refused.value.hint


def test_under_masks_each_says_what_it_spent_if_its_policy_lets_it(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    said, quiet = folders
    for name, says in ((said, "true"), (quiet, "false")):
        (tmp_path / f"{name}.toml").write_text(
            TEMPLATE.replace("min-institutions = 3", "min-institutions = 2").replace(
                "share-epsilon = false", f"share-epsilon = {says}"
            )
        )

    def governed(message: Message, context: Context) -> Message:
        context.node_config["policy"] = str(tmp_path / f"{context.node_config['name']}.toml")
        return app(message=message, context=context)

    masked = replace(SETTINGS, secure_aggregation=True)
    first, last = (report for report in run_in_process(folders, masked, app=governed).reports)
    assert not last.dropped
    spent = {one.name: one.privacy_epsilon for one in last.institutions}
    paid = spent[said]
    assert spent[quiet] is None and paid is not None
    before = next(one.privacy_epsilon for one in first.institutions if one.name == said)
    assert before is not None and 0 < before < paid
    assert f"epsilon so far: {said}" in describe_round(last)


def test_a_node_without_a_policy_allows_nothing_unless_nobody_is_to_be_protected(
    folders: dict[str, Path],
) -> None:
    name, data = next(iter(folders.items()))
    config: UserConfig = {"name": name, "data": str(data)}
    assert Site.of(Context(1, 2, {**config, "simulation": True}, RecordDict(), {})).policy is None
    others: list[UserConfig] = [{}, {"simulation": "true"}, {"simulation": False}]
    for said in others:
        context = Context(1, 2, {**config, **said}, RecordDict(), {"simulation": True})
        with pytest.raises(PolicyError, match="no policy"):
            Site.of(context)


def test_answers_charges_and_refusals_are_in_the_audit_log(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(
        TEMPLATE.replace("require-secure-aggregation = true", "require-secure-aggregation = false")
    )
    own: UserConfig = {
        "audit": str(tmp_path / "audit.log"),
        "state": str(tmp_path),
        "policy": str(policy),
    }
    node: UserConfig = {"name": "clinic", "data": str(next(iter(folders.values()))), **own}
    settings = replace(SETTINGS, rounds=1, quorum=1)
    with InProcessGrid(app, [node]) as grid:
        coordinate(grid, settings)
        policy.write_text(TEMPLATE)
        with pytest.raises(TrainingError, match="policy allows true"):
            coordinate(grid, settings)
    entries = list(AuditLog(tmp_path / "audit.log").read())
    events = [(one.event, one.facts.get("message")) for one in entries]
    assert events[:2] == [("privacy-charged", None), ("answered", "train")]
    assert ("answered", "evaluate") in events
    assert events[-1] == ("refused", "train")
    assert "policy allows true" in str(entries[-1].facts["why"])
