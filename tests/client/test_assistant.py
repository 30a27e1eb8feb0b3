"""The assistant against real servers that speak its interface, most of which lie."""

import asyncio
import gzip
import io
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse, StreamingResponse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.searcher.assistant import MAX_PICTURES, Assistant, Disclosure
from client.searcher.assistant_cli import agree, open_assistant, reranked
from client.searcher.chat import read_key
from client.searcher.conversation import Conversation
from client.searcher.query import Query
from client.searcher.results import Result, Results
from client.searcher.searcher import Searcher
from client.searcher.settings import SearcherSettings, settings_path
from client.searcher.shell import Shell
from protocol.errors import BlindsightError, MalformedMessage, ServiceError, UsageError
from protocol.insecure_twin import InsecureTwin
from protocol.provisioning.home import Home
from tests.client.test_searcher import Encoder

JPEG = b"\xff\xd8\xff\xe0 picture "


class Model:
    """A server that remembers what it was sent and answers what the test says."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.elsewhere = 0
        self.answer: Callable[[dict[str, Any]], Response] = lambda _: said({})
        self.app = FastAPI()
        self.app.post("/v1/chat/completions")(self._complete)
        self.app.post("/elsewhere")(self._elsewhere)

    async def _complete(self, request: Request) -> Response:
        self.seen.append(await request.json())
        self.headers.append(dict(request.headers))
        return self.answer(self.seen[-1])

    async def _elsewhere(self) -> Response:
        self.elsewhere += 1
        return said({"text": "elsewhere", "without": []})

    def says(self, content: object) -> None:
        self.answer = lambda _: said(content)

    def __enter__(self) -> "Model":
        listening = socket.create_server(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        config = uvicorn.Config(self.app, log_level="critical", lifespan="off", ws="none")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listening],))
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive()


def said(content: object) -> Response:
    text = content if isinstance(content, str) else json.dumps(content)
    return JSONResponse({"id": "1", "choices": [{"message": {"role": "x", "content": text}}]})


@pytest.fixture(scope="module")
def server() -> Iterator[Model]:
    with Model() as model:
        yield model


@pytest.fixture
def model(server: Model) -> Model:
    server.seen, server.headers, server.elsewhere = [], [], 0
    return server


class User:
    """Says yes or no, and remembers to what."""

    def __init__(self, yes: bool = True) -> None:
        self.yes = yes
        self.asked: list[Disclosure] = []

    def __call__(self, what: Disclosure) -> bool:
        self.asked.append(what)
        return self.yes


def assistant(model: Model, user: User | None = None, seconds: float = 10.0) -> Assistant:
    return Assistant(model.url, "tiny", user or User(), seconds=seconds)


def found(
    count: int, hidden: tuple[int, ...] = (), names: tuple[str, ...] = ("clinic",)
) -> Results:
    ranked = tuple(
        Result(
            names[n % len(names)],
            n,
            0.987654 - n / 100,
            b"" if n in hidden else JPEG + str(n).encode(),
            f"caption-{n}",
            f"name-{n}",
        )
        for n in range(count)
    )
    return Results(Query("a boat"), ranked, {}, {}, {})


def positions(results: Results) -> list[int]:
    return [one.position for one in results]


def test_a_follow_up_becomes_a_query(model: Model) -> None:
    model.says({"text": "a blue boat", "without": ["people"]})
    user = User()
    made = assistant(model, user)
    query = made.rewrite([Query("a boat"), Query("a boat", without=("rain",))], "without people")
    assert query == Query("a blue boat", None, ("people",))
    told = json.loads(model.seen[0]["messages"][1]["content"])
    assert told == {"earlier": ["a boat", "a boat, not rain"], "follow_up": "without people"}
    assert model.seen[0]["model"] == "tiny"
    assert model.seen[0]["response_format"]["json_schema"]["schema"]["required"]
    assert "authorization" not in model.headers[0]
    made.rewrite([], "more blue")
    assert user.asked == [Disclosure(f"127.0.0.1:{model.port}", "words")]
    assert "127.0.0.1" in str(user.asked[0]) and "the words" in str(user.asked[0])


def test_a_picture_stays_in_the_query_and_is_not_sent(model: Model) -> None:
    model.says({"text": "", "without": ["people"]})
    picture = b"\x89PNG secret pixels"
    query = assistant(model).rewrite([Query("", picture)], "without people")
    assert query == Query("", picture, ("people",))
    assert "secret" not in json.dumps(model.seen)


def test_a_server_without_schemas_is_asked_again_without(model: Model) -> None:
    def refuse(request: dict[str, Any]) -> Response:
        if "response_format" in request:
            return JSONResponse({"error": "unknown field"}, 400)
        return said({"text": "a boat", "without": []})

    model.answer = refuse
    assert assistant(model).rewrite([], "a boat") == Query("a boat")
    assert len(model.seen) == 2


def test_pictures_come_in_the_order_that_the_model_gives(model: Model) -> None:
    model.says({"order": [3, 1]})
    results = found(6, hidden=(1,))
    order = assistant(model).rerank("which is a boat?", results)
    # Number 3 is the third that can be seen.
    assert positions(order) == [3, 0, 1, 2, 4, 5]
    assert sorted(positions(order)) == positions(results)
    assert order.query == results.query
    parts = model.seen[0]["messages"][1]["content"]
    assert parts[0] == {"type": "text", "text": "Question: which is a boat?"}
    assert sum(part["type"] == "image_url" for part in parts) == 5
    assert all(
        part["image_url"]["url"].startswith("data:image/jpeg;base64,")
        for part in parts
        if part["type"] == "image_url"
    )
    everything = json.dumps(model.seen)
    assert not any(word in everything for word in ("caption-", "name-", "clinic", "0.98"))


def test_no_more_pictures_than_a_model_can_take_are_sent(model: Model) -> None:
    model.says({"order": [MAX_PICTURES]})
    order = assistant(model).rerank("a boat", found(30))
    assert positions(order)[:2] == [MAX_PICTURES - 1, 0] and len(order) == 30
    assert sum(x["type"] == "image_url" for x in model.seen[0]["messages"][1]["content"]) == 20


def test_without_pictures_nothing_is_asked_or_sent(model: Model) -> None:
    results, user = found(2, hidden=(0, 1)), User()
    assert assistant(model, user).rerank("a boat", results) is results
    assert not user.asked and not model.seen


def test_without_consent_nothing_is_sent(model: Model) -> None:
    user = User(yes=False)
    refused = assistant(model, user)
    with pytest.raises(UsageError, match="nothing was sent"):
        refused.rewrite([Query("a boat")], "without people")
    with pytest.raises(UsageError, match="nothing was sent"):
        refused.rerank("a boat", found(3, names=("clinic", "museum")))
    assert not model.seen
    assert user.asked[1] == Disclosure(refused.host, "pictures", 3, ("clinic", "museum"))
    assert "3 thumbnails that clinic, museum released" in str(user.asked[1])


def test_consent_is_for_a_kind_and_an_institution(model: Model) -> None:
    model.says({"order": []})
    user = User()
    asked = assistant(model, user)
    asked.rerank("a boat", found(2))
    asked.rerank("a boat", found(5))
    assert len(user.asked) == 1
    user.yes = False
    with pytest.raises(UsageError):
        asked.rewrite([], "words were not agreed to")
    with pytest.raises(UsageError):
        asked.rerank("a boat", found(2, names=("clinic", "museum")))
    assert len(user.asked) == 3 and len(model.seen) == 2


@pytest.mark.parametrize(
    "reply",
    [
        "not JSON",
        '```json\n{"text": "a", "without": []}\n```',
        {"text": "a boat"},
        {"text": "a boat", "without": "people"},
        {"text": "a boat", "without": [], "run": "rm"},
        {"text": ["a boat"], "without": []},
        {"text": "", "without": []},
        {"text": "x" * 2001, "without": []},
        {"text": "a boat", "without": [""]},
        {"text": "a boat", "without": ["x"] * 9},
        {"text": "a \x1b[2Jboat", "without": []},
        {"text": "a boat", "without": ["\u202epeople"]},
        "[" * 30_000,
    ],
)
def test_what_is_no_query_is_refused(model: Model, reply: object) -> None:
    model.says(reply)
    with pytest.raises(MalformedMessage, match=r"the assistant at 127\.0\.0\.1") as caught:
        assistant(model).rewrite([], "a boat")
    assert caught.value.message.isprintable() and caught.value.hint


@pytest.mark.parametrize(
    "order", [[0], [4], [-1], [1, 1], [True], ["1"], [1.0], [10**30], "1", [1] * 21, None]
)
def test_numbers_of_no_picture_are_refused(model: Model, order: object) -> None:
    model.says({"order": order})
    with pytest.raises(MalformedMessage):
        assistant(model).rerank("a boat", found(3))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(order=st.lists(st.integers(0, 6), max_size=6))
def test_an_order_neither_adds_nor_loses_a_picture(model: Model, order: list[int]) -> None:
    model.says({"order": order})
    results = found(5, hidden=(2,))
    try:
        ordered = assistant(model).rerank("a boat", results)
    except MalformedMessage:
        assert len(set(order)) < len(order) or not set(order) <= {1, 2, 3, 4}
    else:
        assert sorted(positions(ordered)) == positions(results)
        shown = [0, 1, 3, 4]
        assert positions(ordered)[: len(order)] == [shown[number - 1] for number in order]


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield b" " * 65_536
        await asyncio.sleep(0)


async def dripping() -> AsyncIterator[bytes]:
    while True:
        yield b" "
        await asyncio.sleep(0.05)


BOMB = gzip.compress(bytes(50_000_000))


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (lambda _: Response(b" " * 70_000), MalformedMessage, "at most 65,536 bytes"),
        (lambda _: StreamingResponse(endless()), MalformedMessage, "at most 65,536 bytes"),
        (lambda _: StreamingResponse(dripping()), ServiceError, "longer than 1 s"),
        (lambda _: Response(b"<html>"), MalformedMessage, "expected JSON"),
        (lambda _: JSONResponse({"choices": []}), MalformedMessage, "expected JSON"),
        (lambda _: JSONResponse({"choices": [{"message": {"content": None}}]}), MalformedMessage,
         "expected JSON"),
        (lambda _: Response(BOMB, headers={"content-encoding": "gzip"}), MalformedMessage,
         "expected JSON"),
        (lambda _: Response(status_code=500, content=b"\x1b[2J"), ServiceError, "HTTP 500"),
        (lambda _: Response(status_code=401), ServiceError, "HTTP 401"),
        (lambda _: RedirectResponse("/elsewhere"), ServiceError, "HTTP 307"),
    ],
)  # fmt: skip
def test_a_server_that_lies_is_a_clear_error(
    model: Model,
    answer: Callable[[dict[str, Any]], Response],
    kind: type[BlindsightError],
    words: str,
) -> None:
    model.answer = answer
    start = time.monotonic()
    with pytest.raises(kind, match=words) as caught:
        assistant(model, seconds=1.0).rewrite([], "a boat")
    assert time.monotonic() - start < 5
    assert caught.value.message.isprintable()
    assert model.elsewhere == 0


def test_a_server_that_is_silent_or_absent_is_a_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        with pytest.raises(ServiceError, match="longer than"):
            Assistant(url, "tiny", User(), seconds=0.5).rewrite([], "a boat")
    with pytest.raises(ServiceError, match="cannot be reached"):
        Assistant(url, "tiny", User()).rewrite([], "a boat")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://models.example.org/v1", "expected https"),
        ("http://10.0.0.7:8080/v1", "expected https"),
        ("http://127.0.0.1.example.org/v1", "expected https"),
        ("http://0.0.0.0/v1", "expected https"),
        ("http://[2001:db8::1]/v1", "expected https"),
        ("https://me:key@models.example.org/v1", "address is http"),
        ("https://models.example.org/v1?key=1", "address is http"),
        ("file:///etc/passwd", "address is http"),
        ("models.example.org", "address is http"),
        ("", "address is http"),
        ("http://[::1", "is none"),
    ],
)
def test_an_address_that_will_not_do_is_refused(url: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Assistant(url, "tiny", User())


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://localhost:8080/v1", "localhost:8080"),
        ("http://127.3.2.1/v1/", "127.3.2.1"),
        ("http://[::1]:8080", "[::1]:8080"),
        ("https://models.example.org/v1", "models.example.org"),
    ],
)
def test_an_address_that_will_do_is_named_in_the_disclosure(url: str, host: str) -> None:
    assert Assistant(url, "tiny", User()).host == host


def test_the_environment_does_not_say_where_words_go(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Model() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        model.says({"text": "a boat", "without": []})
        assert assistant(model).rewrite([], "a boat") == Query("a boat")
        assert len(model.seen) == 1 and not proxy.seen


def test_a_conversation_follows_up(served: list, model: Model) -> None:
    remotes = [one.connect() for one in served]
    with Searcher(Encoder(served), remotes, InsecureTwin()) as searcher:
        talk = Conversation(searcher, 3)
        with pytest.raises(UsageError, match="no assistant"):
            talk.follow_up("clinic 7")
        talk.search("clinic 7")
        talk.assistant = assistant(model)
        model.says({"text": "museum 3", "without": []})
        assert talk.follow_up("rather the museum's third")[0].key == ("museum", 3)
        assert json.loads(model.seen[0]["messages"][1]["content"])["earlier"] == ["clinic 7"]
        model.says("I cannot do that.")
        plain = talk.follow_up("harbour 5")
        assert plain[0].key == ("harbour", 5)
        assert isinstance(plain.notes["assistant"], MalformedMessage)
        model.says({"order": [2, 1]})
        places = [one.key for one in talk.results]
        again = talk.rerank()
        assert [one.key for one in again] == [places[1], places[0], places[2]]
        assert talk.results is again and len(talk.steps) == 3
        assert talk.undo()[0].key == ("museum", 3)
        talk.assistant = assistant(model, User(yes=False))
        with pytest.raises(UsageError, match="nothing was sent"):
            talk.follow_up("clinic 1")
        assert len(talk.steps) == 2


def test_the_shell_asks_the_assistant(served: list, model: Model) -> None:
    remotes = [one.connect() for one in served]
    with Searcher(Encoder(served), remotes, InsecureTwin()) as searcher:
        shell = Shell(searcher, 3, pictures=False, assistant=assistant(model))
        shell.do("clinic 7")
        model.says({"text": "museum 3", "without": []})
        assert "museum 3" in shell.do("ask for the museum's third").splitlines()[0]
        model.says({"order": [3]})
        text = shell.do("rerank").splitlines()
        assert text[0] == "museum 3" and len(model.seen) == 2
        with pytest.raises(UsageError, match="stands alone"):
            shell.do("rerank them")
        with pytest.raises(UsageError, match="no assistant"):
            Shell(searcher).do("ask for more")


def test_a_command_without_a_terminal_sends_nothing(model: Model, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing was sent"):
        reranked(found(3), model.url, "tiny", tmp_path)
    assert not model.seen


def test_a_key_lies_in_a_file_of_its_own(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("sk-test-1234\n")
    path.chmod(0o600)
    model.says({"text": "a boat", "without": []})
    keyed = Assistant(model.url, "tiny", User(), read_key(path))
    keyed.rewrite([], "a boat")
    assert model.headers[0]["authorization"] == "Bearer sk-test-1234"
    assert "sk-test" not in repr(keyed) + repr(vars(keyed))
    path.chmod(0o640)
    with pytest.raises(UsageError, match="mode 600"):
        read_key(path)
    for content in (b"", b"two keys", b"\xff\xfe", b"x" * 5000, b"a\x1bb"):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(UsageError):
            read_key(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_key(tmp_path / "none")


def test_there_is_none_unless_the_user_names_one(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert open_assistant(home=tmp_path) is None
    with pytest.raises(UsageError, match="there is no assistant"):
        reranked(found(3), None, None, tmp_path)
    named = open_assistant("http://127.0.0.1:1/v1", "tiny", tmp_path)
    assert named is not None and named.host == "127.0.0.1:1"
    SearcherSettings(
        directory="127.0.0.1:1",
        assistant_url="https://models.example.org/v1",
        assistant_model="large",
        assistant_key_file="key",
    ).save(settings_path(home))
    with pytest.raises(UsageError, match="key cannot be read"):
        open_assistant(home=tmp_path)
    # A key never goes to another address than the one it was given for.
    other = open_assistant("http://127.0.0.1:1/v1", None, tmp_path)
    assert other is not None and other.host == "127.0.0.1:1"
    (tmp_path / "key").write_text("sk-test")
    (tmp_path / "key").chmod(0o600)
    kept = open_assistant(home=tmp_path)
    assert kept is not None and kept.host == "models.example.org"


def test_where_there_is_no_terminal_nobody_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whoever is at the other end of a pipe is no user.
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert not agree(Disclosure("127.0.0.1", "words"))
