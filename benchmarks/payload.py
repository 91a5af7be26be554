"""What every server under measurement is asked: one card payment of eight fields."""

from __future__ import annotations

import json
from typing import Any

AGENT = "echo"
EXECUTE = "/lakemesh.api.agent.v1.AgentService/Execute"
TRANSACTION: dict[str, Any] = {
    "transaction_id": "txn_12345",
    "amount": 5000.0,
    "merchant": "Electronics Store",
    "customer_id": "cust_829",
    "category": "electronics",
    "timestamp": "2026-11-23T10:15:00Z",
    "location": "Berlin",
    "card_present": False,
}
REQUEST: dict[str, Any] = {"agent_name": AGENT, "data": TRANSACTION, "metadata": {}}
BODY = json.dumps(REQUEST, separators=(",", ":")).encode()
"""The JSON body."""
