"""Private training: how far one unit can move it, what it costs, and what remembers the cost."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from typer.testing import CliRunner

from client.institution.cli import app
from client.institution.policy import Policy
from client.institution.privacy.budget import budget_of, pay
from client.institution.privacy.ledger import Budget, Charge, Ledger
from client.institution.privacy.mechanism import NoisySum, Plan
from client.institution.privacy.units import Units
from client.institution.randomness import Stream
from client.institution.training import plan_of, train_epochs
from client.institution.training_set import Captions, FeatureSet
from protocol.accountant import Spending, epsilon
from protocol.discrete_gaussian import SIGMA
from protocol.errors import BudgetError, MalformedMessage, StorageError, TrainingError, UsageError
from protocol.model.losses import loss_by_name
from protocol.model.pretrained import Pretrained
from protocol.model.settings import TrainingSettings
from protocol.model.tower_settings import TowerSettings
from protocol.model.towers import TwoTowers
from protocol.model.update import arrays_of

TINY = TowerSettings(
    image_size=16, dim=16, image_width=16, image_stages=1, text_width=16, buckets=64, max_tokens=8
)
SETTINGS = TrainingSettings(
    train="heads", batch_size=16, towers=TINY, privacy_noise=1.0, privacy_microbatch=4
)
RUN = "0" * 32
SPENDING = Spending(2.0, 0.25, 10)


def features(
    items: int, seed: int = 0, groups: tuple[str | None, ...] = (), public: int = 0
) -> tuple[FeatureSet, TwoTowers]:
    """Images and texts that are noisy copies of each other, as features of frozen encoders."""
    model = Pretrained(TINY, {}, "").start(SETTINGS)
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(items + public, 8)).astype(np.float32)
    views = np.concatenate([hidden[:items]] * -(-model.image.width // 8), 1)[:, : model.image.width]
    texts = np.concatenate([hidden] * -(-model.text.width // 8), 1)[:, : model.text.width]
    captions = Captions(
        tuple((f"item {n}",) for n in range(items)),
        groups,
        tuple(f"public {n}" for n in range(public)),
    )
    return FeatureSet(
        np.ascontiguousarray(views[:, None]), np.ascontiguousarray(texts), captions
    ), model


def test_a_group_is_one_unit_and_an_item_without_is_its_own() -> None:
    units = Units(torch.tensor([3, -1, 3, -1, 7, 3]))
    drawn = sorted(sorted(items.tolist()) for items in units.draw(Stream(), 1.0))
    assert drawn == [[0, 2, 5], [1], [3], [4]] and len(units) == 4
    assert len(Units(torch.empty(0, dtype=torch.int64))) == 0
    together = torch.cat(list(units.draw(Stream(), 1.0, 1)))
    assert sorted(together.tolist()) == list(range(6))


def test_units_are_drawn_independently_with_the_probability_that_is_charged() -> None:
    units, stream = Units(torch.full((40,), -1)), Stream()
    taken = np.zeros((3_000, 40), bool)
    for row in taken:
        row[[int(items[0]) for items in units.draw(stream, 0.3)]] = True
    counts = taken.sum(1)
    expected = stats.binom.pmf(np.arange(6, 19), 40, 0.3)
    found = np.bincount(counts, minlength=41)[6:19]
    rest = 3_000 - found.sum()
    assert (
        stats.chisquare([*found, rest], [*(3_000 * expected), 3_000 * (1 - expected.sum())]).pvalue
        > 1e-5
    )
    assert stats.chisquare(taken.sum(0)).pvalue > 1e-5
    assert abs(np.corrcoef(taken[:, 0], taken[:, 1])[0, 1]) < 0.1


@pytest.mark.parametrize("microbatch", [1, 4])
def test_taking_one_unit_away_moves_the_sum_by_no_more_than_the_noise_is_scaled_to(
    microbatch: int,
) -> None:
    """By brute force: same seeds, same microbatches, each unit in turn without its records."""
    data, model = features(12, public=5, groups=("a", "a", *[None] * 10))
    settings = replace(SETTINGS, privacy_microbatch=microbatch, public_negatives=4)
    settings = replace(settings, privacy_clip=1e-3)  # so that every gradient is clipped
    plan = plan_of(data, settings)
    from client.institution import training

    data.prepare(model, settings)
    learning = [value for value in model.parameters() if value.requires_grad]
    draws = NoisySum(plan, data.groups).microbatches()
    drawn = [(items, int(generator.initial_seed())) for items, generator in draws]

    def total(without: set[int]) -> np.ndarray:
        summed = NoisySum(plan, data.groups)
        summed.begin(learning)
        for items, seed in drawn:
            left = torch.tensor([n for n in items.tolist() if n not in without], dtype=torch.int64)
            if len(left):
                generator = torch.Generator().manual_seed(seed)
                training._step(model, data, settings, left, generator)
                summed.add()
        return summed._sum

    whole, reach = total(set()), SIGMA / settings.privacy_noise
    moved = [np.linalg.norm(whole - total(unit)) for unit in ({0, 1}, *({n} for n in range(2, 12)))]
    assert 0 < max(moved) <= reach
    # The bound is no looser than it must be: somebody comes near the clipping norm.
    assert max(moved) > 0.2 * reach


def test_noise_covers_every_tensor_and_two_runs_differ_under_one_seed() -> None:
    data, model = features(20)
    plan = plan_of(data, SETTINGS)
    learning = [value for value in model.parameters() if value.requires_grad]

    def noise() -> torch.Tensor:
        summed = NoisySum(plan, data.groups)
        summed.begin(learning)
        summed.release()
        return torch.cat([value.grad.flatten() for value in learning if value.grad is not None])

    one, two = noise(), noise()
    assert len(one) == sum(value.numel() for value in learning) and (one != two).all()
    # Microbatches of several: the reach is twice the clipping norm, and so is the noise.
    scale = 2 * SETTINGS.privacy_noise * SETTINGS.privacy_clip / plan.scale
    assert stats.kstest(torch.cat([one, two]).double().numpy() / scale, "norm").pvalue > 1e-5

    def trained() -> bytes:
        fresh = Pretrained(TINY, {}, "").start(SETTINGS)
        train_epochs(fresh, data, SETTINGS, torch.Generator().manual_seed(1), 1)
        return b"".join(values.tobytes() for values in arrays_of(fresh).values())

    assert trained() != trained()


def test_it_learns_where_there_is_enough_data_for_the_noise() -> None:
    data, model = features(3_000)
    before = _loss(model, data)
    settings = replace(SETTINGS, batch_size=1_500, privacy_microbatch=50, privacy_noise=0.5)
    train_epochs(model, data, replace(settings, learning_rate=1e-2), torch.Generator(), 10)
    assert _loss(model, data) < 0.9 * before


def _loss(model: TwoTowers, data: FeatureSet) -> float:
    images, texts = data.image_vectors(model)[:200], data.text_vectors(model, data.texts[:200])
    apart = torch.eye(200, dtype=torch.bool)
    scale, bias = torch.tensor([2.0]), torch.zeros(1)
    return float(
        loss_by_name("info-nce")(
            torch.from_numpy(images), torch.from_numpy(texts), apart, scale, bias, 0
        )
    )


def test_noise_hides_whether_a_canary_was_there() -> None:
    """Membership inference by the score of one pair that contradicts all others."""

    def scores(noise: float, there: bool, times: int) -> list[float]:
        settings = replace(SETTINGS, privacy_noise=noise, learning_rate=2e-2)
        found = []
        for seed in range(times):
            data, model = features(24, seed=3)
            data._images[0] *= -1
            shown = data if there else _without_first(data)
            train_epochs(model, shown, settings, torch.Generator().manual_seed(seed), 10)
            score = data.image_vectors(model)[0] @ data.text_vectors(model, ["item 0"])[0]
            found.append(float(score))
        return found

    # Without noise the two worlds are apart by a threshold. With noise that costs next to nothing
    # they are one: to be apart by chance takes one run of the suite in 12,870.
    assert min(scores(0.0, True, 2)) > max(scores(0.0, False, 2)) + 0.3
    there, not_there = scores(100.0, True, 8), scores(100.0, False, 8)
    assert min(there) < max(not_there)


def _without_first(data: FeatureSet) -> FeatureSet:
    captions = Captions(data.captions.of_items[1:])
    return FeatureSet(data._images[1:].numpy(), data._texts[1:].numpy(), captions)


def test_gradients_that_are_not_finite_are_refused() -> None:
    data, model = features(20)
    with torch.no_grad():
        model.image_head.linear.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="finite"):
        train_epochs(model, data, SETTINGS, torch.Generator(), 1)


def test_a_unit_alone_needs_something_to_be_told_apart_from() -> None:
    data, _ = features(20)
    with pytest.raises(TrainingError, match="alone"):
        plan_of(data, replace(SETTINGS, privacy_microbatch=1))


def test_the_plan_charges_what_it_does() -> None:
    plan = Plan.of(replace(SETTINGS, batch_size=30), 100)
    assert (plan.sampling, plan.steps, plan.buckets) == (0.3, 4, 7)
    assert plan.spending(3) == Spending(1.0, 0.3, 12)
    assert Plan.of(replace(SETTINGS, batch_size=300), 100).sampling == 1
    with pytest.raises(TrainingError):
        Plan.of(SETTINGS, 0)


def test_settings_refuse_what_noise_would_not_cover() -> None:
    with pytest.raises(MalformedMessage, match="standardise"):
        replace(SETTINGS, standardise=True)
    with pytest.raises(MalformedMessage, match="privacy-noise"):
        replace(SETTINGS, privacy_noise=0.001)
    with pytest.raises(MalformedMessage, match="compression"):
        TrainingSettings(central_noise=1.0, compression="int8")


def test_the_ledger_adds_up_over_runs_and_refuses_at_the_budget(tmp_path: Path) -> None:
    ledger, limit = Ledger(tmp_path), epsilon([SPENDING] * 3, 1e-6)
    budget = Budget(limit * 1.001, 1e-6)
    spent = [Ledger(tmp_path).charge(Charge(run * 32, 1, SPENDING), budget) for run in "abc"]
    assert spent == sorted(spent) and spent[-1] == pytest.approx(limit)
    before = ledger.path.read_bytes()
    with pytest.raises(BudgetError, match=f"{limit:.3f}") as refused:
        ledger.charge(Charge("d" * 32, 1, SPENDING), budget)
    assert refused.value.hint and ledger.path.read_bytes() == before
    assert [one.run[0] for one in ledger.read()] == ["a", "b", "c"]
    # A round that is asked for again is another look at the records.
    assert ledger.charge(Charge("c" * 32, 1, SPENDING), Budget()) > limit


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.write_text(path.read_text().replace('"steps": 10', '"steps": 1')),
        lambda path: path.write_text('{"version": 1, "charges": [], "sha256": ""}'),
        lambda path: path.write_text("[]"),
        lambda path: path.unlink(),
    ],
)
def test_a_ledger_that_is_damaged_or_gone_is_refused(tmp_path: Path, damage: object) -> None:
    ledger = Ledger(tmp_path)
    ledger.charge(Charge(RUN, 1, SPENDING), Budget())
    assert callable(damage)
    damage(ledger.path)
    with pytest.raises(StorageError) as refused:
        ledger.charge(Charge(RUN, 2, SPENDING), Budget())
    assert "backup" in refused.value.hint


def test_a_second_process_waits_its_turn(tmp_path: Path) -> None:
    from protocol.files import open_exclusively

    Ledger(tmp_path).charge(Charge(RUN, 1, SPENDING), Budget())
    with (
        open_exclusively(tmp_path / "privacy-ledger.lock"),
        pytest.raises(StorageError, match="another process"),
    ):
        Ledger(tmp_path).charge(Charge(RUN, 2, SPENDING), Budget())
    assert len(Ledger(tmp_path).read()) == 1


def test_no_charge_is_lost_when_the_process_is_killed(tmp_path: Path) -> None:
    """Every charge that was acknowledged is there afterwards; at most one more is."""
    program = textwrap.dedent(
        f"""
        from pathlib import Path
        from client.institution.privacy.ledger import Budget, Charge, Ledger
        from protocol.accountant import Spending
        ledger = Ledger(Path({str(tmp_path)!r}))
        for number in range(len(ledger.read()) + 1, 10_000):
            ledger.charge(Charge("0" * 32, number, Spending(2.0, 0.25, 10)), Budget())
            print(number, flush=True)
        """
    )
    acknowledged = 0
    for delay in (0.0, 0.004, 0.011, 0.023):
        with subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            acknowledged = int(process.stdout.readline())
            time.sleep(delay)
            os.kill(process.pid, signal.SIGKILL)
            rest = [int(line) for line in process.stdout.read().split("\n")[:-1]]
            acknowledged = max([acknowledged, *rest])
        kept = [one.round for one in Ledger(tmp_path).read()]
        assert kept == list(range(1, len(kept) + 1))
        assert acknowledged <= len(kept) <= acknowledged + 1


def test_a_round_is_paid_for_before_it_trains_or_refused(tmp_path: Path) -> None:
    budget = budget_of({"privacy-budget-epsilon": 2.0, "privacy-delta": 1e-7}, None)
    assert budget == Budget(2.0, 1e-7)
    with pytest.raises(BudgetError, match="without noise"):
        pay(budget, tmp_path, SETTINGS, RUN, 1, None)
    with pytest.raises(UsageError, match="state"):
        pay(budget, None, SETTINGS, RUN, 1, SPENDING)
    assert pay(Budget(), tmp_path, SETTINGS, RUN, 1, None) is None
    assert pay(Budget(), None, SETTINGS, RUN, 2, SPENDING) == epsilon([SPENDING] * 2, 1e-6)
    assert pay(Budget(), tmp_path, SETTINGS, RUN, 1, SPENDING) == epsilon([SPENDING], 1e-6)
    assert json.loads((tmp_path / "privacy-ledger.json").read_text())["charges"]


def test_the_stricter_of_policy_and_settings_holds() -> None:
    policy = Policy.model_validate({"privacy": {"max-epsilon": 3.0, "delta": 1e-5}})
    assert budget_of({}, policy) == Budget(3.0, 1e-6)
    assert budget_of({"privacy-budget-epsilon": 1}, policy) == Budget(1.0, 1e-6)
    assert budget_of({"privacy-budget-epsilon": 9.0, "privacy-delta": 1e-4}, policy) == Budget(
        3.0, 1e-5
    )
    for wrong in ({"privacy-delta": 0.0}, {"privacy-budget-epsilon": "8"}, {"privacy-delta": 1}):
        with pytest.raises(UsageError, match="expected a number"):
            budget_of(wrong, None)


def test_the_plan_says_the_noise_that_a_run_needs_and_no_less() -> None:
    words = ["--units", "500", "--epsilon", "4", "--rounds", "5", "--batch-size", "100"]
    done = CliRunner().invoke(app, ["privacy-plan", *words, "--json"])
    found = json.loads(done.stdout)["data"]
    settings = replace(TrainingSettings(), rounds=5, batch_size=100, privacy_noise=found["noise"])
    spent = [Plan.of(settings, 500).spending(settings.local_epochs) for _ in range(5)]
    assert epsilon(spent, 1e-6) == pytest.approx(found["epsilon"]) and 3.9 < found["epsilon"] <= 4
