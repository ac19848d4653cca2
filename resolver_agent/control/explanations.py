"""What each alert means, and what to do about it and about other symptoms: texts only, which ``explain`` shows.

Texts are Markdown for one cell of a table. In a symptom, what stands between backticks is said by the agent, and "…" is
what varies there.
"""

from __future__ import annotations

import dataclasses

from resolver_agent.routing.state import AlertCode


@dataclasses.dataclass(frozen=True, slots=True)
class Remedy:
    """A symptom, where to look, and the fix."""

    symptom: str
    look: str
    fix: str


@dataclasses.dataclass(frozen=True, slots=True)
class Explanation:
    """An alert: its code, what it is about, what it means, and the symptoms by which it is met."""

    code: AlertCode
    about: str
    meaning: str
    remedies: tuple[Remedy, ...]


ALERTS: tuple[Explanation, ...] = (
    Explanation(
        AlertCode.HELD,
        "a name",
        "No evidence says where the name should lead, so it stays where it is.",
        (
            Remedy(
                "`held`",
                "`resolver-agent status`: the state of the group's nodes",
                "bring back the node that is dead or unreachable; the name then recovers by itself",
            ),
            Remedy(
                "`as found in the hosts file, without its comment`",
                "what manages the file: a tool has stripped, merged or re-cased the agent's lines",
                "exempt the lines from BEGIN to END. The name is held on that address until a node of its group "
                "answers; on a primary it is fenced, since the address may be a standby's",
            ),
        ),
    ),
    Explanation(
        AlertCode.FENCED,
        "a name",
        "The name leads to no server, and connections fail at once: it must not lead to any that is left.",
        (
            Remedy(
                '`fenced`: clients get "Network is unreachable" from 255.255.255.255',
                '`resolver-agent status`: "no primary" or "no fit standby"',
                "promote a primary, or bring a standby back",
            ),
        ),
    ),
    Explanation(
        AlertCode.FALLBACK,
        "a name",
        "No standby is fit, so reads through the name go to the primary, as `fallback` allows.",
        (
            Remedy(
                "`fallback`",
                "`resolver-agent status`: the state of the group's standbys",
                "bring a standby back; reads return after `failback_delay`",
            ),
        ),
    ),
    Explanation(
        AlertCode.QUEUED,
        "a name",
        "Its server stops as planned, or is lost: connections wait for the next one.",
        (
            Remedy(
                "`new connections wait`",
                "`resolver-agent status`: which server stops, and for how long at most",
                "none is needed during planned work, and with `queue.unplanned`",
            ),
        ),
    ),
    Explanation(
        AlertCode.UNKNOWN,
        "a name",
        "No node of the group ever answered, so the name is left out of the file, and cannot be resolved.",
        (
            Remedy(
                "`is left out`",
                "`resolver-agent status`: why no node of the group could be asked",
                "as for `rejecting` and `unreachable`",
            ),
        ),
    ),
    Explanation(
        AlertCode.WAITED,
        "a name",
        "Connections have waited for a new primary for as long as they may, and failed.",
        (
            Remedy(
                "`nobody took its place in time`",
                "Patroni's log of that group: why was nobody promoted?",
                "as for `held` and `fenced`; `queue.planned` may be too short for this cluster",
            ),
        ),
    ),
    Explanation(
        AlertCode.REJECTING,
        "a node",
        "The server is there, but does not let the agent ask it. A failed login does not prove that it is down, so no "
        "name is changed for it.",
        (
            Remedy(
                "`rejecting`, `cannot be asked`",
                "the reason next to the node: password, `pg_hba.conf`, connection slots",
                "as `systemd/role.sql` says. A server that requests a hashed or cleartext password gets none: "
                "`scram-sha-256` in its `pg_hba.conf`, and set the password again with "
                "`password_encryption = 'scram-sha-256'`",
            ),
            Remedy(
                "`it sends too much`, `it sends more than an answer to a probe`, `is not PostgreSQL's`",
                "what listens at that address?",
                "the address or port under `nodes`; if it is PostgreSQL, find out who controls it",
            ),
            Remedy(
                "`has not finished the log-in`",
                "what listens at that address: it makes this agent compute for ever",
                "the address under `nodes`; then restart the agent",
            ),
        ),
    ),
    Explanation(
        AlertCode.ADDRESS,
        "a node",
        "The node was reached at an address that no name can have, such as 0.0.0.0 or one with a zone.",
        (
            Remedy(
                "`where no name can lead`",
                "`getent ahosts HOST` for the node's DNS name on this host",
                "correct the record, or configure the address",
            ),
        ),
    ),
    Explanation(
        AlertCode.NOT_SERVING,
        "a node",
        "The server starts up, recovers or shuts down. It gets no reads meanwhile.",
        (
            Remedy(
                "`is not serving`",
                "the server's log on that node: it starts up, recovers or shuts down",
                "wait; reads go to another standby meanwhile",
            ),
        ),
    ),
    Explanation(
        AlertCode.FOREIGN,
        "a name and a node",
        "The node's system identifier is not that of the group. No name leads there.",
        (
            Remedy(
                "`is of another database cluster`",
                "the `nodes` of that name; was the node initialised again?",
                "correct the address, or rebuild the node from its primary. A group that was initialised anew counts "
                "once its Patroni says so or all its nodes have the new identifier; without `patroni:`, once no node "
                "is left that may have the old one. Take a node that is gone for good out of `nodes`, and reload",
            ),
        ),
    ),
    Explanation(
        AlertCode.PRIMARIES,
        "a name",
        "Several servers of one group take writes, and what is written to the wrong one will be lost.",
        (
            Remedy(
                "`several primaries`",
                "`SELECT pg_is_in_recovery()` on each node",
                "stop the wrong one before anything else",
            ),
        ),
    ),
    Explanation(
        AlertCode.REPLACED,
        "a name",
        "The group's servers have another system identifier than before: the name leads to another database cluster.",
        (
            Remedy(
                "`another database cluster took its place`",
                "was this group meant to be initialised or upgraded anew?",
                "if so, `systemctl reload resolver-agent` confirms it. If not, stop the wrong server; the name returns "
                "when the right one answers",
            ),
        ),
    ),
    Explanation(
        AlertCode.LOCAL,
        "the local PostgreSQL",
        "The local server cannot be asked for its role. The last known one stands; without one it counts as a primary.",
        (
            Remedy(
                "`the local PostgreSQL is`",
                "`local` in the configuration; is it running?",
                "start it; add the `pg_ident.conf` line of `systemd/role.sql`",
            ),
        ),
    ),
    Explanation(
        AlertCode.ANNOUNCED,
        "the local PostgreSQL",
        "Names lead to primaries, because Patroni has announced a promotion that has not happened yet.",
        (
            Remedy(
                "`a promotion of the local PostgreSQL was announced`",
                "`patronictl list`: is a promotion under way? Long queries delay replay, and the promotion with it",
                "wait; if no promotion is under way, `resolver-agent pre-promote --cancel`",
            ),
        ),
    ),
    Explanation(
        AlertCode.PATRONI,
        "a node or a name",
        "What this Patroni says does not count. Names follow what the servers themselves say.",
        (
            Remedy(
                "`Patroni at … cannot be asked`",
                "`curl http://ADDRESS:PORT/patroni` from this node (with TLS, `https` and the certificates): does it "
                "answer?",
                "start Patroni there, open the port, or correct the name's `patroni`",
            ),
            Remedy(
                "`than all servers that answer: it does not count`",
                "`curl http://ADDRESS:PORT/patroni`: whose Patroni is it?",
                "correct the name's `patroni.port`, and reload",
            ),
            Remedy(
                "`cannot tell who holds the leader lock`",
                "`patronictl list`: does Patroni reach its DCS? While the cluster is paused without it, every Patroni "
                "beside a primary calls itself the leader",
                "bring the DCS back. Until then SQL alone decides, and 2PC recovery waits",
            ),
        ),
    ),
    Explanation(
        AlertCode.SCOPES,
        "a name",
        "The nodes' Patronis have different scopes, and nobody can tell which is the group's. None of them counts.",
        (
            Remedy(
                "`its nodes are of several Patroni clusters`",
                "the scopes in the alert: which nodes are not of this group?",
                "correct the name's `nodes`, or `patroni.port`, and reload",
            ),
        ),
    ),
    Explanation(
        AlertCode.SCOPE,
        "a name and a node",
        "The node's Patroni has another scope than the group's. It does not count.",
        (
            Remedy(
                "`is of cluster … it does not count`",
                "the scopes in the alert; does that machine run several Patronis?",
                "correct the node or `patroni.port`, and reload; if the group was renamed, restart the agent",
            ),
        ),
    ),
    Explanation(
        AlertCode.MEMBER,
        "a name and a node",
        "Patroni lists a member that the agent must not log in to. No name leads there.",
        (
            Remedy(
                "`it is neither in nodes nor in networks`",
                "`patronictl list`: is that member one of yours?",
                "add it to the name's `nodes`, or its network to `patroni.networks`, and reload",
            ),
            Remedy(
                "`Patroni's member … is ignored`",
                "the reason in the alert, and `patronictl list`",
                "correct the address by which that member's `patroni.yml` makes it known (`connect_address`), or the "
                "name's `nodes`",
            ),
        ),
    ),
    Explanation(
        AlertCode.MEMBERS,
        "a name",
        "Patroni answers, but not with the members of its cluster. The ones that are known stay.",
        (
            Remedy(
                "`Patroni does not say who the members are`",
                "the reason in the alert; `curl http://ADDRESS:PORT/cluster`",
                "as the alert says; mostly, Patroni's DCS does not answer",
            ),
        ),
    ),
    Explanation(
        AlertCode.FILE,
        "the hosts file",
        "The hosts file cannot be read or written, so no name can move.",
        (
            Remedy(
                "`cannot be written`",
                "the reason in the alert, with its hint: full disk, `chattr +i`, …",
                "as the alert says",
            ),
            Remedy(
                "`is still being written`",
                "`dmesg`, and what else writes to that disk",
                "the disk does not answer; the agent goes on, and writes what is decided by then once it does",
            ),
            Remedy(
                "`was changed by somebody else during each of`",
                "what manages the file, and writes it all the time",
                "stop it; the agent goes on trying",
            ),
            Remedy(
                "`is no regular file`, `is larger than`",
                "`ls -l` of the hosts file",
                "put a file of at most 64 MiB there",
            ),
            Remedy(
                "`below it: put that back, or delete this line`, `above it: put that back, or delete this line`",
                "the line named in the alert",
                "put the other marker back, or delete the line; until then nothing is written",
            ),
            Remedy(
                "`is an altered marker`",
                "the line named in the alert: a tool has indented or re-cased it",
                "write the marker as the alert says, or delete the line; until then nothing is written",
            ),
            Remedy(
                "`in resolver-agent's block cannot be read`, `has another address above it`",
                "the line named in the alert",
                "correct the line, or delete it; until then nothing is decided",
            ),
        ),
    ),
    Explanation(
        AlertCode.NOTE,
        "the hosts file",
        "The file is written, but not by a rename with everything that belongs to it.",
        (
            Remedy(
                "`it cannot be replaced`",
                "a bind mount: the agent runs in a container",
                "none is needed: the file is written in place, which is nearly as safe. The alert stays for as long as "
                "that is so",
            ),
            Remedy(
                "`its other hard links keep the old content`",
                "`find / -xdev -samefile /etc/hosts` before the next change",
                "none, unless something reads the file by another link: make that a symbolic one",
            ),
            Remedy(
                "`its attribute … is lost`",
                "the attribute named in the alert: the agent may not set it",
                "none, unless something needs it: then the agent must run with the right to set it",
            ),
        ),
    ),
    Explanation(
        AlertCode.TRAMPLED,
        "the hosts file",
        "Another program keeps changing the agent's lines. They are put back, at growing intervals.",
        (
            Remedy(
                "`somebody else keeps changing resolver-agent's lines`, `somebody else changed resolver-agent's lines`",
                "what manages the file: configuration management, DHCP hooks",
                "exempt the lines from BEGIN to END",
            ),
        ),
    ),
    Explanation(
        AlertCode.CONFLICT,
        "a name and a line of the hosts file",
        "A line outside the block has the name too, so clients may reach a server that the agent did not choose.",
        (
            Remedy(
                "`lookups return both addresses`",
                "the line named in the alert",
                "take the name out of that line; the agent never edits lines outside its block",
            ),
        ),
    ),
    Explanation(
        AlertCode.PINNED,
        "a name",
        "The operator has pinned the name to an address, and it stays there.",
        (
            Remedy(
                "`is pinned to`",
                "the alert's text: to which address, until when, and why",
                "none is needed during planned work; `resolver-agent unpin NAME` ends it. 2PC recovery waits meanwhile",
            ),
        ),
    ),
    Explanation(
        AlertCode.PIN,
        "a name",
        "The name has a pin that could lose data, or does not fit: it does what it does without.",
        (
            Remedy(
                "`the pin does not count`",
                "the reason behind it, and what `resolver-agent status` says of that server",
                "`resolver-agent unpin NAME`; or leave it: it counts again as soon as the reason is gone",
            ),
            Remedy(
                "`has ended: another server is the primary`",
                "`resolver-agent status NAME`: which server is the primary now, and was that meant?",
                "none is needed: writes follow the primary. Pin the name again if that is still wanted",
            ),
        ),
    ),
    Explanation(
        AlertCode.PAUSED,
        "this node",
        "The operator has paused the names: none moves that does not have to.",
        (
            Remedy(
                "`names are paused`",
                "the alert's text: until when, and why",
                "none is needed during planned work; `resolver-agent resume` ends it. 2PC recovery waits meanwhile",
            ),
        ),
    ),
    Explanation(
        AlertCode.DEFECT,
        "the agent",
        "A part of the agent fails, and is tried again. Names may stay where they are meanwhile.",
        (
            Remedy(
                "`the names are not kept up to date`, `a server or its Patroni is not observed`, "
                "`something failed that should not`",
                "the reason in the alert, with a traceback in the log: no thread, no memory, or a defect",
                "give the host what it is short of, and report a defect. The agent goes on trying; systemd restarts it "
                "after 10 s",
            ),
        ),
    ),
    Explanation(
        AlertCode.HTTP,
        "the agent",
        "Metrics and health are not served over HTTP. The names do not depend on it.",
        (
            Remedy(
                "`http.listen: nobody can ask at`",
                "the reason in the alert; `ss -ltnp` shows who listens at that port",
                "another port, or an address that this host has; a port below 1024 needs a drop-in with "
                "`CapabilityBoundingSet=CAP_NET_BIND_SERVICE`. It is tried again at least every 30 s",
            ),
        ),
    ),
    Explanation(
        AlertCode.STATE,
        "the agent's state folder",
        "What should outlive a restart of the agent cannot be kept in its folder, and is kept in memory alone.",
        (
            Remedy(
                "`kept in memory alone`, `the history of changes cannot be saved`",
                "the reason in the alert: a full disk, or a `state_dir` that others may write",
                "as the alert says. Names are kept right all the same; what is in memory is lost at a restart",
            ),
            Remedy(
                "`no name is pinned or paused`",
                "the reason in the alert: a file that another program wrote, a disk that does not answer",
                "delete `overrides.json` in `state_dir`, and pin or pause again what still has to be",
            ),
            Remedy(
                "`a restart loses pins and a pause, or brings back old ones`",
                "the reason in the alert: a disk that is full or hangs, or a `state_dir` that others may write",
                "as the alert says; it is tried again every 30 s",
            ),
        ),
    ),
    Explanation(
        AlertCode.ON_CHANGE,
        "the command of `on_change`",
        "The command that is run at each change of a name has failed. The names are right all the same.",
        (
            Remedy(
                "`it was run for`, `the command at a change cannot be run`",
                "the reason in the alert, with the end of the command's output; what does the unit's sandbox deny it?",
                "run it by hand with the `RESOLVER_AGENT_…` variables, and mend it; the alert ends with its next run "
                "that succeeds. It is not run again for old changes",
            ),
            Remedy(
                "`changes wait, and the oldest are not told`, `was not told`",
                "how long a run takes; how many names move at once. `resolver-agent history` has the changes",
                "a quicker command: one run is told up to 50 changes. The alert ends with a later change that is told",
            ),
        ),
    ),
    Explanation(
        AlertCode.CONFIG,
        "the configuration",
        "A reload found a faulty configuration, and changed nothing.",
        (
            Remedy(
                "`the configuration stays as it was`, `the configuration cannot be read`",
                "`resolver-agent --validate-config`",
                "correct the file, `systemctl reload resolver-agent`",
            ),
            Remedy(
                "`that only root may change`",
                "`ls -ld` of the file or folder named there",
                "the command at the end of the message: as root the agent reads no configuration that others may write",
            ),
        ),
    ),
    Explanation(
        AlertCode.FLUSH,
        "Citus",
        "A name has moved, but sessions may still use connections to its old server.",
        (
            Remedy(
                "`cached connections are not flushed`",
                "the reason in the alert; until then sessions may use old connections, and 2PC recovery waits",
                "as the alert says: mostly, run `systemd/role.sql` on the primary of that group",
            ),
        ),
    ),
    Explanation(
        AlertCode.CONNINFO,
        "Citus",
        "The value that the agent keeps in `citus.node_conninfo` is no longer in any configuration file.",
        (
            Remedy(
                "`no configuration file sets citus.node_conninfo any more`",
                "`SELECT * FROM pg_file_settings WHERE name = 'citus.node_conninfo'`. When Patroni is started while "
                "PostgreSQL runs, it does not see the value below the agent's, and leaves it out when it next writes "
                "`postgresql.conf`. Until then the old value stands",
                "as the alert says: mostly, `patronictl reload`",
            ),
        ),
    ),
    Explanation(
        AlertCode.RECOVERY,
        "Citus, or one database",
        "Transactions that were prepared on other nodes are not resolved, and keep their locks.",
        (
            Remedy(
                "`2PC recovery is overdue`",
                "the reason in the alert, and the other alerts",
                "fix the name that it mentions: it must resolve to a primary, or be fenced. Or bring Patroni's API "
                "back. Prepared transactions keep their locks until then",
            ),
            Remedy(
                "`2PC recovery in database`",
                "the reason in the alert. `rolled back` lost nothing: what was resolved on primaries stays resolved, "
                "and the rest is tried again. `canceling statement due to lock timeout`: somebody's transaction has "
                "held `pg_dist_node` or `pg_dist_transaction` for longer than 2 s; see `pg_locks`",
                "as the alert says. For a lock nothing if it ends soon: recovery is tried again every 10 s",
            ),
            Remedy(
                "`a server of another group`",
                "`getent ahosts NAME`; lines with that name outside the block; the `nodes` of that name",
                "remove those lines, or correct the `nodes`. Until then nothing is recovered, and nothing is lost",
            ),
            Remedy(
                "`its name is no printable UTF-8`",
                "`SELECT datname FROM pg_database`",
                "`ALTER DATABASE … RENAME TO …`",
            ),
        ),
    ),
    Explanation(
        AlertCode.PREPARED,
        "a database",
        "A transaction from another node has been prepared here for minutes, and keeps its locks.",
        (
            Remedy(
                "`has been prepared for`",
                "`SELECT * FROM pg_prepared_xacts`; the number after `citus_` is the group it came from",
                "find out why the agent on that group's primary does not recover it. Never roll it back by hand: it "
                "may be committed",
            ),
        ),
    ),
)
"""The alerts, in the order of their codes."""

