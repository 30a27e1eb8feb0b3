"""One exchange with a server that speaks OpenAI's chat completions; its reply is of one form.

The server is of the user's choice and believed in nothing: it has so many seconds in all and so
many bytes, is not followed anywhere, and its reply is read strictly.
"""

import asyncio
import ipaddress
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.errors import MalformedMessage, ServiceError, UsageError
from protocol.files import read_bounded

_MAX_REPLY_BYTES = 64 * 1024
_MAX_KEY_BYTES = 4096

Content = str | list[dict[str, Any]]
"""What a user's message may be: words, or parts of text and pictures."""


class Reply(BaseModel):
    """The form of a reply, for subclasses: exactly these fields, of exactly these types."""

    model_config = ConfigDict(strict=True, extra="forbid")


class _Message(BaseModel):
    content: str


class _Choice(BaseModel):
    message: _Message


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)


R = TypeVar("R", bound=Reply)


class ChatServer:
    """A model at an address."""

    def __init__(self, url: str, model: str, key: str | None, seconds: float) -> None:
        """``url`` is the base address, such as ``http://127.0.0.1:11434/v1``.

        A call takes at most ``seconds``. Raises UsageError for what is no address, or for one that
        is neither https nor on this machine.
        """
        self._url, self.host = _checked(url)
        if not model.strip():
            raise UsageError("the assistant's model has no name", "Name it: --assistant-model.")
        self._model, self._key, self._seconds = model, key, seconds

    def ask(self, instruction: str, content: Content, form: type[R]) -> R:
        """Return the reply in its form. Raises ServiceError, MalformedMessage."""
        schema = {"name": "reply", "strict": True, "schema": form.model_json_schema()}
        fields = " and ".join(f"'{name}'" for name in form.model_fields)
        request = {
            "model": self._model,
            "messages": [
                {"role": "system", "content": f"{instruction} Reply with JSON alone: {fields}."},
                {"role": "user", "content": content},
            ],
            "temperature": 0,
            "response_format": {"type": "json_schema", "json_schema": schema},
        }
        status, body = self._post(request)
        if status in (400, 422):  # one that knows no schemas; the words above still ask for it
            del request["response_format"]
            status, body = self._post(request)
        if status != 200:
            hint = "Are its address, its model and its key right? Redirects are not followed."
            raise ServiceError(f"the assistant at {self.host} answered HTTP {status}", hint)
        try:
            said = _Completion.model_validate_json(body).choices[0].message.content
            return form.model_validate_json(said)
        except ValidationError as error:
            # Neither what came nor its names: they would go to a terminal.
            raise self.malformed(f"JSON with {fields}", error.errors()[0]["type"]) from error

    def malformed(self, expected: str, got: str) -> MalformedMessage:
        """The error for a reply of another form."""
        return MalformedMessage(
            f"the assistant at {self.host}: expected {expected}, got {got:.200}",
            "Try another model: a larger one keeps to the form more often.",
        )

    def _post(self, request: dict[str, Any]) -> tuple[int, bytes]:
        # A loop, for nothing else ends a reply that comes byte by byte; in a thread, for a
        # notebook has a loop of its own.
        with ThreadPoolExecutor(1, "assistant") as pool:
            try:
                return pool.submit(asyncio.run, self._exchange(request)).result()
            except (TimeoutError, httpx.TimeoutException) as error:
                message = f"the assistant at {self.host} took longer than {self._seconds:g} s"
                raise ServiceError(message, "It may be loading its model: try again.") from error
            except (httpx.HTTPError, OSError) as error:
                message = f"the assistant at {self.host} cannot be reached: {error!s:.200}"
                raise ServiceError(message, "Is it running?") from error

    async def _exchange(self, request: dict[str, Any]) -> tuple[int, bytes]:
        headers = {"Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        # No proxy and no .netrc of the environment: what is sent goes to the host that was named.
        client = httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=self._seconds)
        async with asyncio.timeout(self._seconds), client as http:
            post = http.stream("POST", self._url, json=request, headers=headers)
            async with post as response:
                body = bytearray()
                # Raw: a few bytes that unpack to gigabytes stay a few bytes.
                async for part in response.aiter_raw(4096):
                    body += part
                    if len(body) > _MAX_REPLY_BYTES:
                        raise self.malformed(f"at most {_MAX_REPLY_BYTES:,} bytes", "more")
                return response.status_code, bytes(body)


def read_key(path: Path) -> str:
    """Read the key of an account from a file that is this user's alone. Raises UsageError."""
    hint = "Put the key alone into a file, and make it yours alone: chmod 600."
    try:
        text = read_bounded(path, _MAX_KEY_BYTES, hint).decode("ascii").strip()
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: expected a key, got bytes that are no text", hint) from error
    if mode & 0o077:
        raise UsageError(f"{path}: expected mode 600, got {mode:o}: others may have it", hint)
    if not text or not text.isprintable() or " " in text:
        raise UsageError(f"{path}: expected one key, got {len(text.split())} words", hint)
    return text


def _checked(text: str) -> tuple[str, str]:
    """The address of chat completions under a base address, and its host, with a port if any."""
    hint = "Such as http://127.0.0.1:11434/v1; a key belongs into a file of its own."
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise UsageError(f"the assistant's address {text!r:.80} is none", hint) from error
    known = url.scheme in ("http", "https") and url.host
    if not known or url.userinfo or url.query or url.fragment:
        raise UsageError(
            f"an assistant's address is http(s)://HOST:PORT/PATH, got {text!r:.80}", hint
        )
    if url.scheme != "https" and not _is_loopback(url.host):
        raise UsageError(
            f"{url.host} is not this machine: expected https, got {url.scheme}",
            "Without TLS everybody on the way reads what is sent.",
        )
    return f"{str(url).rstrip('/')}/chat/completions", url.netloc.decode()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
