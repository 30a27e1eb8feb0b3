"""A federation of real processes, over TLS, where there is no network but loopback."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.trial import CONTROL, RUNTIME

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
ALONE = ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


def can_be_alone() -> bool:
    try:
        done = subprocess.run([*ALONE, "true"], capture_output=True, timeout=10, check=False)
    except OSError:
        return False
    return done.returncode == 0


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin") is None:
        pytest.skip("nginx is not installed: apt install nginx-light")
    folder = tmp_path_factory.mktemp("trial") / "poc"
    command = [sys.executable, "-m", "tests.e2e.trial", str(folder)]
    done = subprocess.run(
        [*(ALONE if can_be_alone() else ()), *command],
        cwd=ROOT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_round_is_trained_securely_and_its_release_signed(trial: dict[str, Any]) -> None:
    assert trial["trained"]["rounds"] == 2
    assert trial["files"] == ["manifest.json", "model.safetensors", "signature.json"]
    status = trial["status"]
    assert [one["online"] for one in status["institutions"]] == [True] * 3
    processes = {one["name"] for one in status["processes"]}
    assert processes == {"superlink", "executor", "nginx", "directory"}
    run = status["run"]
    assert run["secure_aggregation"] is True and run["counted"] == run["rounds"] == 2
    assert run["release"] == trial["trained"]["release_id"] and run["state"] == "completed"
    assert "3 of 3 institutions" in run["last"]
    assert {"executor", "nginx", "superlink"} <= set(trial["logs"])


def test_a_run_is_stopped_and_goes_on_after_its_last_round(trial: dict[str, Any]) -> None:
    assert len(trial["stop"]["stopped"]) == 1 and trial["before"] == 1
    ended = trial["while_stopped"]
    assert ended["message"] == "the run was stopped" and "--resume" in ended["hint"]
    assert trial["trained"]["run"] == trial["status"]["run"]["number"] == 1


def test_a_policy_refuses_an_update_by_itself_and_both_sides_read_why(
    trial: dict[str, Any],
) -> None:
    asked = "this institution's policy allows true, the run asks for False"
    why = f"policy: secure-aggregation: {asked}"
    said = trial["alone"]["said"]
    assert said["error_code"] == "training" and why in said["message"]
    assert trial["alone"]["audited"] == [why]


def test_nodes_that_have_no_business_there_are_refused(trial: dict[str, Any]) -> None:
    found = trial["strangers"]
    assert "certificate is refused" in found["of_proxy"]
    for name in ("foreign", "expired"):
        assert found[name]["code"] != 0 and "refused it" in found[name]["why"]
    assert "refused it" in trial["revoked"]


def test_from_outside_there_is_nothing_but_the_fleet(trial: dict[str, Any]) -> None:
    paths = trial["paths"]
    closed = {path for path, status in paths.items() if status == 404}
    assert closed >= {f"/v1/control/{name}" for name in CONTROL}
    assert closed >= {f"/v1/runtime/{name}" for name in RUNTIME}
    assert closed >= {"/openapi.json", "/docs", "/v1/fleet/register-node"}
    assert paths["/v1/fleet/pull-messages"] == 401


def test_nothing_is_left_behind(trial: dict[str, Any]) -> None:
    assert trial["down"] == {"stopped": 4, "deleted": True}
    assert trial["left"] == [] and trial["there"] is False


def test_nobody_calls_home(trial: dict[str, Any]) -> None:
    if trial["links"] != ["lo"]:
        pytest.skip("a network namespace of one's own is not allowed here: unshare -rn")
    assert trial["sent_nowhere"] == 0
