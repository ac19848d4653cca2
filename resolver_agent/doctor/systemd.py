"""Asks systemd for the properties of units, for doctor: whatever it answers, the result is a value."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

from resolver_agent.doctor.facts import Unknown
from resolver_agent.doctor.files import why
from resolver_agent.system.foreign import plain

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_MOST_UNITS = 100


def show(
    root: Path, properties: Sequence[str], units: Sequence[str], *, timeout_s: float
) -> list[dict[str, str]] | Unknown | None:
    """Return the properties of units, one dictionary each; None where systemd does not run.

    A name of a unit gives one dictionary, also if there is no such unit, a pattern one for each unit that systemd has
    loaded. The values are as systemd writes them: not fit for a terminal.
    """
    systemctl = shutil.which("systemctl")
    if systemctl is None or not (root / "run/systemd/system").is_dir():
        return None
    command = [systemctl, "show", "--all", f"--property={','.join(properties)}", "--", *units]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return Unknown(f"systemctl show did not end within {timeout_s:g} s")
    except OSError as error:
        return Unknown(f"systemctl cannot be run: {why(error)}")
    if ran.returncode != 0:
        return Unknown(plain(ran.stderr.strip()) or f"systemctl show ended with {ran.returncode}")
    blocks = ran.stdout.strip().split("\n\n")[:_MOST_UNITS]
    return [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in blocks if block]
