"""What stands between a caller and the scorer: policy, limits, charges, handles, precision."""

import logging
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from client.institution.items import Item
from client.institution.packed import PackedIndex, write_packed
from client.institution.policy import TEMPLATE, Policy
from client.institution.question import Question
from client.institution.scorer import Scorer
from client.institution.search_policy import SearchPolicy
from client.institution.serving.books import Books
from client.institution.serving.deadlines import Deadlines
from client.institution.serving.json_log import JsonLines, facts
from client.institution.serving.ledger import Charge, Ledger
from client.institution.serving.refusals import Refusals
from client.institution.serving.release import MAX_MESSAGE_BYTES, Releasing
from client.institution.serving.tickets import LIFE_SECONDS, Tickets
from client.institution.serving.turnstile import Turnstile
from client.institution.serving.watched_policy import WatchedPolicy
from client.searcher.ckks import SealKey
from protocol.audit import AuditLog
from protocol.errors import (
    EpochMismatch,
    LimitReached,
    MalformedMessage,
    PolicyError,
    StorageError,
    UsageError,
)
from protocol.handles import Grant
from protocol.packing import Layout
from protocol.params import FAST, PRIVATE, Preset
from protocol.scheme import Seeded
from tests.client.unit_items import packed, unit_vectors

NOON = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)


# --- policy


def search(tmp_path: Path, lines: str) -> SearchPolicy:
    (tmp_path / "policy.toml").write_text("[search]\n" + lines)
    return Policy.read(tmp_path / "policy.toml").search