OTHERS: tuple[Remedy, ...] = (
    Remedy(
        "`unreachable`, `no answer within`",
        "`psql -h ADDRESS -U resolver_agent postgres` from this node",
        "firewall, network, or a server that hangs",
    ),
    Remedy(
        "`says Patroni`",
        "`patronictl list` on the member that `status` names",
        "reads return when it streams again",
    ),
    Remedy(
        "`messages were dropped here`",
        "`systemctl status systemd-journald`, and its limits in `journald.conf`; `log.level`",
        "the journal did not take the agent's lines in time. Names were kept all the same; `history` has their changes",
    ),
    Remedy(
        "`there is no waiting room`",
        "the reason in the log line; `resolver-agent doctor`",
        "PostgreSQL must not listen on all addresses: `listen: 127.0.0.1,ADDRESS:PORT`",
    ),
    Remedy(
        "`statements are not held at the gate`, `connections stay cached`",
        "the reason in the log line",
        "run `role.sql` again on the primary, in each database that has Citus; more connection slots",
    ),
    Remedy(
        "`it is not known what is under way on the local PostgreSQL`, "
        "`it is not known whether the local PostgreSQL is a coordinator`",
        "the reason in the log line",
        "as for `the local PostgreSQL is`; until then planned stops are not coordinated here",
    ),
    Remedy(
        "`cannot be forwarded`, `could not be forwarded to`",
        "the reason in the log line; does this host reach the server that the name leads to?",
        "firewall, network, or what the host is short of. What waited has failed: clients connect again",
    ),
    Remedy(
        "`had been left at 0 for a planned stop`",
        "the log before: the agent was killed during a planned stop",
        "none is needed: sessions cache connections again",
    ),
    Remedy(
        "`not listening to other agents there`",
        "the reason in the log line. Of too many: who sends NOTIFY on the channel `resolver_agent` in that database?",
        "stop it, or as the reason says; the agents hear each other again after a minute at most",
    ),
    Remedy(
        "`a message to other agents is lost`",
        "`pg_stat_activity` there: a session with `wait_event` `SyncRep`, whose NOTIFY has all others wait",
        "the standby that it waits for; a planned stop that was announced meanwhile has not been coordinated",
    ),
    Remedy(
        "`no agent runs in`",
        "`systemctl status resolver-agent` and `journalctl -u resolver-agent`",
        "`systemctl start resolver-agent`. If it runs, give `status` the same `-c`",
    ),
    Remedy(
        "`you may not ask the agent`, `may not ask for`",
        "`ls -l /run/resolver-agent`",
        "ask as root, or as a member of the group `postgres`; other users see only the names in the file",
    ),
    Remedy(
        "`is held by another agent`",
        "`ps -p NUMBER`, with the process number given there",
        "stop it first; to try things out, use another `runtime_dir` and `hosts_file`. One hosts file has one agent, "
        "also with another `runtime_dir`",
    ),
    Remedy(
        "`who could lead root to any other file`, `who could hold the lock`",
        "`ls -ld` of the folder or file named there",
        "as the message says. The agent's folder, and that of the hosts file, must be root's, with everything above "
        "them",
    ),
    Remedy(
        "`see to it that no other agent manages`",
        "the reason in the warning: a read-only folder, a full disk",
        "run one agent for that hosts file; without the lock nothing else prevents a second one",
    ),
    Remedy(
        "`a client of the control socket has to wait`",
        "`ss -xp` shows who is connected to `control.sock`: who asks so often?",
        "let it ask less often; the agent itself is not delayed",
    ),
    Remedy(
        "`file descriptors are allowed`",
        "`systemctl show -p LimitNOFILE resolver-agent`",
        "`LimitNOFILE=` in a drop-in, as high as the line says; without it the last nodes cannot be asked",
    ),
    Remedy(
        "`an unexpected error`, `is not told`, `cannot be answered`, `could not be answered`",
        "the traceback below it in the log",
        "report it: it is a defect, of a part that no name depends on",
    ),
    Remedy(
        "the block is gone after each boot",
        "`grep -r manage_etc_hosts /etc/cloud /var/lib/cloud/instance/*cloud-config.txt`",
        "`manage_etc_hosts: false`. What came from the cloud (in `/var/lib`) overrides `/etc/cloud`: then take "
        "`update_etc_hosts` out of `cloud_init_modules` in `/etc/cloud/cloud.cfg`. The block is the agent's memory: "
        "without it, a name whose nodes are all down has no address",
    ),
    Remedy(
        "lookups give another address than the file",
        "`getent ahosts wk1`; is nscd running? `grep ^hosts /etc/nsswitch.conf`",
        "`nscd -i hosts` once, and `enable-cache hosts no` in `/etc/nscd.conf`; `files` must come first in "
        "nsswitch.conf",
    ),
    Remedy(
        "a host name in pg_hba.conf no longer matches",
        "`getent hosts ADDRESS` on the server: does it return `wk1`? The server compares that name",
        "use addresses in `pg_hba.conf`, or put a line with the host's own name above the block in `/etc/hosts`",
    ),
    Remedy(
        "a container resolves old addresses",
        "does it bind-mount the host's `/etc/hosts`? It keeps the file that was there when it started",
        "run an agent in the container, or restart it after each change",
    ),
    Remedy(
        "sessions of plain PostgreSQL clients are on the old server",
        "`SELECT * FROM pg_stat_activity` there",
        "end them: without Citus, a changed name affects only new connections",
    ),
    Remedy(
        "`is invalid: a DROP DATABASE was interrupted`",
        "`SELECT datname FROM pg_database WHERE datconnlimit = -2`",
        "`DROP DATABASE` it again: it can do nothing else. The agent does not ask it",
    ),
    Remedy(
        "`could not be found out`",
        "the rows of `pg_dist_node` that the finding lists: which server answers there?",
        "give each the name of its group with `citus_update_node`; add a node only when its server is in no row",
    ),
)
"""Symptoms that are no alert: in the state of a node, a reason, a line of the log, or on the command line."""
