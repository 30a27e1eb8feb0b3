"""The page in a real browser, against real institutions' services over TLS."""

import http.client
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
from axe_playwright_python.sync_playwright import Axe
from numpy.typing import NDArray
from PIL import Image, ImageColor
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from client.institution.index_writer import build_index
from client.institution.pairs import Pair, write_pairs
from client.institution.service import Service
from client.searcher.remote import RemoteInstitution
from client.searcher.searcher import Searcher
from client.searcher.ui import pictures
from client.searcher.ui.seen import seen_by_coordinator
from client.searcher.ui.server import PageServer
from client.searcher.ui.session import COUNTS
from protocol.model.pictures import IMAGE_BYTES
from simulations.process import ServiceProcess
from tests.client.test_guarded_service import Clinic

RELEASE = "0123456789abcdef"
NAMES = ("clinic", "museum", "harbour")
ITEMS = 40
POLICY = """
[search]
searchers = ["anna"]
queries-a-day = {}
release = ["thumbnail", "caption", "id"]
min-items = 10
"""
HOSTILE = "<img src=x onerror=alert(1)>"


def colour(name: str, item: int) -> tuple[int, ...]:
    """Of the whole picture: no two are alike."""
    hue = 360 * (item * len(NAMES) + NAMES.index(name)) / (ITEMS * len(NAMES))
    return ImageColor.getrgb(f"hsl({hue:.0f}, 90%, 55%)")


def picture(name: str, item: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (48, 36), colour(name, item)).save(data, "PNG")
    return data.getvalue()


