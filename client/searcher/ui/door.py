"""Who may speak to the page, and what a browser may do with what it gets.

The page serves one person on this machine. Other users of the machine can reach the port, and so
can any web page that the person has open, so each request proves three things: that it was meant
for this address (against DNS rebinding), that it comes from the browser which opened the address
with the token (a cookie), and, if it does anything, that the page itself sent it (its origin).

A browser sends cookies to all ports of a host: a server of somebody else on this machine gets this
cookie too, if the person visits it.
"""

import hmac
import secrets
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_SECRET_BYTES = 32


class Door:
    """Middleware in front of everything; made for one port of 127.0.0.1."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._host = f"127.0.0.1:{port}"
        self._cookie_name = f"blindsight-{port}"
        self._cookie = secrets.token_urlsafe(_SECRET_BYTES)
        self._token: str | None = secrets.token_urlsafe(_SECRET_BYTES)
        self.address = f"http://{self._host}/?token={self._token}"
        """Opens the page once; whoever opens it first is the one who may search."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] != "http":  # there is nothing else to be had
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        answer = self._answer(scope) or self._app
        await answer(scope, receive, send_safely)

    def _answer(self, scope: Scope) -> Response | None:
        """What to say instead of letting it through."""
        headers = Headers(scope=scope)
        # Port 80 goes without saying.
        if headers.getlist("host") not in ([self._host], [self._host.removesuffix(":80")]):
            return _refused("This page is reached under its own address alone.")
        asks = scope["method"] not in ("GET", "HEAD")
        if asks and headers.get("origin") != f"http://{headers['host']}":
            return _refused("Only the page itself may ask for that.")
        token = parse_qs(scope["query_string"].decode("latin-1")).get("token")
        if self._known(headers.get("cookie", "")):
            return RedirectResponse("/", 303) if token else None
        if token and self._token and hmac.compare_digest(token[0].encode(), self._token.encode()):
            self._token = None
            welcome = RedirectResponse("/", 303)
            welcome.set_cookie(self._cookie_name, self._cookie, httponly=True, samesite="strict")
            return welcome
        return _refused(
            "This address opens the page once, in one browser. Start blindsight ui again for "
            "another."
        )

    def _known(self, cookies: str) -> bool:
        pairs = (one.strip().partition("=") for one in cookies.split(";"))
        return any(
            name == self._cookie_name and hmac.compare_digest(value.encode(), self._cookie.encode())
            for name, _, value in pairs
        )


def _refused(why: str) -> Response:
    return PlainTextResponse(f"{why}\n", 403)
