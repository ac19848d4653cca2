"""Says which known word may be meant by one that is not known."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], *, otherwise: str = "") -> str:
    """Return in words which known word is meant; if none is near, ``otherwise``, or else what the known ones are."""
    import difflib  # noqa: PLC0415 -- takes a while, and only errors need it

    words = [*known]
    near = difflib.get_close_matches(word, words, n=1)
    return f"did you mean `{near[0]}`?" if near else otherwise or f"expected one of {', '.join(words)}"
