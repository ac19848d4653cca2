"""Citus under Patroni's own integration: one Patroni cluster of three groups, which keeps the metadata itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.integration.support.citus_cluster import DATABASE
from tests.integration.support.patroni_cluster import CitusPatroniCluster

if TYPE_CHECKING:
    from tests.integration.support.machine import Machine

_SCOPE = "citus"
_PRIMARIES = "SELECT groupid, nodename FROM pg_dist_node WHERE noderole = 'primary' ORDER BY groupid"


class CitusMppCluster(CitusPatroniCluster):
    """Citus under Patroni with a ``citus:`` section; the metadata has addresses, and no agent is needed.

    The groups have the numbers that Citus gave them: 0 for ``cn``, 1 for ``wk1``, 2 for ``wk2``.
    """

    def wait_for_addresses(self) -> None:
        """Wait until Patroni has put the primaries' addresses into the metadata."""

        def written() -> bool:
            primaries = [self.lock_holder(group) for group in self.groups]
            wanted = [(number, one.address) for number, one in enumerate(primaries) if one is not None]
            coordinator = primaries[0]
            return coordinator is not None and self.run_sql(coordinator, _PRIMARIES) == wanted

        self._wait(written, "Patroni has not put its addresses into pg_dist_node")

    def _dcs_path(self, group: str) -> str:
        return f"/service/{_SCOPE}/{self._number(group)}"

    def _patroni_config(self, machine: Machine) -> dict[str, Any]:
        number = self._number(self.group_of(machine))
        return super()._patroni_config(machine) | {
            "scope": _SCOPE,
            "citus": {"database": DATABASE, "group": number},
        }

    def _number(self, group: str) -> int:
        return list(self.groups).index(group)