def rows(name: str) -> NDArray[np.float32]:
    draw = np.random.default_rng(NAMES.index(name))
    found = draw.standard_normal((ITEMS, 16)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


class Encoder:
    """Knows "museum 7" and the colour of its picture as that item: what a perfect model does."""

    release_id = RELEASE
    fit = (16, None, "bicubic")

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.stack([self._text(one) for one in texts])

    def pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        items = [(name, item) for name in NAMES for item in range(ITEMS)]
        known = np.array([colour(*one) for one in items])
        near = np.abs(known[None] - pixels.mean((2, 3))[:, None]).sum(2).argmin(1)
        return np.stack([rows(items[i][0])[items[i][1]] for i in near])

    def _text(self, text: str) -> NDArray[np.float32]:
        name, _, item = text.partition(" ")
        if name in NAMES and item.isdecimal():
            return rows(name)[int(item)]
        found = np.random.default_rng(zlib.crc32(text.encode())).standard_normal(16)
        return (found / np.linalg.norm(found)).astype(np.float32)


@dataclass
class Lab:
    """Three institutions, of which the clinic has a policy; and the page of a searcher, anna."""

    clinic: Clinic
    services: dict[str, Service] = field(default_factory=dict)
    address: str = ""
    context: BrowserContext | None = None

    def folder(self, name: str) -> Path:
        return self.clinic.home.parent / name

    def make(self, name: str) -> dict[str, Path]:
        """Data and index of one institution, and its certificate."""
        data, index = self.folder(name) / "data", self.folder(name) / "index"
        data.mkdir(parents=True)
        pairs = [Pair(f"{i}.png", (f"{name} {i}",)) for i in range(ITEMS)]
        if name == "museum":
            pairs[0] = Pair("0.png", (HOSTILE,))
        for i in range(ITEMS):
            (data / f"{i}.png").write_bytes(picture(name, i))
        write_pairs(data, pairs, None)
        build_index(index, RELEASE, rows(name), pairs)
        return {"data": data, "index": index, "credentials": self.clinic.enrol(name, "institution")}

    def connect(self, name: str, address: str, timeout: float = 20) -> RemoteInstitution:
        return RemoteInstitution(name, address, self.clinic.credentials("anna"), timeout)

    def remotes(self, *names: str) -> list[RemoteInstitution]:
        return [self.connect(name, self.services[name].address) for name in names]

    def questions(self) -> float:
        found = self.services["clinic"].metrics.registry
        return found.get_sample_value("blindsight_questions_total") or 0.0


def chromium() -> str:
    """A browser on this machine."""
    named = os.environ.get("BLINDSIGHT_CHROMIUM")
    for one in (named, "chromium", "chromium-browser", "google-chrome"):
        if one and (found := shutil.which(one)):
            return found
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    if not Path(own).exists():
        pytest.skip("no Chromium was found: install chromium, or set BLINDSIGHT_CHROMIUM to it")
    return own


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    expect.set_options(timeout=15_000)
    with sync_playwright() as playwright:
        # As root, as in many containers, Chromium has no sandbox of its own.
        alone = ["--no-sandbox"] if os.geteuid() == 0 else []
        opened = playwright.chromium.launch(executable_path=path, args=alone)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[Lab]:
    made = Lab(Clinic(tmp_path_factory.mktemp("ui") / "clinic"))
    made.clinic.home.mkdir()
    made.clinic.enrol("anna", "searcher")
    held = {name: made.make(name) for name in NAMES}
    held["clinic"]["credentials"].rename(made.clinic.home / "identity")
    made.clinic.write_roster()
    made.clinic.policy(POLICY.format(1000))
    with ExitStack() as stack:
        for name, folders in held.items():
            settings = made.clinic.settings()
            if name != "clinic":
                released = frozenset({"thumbnail", "caption"})
                update = {"home": None, "name": name, "release": released}
                settings = settings.model_copy(update=folders | update)
            made.services[name] = stack.enter_context(Service(settings))
        made.context = stack.enter_context(browser.new_context())
        made.context.set_default_timeout(15_000)
        remotes = made.remotes(*NAMES)
        server = stack.enter_context(PageServer(Searcher(Encoder(), remotes)))
        made.address = server.address
        made.context.new_page().goto(server.address)
        yield made


@pytest.fixture
def page(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Page]:
    assert lab.context is not None
    opened = lab.context.new_page()
    opened.set_viewport_size({"width": 1280, "height": 860})
    opened.emulate_media(reduced_motion="reduce")
    opened.goto(lab.address.partition("?")[0])
    expect(opened.locator("#grid")).not_to_have_attribute("aria-busy", "true")
    yield opened
    keep(opened, request.node.name)
    opened.close()


@contextmanager
def another(lab: Lab, browser: Browser, *remotes: RemoteInstitution) -> Iterator[Page]:
    """The page of another searcher, who asks these."""
    with PageServer(Searcher(Encoder(), remotes)) as server, browser.new_context() as context:
        opened = context.new_page()
        opened.goto(server.address)
        yield opened


def keep(page: Page, name: str) -> None:
    if folder := os.environ.get("BLINDSIGHT_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def search(page: Page, text: str) -> None:
    page.locator("#text").fill(text)
    page.locator("#text").press("Enter")
    done(page, text)


def done(page: Page, text: str) -> None:
    """Wait until everybody answered; ``text`` is in the words for the step."""
    expect(page.locator("#trail p")).to_contain_text(text)
    expect(page.locator("#trail p")).not_to_contain_text("searching")
    expect(page.locator("#grid")).to_have_attribute("aria-busy", "false")


def captions(page: Page) -> list[str]:
    return page.locator(".card .caption").all_inner_texts()


def party(page: Page, name: str) -> str:
    """What the privacy panel says of one party."""
    return page.locator("#seen section", has=page.get_by_role("heading", name=name)).inner_text()


def test_a_sentence_finds_pictures_and_each_partys_account_stands_beside_them(
    lab: Lab, page: Page
) -> None:
    hosts: set[str] = set()
    page.on("request", lambda asked: hosts.add(asked.url.split("?")[0].split("/static")[0]))
    search(page, "museum 7")
    assert len(captions(page)) == COUNTS[0]
    assert captions(page)[0] == "museum 7"
    shown = "all => all.filter(one => one.naturalWidth).length"
    page.wait_for_function(f"({shown})([...document.querySelectorAll('.card img')]) == {COUNTS[0]}")
    expect(page.get_by_role("status")).to_have_text("12 pictures from 3 of 3 institutions.")
    for name in NAMES:
        said = party(page, name)
        assert "1 made, 1 destroyed" in said
        assert "24, of which" in said and "could read neither the question nor a score" in said
        assert ("questions" in said) == (name == "clinic"), "only its policy counts"
    assert "It saw nothing" in party(page, "coordinator")
    page.locator("#k").select_option("24")
    search(page, "museum 8")
    assert len(captions(page)) == 24
    assert all(one.startswith(lab.address.partition("/?")[0]) for one in hosts), hosts


def test_a_facet_shows_some_and_sends_nothing(page: Page) -> None:
    search(page, "clinic 3")
    asked: list[str] = []
    page.on("request", lambda one: asked.append(one.url))
    chosen = page.locator("#facets button", has_text="museum")
    count = int(chosen.locator("b").inner_text())
    assert 0 < count < COUNTS[0]
    chosen.click()
    assert set(page.locator(".card .name").all_inner_texts()) == {"museum"}
    assert len(captions(page)) == count
    page.locator("#facets button", has_text="all").click()
    assert len(captions(page)) == COUNTS[0]
    assert not [url for url in asked if "/picture/" not in url]


def test_what_the_pictures_shall_not_show_counts(page: Page) -> None:
    page.locator("#not").fill("museum 7, museum 8")
    search(page, "museum 7")
    assert page.locator("#chips li").count() == 2
    expect(page.locator("#trail")).to_contain_text("museum 7, not museum 7, not museum 8")
    page.get_by_role("button", name="Remove: not museum 7").click()
    page.get_by_role("button", name="Remove: not museum 8").click()
    search(page, "harbour 2")
    assert captions(page)[0] == "harbour 2"


def test_a_hostile_caption_is_text(page: Page) -> None:
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    search(page, "museum 0")
    assert captions(page)[0] == HOSTILE
    page.locator(".card .open").first.click()
    expect(page.locator("#detail h2")).to_have_text(HOSTILE)
    assert page.locator("[onerror]").count() == 0


def test_a_picture_is_chosen_dropped_or_pasted(page: Page) -> None:
    data = picture("harbour", 5)
    page.locator("#file").set_input_files(
        [{"name": "a.png", "mimeType": "image/png", "buffer": data}]
    )
    done(page, "like a picture")
    assert captions(page)[0] == "harbour 5"
    expect(page.get_by_role("img", name="Your picture")).to_be_visible()
    page.get_by_role("button", name="Remove your picture").click()
    for kind, item in (("drop", 9), ("paste", 11)):
        page.evaluate(
            """([kind, bytes]) => {
              const carried = new DataTransfer();
              carried.items.add(new File([new Uint8Array(bytes)], "b.png", {type: "image/png"}));
              const also = kind === "drop" ? {dataTransfer: carried} : {clipboardData: carried};
              const name = kind === "drop" ? DragEvent : ClipboardEvent;
              document.body.dispatchEvent(new name(kind, {bubbles: true, ...also}));
            }""",
            [kind, list(picture("museum", item))],
        )
        expect(page.locator(".card .caption").first).to_have_text(f"museum {item}")


def test_a_picture_that_is_none_is_refused_in_words(page: Page) -> None:
    search(page, "clinic 1")
    page.locator("#file").set_input_files(
        [{"name": "a.png", "mimeType": "image/png", "buffer": b"<svg>no</svg>"}]
    )
    expect(page.get_by_role("alert")).to_contain_text("cannot be read as an image")
    assert captions(page)[0] == "clinic 1", "what was found stays"
    search(page, "clinic 2")
    expect(page.get_by_role("alert")).to_be_empty()


def test_marks_lead_on_and_undo_asks_nobody(lab: Lab, page: Page) -> None:
    search(page, "clinic 3")
    before, asked = captions(page), lab.questions()
    page.locator(".card .good").nth(4).click()
    page.locator(".card .bad").nth(0).click()
    page.get_by_role("button", name="Search on").click()
    done(page, "1 good, 1 bad")
    after = captions(page)
    assert after.index(before[4]) < 4
    expect(page.locator("#marks")).to_be_hidden()
    page.locator(".card .like").nth(2).click()
    done(page, "like ")
    assert captions(page)[0] == after[2]
    assert lab.questions() == asked + 2
    page.get_by_role("button", name="Undo").click()
    done(page, "1 good, 1 bad")
    assert captions(page) == after
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#trail")).not_to_contain_text("good")
    assert captions(page) == before
    page.reload()
    expect(page.locator(".card .caption")).to_have_text(before)
    assert lab.questions() == asked + 2


def test_an_institution_that_goes_down_meanwhile_costs_a_note(lab: Lab, browser: Browser) -> None:
    flags = {one: lab.folder("harbour") / one for one in ("data", "index")}
    credentials = lab.clinic.home.parent / f"harbour-{id(lab.clinic.authority)}"
    process = ServiceProcess(
        "harbour", lab.folder("harbour") / "log", credentials=credentials,
        release="thumbnail", **flags,
    )  # fmt: skip
    with process:
        remote = lab.connect("harbour", process.address(60))
        with another(lab, browser, *lab.remotes("museum"), remote) as page:
            search(page, "harbour 1")
            assert page.locator(".card .name").first.inner_text() == "harbour"
            os.kill(process.pid, signal.SIGSTOP)
            page.locator("#text").fill("museum 4")
            page.locator("#text").press("Enter")
            expect(page.locator(".card .caption").first).to_have_text("museum 4")
            expect(page.locator("#facets button", has_text="harbour")).to_contain_text("asking")
            expect(page.locator("#grid")).to_have_attribute("aria-busy", "true")
            os.kill(process.pid, signal.SIGKILL)
            done(page, "museum 4")
            expect(page.locator("#notes")).to_contain_text("harbour")
            expect(page.locator("#facets button", has_text="harbour")).to_contain_text("note")
            assert set(page.locator(".card .name").all_inner_texts()) == {"museum"}
            expect(page.get_by_role("status")).to_contain_text("from 1 of 2 institutions")
            keep(page, "institution-down")


def test_when_nobody_answers_it_is_said_and_earlier_results_are_a_step_away(
    lab: Lab, browser: Browser
) -> None:
    with another(lab, browser, lab.connect("museum", "127.0.0.1:1", 5)) as page:
        page.locator("#text").fill("museum 4")
        page.locator("#text").press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("none of 1 institutions answered")
        expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
        expect(page.locator("#facets button", has_text="museum")).to_contain_text("no answer")
        expect(page.locator("#grid")).to_have_attribute("aria-busy", "false")
        expect(page.locator("#empty")).to_be_visible()
        page.locator("#text").fill("  ")
        page.locator("#text").press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("Say what the pictures shall show")
    lab.clinic.policy(POLICY.format(int(lab.questions()) + 1))
    try:
        with another(lab, browser, *lab.remotes("clinic")) as page:
            search(page, "clinic 1")
            search(page, "clinic 2")
            expect(page.get_by_role("alert")).to_contain_text("none of 1 institutions answered")
            page.get_by_role("button", name="Undo").click()
            expect(page.locator(".card .caption").first).to_have_text("clinic 1")
            expect(page.get_by_role("alert")).to_be_empty()
    finally:
        lab.clinic.policy(POLICY.format(1000))


def test_a_budget_that_is_spent_is_a_note(lab: Lab, page: Page) -> None:
    lab.clinic.policy(POLICY.format(1))
    try:
        search(page, "clinic 1")
        search(page, "museum 2")
        expect(page.locator("#notes")).to_contain_text("clinic")
        expect(page.locator("#notes")).to_contain_text("questions")
        assert captions(page)[0] == "museum 2"
        assert "clinic" not in page.locator(".card .name").all_inner_texts()
    finally:
        lab.clinic.policy(POLICY.format(1000))
    search(page, "clinic 1")
    assert captions(page)[0] == "clinic 1"


def test_all_is_done_by_keyboard_alone(page: Page) -> None:
    def focused(selector: str) -> bool:
        return bool(page.evaluate("of => document.activeElement.matches(of)", selector))

    press = page.keyboard.press
    press("Tab")
    press("/")
    assert focused("#text")
    page.keyboard.type("museum 7")
    press("Enter")
    done(page, "museum 7")
    for _ in range(15):
        press("Tab")
        if focused(".card .open"):
            break
    assert focused(".card:nth-child(1) .open")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert outline == "3px", "the focus can be seen"
    press("g")
    press("ArrowRight")
    press("ArrowDown")
    press("b")
    wide = page.locator(".card").evaluate_all(
        "all => all.filter(one => one.offsetTop === all[0].offsetTop).length"
    )
    assert focused(f".card:nth-child({wide + 2}) .open")
    press("Enter")
    detail = page.locator("#detail")
    expect(detail).to_be_visible()
    expect(detail.get_by_role("button", name="Bad")).to_have_attribute("aria-pressed", "true")
    press("Escape")
    expect(detail).to_be_hidden()
    assert focused(f".card:nth-child({wide + 2}) .open"), "the focus is back"
    press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    press("Escape")
    press("s")
    done(page, "1 good, 1 bad")
    assert focused(".card .open"), "the focus is not lost"
    press("u")
    expect(page.locator("#trail")).not_to_contain_text("good")
    press("m")
    done(page, "like ")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (400, "dark")])
