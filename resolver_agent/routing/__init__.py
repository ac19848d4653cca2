"""Decides where each name leads. Everything here is a function of values: no clock, no file, no socket, no log.

The rules
=========

Citus trusts whatever a name resolves to, so a wrong name can lose committed transactions. These rules keep that from
happening, and they stand above everything else in the program. Code that keeps a rule cites it by its number.

R1  **Evidence.** A name moves only on evidence: a fresh observation of a server, or what Patroni says. When the agent
    cannot tell, it changes nothing; the name is *held*. The local role is held likewise: while the local server cannot
    be asked, its last known role stands. A failed login does not prove that a server is down.
R2  **Never on a standby.** While the local server is a primary, or is about to become one, a name that follows it, and
    a name with ``route: primary`` always, never leads to a server that was seen in recovery: Citus' 2PC recovery would
    take that server's empty list of prepared transactions for the truth. A name with no better address is *fenced*: it
    leads to 255.255.255.255, where ``connect()`` fails in the kernel at once. Fencing needs evidence too.
R3  **Own name, own address.** A name of the group that the local server belongs to always leads to the local server's
    own address. Citus reads its own intermediate results from the local disk, and takes a missing file for an empty
    one.
R4  **Before, not after.** On a promotion the names move before the server takes writes (Patroni's ``pre_promote``).
    The hook never prevents a promotion, and never delays it by more than 3 s.
R5  **No session left behind.** After every change of an address the connections that Citus has cached are flushed, and
    the flush is confirmed.
R6  **Citus' work on other nodes is guarded.** The agent runs 2PC recovery and the clean-up of orphaned resources in
    place of Citus. A pass asks which servers Citus itself reaches, in the same transaction, and is rolled back unless
    all of them were primaries. It runs only on its own group's accepted primary.
R7  **The file.** Bytes outside the block never change. No reader sees a partial file. When the agent stops or is
    killed, the file stays as it is.
R8  **Say so.** Whatever is held, fenced, refused or overdue is an *alert*: a log line when it begins, another when it
    ends, and an entry in ``status`` (and its exit code) for as long as it lasts.

The order to read in
====================

``observation`` (what probes and Patroni saw), ``state`` and ``decision`` (what comes out), ``view`` (one group at one
moment), ``system_id`` (which servers belong to a group), ``primary`` (the rows P), ``standby`` (the rows S), ``assess``
(one group, from observations to a view), ``local_server`` (the local role, R3 and R4), and ``decide``, which calls all
of them.
"""
