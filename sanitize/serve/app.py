"""The HTTP side: check, keep, answer; the work is done elsewhere."""

from __future__ import annotations

import sqlite3
import time

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from sanitize.serve.queue import Queue
from sanitize.serve.webhooks import MAX_BODY, Refused, check


def make_app(queue: Queue, secret: str) -> Starlette:
    """An ASGI application with ``POST /webhook`` and ``GET /health``.

    Args:
        queue: Where deliveries go.
        secret: Shared with MLflow.
    """

    async def webhook(request: Request) -> JSONResponse:
        try:
            delivery = check(request.headers, await _body(request), secret=secret, now=time.time())
            new = await run_in_threadpool(queue.put, delivery)
        except Refused as refusal:
            return JSONResponse({"error": str(refusal)}, refusal.status)
        except sqlite3.Error as error:  # MLflow tries again after a 503
            return JSONResponse({"error": f"the queue refused: {error}"}, 503)
        return JSONResponse({"id": delivery.id, "new": new}, 202 if new else 200)

    async def health(_: Request) -> JSONResponse:
        return JSONResponse(await run_in_threadpool(queue.counts))

    return Starlette(routes=[Route("/webhook", webhook, methods=["POST"]), Route("/health", health)])


async def _body(request: Request) -> bytes:
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > MAX_BODY:
            raise Refused(413, f"the body has more than {MAX_BODY} bytes")
    return bytes(content)
