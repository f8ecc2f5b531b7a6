"""Who may ask: the key, and the Host and Origin that a browser sends. An ASGI middleware.

On loopback a page of any site that the user visits could send requests to this server, and by a name that resolves to
127.0.0.1 even read the answers. So a request with an Origin must come from this server's own page or from one that was
allowed by name, a server on loopback answers only to loopback's names and to those it was given, and what a
browser sends must be called JSON (`intake`), which it does not send across sites unasked.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import hosts
from .failures import ApiError
from .intake import drained
from .wire import json_response

# Static and harmless: the page, so that it can ask for the key; whether the server lives; what it can do.
_SCRIPTS = ("lib/marked.js", "lib/purify.js", "server.js", "store.js", "text.js", "chat.js", "page.js")
PAGE = {"/": "index.html", "/page.css": "page.css", **{f"/{name}": name for name in _SCRIPTS}}
"""Paths of the page's files: everybody may have them."""
_OPEN_PATHS = (*PAGE, "/favicon.ico", "/health", "/v1/health", "/openapi.json")
_HEADER_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+(?: *, *[A-Za-z0-9!#$%&'*+.^_`|~-]+)*")
_OWN_HEADERS = "Authorization, Content-Type"
ANYBODY = "*"


@dataclass(frozen=True)
class Access:
    """host: where the server listens. api_key: "" lets everybody in. names: what else it may be called.

    origins: other sites whose pages may ask: "https://chat.example", "app://obsidian.md", "http://localhost:*", "*".
    """

    host: str = "127.0.0.1"
    api_key: str = ""
    origins: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


class Guard:
    def __init__(self, app: ASGIApp, *, access: Access) -> None:
        self._app = app
        self._only_loopback = hosts.is_loopback(access.host)
        self._key = access.api_key.encode()
        self._anybody = ANYBODY in access.origins
        self._origins = [found for text in access.origins if (found := hosts.origin(text, wild=True))]
        # A proxy in front of this server is called as the page that it shows.
        self._names = frozenset([*(name.lower() for name in access.names), *(one.name for one in self._origins)])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("origin", "")
        allowed = bool(given) and self._is_allowed(hosts.origin(given))
        cors = _cors(given, headers) if allowed else {}
        try:
            self._check_source(headers, given, allowed=allowed)
            if allowed and scope["method"] == "OPTIONS":
                await json_response({}, 204, cors)(scope, receive, send)
                return
            self._check_key(scope["path"], headers)
        except ApiError as error:
            await drained(receive)
            await json_response(error.body(), error.status, {**error.headers, **cors})(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                out = MutableHeaders(scope=message)
                out["X-Content-Type-Options"] = "nosniff"
                out.update(cors)
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _is_allowed(self, asked: hosts.Origin | None) -> bool:
        return self._anybody or bool(asked and any(hosts.same(asked, one) for one in self._origins))

    def _check_source(self, headers: Headers, given: str, *, allowed: bool) -> None:
        text = headers.get("host", "")
        host = hosts.authority(text)
        if host is None or (self._only_loopback and not hosts.is_loopback(host.name) and host.name not in self._names):
            raise ApiError(
                403,
                f"this server is not called `{text:.100}`: a name of its own is given with `--allow-host`",
                code="host_not_allowed",
            )
        if not given or allowed:
            return
        asked = hosts.origin(given)
        if asked is None or not hosts.is_page_of(asked, host):
            raise ApiError(403, f"pages of `{given:.100}` may not use this server", code="origin_not_allowed")

    def _check_key(self, path: str, headers: Headers) -> None:
        if not self._key or path in _OPEN_PATHS:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            key = headers.get("x-api-key", "")  # as Anthropic's clients send it
        if not hmac.compare_digest(key.strip().encode(), self._key):
            raise ApiError(
                401,
                "the API key is wrong" if key else "this server wants an API key: `Authorization: Bearer KEY`",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _cors(origin: str, headers: Headers) -> dict[str, str]:
    """For a site that was allowed: the headers that its page asks for, whatever client it uses."""
    asked = headers.get("access-control-request-headers", "").strip()
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Headers": asked if _HEADER_NAMES.fullmatch(asked) else _OWN_HEADERS,
        "Access-Control-Allow-Methods": "GET, POST, HEAD, DELETE",
        "Access-Control-Expose-Headers": "*",
        "Access-Control-Max-Age": "600",
        "Vary": "Origin",
    }
