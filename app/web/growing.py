"""An answer as it grows, as often as a page can show it."""

import time
from collections.abc import Iterator

from app.requests import Piece, Ticket

PAUSE = 0.05  # seconds between two updates: more would only make a browser busy


def growing(ticket: Ticket) -> Iterator[str]:
    """The answer's text so far, again and again; `ticket.result()` has all of it in the end."""
    text, shown = "", -PAUSE
    for item in ticket:
        if isinstance(item, Piece):
            text += item.text
            if time.monotonic() - shown >= PAUSE:
                shown = time.monotonic()
                yield text
