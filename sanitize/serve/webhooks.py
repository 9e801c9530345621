"""MLflow's signed webhooks: who sent it, when, and what it says.

MLflow signs ``<delivery id>.<timestamp>.<body>`` with HMAC-SHA256 and brings no function that checks it (3.17), so the
check is here. Importing MLflow for four names would delay the restart of the server; a test compares them.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DELIVERY_ID = "x-mlflow-delivery-id"
TIMESTAMP = "x-mlflow-timestamp"
SIGNATURE = "x-mlflow-signature"
VERSION = "v1"
MAX_AGE = 300
"""Seconds; MLflow sends again with the time of the first try, at most about ten seconds later."""
MAX_BODY = 1 << 20
MAX_ID = 200


class Refused(Exception):
    """A delivery that is not taken; `status` is the HTTP status of the answer."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True)
class Delivery:
    """A delivery whose signature was right.

    Args:
        id: MLflow's; the same when it is sent again.
        sent: Unix time.
        event: For example ``model_version_alias.created``.
        data: What it is about.
    """

    id: str
    sent: int
    event: str
    data: dict[str, Any]


def sign(secret: str, delivery_id: str, timestamp: str, body: bytes) -> str:
    """The signature of a delivery, as it is in its header.

    Example:
        >>> sign("s", "1", "2", b"{}")[:6]
        'v1,SnY'
    """
    content = f"{delivery_id}.{timestamp}.".encode() + body
    mac = hmac.new(secret.encode(), content, hashlib.sha256).digest()
    return f"{VERSION},{base64.b64encode(mac).decode()}"


def check(headers: Mapping[str, str], body: bytes, *, secret: str, now: float) -> Delivery:
    """Check signature and age of a delivery, then read it; nothing is parsed before that.

    Args:
        headers: Of the request; names in any case.
        body: As received.
        secret: Shared with MLflow.
        now: Unix time.

    Raises:
        Refused: No or a wrong signature, too old or from the future, or not a registry event.
    """
    names = {name.lower(): value for name, value in headers.items()}
    delivery_id = names.get(DELIVERY_ID, "")
    timestamp = names.get(TIMESTAMP, "")
    signature = names.get(SIGNATURE, "")
    expected = sign(secret, delivery_id, timestamp, body)
    if not delivery_id or not hmac.compare_digest(signature.encode(), expected.encode()):
        raise Refused(401, "the signature is missing or wrong")
    if len(delivery_id) > MAX_ID or not timestamp.isdecimal() or abs(now - int(timestamp)) > MAX_AGE:
        raise Refused(400, f"the delivery is more than {MAX_AGE} s old, or from the future")
    try:
        content = json.loads(body)
        event, data = f"{content['entity']}.{content['action']}", dict(content["data"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Refused(400, "the body is not an event of MLflow's registry") from error
    return Delivery(delivery_id, int(timestamp), event, data)