def test_it_can_be_read_by_everybody(page: Page, width: int, scheme: str) -> None:
    """In both colour schemes and on a phone: nothing is cut off, and axe finds nothing."""

    def check(name: str) -> None:
        sizes = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert sizes[0] <= sizes[1], f"{name}: nothing scrolls sideways"
        found = Axe().run(page).response["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        shown = [(one["id"], one["nodes"][0]["html"], one["nodes"][0]["failureSummary"])
                 for one in serious]  # fmt: skip
        assert not shown, name
        keep(page, f"{name}-{width}-{scheme}")

    page.set_viewport_size({"width": width, "height": 860})
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
    page.reload()
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, back.removeprefix("rgb(").removesuffix(")").split(","))) > 384
    assert light == (scheme == "light")
    page.locator("#not").fill("a very long word that nobody would write, fog")
    search(page, "museum 7")
    page.locator(".card .good").nth(0).click()
    page.locator(".card .bad").nth(1).click()
    if width < 960:
        page.get_by_text("What each party saw").click()
    expect(page.get_by_text("Ciphertext").first).to_be_visible()
    check("results")
    page.locator(".card .open").nth(2).click()
    check("detail")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Keys").click()
    check("help")


def asked(
    lab: Lab, method: str, path: str, body: bytes | None = None, **changes: str | None
) -> tuple[int, dict[str, str], bytes]:
    """What the server answers to a request as the page would send it, but for ``changes``."""
    assert lab.context is not None
    host = lab.address.removeprefix("http://").partition("/")[0]
    (cookie,) = lab.context.cookies(f"http://{host}")
    headers: dict[str, str | None] = {
        "Host": host,
        "Cookie": f"{cookie['name']}={cookie['value']}",
        "Origin": f"http://{host}",
    }
    headers |= {name.replace("_", "-"): value for name, value in changes.items()}
    connection = http.client.HTTPConnection(host, timeout=10)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in headers.items():
        if value is not None:
            connection.putheader(name, value)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


