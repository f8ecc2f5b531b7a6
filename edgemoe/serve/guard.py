"""Who may ask: the key, the Host and Origin that a browser sends, the size and type of a body. An ASGI middleware.

On loopback a page of any site that the user visits could send requests to this server, and by a name that resolves to
127.0.0.1 even read the answers. So a request with an Origin must come from this server's own page or from one that was
allowed by name, a server on loopback answers only to loopback's names, and a POST must carry JSON, which browsers do
not send across sites unasked.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .failures import ApiError
from .wire import json_response

LOOPBACK = ("localhost", "127.0.0.1", "::1")
MAX_BODY_BYTES = 1 << 20
# Static and harmless: the page, so that it can ask for the key; whether the server lives; what it can do.
_OPEN_PATHS = ("/", "/page.css", "/page.js", "/favicon.ico", "/health", "/openapi.json")


def is_loopback(host: str) -> bool:
    return host in LOOPBACK or host.startswith("127.")


class Guard:
    """api_key: "" lets everybody in. origins: other sites whose pages may ask ("https://chat.example")."""

    def __init__(self, app: ASGIApp, *, host: str, api_key: str = "", origins: Sequence[str] = ()) -> None:
        self._app = app
        self._only_loopback = is_loopback(host)
        self._key = api_key.encode()
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin", "")
        allowed = origin in self._origins
        try:
            self._check_source(headers, origin)
            if allowed and scope["method"] == "OPTIONS":
                await json_response({}, 204, _cors(origin))(scope, receive, send)
                return
            self._check_key(scope["path"], headers)
            if scope["method"] == "POST":
                _check_body(headers)
        except ApiError as error:
            headers_out = {**error.headers, **(_cors(origin) if allowed else {})}
            await json_response(error.body(), error.status, headers_out)(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                out = MutableHeaders(scope=message)
                out["X-Content-Type-Options"] = "nosniff"
                if allowed:
                    out.update(_cors(origin))
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _check_source(self, headers: Headers, origin: str) -> None:
        host = headers.get("host", "")
        if self._only_loopback and _name(host) not in LOOPBACK and not _name(host).startswith("127."):
            raise ApiError(403, f"this server is not called `{host:.100}`", code="host_not_allowed")
        if origin and origin not in self._origins and origin.partition("://")[2] != host:
            raise ApiError(403, f"pages of `{origin:.100}` may not use this server", code="origin_not_allowed")

    def _check_key(self, path: str, headers: Headers) -> None:
        if not self._key or path in _OPEN_PATHS:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), self._key):
            raise ApiError(
                401,
                "the API key is wrong" if key else "this server wants an API key: `Authorization: Bearer KEY`",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _check_body(headers: Headers) -> None:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"the body must be `application/json`, not `{kind:.60}`", code="unsupported_media_type")
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length) > MAX_BODY_BYTES:
        raise too_large()


def too_large() -> ApiError:
    return ApiError(413, f"a body of more than {MAX_BODY_BYTES:,} bytes", code="body_too_large")


def _name(host: str) -> str:
    """The name in a Host header: "localhost:8080", "[::1]:8080"."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def _cors(origin: str) -> dict[str, str]:
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Headers": "Authorization, Content-Type",
        "Access-Control-Allow-Methods": "GET, POST",
        "Vary": "Origin",
    }
