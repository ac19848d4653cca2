"""Doctor's files: whatever is at a path, the reason names the error's number too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from resolver_agent.doctor import files
from resolver_agent.doctor.facts import Unknown

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """The words of the kernel are followed by the name of the number."""
    (tmp_path / "loop").symlink_to("loop")
    found = files.read(tmp_path / "loop")
    assert found.text == Unknown("Too many levels of symbolic links (ELOOP)")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(13, "Permission denied"), "Permission denied (EACCES)"),
        (OSError(99999, "odd"), "odd"),
        (OSError("no number"), "no number"),
        (ValueError("embedded null byte"), "embedded null byte"),
        (OSError(2, "x\x1b[2J"), r"x\x1b[2J (ENOENT)"),
    ],
)
def test_why(error: OSError | ValueError, expected: str) -> None:
    """An error without a known number is its words alone."""
    assert files.why(error) == expected
