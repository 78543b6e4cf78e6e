"""Cuts a text at its stop strings while it comes: nothing of a stop string is shown, and nothing behind it.

The rules and the search are `EOSTracker`'s (`proto/eos.py`); here is what may be shown meanwhile. Knows no token.
"""

from __future__ import annotations

from ...proto.eos import EOSTracker


class StopFilter:
    """One stream of text on its way to a reader.

    `found`: the stop string that ended the text; None as long as none has. Text that could be the beginning of one is
    held back until it is or is not.
    """

    __slots__ = ("_held", "_tracker", "found")

    #: The end of the text so far, as far as a stop string may begin in it.
    _held: str

    def __init__(self, tracker: EOSTracker) -> None:
        self._tracker = tracker
        self._held = ""
        self.found: str | None = None

    def feed(self, piece: str, *, may_stop: bool = True) -> str:
        """What may be shown now. A stop string that is complete while it may not stop the text is ordinary text."""
        if self.found is not None:
            return ""
        if not self._tracker.eos_stop_strings:
            return piece
        shown: list[str] = []
        match = self._tracker.find_stop(piece)
        while match is not None:
            text = self._held + piece
            start = len(self._held) + match.start
            if may_stop:
                self.found, self._held = match.stop, ""
                return "".join((*shown, text[:start]))
            end = start + len(match.stop)
            shown.append(text[:end])
            self._held, piece = "", text[end:]
            # What follows may still be, or begin, a stop string that comes when it counts.
            match = self._tracker.find_stop(piece)
        text = self._held + piece
        keep = len(text) - self._tracker.partial_stop_length
        shown.append(text[:keep])
        self._held = text[keep:]
        return "".join(shown)

    def flush(self) -> str:
        """What was held back, when the text ends without having become a stop string."""
        held, self._held = self._held, ""
        return "" if self.found is not None else held