def test_nobody_may_search_until_somebody_is_named(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(TEMPLATE)
    for policy in (SearchPolicy(), Policy.read(tmp_path / "policy.toml").search):
        assert policy == SearchPolicy(), "the template says the defaults"
        assert not policy.release
        with pytest.raises(PolicyError, match="does not let anna search"):
            policy.check("anna", 1000, NOON)


@pytest.mark.parametrize(
    ("searchers", "let_in"),
    [('["anna"]', {"anna"}), ('["@lab"]', {"ben", "carl"}), ('["*"]', {"anna", "ben", "carl"})],
)
def test_who_is_named_may(tmp_path: Path, searchers: str, let_in: set[str]) -> None:
    lines = f'searchers = {searchers}\ngroups = {{ lab = ["ben", "carl"] }}'
    policy = search(tmp_path, lines)
    for name in ("anna", "ben", "carl"):
        if name in let_in:
            policy.check(name, 100, NOON)
        else:
            with pytest.raises(PolicyError):
                policy.check(name, 100, NOON)


def test_small_collections_and_closed_hours_are_refused(tmp_path: Path) -> None:
    policy = search(tmp_path, 'searchers = ["*"]\nhours = "22:00-06:00"\nmin-items = 50')
    midnight = NOON.replace(hour=0)
    policy.check("anna", 50, midnight)
    with pytest.raises(PolicyError, match="at least 50 items"):
        policy.check("anna", 49, midnight)
    with pytest.raises(PolicyError, match="from 22:00 to 06:00 UTC"):
        policy.check("anna", 50, NOON)
    for hour, minute in ((22, 0), (5, 59)):
        policy.check("anna", 50, NOON.replace(hour=hour, minute=minute))
    with pytest.raises(PolicyError):
        policy.check("anna", 50, NOON.replace(hour=6))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('searcher = ["anna"]', "line 2: search.searcher is not known: did you mean searchers"),
        ('searchers = "anna"', "line 2: search.searchers"),
        ('searchers = ["@lab"]', "names the group @lab"),
        ('groups = { lab = ["*"] }', "line 2: search.groups: group 'lab'"),
        ('[search.groups]\nlab = ["Ä"]', "line 2: search.groups: expected names"),
        ('hours = "8-18"', "line 2: search.hours: expected hours"),
        ('hours = "08:00-24:30"', "expected hours"),
        ("score-bits = 3", "line 2: search.score-bits"),
        ('release = ["picture"]', "search.release"),
        ("queries-a-day = true", "search.queries-a-day"),
    ],
)
def test_a_typo_is_named_with_its_line(tmp_path: Path, lines: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        search(tmp_path, lines)
    assert said in caught.value.message


def test_a_typo_while_running_keeps_the_last_good_policy(tmp_path: Path) -> None:
    path, told = tmp_path / "policy.toml", []
    path.write_text('[search]\nsearchers = ["anna"]')
    policy = WatchedPolicy(path, told.append)
    path.write_text('[search]\nsearcher = ["ben"]')
    for _ in range(2):
        assert policy.current().searchers == ("anna",)
    path.unlink()
    assert policy.current().searchers == ("anna",)
    path.write_text('[search]\nsearchers = ["ben"]')
    assert policy.current().searchers == ("ben",)
    assert ["did you mean searchers" in told[0], "cannot be read" in told[1], told[2]] == [
        True,
        True,
        "",
    ]


# --- charges


def test_a_thousand_at_once_with_room_for_a_hundred(tmp_path: Path) -> None:
    """Across a restart in the middle, every charge is on disk and in the log, none twice."""
    charge, allowed = Charge("anna", "question", 1, 100), []
    for _ in range(2):
        books = Books(Ledger(tmp_path / "ledger.sqlite"), AuditLog(tmp_path / "audit.log"))
        with ThreadPoolExecutor(64) as pool:
            asked = [pool.submit(books.charge, charge, "score", number=i) for i in range(500)]
            allowed += [one.result() is not None for one in asked]
        books.close()
    assert allowed.count(True) == 100
    entries = list(AuditLog(tmp_path / "audit.log").read())
    assert [one.facts["allowed"] for one in entries].count(True) == 100
    assert len(entries) == 100, "who has no room left is noted by who refuses"
    assert Ledger(tmp_path / "ledger.sqlite").used("anna", "question") == 100


CHARGER = """
import sys
from pathlib import Path
from client.institution.serving.ledger import Charge, Ledger
ledger = Ledger(Path(sys.argv[1]))
while True:
    if ledger.charge([Charge("anna", "question", 1, 10**9)], 20000)[0] is not None:
        sys.stdout.write("x")
        sys.stdout.flush()
"""


def test_no_acknowledged_charge_is_lost_to_kill_9(tmp_path: Path) -> None:
    path, acknowledged = tmp_path / "ledger.sqlite", 0
    choose = random.Random(0)
    for _ in range(int(os.environ.get("BLINDSIGHT_KILLS", "3"))):
        said = choose.randrange(1, 30)
        process = subprocess.Popen(
            [sys.executable, "-c", CHARGER, str(path)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.read(said)
        time.sleep(choose.uniform(0, 0.01))  # anywhere in a charge, not where one was said
        process.kill()
        acknowledged += said + len(process.communicate()[0])
        used = Ledger(path).used("anna", "question")
        assert acknowledged <= used <= acknowledged + 1, "one may be on disk and not yet said"
        acknowledged = used


def test_a_clock_that_goes_back_gives_nothing_again(tmp_path: Path) -> None:
    ledger, one = Ledger(tmp_path / "ledger.sqlite"), Charge("anna", "question", 60, 100)
    assert ledger.charge([one, one], 100) == [40, None]
    assert ledger.charge([one], 99) == [None]
    assert ledger.charge([Charge("ben", "question", 60, 100)] * 2, 99) == [40, None]
    assert ledger.charge([one, one], 101) == [40, None]
    assert ledger.charge([Charge("ben", "question", 60, 100)] * 2, 100) == [40, None]
    other = [Charge("anna", "item", 60, 100)]
    assert ledger.charge(other, 101) == [40], "a budget of its own"


def test_a_ledger_that_cannot_be_written_answers_nobody(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"this is no database at all" * 100)
    with pytest.raises(StorageError, match=r"ledger\.sqlite cannot be used"):
        Ledger(tmp_path / "ledger.sqlite")
    ledger = Ledger(tmp_path / "good.sqlite")
    books = Books(ledger, AuditLog(tmp_path / "nowhere" / "audit.log"))
    with pytest.raises(StorageError, match="nowhere"):
        books.charge(Charge("anna", "question", 1, 5), "score")
    other = sqlite3.connect(tmp_path / "good.sqlite")
    other.execute("DROP TABLE used")
    with pytest.raises(StorageError):
        books.charge(Charge("anna", "question", 1, 5), "score")
    books.close()
    with pytest.raises(StorageError, match="stopping"):
        books.charge(Charge("anna", "question", 1, 5), "score")
    other.close()


def test_refusals_are_noted_at_once_and_then_counted() -> None:
    now, lines = [0.0], list[tuple[str, dict[str, object]]]()
    refusals = Refusals(lambda event, **facts: lines.append((event, facts)), lambda: now[0])
    for number in range(100):
        refusals.seen(searcher="eve", code="policy")
        now[0] = number
    refusals.seen(searcher="ben", code="policy")
    eve = {"searcher": "eve", "code": "policy"}
    assert lines == [
        ("refused", eve),
        ("refused-again", eve | {"count": 60}),
        ("refused", eve),
        ("refused", eve | {"searcher": "ben"}),
    ]
    now[0] += 1000
    refusals.write_due()
    refusals.write_due()
    assert lines[4:] == [("refused-again", eve | {"count": 38})], "of one there is nothing to count"
    refusals.seen(searcher="eve", code="policy")
    refusals.seen(searcher="eve", code="policy")
    refusals.close()
    assert lines[5:] == [("refused", eve), ("refused-again", eve | {"count": 1})]


def test_a_call_that_lasts_too_long_is_cancelled_and_no_other() -> None:
    deadlines, cancelled = Deadlines(0.3), list[str]()
    with deadlines.limit(lambda: cancelled.append("slow")):
        for _ in range(20):
            with deadlines.limit(lambda: cancelled.append("quick")):
                time.sleep(0.04)
        with deadlines.limit(lambda: cancelled.append("late")):
            time.sleep(0.7)
    assert cancelled == ["slow", "late"]
    with deadlines.limit(lambda: cancelled.append("after")):
        pass
    deadlines.close()
    assert cancelled == ["slow", "late"]


# --- limits


def test_more_than_its_share_is_refused_with_when_to_retry() -> None:
    gate = Turnstile(2, 3)
    with gate.enter("anna"), gate.enter("anna"):
        with pytest.raises(LimitReached, match="2 calls of this searcher") as caught:
            gate.enter("anna").__enter__()
        assert caught.value.retry_after_ms is not None
        assert 100 <= caught.value.retry_after_ms < 10_000
        with gate.enter("ben"), pytest.raises(LimitReached, match="too much"):
            gate.enter("carl").__enter__()
        assert gate.inside == 2
    assert gate.inside == 0
    with gate.enter("anna"), gate.enter("anna"):
        pass


def test_a_modest_searcher_does_not_wait_for_a_greedy_one(tmp_path: Path) -> None:
    """Forty questions of one wait; one of another is answered with the next pass."""
    layout = Layout(FAST, 16, 16, 256)
    write_packed(tmp_path / "packed.bin", layout, unit_vectors(256, 16))
    key = SealKey(FAST)
    chunks = key.encrypt_query(layout.question_polynomials(unit_vectors(1, 16)[0]))
    asked = (key.public_keys(layout.public_keys), chunks)
    scorer = Scorer(PackedIndex(tmp_path / "packed.bin"), 1, 4)
    order: list[str] = []

    def ask(searcher: str) -> None:
        list(scorer.score(*asked, searcher=searcher))
        order.append(searcher)

    held, let_go = threading.Event(), threading.Event()

    def hold() -> bool:
        held.set()
        return let_go.wait(20)

    first = threading.Thread(target=lambda: list(scorer.score(*asked, hold, "greedy")))
    first.start()
    held.wait(20)
    threads = [threading.Thread(target=ask, args=("greedy",)) for _ in range(40)]
    for one in threads:
        one.start()
    while len(scorer._waiting.get("greedy", ())) < 40:
        time.sleep(0.01)
    modest = threading.Thread(target=ask, args=("modest",))
    modest.start()
    while "modest" not in scorer._waiting:
        time.sleep(0.01)
    let_go.set()
    for one in (first, modest, *threads):
        one.join(30)
    scorer.close()
    assert len(order) == 41
    assert order.index("modest") < 8, "in the first pass of four, whoever is told first"


# --- handles


@given(st.lists(st.integers(0, 99), unique=True, max_size=20), st.binary(min_size=16, max_size=16))
def test_handles_are_of_one_secret(positions: list[int], secret: bytes) -> None:
    grant = Grant(b"", secret)
    handles = grant.handles(positions)
    assert grant.positions(handles, 100) == positions
    assert len(set(handles)) == len(handles)
    other = Grant(b"", bytes([secret[0] ^ 1]) + secret[1:])
    for handle in handles:
        with pytest.raises(MalformedMessage):
            other.positions([handle], 100)


@given(st.binary(max_size=20))
def test_no_bytes_are_a_handle_by_chance(handle: bytes) -> None:
    with pytest.raises(MalformedMessage):
        Grant(b"", b"sixteen letters!").positions([handle], 1 << 40)


def test_a_ticket_is_of_one_searcher_epoch_and_time() -> None:
    now = [50.0]
    tickets = Tickets(lambda: now[0])
    grant = tickets.issue(b"anna", 3)
    handles = grant.handles([7])
    assert tickets.check(b"anna", grant.ticket, 3).positions(handles, 10) == [7]
    for other in (tickets.check(b"ben", grant.ticket, 3), tickets.issue(b"anna", 3)):
        with pytest.raises(MalformedMessage, match="not one of this searcher's"):
            other.positions(handles, 10)
    with pytest.raises(MalformedMessage):
        Tickets(lambda: now[0]).check(b"anna", grant.ticket, 3).positions(handles, 10)
    with pytest.raises(EpochMismatch):
        tickets.check(b"anna", grant.ticket, 4)
    now[0] += LIFE_SECONDS
    with pytest.raises(MalformedMessage, match="ended"):
        tickets.check(b"anna", grant.ticket, 3)


# --- release


def released(root: Path, name: str, *forms: str) -> object:
    [message] = Releasing(root).messages([(4, Item(name, "a caption"))], frozenset(forms))  # type: ignore[arg-type]
    assert message.items[0].position == 4
    return message.items[0]


def test_only_the_forms_that_the_policy_names_leave(tmp_path: Path) -> None:
    Image.new("RGB", (400, 300), "red").save(tmp_path / "a.png")
    nothing = released(tmp_path, "a.png")
    assert (nothing.thumbnail, nothing.caption, nothing.id, nothing.original) == (b"", "", "", b"")
    assert released(tmp_path, "a.png", "caption").caption == "a caption"
    assert released(tmp_path, "a.png", "id").id == "a.png"
    original = (tmp_path / "a.png").read_bytes()
    assert released(tmp_path, "a.png", "original").original == original
    assert released(tmp_path, "a.png", "original").thumbnail == b""


def test_tricks_with_names_lead_nowhere(tmp_path: Path) -> None:
    outside, root = tmp_path / "secret.png", tmp_path / "data"
    root.mkdir()
    Image.new("RGB", (40, 30), "red").save(outside)
    (root / "link.png").symlink_to(outside)
    (root / "folder").symlink_to(tmp_path)
    for name in ("../secret.png", str(outside), "link.png", "folder/secret.png", "a\0b", "", "."):
        found = released(root, name, "thumbnail", "original")
        assert (found.thumbnail, found.original) == (b"", b""), name


def test_a_thumbnail_has_no_word_of_the_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0)})
    exif[0x010E] = "Jane Doe"
    Image.new("RGB", (50, 40), "blue").save(
        tmp_path / "a.jpg", exif=exif, comment=b"Jane Doe", icc_profile=b"Jane Doe" * 20
    )
    assert (tmp_path / "a.jpg").read_bytes().count(b"Jane") >= 3
    thumbnail = released(tmp_path, "a.jpg", "thumbnail").thumbnail
    assert thumbnail
    assert b"Jane" not in thumbnail and b"Exif" not in thumbnail


