"""The steps that ``resolver-agent demo`` shows on throw-away PostgreSQL servers.

Each step makes something happen, waits until every name resolves to the expected server on both coordinators, and
prints how long that took. The docstring of a step is printed: it says what happens and why that is useful. If the
expected outcome does not come, the demonstration ends.
"""

from __future__ import annotations

import contextlib
import inspect
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from resolver_agent.demo.binaries import ThrowawayError
from resolver_agent.demo.cluster import ADDRESSES, Cluster, NotShownError, promote
from resolver_agent.demo.postgres import Site
from resolver_agent.routing.state import FENCE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SHOWN, NOT_SHOWN, TROUBLE = 0, 1, 2

# With our own folder: a package of a distribution has it where Python does not look by itself.
_RUN = "import sys; sys.path.insert(0, {!r}); from resolver_agent.cli import main; sys.exit(main())"
_AGENT = (sys.executable, "-c", _RUN.format(str(Path(__file__).parents[2])))


def main(agent: Sequence[str] = _AGENT, *, deadline_s: float = 10.0) -> int:
    """Run the demonstration, and return the exit code: 0 all was shown, 1 something was not, 2 it could not begin.

    ``agent`` is the agent's command line without arguments. Each wait may take ``deadline_s`` seconds.
    """
    begun = time.monotonic()
    place = ""
    try:
        with contextlib.ExitStack() as stack:
            site = stack.enter_context(Site(guarded=True))
            _say(_INTRODUCTION.format(site=site))
            cluster = Cluster(site, agent, deadline_s=deadline_s)
            stack.callback(cluster.close)
            for number, step in enumerate(_STEPS, start=1):
                title, _, why = inspect.cleandoc(step.__doc__ or "").partition("\n\n")
                place = f"step {number} did not happen ({title.rstrip('.')}): "
                _say(f"\n{number}. {title}\n{textwrap.indent(why, '   ')}")
                for shown in step(cluster):
                    _say(f"\n{textwrap.indent(shown, '   ')}")
    except (NotShownError, ThrowawayError, psycopg.Error, subprocess.TimeoutExpired) as error:
        print(f"resolver-agent demo: {place}{error}", file=sys.stderr)
        return NOT_SHOWN if place else TROUBLE
    _say(f"\nAll was shown, in {time.monotonic() - begun:.0f} s. The servers, the agents and their files are gone.")
    return SHOWN


_INTRODUCTION = """\
This starts a small cluster on loopback addresses and port {site.port}: the
coordinator (cn) and two workers (wk1, wk2). Each has a primary and a standby
that streams from it. An agent runs for each of the two coordinator servers,
and writes the names to a hosts file of its own. /etc/hosts is not touched.
The servers are {site.binaries}.
Everything is in {site.folder}, which is removed at the end."""


def _show_names(cluster: Cluster) -> Iterator[str]:
    """Names follow the local role.

    Citus' metadata holds names instead of addresses. On the primary
    coordinator (cn-1) they resolve to the worker primaries, on the standby
    coordinator (cn-2) to the worker standbys. So reads on cn-2 use servers
    that would otherwise be idle.
    """
    first, second = (dict(zip(ADDRESSES, pair, strict=True)) for pair in zip(*ADDRESSES.values(), strict=True))
    yield cluster.expect(cluster.agents_started_at, "the agents were started", cn1=first, cn2=second)


def _promote_worker(cluster: Cluster) -> Iterator[str]:
    """A worker primary dies, and its standby is promoted.

    cn-1 writes, so its wk1 moves to the new primary as soon as there is one.
    cn-2 has no standby of wk1 left to read from. Until the old primary is back
    as a standby, its wk1 is fenced: it resolves to 255.255.255.255, and a
    connection fails at once. A dead server's address may keep a query waiting.
    """
    old, new = cluster.wk1
    old.kill()
    yield cluster.expect(promote(new), f"{new.name} took writes", cn1={"wk1": new.address}, cn2={"wk1": FENCE})
    cluster.site.rejoin(old, of=new)
    yield cluster.expect(time.monotonic(), f"{old.name} streamed from {new.name}", cn2={"wk1": old.address})


def _lose_standby(cluster: Cluster) -> Iterator[str]:
    """A worker standby dies, with `fallback: none`.

    You choose what reads do without a standby. With `none` they fail with an
    error. That is the safe choice if reads on the standby coordinator use the
    same database role as writes: on a worker that both coordinators use, their
    intermediate results can overwrite each other.
    """
    lost = cluster.wk2[1]
    lost.kill()
    yield cluster.expect(time.monotonic(), f"{lost.name} was killed", cn2={"wk2": FENCE})


