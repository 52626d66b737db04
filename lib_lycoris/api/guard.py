"""The studio's doorkeeper before page and routes: foreign pages, frames and oversized bodies stay out."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .routes import foreign

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LARGEST_REQUEST = 64_000_000
"""Bytes that a request may carry: a picture in base64, an upload."""

_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
)


class Guard:
    """An ASGI app in front of another.

    Args:
        app: what answers whom it lets in.
        largest: bytes that a request may carry.
    """

    def __init__(self, app: App, largest: int = LARGEST_REQUEST) -> None:
        self._app, self._largest = app, largest

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Lets a request in, or answers 403 or 413 itself; a foreign websocket is closed."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        reason = None if _is_visit(scope, headers) else foreign(headers)
        if reason is not None:
            await _refuse(scope, receive, send, 403, reason)
        elif scope["type"] == "websocket":
            await self._app(scope, receive, send)
        elif _length(headers) > self._largest:
            await _refuse(scope, receive, send, 413, f"the request is larger than {self._largest} bytes: choose a smaller file")
        else:
            await self._app(scope, _Counted(receive, self._largest), _with_headers(send))


class _Counted:
    """A request's body that ends the connection where it grows too large."""

    def __init__(self, receive: Receive, largest: int) -> None:
        self._receive, self._left = receive, largest

    async def __call__(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body") or b"")
        return message if self._left >= 0 else {"type": "http.disconnect"}


def _is_visit(scope: Message, headers: dict[str, str]) -> bool:
    """Whether somebody follows a link to the page: it may stand anywhere, and nothing is changed by it."""
    return (scope["type"] == "http" and scope["method"] in ("GET", "HEAD") and scope["path"] == "/" and "origin" not in headers
            and headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") in (None, "document"))


def _length(headers: dict[str, str]) -> int:
    told = headers.get("content-length", "0")
    return int(told) if told.isascii() and told.isdigit() else 0


def _with_headers(send: Send) -> Send:
    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
        await send(message)

    return answer


async def _refuse(scope: Message, receive: Receive, send: Send, status: int, reason: str) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})
        return
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
