"""The coordinator's part of a deployment, without its processes: bundle, control, runs, words."""

import json
import os
import shutil
import socket
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.cli.config_utils import get_fab_metadata
from flwr.proto import control_pb2
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from protocol.errors import ServiceError, StorageError, TrainingError, UsageError
from protocol.identity import Identity
from protocol.model.release import write_release
from protocol.model.signature import read_signed_release
from protocol.model.towers import TwoTowers
from protocol.roster import Member, Roster
from server.checkpoint import Checkpoints
from server.deployment import training
from server.deployment.bundle import CHECKOUT, build_bundle
from server.deployment.control import Control, RunState
from server.deployment.place import Place
from server.deployment.run import TrainingRun
from server.deployment.status import describe_round, status, to_text
from server.deployment.superlink import find_nginx, programs, up
from server.progress import Progress
from server.provisioning.federation import Federation
from server.provisioning.home import CoordinatorHome
from server.provisioning.settings import FederationSettings
from server.round import InstitutionReport, MaskedSums, RoundReport
from tests.protocol.parties import CLINIC, MUSEUM, full_disk
from tests.server.learners import INITIAL, SETTINGS, TINY

#: Flower 1.41 asks pathspec for a name that it has left.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

CONFIG: dict[str, Any] = {"rounds": 6, "secure-aggregation": True}
ROUND = RoundReport(
    3, 6, True,
    (InstitutionReport("clinic"), InstitutionReport("museum", dropped="it is ill")),
    30.0, 5_600_000, 2_800_000,
    MaskedSums(train_loss=2.5, val_recall_at_10=0.5, exchanges=4),
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("federation") / "coordinator"
    settings = FederationSettings(name="lab", host="127.0.0.1", port=1, superlink_port=2)
    Federation.create(CoordinatorHome(root), settings)
    return Place.open(root)


@pytest.fixture
def place(made: Place) -> Iterator[Place]:
    yield made
    shutil.rmtree(made.runs, ignore_errors=True)
    shutil.rmtree(made.releases, ignore_errors=True)


# The bundle


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small one."""
    root = tmp_path / "blindsight"
    shutil.copytree(CHECKOUT / "protocol" / "blindsight", root / "protocol" / "blindsight",
                    ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    for name in ("server/app.py", "client/institution/app.py", "pyproject.toml", ".gitignore",
                 "client/institution/augmentation/synonyms.md"):  # fmt: skip
        if (CHECKOUT / name).exists():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CHECKOUT / name, root / name)
    (root / "client/synonyms.md").write_text("a\n")
    return root


def test_the_same_files_make_the_same_bundle(checkout: Path, tmp_path: Path) -> None:
    first = build_bundle(checkout)
    other = tmp_path / "other" / "blindsight"
    shutil.copytree(checkout, other)
    for number, path in enumerate(sorted(other.rglob("*"), reverse=True)):
        path.chmod(0o700)
        os.utime(path, (number, number))
    (other / "notes.txt").write_text("of no matter")
    (other / "server" / "__pycache__").mkdir()
    (other / "server" / "__pycache__" / "app.cpython-311.pyc").write_bytes(b"\0")
    assert build_bundle(other) == first
    app = other / "server" / "app.py"
    app.write_text(app.read_text() + "\n")
    assert build_bundle(other).sha256 != first.sha256


def test_the_bundle_is_what_flower_runs_and_nothing_beside() -> None:
    built = build_bundle()
    assert get_fab_metadata(built.content)[0] == "blindsight/blindsight"
    with zipfile.ZipFile(BytesIO(built.content)) as bundle:
        names = set(bundle.namelist())
    assert {"server/app.py", "client/institution/app.py", "pyproject.toml"} <= names
    assert not [one for one in names if one.startswith(("tests/", "docs/", "simulations/"))]


def test_no_checkout_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be bundled") as caught:
        build_bundle(tmp_path)
    assert "pip install -e" in caught.value.hint


# Flower's control


def control(**answers: Callable[[Any], Any]) -> Control:
    found = object.__new__(Control)
    found._address = "127.0.0.1:2"
    found._client = SimpleNamespace(**answers)  # type: ignore[assignment]
    return found


def node(number: int, name: str, key: bytes, status: str = "online") -> NodeInfo:
    return NodeInfo(node_id=number, name=name, public_key=key, status=status)


def test_the_rosters_institutions_are_the_nodes_and_nobody_else() -> None:
    asked: list[Any] = []
    members = (Member("clinic", "institution", CLINIC.public),
               Member("museum", "institution", MUSEUM.public),
               Member("bob", "searcher", Identity.ephemeral().public))  # fmt: skip
    stranger = public_key_to_bytes(Identity.ephemeral().public.key)
    there = [
        node(1, "clinic", public_key_to_bytes(CLINIC.public.key)),
        node(2, "stranger", stranger, "offline"),
        node(3, "noise", b"no key"),
        node(4, "former", stranger, "unregistered"),
    ]
    one = control(
        ListNodes=lambda _: control_pb2.ListNodesResponse(nodes_info=there),
        RegisterNode=asked.append,
        UnregisterNode=asked.append,
    )
    assert [found.name for found in one.nodes()] == ["clinic", "noise", "stranger"]
    came, went = one.enrol(Roster("lab", 1, members))
    assert (came, sorted(went)) == (["museum"], ["noise", "stranger"])
    assert {found.node_id for found in asked if hasattr(found, "node_id")} == {2, 3}
    assert asked[-1].public_key == public_key_to_bytes(MUSEUM.public.key)


def test_a_superlink_that_is_away_or_refuses_is_an_error_of_ours() -> None:
    def away(_: object) -> None:
        raise httpx.ConnectError("no")

    def refuses(_: object) -> None:
        request = httpx.Request("POST", "https://127.0.0.1")
        raise httpx.HTTPStatusError(
            "no", request=request, response=httpx.Response(403, request=request)
        )

    with pytest.raises(ServiceError, match="does not answer") as caught:
        control(ListRuns=away).active()
    assert "coordinator up" in caught.value.hint
    with pytest.raises(ServiceError, match="refused: Forbidden"):
        control(ListRuns=refuses).active()


def test_flowers_control_is_still_what_ours_asks() -> None:
    for name in ("ListNodes", "ListRuns", "RegisterNode", "UnregisterNode", "StartRun", "StopRun",
                 "StreamLogs", "from_server_address", "close"):  # fmt: skip
        assert callable(getattr(ControlHttpClient, name))
    assert {"fab", "override_config"} <= set(control_pb2.StartRunRequest.DESCRIPTOR.fields_by_name)
    assert "run_dict" in control_pb2.ListRunsResponse.DESCRIPTOR.fields_by_name


# A run, and who watches it


class Superlink:
    """Plays Flower's runs as told: for each run that is started, how it ends."""

    def __init__(self, *endings: RunState | ServiceError) -> None:
        self.started: list[dict[str, Any]] = []
        self._endings = list(endings)

    def __call__(self, *_: object) -> "Superlink":
        return self

    def __enter__(self) -> "Superlink":
        return self

    def __exit__(self, *_: object) -> None:
        return

    def active(self) -> list[int]:
        return []

    def start(self, bundle: object, config: dict[str, Any]) -> int:
        self.started.append(config)
        return len(self.started)

    def run(self, number: int) -> RunState | None:
        found = self._endings.pop(0)
        if isinstance(found, ServiceError):
            raise found
        if found.ending == "completed":
            write_release(Path(self.started[-1]["releases"]), TwoTowers.initial(TINY, 1), {})
        return replace(found, run_id=number)


DIED = RunState(0, "finished", "failed", "No heartbeat received from the task.")
DONE = RunState(0, "finished", "completed", "")


def play(
    place: Place, monkeypatch: pytest.MonkeyPatch, *endings: RunState | ServiceError
) -> tuple[Superlink, TrainingRun]:
    superlink = Superlink(*endings)
    monkeypatch.setattr(training, "Control", superlink)
    monkeypatch.setattr(training, "_POLL_SECONDS", 0.0)
    monkeypatch.setattr(training, "build_bundle", lambda: SimpleNamespace(sha256="ab" * 32))
    return superlink, training.begin(place, CONFIG)


def test_a_run_whose_process_died_goes_on_by_itself(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = ServiceError("the superlink does not answer")
    running = RunState(0, "running", "", "")
    # The second is asked twice: whether it can be joined, and how it ends.
    superlink, run = play(place, monkeypatch, running, away, away, DIED, DIED, *[DONE] * 4)
    run = training.train(place, run, lambda _: None)
    assert [one["resume"] for one in superlink.started] == [False, True]
    assert run.flower_runs == (1, 2)
    roster = replace(
        place.read_roster(), members=(Member("coordinator", "coordinator", key(place).public),)
    )
    release = read_signed_release(place.releases / str(run.release), roster)
    assert release.release_id == run.release
    with pytest.raises(UsageError, match="no run to go on with"):
        training.unfinished(place)
    # Killed between the run's own word of it and the move: it is finished by the next resume.
    release.path.rename(run.folder / "releases" / release.release_id)
    assert training.train(place, training.unfinished(place), lambda _: None).release == run.release
    assert read_signed_release(release.path, roster) == release


def key(place: Place) -> Identity:
    return Identity.load(place.credentials.private_key)


def test_the_serverapps_own_words_end_a_run_that_can_be_resumed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = RunState(
        0, "finished", "failed", "ServerApp failed with exception: round 1: 1 usable replies"
    )
    superlink, run = play(place, monkeypatch, said, said, DONE)
    with pytest.raises(TrainingError, match=r"^round 1: 1 usable replies$") as caught:
        training.train(place, run, lambda _: None)
    assert "--resume" in caught.value.hint
    assert training.train(place, training.unfinished(place), lambda _: None).release
    assert [one["resume"] for one in superlink.started] == [False, True]


def test_a_run_that_dies_again_and_again_is_given_up(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    superlink, run = play(place, monkeypatch, *[DIED] * 20)
    with pytest.raises(TrainingError, match="died 6 times"):
        training.train(place, run, lambda _: None)
    assert len(superlink.started) == training.MAX_RESUMES + 1


def test_a_run_that_was_stopped_is_over_for_now(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run = play(place, monkeypatch, RunState(0, "finished", "stopped", ""))
    with pytest.raises(TrainingError, match="stopped"):
        training.train(place, run, lambda _: None)


def test_a_superlink_that_stays_away_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    away = ServiceError("the superlink does not answer")
    _, run = play(place, monkeypatch, *[away] * 20)
    monkeypatch.setattr(training, "AWAY_SECONDS", 0.0)
    with pytest.raises(ServiceError, match="does not answer"):
        training.train(place, run, lambda _: None)


def test_approvals_go_with_the_run(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    superlink, run = play(place, monkeypatch, DONE)
    training.train(place, run.approved("aa:bb"), lambda _: None)
    assert superlink.started[0]["bundle-approvals"] == "aa:bb"


def test_a_damaged_run_is_named(place: Place) -> None:
    run = TrainingRun.begin(place.runs, CONFIG, "ab" * 32)
    assert TrainingRun.latest(place.runs) == run
    (run.folder / "run.json").write_text('{"config": 3}')
    with pytest.raises(StorageError, match=r"run\.json is damaged"):
        TrainingRun.latest(place.runs)


def test_a_release_that_is_not_there_is_told(place: Place) -> None:
    run = TrainingRun.begin(place.runs, CONFIG, "ab" * 32)
    with pytest.raises(UsageError, match="left no release"):
        run.publish(place.releases, key(place))


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    size = sum(values.nbytes for values in INITIAL.values()) // 1024
    if not full_disk(folder, size + 48):
        pytest.skip("mounting a small disk is not allowed here")
    try:
        progress = Progress.begin(INITIAL, SETTINGS)
        checkpoints = Checkpoints(folder, SETTINGS)
        progress.reports.append(replace(ROUND, number=1, masked=None))
        checkpoints.save(progress)
        before = {one.name: one.read_bytes() for one in folder.iterdir()}
        progress.reports.append(replace(ROUND, number=2, masked=None))
        with pytest.raises(StorageError, match="no space left") as caught:
            checkpoints.save(progress)
        assert "Free some space" in caught.value.hint
        assert {one.name: one.read_bytes() for one in folder.iterdir()} == before
    finally:
        subprocess.run(["umount", str(folder)], check=True)


# Words


def test_a_round_in_words_names_who_was_missed() -> None:
    said = describe_round(ROUND)
    assert "round 3 of 6: 1 of 2 institutions" in said
    assert "loss 2.500" in said and "recall@10 50.0 %" in said and "about 90 s left" in said
    assert said.endswith("\n  without museum: it is ill")
    failed = replace(ROUND, counted=False, masked=MaskedSums(failure="too few agreed"))
    assert "not counted; no sum: too few agreed" in describe_round(failed)


def test_the_status_says_whether_updates_are_seen(place: Place) -> None:
    TrainingRun.begin(place.runs, {**CONFIG, "secure-aggregation": False}, "ab" * 32)
    assert "PLAIN aggregation" in to_text(status(place))
    TrainingRun.begin(place.runs, CONFIG, "ab" * 32)
    found = to_text(status(place))
    assert (
        "run 2: 0 of 6 rounds, secure aggregation" in found and "lab at 127.0.0.1:1: down" in found
    )
    json.dumps(status(place))


def test_no_nginx_no_coordinator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("server.deployment.superlink._SYSTEM", str(tmp_path))
    with pytest.raises(ServiceError, match="nginx is not installed") as caught:
        find_nginx()
    assert "apt install" in caught.value.hint


def test_a_port_that_is_taken_is_told_before_anything_starts(place: Place) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        taken = place.federation.model_copy(update={"superlink_port": one.getsockname()[1]})
        with pytest.raises(ServiceError, match="the superlink cannot listen on") as caught:
            up(replace(place, federation=taken), lambda: None)
    assert "federation.toml" in caught.value.hint
    assert not (place.state / "superexec.secret").exists()


@pytest.mark.skipif(shutil.which("nginx", path="/usr/sbin:/usr/bin") is None, reason="no nginx")
def test_the_superlink_listens_on_loopback_and_asks_for_a_secret(place: Place) -> None:
    superlink, executor, nginx, directory = programs(place)
    assert directory.name == "directory"
    words = superlink.command
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert {"--enable-supernode-auth", "--disable-runtime-dependency-installation"} <= set(words)
    assert words[words.index("--isolation") + 1] == "process"
    secret = words[words.index("--superexec-auth-secret-file") + 1]
    assert secret in executor.command and Path(secret).stat().st_mode & 0o777 == 0o600
    assert superlink.environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert "--insecure" not in words + executor.command + nginx.command
    Path(secret).unlink()
