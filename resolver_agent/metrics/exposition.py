"""Prometheus' text format, version 0.0.4: values in, text out.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from resolver_agent.system.histogram import Distribution

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "resolver_agent_"

_IN_HELP = str.maketrans({"\\": r"\\", "\n": r"\n"})
_IN_LABEL = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


@dataclasses.dataclass(frozen=True, slots=True)
class Family:
    """A metric: its name without the prefix, its type, what it means, and a value for each set of labels."""

    name: str
    kind: str
    help: str
    samples: tuple[tuple[Mapping[str, str], float | Distribution], ...]


def render(families: Iterable[Family]) -> str:
    """Return the metrics as text. A metric without a value is left out."""
    return "".join(line + "\n" for family in families if family.samples for line in _lines(family))


def _lines(family: Family) -> Iterator[str]:
    name = PREFIX + family.name
    yield f"# HELP {name} {family.help.translate(_IN_HELP)}"
    yield f"# TYPE {name} {family.kind}"
    for labels, value in family.samples:
        if isinstance(value, Distribution):
            for bound, count in zip((*value.bounds, math.inf), value.counts, strict=True):
                yield f"{name}_bucket{_labels({**labels, 'le': _number(bound)})} {count}"
            yield f"{name}_sum{_labels(labels)} {_number(value.total)}"
            yield f"{name}_count{_labels(labels)} {value.counts[-1]}"
        else:
            yield f"{name}{_labels(labels)} {_number(value)}"


def _labels(labels: Mapping[str, str]) -> str:
    told = ",".join(f'{key}="{value.translate(_IN_LABEL)}"' for key, value in labels.items())
    return f"{{{told}}}" if told else ""


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1 << 53 else repr(float(value))