def _fall_back_to_primary(cluster: Cluster) -> Iterator[str]:
    """The same standby is missing, with `fallback: primary`.

    If reads on the standby coordinator use a database role of their own, they
    may go on, on the primary of the group that lacks a standby. The agents read
    the changed configuration on SIGHUP.
    """
    told_at = time.monotonic()
    cluster.reload_agents(fallback="primary")
    yield cluster.expect(told_at, "SIGHUP", cn2={"wk2": cluster.wk2[0].address})


def _fall_back_together(cluster: Cluster) -> Iterator[str]:
    """The same standby is missing, with `fallback: all`.

    In a repartition join the workers connect to each other. It fails on a
    mixture of primaries and standbys. With `all` every name resolves to its
    primary for as long as one group lacks a standby.
    """
    told_at = time.monotonic()
    cluster.reload_agents(fallback="all")
    yield cluster.expect(told_at, "SIGHUP", cn2={"wk1": cluster.wk1[1].address})


def _return_standby(cluster: Cluster) -> Iterator[str]:
    """The standby comes back.

    Reads return once it has been healthy for `failback_delay`, so that they do
    not follow a server that comes and goes. The default is 10 s, here it is 1 s.
    """
    back = cluster.wk2[1]
    back.start()
    changed = {"wk1": cluster.wk1[0].address, "wk2": back.address}
    yield cluster.expect(time.monotonic(), f"{back.name} accepted connections", cn2=changed)


def _blind_agents(cluster: Cluster) -> Iterator[str]:
    """Agents that cannot log in change nothing.

    The agents' database role loses its LOGIN, and both agents are killed and
    started again. They cannot ask any server, and know only what their hosts
    files say. A failed login does not prove that a server is down, and moving a
    name on a guess could cause an outage. So every name stays, and alerts say
    why.
    """
    for one in cluster.coordinators:
        one.kill_agent()
    cluster.alter_role("NOLOGIN")
    restarted_at = time.monotonic()
    for one in cluster.coordinators:
        one.start_agent()
    barring = {f"{server.address}:{server.port}" for server in cluster.servers}
    cluster.wait(
        lambda: all(barring <= {text.split()[0] for text in one.alerts()} for one in cluster.coordinators),
        "an alert is missing for a server that refuses the login",
    )
    second = cluster.coordinators[1]
    yield cluster.expect(restarted_at, "the restart")
    yield f"{second}: {len(second.alerts())} alerts, the first:\n  {second.alerts()[0]}"
    cluster.alter_role("LOGIN")
    allowed_at = time.monotonic()
    cluster.wait(lambda: not any(one.alerts() for one in cluster.coordinators), "an alert does not end")
    yield f"The alerts ended {(time.monotonic() - allowed_at) * 1000:.0f} ms after the role had its LOGIN again."


def _dry_run(cluster: Cluster) -> Iterator[str]:
    """What would a promotion change?

    `resolver-agent once --dry-run --role primary` for cn-2 shows what would
    change in its hosts file, and changes nothing.
    """
    ran = cluster.coordinators[1].start("once", "--dry-run", "--role", "primary")
    output, _ = ran.communicate(timeout=10)
    if ran.returncode != 1 or f"\n+{cluster.wk1[1].address}\twk1\t" not in output:
        raise NotShownError(f"the dry run ended with exit code {ran.returncode}; its output:\n{output}")
    yield output.rstrip()
    yield cluster.expect(time.monotonic(), "the dry run")


def _promote_coordinator(cluster: Cluster) -> Iterator[str]:
    """The coordinator primary dies, and its standby is promoted.

    cn-2 takes writes now, which would fail on worker standbys. Its names change
    as the dry run showed. The agent of the dead cn-1 cannot see its server's
    role any more, so the last known role counts.
    """
    old, new = cluster.cn
    old.kill()
    changed = {"wk1": cluster.wk1[1].address, "wk2": cluster.wk2[0].address}
    yield cluster.expect(promote(new), f"{new.name} took writes", cn2=changed)


def _fence(cluster: Cluster) -> Iterator[str]:
    """A name without a primary is fenced.

    A switchover demotes the old primary before it promotes the new one. If the
    name stayed on that server, which is a standby now, Citus' transaction
    recovery would not find its prepared transactions there, take them for
    finished, and lose committed rows. So a name that is used for writes never
    resolves to a server that was seen in recovery.
    """
    old, new = cluster.wk2
    old.stop()
    old.write("standby.signal", "")
    old.start()
    fenced, changed = {"wk2": FENCE}, {"wk2": new.address}
    yield cluster.expect(time.monotonic(), f"{old.name} was up as a standby", cn1=fenced, cn2=fenced)
    yield cluster.expect(promote(new), f"{new.name} took writes", cn1=changed, cn2=changed)


_STEPS = (
    _show_names,
    _promote_worker,
    _lose_standby,
    _fall_back_to_primary,
    _fall_back_together,
    _return_standby,
    _blind_agents,
    _dry_run,
    _promote_coordinator,
    _fence,
)


def _say(text: str) -> None:
    print(text, flush=True)
