"""What can go wrong with memory, in words of the domain; no transport or driver is known here."""

from __future__ import annotations

from dataclasses import dataclass


class MemoryStoreError(Exception):
    """Base of everything this module defines; its text may be shown to the caller."""


class MemoryUnavailable(MemoryStoreError):
    """Memory cannot answer now: its database or embedder is down, starting or overloaded.

    Nothing was promised about the call that raised it. Trying again after `retry_seconds` is safe:
    a store that did reach the database is the same row only when it carried a `request_id`.
    """

    def __init__(self, reason: str, retry_seconds: float = 1.0) -> None:
        super().__init__(f"memory is unavailable: {reason}")
        self.reason = reason
        self.retry_seconds = retry_seconds


@dataclass(frozen=True, slots=True)
class MemoryFieldError:
    """One argument, what is wrong with it and what would be right."""

    field: str
    """Path from the request's root, such as `metadata.label` or `top_k`."""
    description: str


class InvalidMemory(MemoryStoreError):
    """What was asked to be stored or looked for cannot be; the argument at fault is named."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.fields = (MemoryFieldError(field, description),)
