"""An institution's policy: what it does not name is refused, and a typo is found."""

from dataclasses import replace
from pathlib import Path

import pytest

from client.institution.policy import TEMPLATE, Policy
from protocol.bundle_approval import approve, approved_by
from protocol.errors import PolicyError, UsageError
from protocol.identity import Identity
from protocol.model.settings import TrainingSettings

BUNDLE = "ab" * 32
RUN = TrainingSettings(rounds=5, local_epochs=2, batch_size=16)


def policy(tmp_path: Path, text: str = TEMPLATE) -> Policy:
    (tmp_path / "policy.toml").write_text(text)
    return Policy.read(tmp_path / "policy.toml")


def test_an_empty_file_allows_nothing(tmp_path: Path) -> None:
    found = policy(tmp_path, "")
    with pytest.raises(PolicyError, match="not approved"):
        found.approve_bundle(BUNDLE)
    with pytest.raises(PolicyError, match="actions"):
        found.check_run(RUN, "train")
    with pytest.raises(PolicyError, match="secure-aggregation"):
        found.check_sum(False, 9)


def test_the_template_runs_nothing_until_a_bundle_is_listed(tmp_path: Path) -> None:
    with pytest.raises(PolicyError):
        policy(tmp_path).approve_bundle(BUNDLE)
    policy(tmp_path, TEMPLATE.replace("bundles = []", f'bundles = ["{BUNDLE}"]')).approve_bundle(
        BUNDLE
    )


def test_a_reviewers_signature_counts_where_it_is_listed(tmp_path: Path) -> None:
    reviewer, stranger = Identity.ephemeral(), Identity.ephemeral()
    listed = TEMPLATE.replace("signers = []", f'signers = ["{reviewer.public.fingerprint}"]')
    found = policy(tmp_path, listed)
    both = f"{approve(BUNDLE, stranger)}, {approve(BUNDLE, reviewer)}"
    found.approve_bundle(BUNDLE, both)
    for wrong in (
        "",
        approve(BUNDLE, stranger),
        approve("cd" * 32, reviewer),
        approve(BUNDLE, reviewer)[:-2],
        f"{reviewer.public.der.hex()}:{approve(BUNDLE, stranger).partition(':')[2]}",
        "x" * 20_000,
        ":,:",
        "é:é",
    ):
        with pytest.raises(PolicyError):
            found.approve_bundle(BUNDLE, wrong)
    with pytest.raises(PolicyError):
        policy(tmp_path).approve_bundle(BUNDLE, both)
    assert list(approved_by(BUNDLE, both)) == [stranger.public, reviewer.public]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rounds": 101}, "rounds"),
        ({"local_epochs": 21}, "local-epochs"),
        ({"batch_size": 2048}, "batch-size"),
    ],
)
def test_a_run_that_asks_for_too_much_is_refused(tmp_path: Path, change: dict, named: str) -> None:
    found = policy(tmp_path)
    found.check_run(RUN, "train")
    with pytest.raises(PolicyError, match=f"{named}: this institution's policy allows"):
        found.check_run(replace(RUN, **change), "train")


def test_a_run_without_noise_is_refused_where_noise_is_asked_for(tmp_path: Path) -> None:
    found = policy(tmp_path, TEMPLATE.replace("min-noise = 0.0", "min-noise = 0.8"))
    with pytest.raises(PolicyError, match="privacy-noise"):
        found.check_run(RUN, "train")
    found.check_run(replace(RUN, privacy_noise=0.8), "train")


def test_statistics_have_to_be_allowed(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="actions"):
        policy(tmp_path).check_run(RUN, "statistics")


def test_an_update_leaves_only_within_a_large_enough_sum(tmp_path: Path) -> None:
    found = policy(tmp_path)
    found.check_sum(True, 3)
    for masked, institutions in ((True, 2), (False, 30)):
        with pytest.raises(PolicyError):
            found.check_sum(masked, institutions)
    policy(
        tmp_path,
        TEMPLATE.replace("require-secure-aggregation = true", "require-secure-aggregation = false"),
    ).check_sum(False, 1)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("max-rounds = 100", "max-round = 100", "line 14: .* did you mean max-rounds"),
        ("max-rounds = 100", 'max-rounds = "100"', "line 14: training.max-rounds"),
        ("max-rounds = 100", "max-rounds = 0", "line 14: training.max-rounds"),
        ("[training]", "[trainings]", "line 11: .* did you mean training"),
        ("bundles = []", 'bundles = ["12"]', "line 7: code.bundles"),
        ("signers = []", "signers = [7]", "line 9: code.signers"),
        ("signers = []", "zzz = 1", "known are bundles, signers"),
        ('["train", "evaluate"]', '["trian"]', "line 13: training.actions"),
        ("delta = 1e-6", "delta = ", "line 30"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in TEMPLATE
    with pytest.raises(UsageError, match=said) as caught:
        policy(tmp_path, TEMPLATE.replace(old, new, 1))
    assert caught.value.hint


def test_a_missing_or_odd_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        Policy.read(tmp_path / "none.toml")
    (tmp_path / "policy.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="UTF-8"):
        Policy.read(tmp_path / "policy.toml")
    with pytest.raises(UsageError):
        Policy.read(tmp_path)
