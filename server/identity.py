"""Who calls: decided once for each call, before anything is done for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lakemesh.server.call import Call


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller: a stable id, and how it was learnt."""

    subject: str
    """User id or email as the proxy in front gave it; empty for an anonymous caller."""
    source: str
    """`anonymous` or `forwarded`."""


ANONYMOUS = Identity(subject="", source="anonymous")


class Identifier:
    """Says who calls, from what the port knows."""

    def __init__(self, *, trust_forwarded: bool) -> None:
        """`trust_forwarded`: a proxy in front sets X-Forwarded-User and -Email and strips forged
        ones, as under Databricks Apps; on a direct socket anyone could send them."""
        self._trust_forwarded = trust_forwarded

    def identify(self, call: Call) -> Identity:
        if not self._trust_forwarded:
            return ANONYMOUS
        subject = call.header("x-forwarded-user") or call.header("x-forwarded-email")
        return Identity(subject, "forwarded") if subject else ANONYMOUS