def test_only_the_browser_that_opened_the_page_is_let_in(lab: Lab, browser: Browser) -> None:
    host = lab.address.removeprefix("http://").partition("/")[0]
    with browser.new_context() as stranger:
        page = stranger.new_page()
        answer = page.goto(lab.address)
        assert answer is not None and answer.status == 403, "the address opens once"
        assert not stranger.cookies()
    search_ = b'{"text": "museum 1"}'
    before = lab.questions()
    for path in ("/", "/static/page.js", "/picture/abc", "/nothing"):
        assert asked(lab, "GET", path)[0] in (200, 404)
        assert asked(lab, "GET", path, Cookie=None)[0] == 403
        assert asked(lab, "GET", path, Cookie=f"blindsight-{host.split(':')[1]}=guess")[0] == 403
        for other in ("evil.example", f"localhost:{host.split(':')[1]}", "127.0.0.1:1", None):
            assert asked(lab, "GET", path, Host=other)[0] in (400, 403), "DNS rebinding"
    for origin in (None, "null", "http://evil.example", "http://127.0.0.1:1", f"https://{host}"):
        assert asked(lab, "POST", "/search", search_, Origin=origin)[0] == 403
        assert asked(lab, "PUT", "/picture", picture("museum", 1), Origin=origin)[0] == 403
    assert lab.questions() == before
    assert asked(lab, "POST", "/search", search_)[0] == 200
    assert lab.questions() == before + 1
    assert lab.context is not None
    (cookie,) = lab.context.cookies(f"http://{host}")
    assert cookie["httpOnly"] and cookie["sameSite"] == "Strict"