def test_a_dicom_files_tags_stay(tmp_path: Path) -> None:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    scan = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    scan.SOPClassUID, scan.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    scan.PatientName, scan.PatientBirthDate = "Doe^Jane", "19700101"
    scan.Rows, scan.Columns, scan.SamplesPerPixel = 32, 48, 1
    scan.PhotometricInterpretation = "MONOCHROME2"
    scan.BitsAllocated, scan.BitsStored, scan.HighBit, scan.PixelRepresentation = 8, 8, 7, 0
    scan.PixelData = np.arange(32 * 48, dtype=np.uint8).tobytes()
    scan.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert b"Doe^Jane" in (tmp_path / "a.dcm").read_bytes()
    thumbnail = released(tmp_path, "a.dcm", "thumbnail").thumbnail
    assert thumbnail[:2] == b"\xff\xd8"
    assert b"Doe" not in thumbnail and b"1970" not in thumbnail


def test_many_originals_come_in_several_messages(tmp_path: Path) -> None:
    (tmp_path / "big.png").write_bytes(bytes(3 << 20))
    (tmp_path / "huge.png").write_bytes(bytes(MAX_MESSAGE_BYTES))
    names = ["big.png", "huge.png", "big.png", "big.png"]
    items = [(i, Item(name, "")) for i, name in enumerate(names)]
    messages = list(Releasing(tmp_path).messages(items, frozenset({"original"})))
    assert [one.position for message in messages for one in message.items] == [0, 1, 2, 3]
    assert len(messages) == 3
    assert all(one.ByteSize() <= MAX_MESSAGE_BYTES for one in messages)
    assert not messages[0].items[1].original, "too large to leave"


