"""What goes wrong, in OpenAI's shape: a status, and `{"error": {"message", "type", "code", "param"}}`."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from ..errors import BudgetError, Cancelled, ContextFullError, EdgeMoEError, UnsupportedError, UsageError

_PATH = re.compile(r" - at `\$\.?(.*?)`$")
_UNKNOWN = re.compile(r"unknown field `([^`]*)`")


class ApiError(Exception):
    """A request that ends without an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def kind(self) -> str:
        if self.status == 401:
            return "authentication_error"
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that makes no sense."""
    return ApiError(400, message, param=param, code=code)


def of_decoding(error: msgspec.MsgspecError) -> ApiError:
    """The body is no JSON, or not the JSON of this request."""
    text = str(error)
    found = _PATH.search(text)
    path = found[1] if found else None
    unknown = _UNKNOWN.search(text)
    if unknown:
        path = f"{path}.{unknown[1]}" if path else unknown[1]
        return invalid(f"unrecognized request argument: `{path}`", path, "unknown_parameter")
    message = _PATH.sub("", text)
    message = f"{message[:1].lower()}{message[1:]}"
    return invalid(f"`{path}`: {message}" if path else f"the request is not valid: {message}", path)


def said(error: EdgeMoEError) -> str:
    """What the runtime says, with what to do about it."""
    return f"{error.message} ({error.hint})" if error.hint else error.message


def of_engine(error: Exception) -> ApiError:
    """What the runtime raised."""
    if not isinstance(error, EdgeMoEError):
        return ApiError(500, f"the server failed: {type(error).__name__}", code="internal_error")
    message = said(error)
    if isinstance(error, ContextFullError) or "the context holds" in error.message:
        return invalid(message, "messages", "context_length_exceeded")
    if isinstance(error, BudgetError):
        return ApiError(400, message, code="memory_budget_too_small")
    if isinstance(error, UsageError | UnsupportedError):
        return invalid(message)
    if isinstance(error, Cancelled):
        return ApiError(503, "the answer was ended by the server", code="cancelled")
    return ApiError(500, message, code="engine_error")