def test_a_browser_is_told_to_trust_the_page_alone(lab: Lab) -> None:
    for path, more in (("/", {}), ("/static/page.css", {}), ("/", {"Cookie": None})):
        _, headers, body = asked(lab, "GET", path, **more)
        policy = dict(one.strip().split(" ", 1) for one in
                      headers["content-security-policy"].split(";"))  # fmt: skip
        assert policy == {
            "default-src": "'none'",
            "script-src": "'self'",
            "style-src": "'self'",
            "img-src": "'self' blob:",
            "connect-src": "'self'",
            "base-uri": "'none'",
            "form-action": "'self'",
            "frame-ancestors": "'none'",
        }
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers
        assert b"style=" not in body and b"<script>" not in body


def test_what_is_too_large_or_no_form_is_refused_before_it_is_read(lab: Lab) -> None:
    status, _, body = asked(lab, "PUT", "/picture", Content_Length=str(IMAGE_BYTES + 1))
    assert status == 400 and b"expected at most" in body
    status, _, body = asked(lab, "PUT", "/picture", Transfer_Encoding="chunked")
    assert status == 400 and b"an unknown number" in body
    before = lab.questions()
    for path, form in (
        ("/search", "[]"),
        ("/search", '{"text": "a", "k": 49}'),
        ("/search", '{"text": "a", "k": 0}'),
        ("/search", '{"text": "a", "more": 1}'),
        ("/search", '{"text": ""}'),
        ("/search", json.dumps({"text": "a" * 2001})),
        ("/search", json.dumps({"text": "a", "without": ["b"] * 9})),
        ("/search", '{"picture": "../../etc/passwd"}'),
        ("/search", " " * 70_000),
        ("/refine", "{}"),
        ("/refine", '{"good": [["museum", -1]]}'),
        ("/like", '{"key": ["nobody", 1]}'),
        ("/like", '{"key": 1}'),
        ("/back", '{"steps": 2}'),
        ("/search", "\xff"),
    ):
        status, _, body = asked(lab, "POST", path, form.encode("latin-1"))
        assert status == 400, (path, form)
        assert json.loads(body)["error"]["message"]
    assert lab.questions() == before