# --- how exact a score is


@pytest.mark.parametrize("preset", [PRIVATE, FAST], ids=lambda preset: str(preset.name))
@pytest.mark.parametrize("bits", [6, 12, 15])
def test_a_score_errs_as_its_precision_says(preset: Preset, bits: int) -> None:
    """Section 6.4: uniform over ±2^-bits, so a deviation of 2^-bits / sqrt(3)."""
    layout = Layout(preset, 64, 4, 4096)
    items = unit_vectors(4096, 64)
    key, blocks = SealKey(preset), packed(layout, items)
    public_keys: list[Seeded] = key.public_keys(layout.public_keys)
    chunks = key.encrypt_query(layout.question_polynomials(items[3]))
    exact = items.astype(np.float64) @ items[3].astype(np.float64)

    def errors(score_bits: int | None) -> np.ndarray:
        question = Question(layout, public_keys, chunks, score_bits)
        reply = question.answer(blocks, 0)
        return key.decrypt_scores(layout, reply).reshape(-1) - exact

    found, width, own = errors(bits), 2.0**-bits, errors(None)
    assert own.std() < 2e-5
    assert found.std() == pytest.approx(np.hypot(width / np.sqrt(3), own.std()), rel=0.05)
    assert abs(found.mean()) < 6 * found.std() / 64
    assert 0.98 * width < np.abs(found).max() < 1.02 * width + 1e-4
    assert errors(20).std() < 2e-5


# --- logs


def test_a_log_line_is_one_object() -> None:
    record = logging.LogRecord("client", 20, "", 0, "call of %s", ("anna\n",), None)
    record.__dict__.update(facts(verb="score", ms=3))
    line = JsonLines().format(record)
    assert "\n" not in line
    assert '"verb": "score", "ms": 3' in line
