"""Decides what each name resolves to. Everything here is a function of values: no clock, no file, no socket, no log.

The rules
=========

Citus trusts whatever a name resolves to, so a wrong name can lose committed transactions. These rules keep that from
happening, and they stand above everything else in the program. Code that keeps a rule cites it by its number.

R1  **Evidence.** A name moves only on evidence: what a probe saw of a server, or what Patroni says. Silence alone is
    no evidence, and a failed login does not prove that a server is down. When the agent cannot tell, it changes
    nothing; the name is *held*. The local role is held likewise: while the local server cannot be asked, its last known
    role stands. An operator who pins a name chooses among servers that were seen in its role, and replaces no evidence.
R2  **Never on a standby.** A name that wants a primary never resolves to a server that was last seen in recovery. These
    are the names with ``route: primary`` and, while the local server is a primary or is about to become one, those with
    ``route: follow``. On a standby Citus' 2PC recovery would find no prepared transactions, and take them for finished.
    A name with no better address is *fenced*: it resolves to 255.255.255.255, where ``connect()`` fails in the kernel
    at once. Fencing needs evidence too.
R3  **Own name, own address.** Once the agent has recognised the local server among a name's nodes, a name with
    ``route: follow`` resolves to the local server's own address, whatever its role; R3 goes before R2. Citus reads its
    own intermediate results from the local disk, and takes a missing file for an empty one. A name with a fixed route
    (``primary``, ``standby``) keeps to it there too; such a name in ``pg_dist_node`` is an error.
R4  **Before, not after.** When Patroni promotes the local server, the names move before it takes writes: Patroni's
    ``pre_promote`` hook tells the agent and waits until the names have moved. The hook gives up within 3 s (later only
    where Python itself starts slowly), and without ``--strict`` it always exits with 0, so it prevents no promotion.
R5  **No session left behind.** After every change of an address in the file the agent flushes the connections that
    Citus has cached, confirms the flush, and tries again until that succeeds.
R6  **Citus' work on other nodes is guarded.** The agent runs 2PC recovery and the clean-up of orphaned resources in
    place of Citus. Each of the two asks in its own transaction which servers Citus reaches, and rolls back unless all
    of them were primaries. They run only while the local server is its group's accepted primary (and holds the leader
    lock, where Patroni is configured), every name that wants a primary resolves to a confirmed one or is fenced, and
    the last change is written and flushed.
R7  **The file.** Bytes outside the block never change; only a newline that is missing before the block is added. The
    file is replaced by a rename, so no reader sees a partial file. Where that is impossible (a bind mount) it is
    written in place: ``hosts.atomic_file`` says what a reader may see then. An agent that stops or is killed leaves the
    names as they are.
R8  **Say so.** Whatever is held, fenced, fallen back, refused or overdue is an *alert*: a log line when it begins,
    another when it ends, and an entry in ``status`` (and its exit code) for as long as it lasts.

The order to read in
====================

``observation`` (what probes saw and Patroni says), ``state`` and ``decision`` (the result), ``view`` (one group at one
moment), ``system_id`` (which servers belong to a group), ``primary`` (the rows P), ``lag``, ``standby`` (the rows S),
``assess`` (one group, from observations to a view), ``local_server`` (the local role, R3 and R4), ``queue`` (the rows
Q), ``pin`` (the rows M: what the operator decides by hand), and ``decide``, which calls all of them.
"""