def test_the_command_prints_the_address_and_ctrl_c_ends_it_with_its_services(
    tmp_path: Path,
) -> None:
    from protocol.model.release import write_release
    from protocol.model.tower_settings import TowerSettings
    from protocol.model.towers import TwoTowers

    settings = TowerSettings()
    release = write_release(tmp_path / "releases", TwoTowers.initial(settings, 1), {})
    home = tmp_path / "institutions" / "museum"
    (home / "data").mkdir(parents=True)
    (home / "data" / "0.png").write_bytes(picture("museum", 0))
    pairs = [Pair("0.png", ("red",))]
    write_pairs(home / "data", pairs, None)
    build_index(
        home / "index", release.release_id, np.eye(1, settings.dim, dtype=np.float32), pairs
    )
    command = [sys.executable, "-m", "simulations.cli", "ui", "--no-browser"]
    with subprocess.Popen(
        [*command, "--federation", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), process.stderr.read()
        services = psutil.Process(process.pid).children()
        assert services
        host, _, path = address.removeprefix("http://").partition("/")
        with closing(http.client.HTTPConnection(host, timeout=10)) as connection:
            connection.request("GET", f"/{path}")
            with connection.getresponse() as welcome:
                assert welcome.status == 303
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stdout.read() == "the page is closed\n"
        assert "Traceback" not in process.stderr.read()
    assert not [one for one in services if one.is_running()]
    with (
        closing(http.client.HTTPConnection(host, timeout=10)) as connection,
        pytest.raises(OSError, match="refused"),
    ):
        connection.connect()


def test_pictures_are_of_few_forms_and_take_a_bounded_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pictures, "_MOST_BYTES", 1000)
    kept = pictures.Pictures()
    names = [kept.keep(b"\xff\xd8\xff" + bytes([i]) * 300) for i in range(4)]
    assert len(set(names)) == 4 and names[3] == kept.keep(b"\xff\xd8\xff" + bytes([3]) * 300)
    with pytest.raises(KeyError):
        kept[str(names[0])]
    assert kept[str(names[1])] == b"\xff\xd8\xff" + bytes([1]) * 300
    for foreign in (b"", b"<svg onload=alert(1)>", b"RIFF1234WAVE", b"<html>", b"%PDF-1.7"):
        assert kept.keep(foreign) is None and pictures.media_type(foreign) is None
    assert pictures.media_type(b"RIFF1234WEBP") == "image/webp"


def test_the_coordinator_saw_what_its_relay_and_its_directory_see() -> None:
    relayed = seen_by_coordinator(frozenset({"museum", "clinic"}), listed=True)
    assert "connection to clinic and museum" in relayed and "how many bytes" in relayed
    assert "It was asked" in seen_by_coordinator(frozenset(), listed=True)
    assert "It saw nothing" in seen_by_coordinator(frozenset(), listed=False)
