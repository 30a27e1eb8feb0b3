"""The institution's node: which bundles it lets run, and what of Flower it stands on."""

import hashlib
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.superexec import run_superexec
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResultStatus
from flwr.supernode import start_client_internal as internal
from flwr.supernode.fleet_http_connection import http_request_response
from flwr.supernode.runtime import run_clientapp

from client.institution.deployment import node
from client.institution.deployment.executor import LIBRARIES, WAITS, ForkingExecutor
from client.institution.deployment.node import Approval
from client.institution.deployment.place import Place
from client.institution.deployment.processes import explain, programs
from client.institution.policy import TEMPLATE
from client.institution.provisioning.home import InstitutionFolder
from client.institution.provisioning.settings import InstitutionSettings
from protocol.audit import AuditLog
from protocol.bundle_approval import approve
from protocol.errors import UsageError
from protocol.identity import Identity
from protocol.supervision import listens

CODE = b"a bundle of code"
SHA256 = hashlib.sha256(CODE).hexdigest()
REVIEWER = Identity.ephemeral()


def judging(folder: Path, policy: str) -> Approval:
    (folder / "policy.toml").write_text(policy)
    return Approval(folder / "policy.toml", AuditLog(folder / "audit.log"))


def listed(*hashes: str) -> str:
    return TEMPLATE.replace("bundles = []", f"bundles = {json.dumps(hashes)}")


def accepted(approval: Approval, fab: Fab) -> bool:
    """What Flower's own node would do with it."""
    entities = yaml.safe_load(approval.entities())
    return bool(fab.verifications.get("valid_license")) and internal._verify_fab(fab, entities)


def last_line(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "audit.log").read_text().splitlines()[-1])
    return found


def test_an_approved_bundle_passes_flowers_own_check(tmp_path: Path) -> None:
    approval = judging(tmp_path, listed(SHA256))
    judged = approval.judge(Fab(SHA256, CODE, {}), 5, "")
    assert judged.content == CODE
    assert accepted(approval, judged)
    assert not accepted(judging(tmp_path, listed(SHA256)), judged)  # another process, another key
    assert "bundle-approved" in str(last_line(tmp_path)) and SHA256 in str(last_line(tmp_path))


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        (TEMPLATE, "not approved"),
        (listed("0" * 64), "not approved"),
        (listed(SHA256).replace("[code]", "[cods]"), "cods"),
        (listed(SHA256) + "[", "policy.toml"),
    ],
)
def test_anything_else_is_refused_and_audited(tmp_path: Path, policy: str, why: str) -> None:
    approval = judging(tmp_path, policy)
    judged = approval.judge(Fab(SHA256, CODE, {"valid_license": "yes"}), 5, "")
    assert judged.content == b"" and not accepted(approval, judged)
    said = str(last_line(tmp_path))
    assert "bundle-refused" in said and why in said


def test_a_policy_that_is_gone_refuses(tmp_path: Path) -> None:
    approval = judging(tmp_path, listed(SHA256))
    (tmp_path / "policy.toml").unlink()
    assert not accepted(approval, approval.judge(Fab(SHA256, CODE, {}), 5, ""))


def test_the_policy_is_read_anew_for_each_bundle(tmp_path: Path) -> None:
    approval = judging(tmp_path, listed(SHA256))
    assert accepted(approval, approval.judge(Fab(SHA256, CODE, {}), 5, ""))
    (tmp_path / "policy.toml").write_text(TEMPLATE)
    assert not accepted(approval, approval.judge(Fab(SHA256, CODE, {}), 6, ""))


def test_what_is_hashed_is_what_came(tmp_path: Path) -> None:
    approval = judging(tmp_path, listed(SHA256))
    judged = approval.judge(Fab(SHA256, b"other code", {}), 5, "")
    assert judged.content == b"" and not accepted(approval, judged)


def test_a_reviewer_that_the_policy_lists_is_believed(tmp_path: Path) -> None:
    policy = TEMPLATE.replace("signers = []", f'signers = ["{REVIEWER.public.fingerprint}"]')
    approval = judging(tmp_path, policy)
    run = SimpleNamespace(override_config={node.APPROVALS: approve(SHA256, REVIEWER)})
    guarded = approval.guard(connection(run))
    with guarded() as parts:
        assert accepted(approval, parts[node.GET_FAB](SHA256, 5))
        run.override_config[node.APPROVALS] = approve(SHA256, Identity.ephemeral())
        assert not accepted(approval, parts[node.GET_FAB](SHA256, 5))
        run.override_config.clear()
        assert not accepted(approval, parts[node.GET_FAB](SHA256, 5))
        assert parts[0] == "the node's number" and parts[node.GET_RUN](5) is run


def connection(run: object) -> Callable[[], Any]:
    """As Flower's: a context of eight parts."""

    @contextmanager
    def connect() -> Iterator[tuple[Any, ...]]:
        parts: list[Any] = ["the node's number", *range(1, 8)]
        parts[node.GET_RUN] = lambda run_id: run
        parts[node.GET_FAB] = lambda fab_hash, run_id: Fab(fab_hash, CODE, {})
        yield tuple(parts)

    return connect


def test_flower_still_asks_for_bundles_where_the_guard_stands() -> None:
    assert getattr(internal, node.CONNECT) is http_request_response
    said = inspect.getsource(http_request_response)
    parts = said[said.rindex("yield (") :].partition(")")[0].removeprefix("yield (").split(",")
    names = [one.strip() for one in parts]
    assert (names[node.GET_RUN], names[node.GET_FAB]) == ("get_run", "get_fab")
    assert node.CONNECT in inspect.getsource(internal)
    pulled = inspect.getsource(internal._pull_and_store_message)
    assert pulled.index("get_fab(") < pulled.index("if trusted_entities:")
    assert pulled.index("_verify_fab(") < pulled.index("store_fab(")


