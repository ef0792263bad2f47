"""A server's answers, bounded: it may be anybody's, and might send for ever."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

LONGEST = 64 * 2**20  # bytes; a completion of 100,000 tokens has less than one


def bound(response: Any, seconds: float) -> None:
    """A hook for a client's responses, which lets through bodies of up to `LONGEST` bytes that come in time.

    The client's own limit is on the silence between two parts. A body that is longer or takes longer ends in the
    client's errors for a connection that broke or was too slow. So does a compressed one, for what it unpacks to has no
    bound; we do not ask for any.

    Args:
        response: ``httpx.Response``, or ``httpx2``'s with newer openai; its body is yet to be read.
        seconds: From here to its end.
    """
    httpx: Any = sys.modules[type(response).__module__.partition(".")[0]]
    if response.headers.get("content-encoding", "identity") != "identity":
        raise httpx.ReadError("a compressed answer")
    deadline = time.monotonic() + seconds

    class Bounded(httpx.SyncByteStream):  # type: ignore[misc]
        def __init__(self, stream: Any) -> None:
            self._stream = stream

        def __iter__(self) -> Iterator[bytes]:
            size = 0
            for part in self._stream:
                size += len(part)
                if size > LONGEST:
                    raise httpx.ReadError(f"an answer of more than {LONGEST:,} bytes")
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("an answer that does not end")
                yield part

        def close(self) -> None:
            self._stream.close()

    response.stream = Bounded(response.stream)