def test_flowers_node_only_sleeps_by_its_clock_which_is_short_while_work_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used = re.findall(r"\btime\.(\w+)(\([\d.]+\))?", inspect.getsource(internal)[1:])
    assert set(used) == {("sleep", "(3)"), ("sleep", "(0.5)")}
    now, slept = 1000.0, []
    monkeypatch.setattr(node.time, "monotonic", lambda: now)
    monkeypatch.setattr(node.time, "sleep", slept.append)
    clock = node.Clock()
    clock.sleep(3)  # nothing came yet
    clock.sleep(0.5)  # its ClientApp works
    clock.sleep(3)
    now += node.LATELY_SECONDS + 1
    clock.sleep(3)
    assert slept == [3, node.LOOK_SECONDS, node.LOOK_SECONDS, 3]


def test_flower_still_waits_as_its_functions_say_by_default() -> None:
    for pull, waits in (
        (inflatable_utils.pull_objects, node.WAITS),
        (inflatable_utils.pull_and_inflate_object_from_tree, WAITS),
    ):
        assert set(waits) <= set(inspect.signature(pull).parameters)
    for module in (internal, run_clientapp):  # nobody says otherwise
        assert "backoff" not in inspect.getsource(module)


def test_flower_takes_the_keys_from_files_in_memory(tmp_path: Path) -> None:
    approval = judging(tmp_path, TEMPLATE)
    path = node._in_memory("trusted-entities", approval.entities())
    command = importlib.import_module("flwr.supernode.cli.flower_supernode")
    entities = command._try_obtain_trusted_entities(Path(path))
    assert entities is not None
    command._validate_public_keys_ed25519(entities)


def test_the_nodes_settings_come_through_flowers_parser(tmp_path: Path) -> None:
    from flwr.common.config import parse_config_args

    config = {"name": "clinic", "data": "/srv/our data", "state": "/srv/state=1"}
    assert parse_config_args([node._flags(config)]) == config
    with pytest.raises(ValueError, match="quote"):
        node._flags({"data": 'a"b'})


def task(kind: TaskType) -> ExecutionSpec:
    return ExecutionSpec(
        task_type=kind,
        runtime_api_address="127.0.0.1:1",
        token="secret",
        insecure=True,
        root_certificates_path=None,
        runtime_dependency_install=False,
        parent_pid=os.getpid(),
        suppress_output=False,
        task_id=1,
        fab_hash=None,
    )


def test_the_executor_runs_clientapps_and_nothing_else() -> None:
    for kind in TaskType:
        if kind is not TaskType.CLIENT_APP:
            result = ForkingExecutor().launch(task(kind))
            assert result.status == LaunchResultStatus.FAILED


FORK = """
import os, runpy, sys
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import ExecutionSpec
found = runpy.run_path(sys.argv[1])
parent = os.getpid()
def said():
    print("forked", os.getppid() == parent, *sys.argv, flush=True)
    print("loaded", *{"client", "server", "protocol", "simulations"} & set(sys.modules), flush=True)
    raise SystemExit(3)
found["_become"].__globals__["flwr_clientapp"] = said
one = found["ForkingExecutor"]()
one.launch(ExecutionSpec(
    task_type=TaskType.CLIENT_APP, runtime_api_address="127.0.0.1:1", token="t", insecure=True,
    root_certificates_path=None, runtime_dependency_install=False, parent_pid=parent,
    suppress_output=False, task_id=1, fab_hash=None))
print("ended", os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1]), flush=True)
one.reconcile()
"""


def test_the_executor_forks_what_flower_would_have_started() -> None:
    """In a process without threads, as the executor is, and without this project's code."""
    rooms = {"client", "server", "protocol", "simulations"}
    assert not rooms & {name.partition(".")[0] for name in LIBRARIES}
    file = inspect.getfile(ForkingExecutor)
    command = [sys.executable, "-P", "-c", FORK, file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    parent = "forked True flwr-clientapp --runtime-api-address 127.0.0.1:1 --token t --insecure"
    lines = done.stdout.splitlines()
    assert lines[0].startswith(parent), done.stderr
    assert lines[1:] == ["loaded", "ended 3"]
    assert callable(run_superexec.get_executor)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    home = InstitutionFolder(tmp_path / "clinic")
    home.prepare()
    (home.root / "data").mkdir()
    InstitutionSettings(name="clinic", coordinator="127.0.0.1:1").save(home.settings)
    return Place.open(home.root)


def test_a_folder_without_an_institution_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no institution is installed") as caught:
        Place.open(tmp_path)
    assert "blindsight institution install" in caught.value.hint


def test_the_service_runs_where_there_is_an_index(place: Place) -> None:
    assert [one.name for one in programs(place)] == ["node", "executor"]
    (place.root / "index").mkdir()
    found = programs(place)
    assert [one.name for one in found] == ["node", "executor", "service"]
    secret = place.state / "superexec.secret"
    assert secret.stat().st_mode & 0o777 == 0o600 and len(secret.read_text()) == 96
    for program in found:
        assert not {"FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK"} - set(
            program.environment
        )
        assert secret.read_text() not in " ".join(program.command)
    assert not listens("127.0.0.1", 1)


def test_why_a_node_ended_is_said_in_words() -> None:
    assert "does not know this institution's key" in str(explain("...\n[code: 2004] x\n"))
    assert (
        explain("blindsight: policy.toml is damaged\n  what to do: x") == "policy.toml is damaged"
    )
    assert explain("INFO: well") is None
