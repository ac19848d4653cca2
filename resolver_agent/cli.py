"""The command line: arguments, output and exit codes. Only this module exits; only it and the demonstration print.

Each command imports what it needs: Patroni's hooks and ``status`` must start quickly, with the standard library alone.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pwd
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

from resolver_agent import __version__
from resolver_agent.control import before_stop, hook, pre_promote
from resolver_agent.system.foreign import printable, to_json
from resolver_agent.usage.parser import Parser

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from resolver_agent.config.model import Config
    from resolver_agent.control.report import Status
    from resolver_agent.control.status_text import Style
    from resolver_agent.routing.observation import Role
    from resolver_agent.routing.state import Target

_T = TypeVar("_T")

_DEFAULT_CONFIG = "/etc/resolver-agent.yml"
_DEFAULT_RUNTIME_DIR = "/run/resolver-agent"
_DEFAULT_HOSTS_FILE = "/etc/hosts"
_DEFAULT_STATE_DIR = "/var/lib/resolver-agent"

OK, DIFFERENT, TROUBLE = 0, 1, 2
_CRITICAL, _UNKNOWN = 2, 3
"""The exit codes of ``check`` for what monitoring calls so; 0 and 1 are OK and WARNING there."""
_EXITS = {OK: "done", TROUBLE: "trouble"}

_SHOWN = {
    "role.sql": "role.sql",
    "unit": "resolver-agent.service",
    "socket": "resolver-agent.socket",
    "local-off": "local-off.conf",
    "config": "resolver-agent.yml",
    "hook": "patroni-hooks.yml",
    "schema": "status.schema.json",
    "doctor-schema": "doctor.schema.json",
    "alerts": "monitoring/alerts.yml",
    "board": "monitoring/grafana.json",
}
"""The files that ``show`` prints, in the package's folder ``systemd``."""

_HELP = {"-h", "--help"}
_WITH_VALUE = {"-c", "--config", "--socket"}
"""The options whose value is the next word, and may be any."""

_COMMANDS = {
    *("run", "once", "dry-run", "status", "explain", "history", "check", "metrics", "doctor", "remove", "show", "demo"),
    *("pin", "unpin", "pause", "resume", "import", "help"),
}
"""All commands but the hooks: these run before the parser is made, as whatever is wrong with it must not stop them."""

_MARKS, _ASCII_MARKS = ("✓", "✗", "-"), ("[ok]", "[!!]", "[--]")
"""Before each check of doctor: it is in order, it has findings, or it was not looked at."""

_COLOURS = {"+": "32", "-": "31", "@": "36"}

_WATCH_S = 1.0
_CLEAR_SCREEN = "\033[2J"


class _TroubleError(Exception):
    """Ends the command with exit code 2; its text goes to standard error."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code. Without ``arguments`` those of the process count, and it ends.

    It ends at once: a thread may still be in libpq, and crash while Python and OpenSSL take themselves apart.
    """
    if arguments is not None:
        return _exit_code(arguments)
    code = _exit_code(sys.argv[1:])
    with contextlib.suppress(OSError):
        print(end="", flush=True)  # what a command with trouble has printed before
    os._exit(code)


def _exit_code(given: Sequence[str]) -> int:
    if (_HELP | hook.BY_HAND).isdisjoint(given):
        for one in (pre_promote, before_stop):
            if _is_command(one.NAME, given):  # before anything else can fail or take time
                one.run(given, leave=os._exit)
    _forget_environment()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the output has arrows, which not every locale has
    parser = command_line()
    options = parser.parse_args(given)
    if options.command is not _without_command and (
        options.validate_config or (options.dry_run and options.command is not _once)
    ):
        parser.error("--dry-run takes no command but `once`, and --validate-config takes none")
    try:
        code = int(options.command(options))
        print(end="", flush=True)  # here, where BrokenPipeError is caught
    except _TroubleError as error:
        _say_trouble(str(error))
        return TROUBLE
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has closed the pipe; Python's own flush at exit must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return TROUBLE
    return code


def _is_command(name: str, arguments: Sequence[str]) -> bool:
    """Report whether a hook's name is the command: no other command is before it, but as the value of an option.

    `pause --reason pre-promote` announces no promotion. In a doubt it is the hook: Patroni must not be refused.
    """
    if name not in arguments:
        return False
    before = arguments[: arguments.index(name)]
    return not any(
        word in _COMMANDS and option not in _WITH_VALUE for option, word in zip(["", *before], before, strict=False)
    )


def _say_trouble(text: str) -> None:
    """Write an error to standard error; the journal is told that it is one."""
    import logging

    from resolver_agent.system import systemd

    prefix = systemd.priority(logging.ERROR) if systemd.is_journal(sys.stderr, os.environ) else ""
    print("\n".join(f"{prefix}{line}" for line in f"resolver-agent: {text}".splitlines()), file=sys.stderr)


def _forget_environment() -> None:
    """Drop what libpq would take from the caller's environment: every command has to see what the service sees."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]
    with contextlib.suppress(KeyError):  # ~/.pgpass and ~/.postgresql are those of the user who runs the command
        os.environ["HOME"] = pwd.getpwuid(os.geteuid()).pw_dir


def command_line() -> Parser:
    """Return the parser of the command line."""
    configured = Parser(add_help=False)
    configured.add_argument(
        *("-c", "--config"),
        metavar="FILE",
        default=argparse.SUPPRESS,
        help=f"configuration file (default: {_DEFAULT_CONFIG})",
    )
    logged = Parser(add_help=False)
    logged.add_argument("-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help="log every decision")
    parser = Parser(
        prog="resolver-agent",
        description=_DESCRIPTION,
        epilog="`resolver-agent help COMMAND` says more about a command.",
        parents=[configured, logged],
    )
    parser.add_argument("--version", action="version", version=f"resolver-agent {__version__}")
    alone = parser.add_mutually_exclusive_group()
    alone.add_argument("--dry-run", action="store_true", help="the same as the command dry-run")
    alone.add_argument(
        "--validate-config", action="store_true", help="report all errors in the configuration; exit 0: none, 2: some"
    )
    parser.set_defaults(command=_without_command, role="auto")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(
        name: str, run: Any, text: str, *, exits: Mapping[int, str] = _EXITS, parents: Sequence[Parser] = (configured,)
    ) -> Parser:
        """Add a command. ``parents`` have the options that it shares with others."""
        added: Parser = commands.add_parser(name, help=text, description=text, exits=exits, parents=[*parents])
        added.set_defaults(command=run)
        return added

    _add_work(command, (configured, logged))
    _add_reports(command)
    _add_hooks(command)
    _add_planned_work(command)
    removal = command(
        *("remove", _remove, "remove the block from the hosts file, unless pg_dist_node uses its names"),
        parents=(configured, logged),
    )
    removal.add_argument("--force", action="store_true", help="do not check whether pg_dist_node uses the names")
    printed = command(
        *("show", _show, "print a file that a node is installed with: the SQL for the role, a unit, …"),
        exits={OK: "done"},
        parents=(),
    )
    printed.add_argument("file", choices=_SHOWN, metavar="FILE", help=f"one of {', '.join(_SHOWN)}")
    imported = command(
        *("import", _import, "print a configuration made from Patroni's file with its citus: section; changes nothing"),
        parents=(),
    )
    imported.add_argument("file", metavar="FILE", help="patroni.yml of a coordinator")
    command(
        *("demo", _demo, "show the agent at work on throw-away PostgreSQL servers"),
        exits={OK: "every step worked", DIFFERENT: "a step failed", TROUBLE: "it could not begin"},
        parents=(),
    )
    helped = command("help", _help, "show the help of a command", exits={OK: "done"}, parents=())
    helped.add_argument("topic", nargs="?", choices=commands.choices, metavar="COMMAND", help="the command")
    return parser


def _add_work(command: Callable[..., Parser], parents: Sequence[Parser]) -> None:
    """Add the commands that keep the hosts file."""
    command(
        *("run", _run, "run the agent: keep every name on the right server until stopped"),
        exits={OK: "stopped", TROUBLE: "could not start"},
        parents=parents,
    )
    trouble = "trouble, a node could not be asked, or a name has no address"
    once = command(
        *("once", _once, "ask every node once, write the hosts file, and exit"),
        exits={OK: "done", DIFFERENT: "with --dry-run: a difference", TROUBLE: trouble},
        parents=parents,
    )
    dry_run = command(
        *("dry-run", _once, "show what `once` would change, and write nothing"),
        exits={OK: "no difference", DIFFERENT: "a difference", TROUBLE: trouble},
        parents=parents,
    )
    for one in (once, dry_run):
        one.add_argument(
            "--role",
            choices=["auto", "primary", "standby"],
            default="auto",
            help="decide as if the local server had this role; auto asks it (default: auto)",
        )
    dry_run.set_defaults(dry_run=True)
    # A default would undo a --dry-run given before the command.
    once.add_argument(
        "--dry-run", action="store_true", default=argparse.SUPPRESS, help="show the difference, and write nothing"
    )


def _add_reports(command: Callable[..., Parser]) -> None:
    """Add the commands that report on this node."""
    shown = command(
        *("status", _status, "show where each name resolves, and why"),
        exits={
            OK: "no alerts",
            DIFFERENT: "alerts, or an error in the configuration",
            TROUBLE: "no agent, or one that you may not ask",
        },
    )
    shown.add_argument("names", nargs="*", metavar="NAME", help="show only these names, with all that is known of them")
    shown.add_argument("--problems", action="store_true", help="show only the names with which something is wrong")
    shown.add_argument("--watch", action="store_true", help="show it again each second, until Ctrl-C")
    shown.add_argument("--json", action="store_true", help="print JSON, for programs; `show schema` describes it")
    judged = command(
        *("check", _check, "judge the agent and its names in one line with performance data, for Nagios and Icinga"),
        exits={
            OK: "OK",
            DIFFERENT: "WARNING",
            _CRITICAL: "CRITICAL",
            _UNKNOWN: "UNKNOWN: no agent answers, or a wrong command line",
        },
    )
    judged.misused = _UNKNOWN
    judged.add_argument("names", nargs="*", metavar="NAME", help="judge only these names")
    past = command("history", _history, "show the last changes of names, and how long each took")
    past.add_argument("names", nargs="*", metavar="NAME", help="show only the changes of these names")
    past.add_argument("-n", dest="last", type=_count, metavar="N", help="show only the last N changes")
    past.add_argument("--json", action="store_true", help="print JSON, for programs")
    explained = command(
        *("explain", _explain, "say what an alert or a message means, where to look, and what to do"),
        exits={OK: "done", TROUBLE: "nothing is known about it"},
        parents=(),
    )
    explained.add_argument(
        "about",
        nargs="*",
        metavar="CODE",
        help="the code or key of an alert, a line of the log, or words of it (default: list everything)",
    )
    command(
        *("metrics", _metrics, "print the agent's metrics in Prometheus' text format"),
        exits={OK: "done", TROUBLE: "no agent, or one that you may not ask"},
    )
    checked = command(
        *("doctor", _doctor, "check this node, and show how to fix each finding"),
        exits={OK: "fit", DIFFERENT: "findings", TROUBLE: "trouble"},
    )
    checked.add_argument(
        *("-v", "--verbose"),
        action="store_true",
        default=argparse.SUPPRESS,
        help="list each check, and what was not looked at and why",
    )
    checked.add_argument(
        "--json", action="store_true", help="print JSON, for programs; `show doctor-schema` describes it"
    )
    checked.add_argument(
        "--to-addresses",
        action="store_true",
        help="print only the script for psql that puts addresses back into pg_dist_node",
    )
    checked.add_argument("--way-back", dest="to_addresses", action="store_true", help=argparse.SUPPRESS)  # old spelling


def _add_hooks(command: Callable[..., Parser]) -> None:
    """Add the commands that Patroni runs."""
    by_hand = {TROUBLE: "with --check or --cancel: no agent answers"}
    pre_promote.add_options(
        command(
            pre_promote.NAME,
            _pre_promote_by_hand,
            "move the names before this node is promoted, as Patroni's pre_promote hook; needs no configuration",
            exits={OK: "always", DIFFERENT: "with --strict: a name may resolve to a standby", **by_hand},
            parents=(),
        )
    )
    before_stop.add_options(
        command(
            before_stop.NAME,
            _before_stop_by_hand,
            "let other nodes' statements end before a planned stop, as Patroni's before_stop hook; needs no "
            "configuration",
            exits={OK: "always", **by_hand},
            parents=(),
        )
    )


_DESCRIPTION = (
    "Keep the names in a Citus cluster's metadata pointed at the right PostgreSQL servers, through /etc/hosts."
)


def _add_planned_work(command: Callable[..., Parser]) -> None:
    """Add the commands by which the operator decides where names lead."""
    exits = {OK: "done", TROUBLE: "refused, or no agent, or one that you may not ask"}
    pinned = command(
        "pin", _pin, "have a name lead to one address on this node, where that can lose no data", exits=exits
    )
    pinned.add_argument("name", metavar="NAME", help="the name")
    pinned.add_argument("address", metavar="ADDRESS", help="the address of one of its nodes")
    pinned.add_argument("--force", action="store_true", help="also if no node is known at that address")
    unpinned = command("unpin", _unpin, "end the pin of a name", exits=exits)
    unpinned.add_argument("name", metavar="NAME", help="the name")
    paused = command("pause", _pause, "let no name on this node move that does not have to", exits=exits)
    command("resume", _resume, "end the pause", exits=exits)
    for one, default in ((pinned, "30m"), (paused, "2h")):
        one.add_argument(
            "--for",
            dest="for_s",
            metavar="TIME",
            type=_duration_s,
            default=default,
            help=f"how long, up to 168h (default: {default})",
        )
        one.add_argument("--reason", metavar="TEXT", default="", help="what the alert says of it")


def _without_command(options: argparse.Namespace) -> int:
    if options.validate_config:
        return _validate(options)
    if options.dry_run:
        return _once(options)
    raise _TroubleError("no command given: `resolver-agent --help` lists them")


def _load(options: argparse.Namespace, *, verbose: bool | None = None) -> Config:
    """Return the configuration, and log as it says; ``verbose`` overrides what the command line says."""
    from resolver_agent import log
    from resolver_agent.config.load import ConfigError, load

    try:
        config = load(getattr(options, "config", _DEFAULT_CONFIG))
    except ConfigError as error:
        raise _TroubleError("the configuration is not usable\n" + "\n".join(error.errors)) from error
    verbose = getattr(options, "verbose", False) if verbose is None else verbose
    log.configure(config.log_format, "debug" if verbose else config.log_level)
    return config


def _validate(options: argparse.Namespace) -> int:
    config = _load(options)
    _say_warnings(config)
    _check_tls_files(config)
    print(f"{config.path}: nothing wrong; names: {', '.join(group.name for group in config.groups)}")
    return OK


def _import(options: argparse.Namespace) -> int:
    from resolver_agent.config.load import ConfigError
    from resolver_agent.config.patroni_import import convert_file

    try:
        print(convert_file(options.file), end="")
    except ConfigError as error:
        raise _TroubleError("the file cannot be converted\n" + "\n".join(error.errors)) from error
    return OK


def _check_tls_files(config: Config) -> None:
    from resolver_agent.patroni.client import ApiError, check_files

    faults = []
    for group in config.groups:
        try:
            if group.patroni is not None:
                check_files(group.patroni)
        except ApiError as error:  # noqa: PERF203 -- all faults are reported at once
            faults.append(f"{config.path}: names.{group.name}.patroni: {error}")
    if faults:
        raise _TroubleError("the configuration is not usable\n" + "\n".join(faults))


def _say_warnings(config: Config) -> None:
    for warning in config.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _run(options: argparse.Namespace) -> int:
    import asyncio
    import logging

    from resolver_agent import log
    from resolver_agent.agent import Agent
    from resolver_agent.control import client
    from resolver_agent.system import lock, systemd

    config = _load(options)
    log.write_in_background()
    for warning in config.warnings:
        logging.getLogger(__name__).warning("%s", warning)
    passed = next(iter(systemd.listen_sockets(os.environ)), None)
    agent = Agent(config, notifier=systemd.Notifier(os.environ), passed=passed)
    try:
        asyncio.run(agent.run())
    except (lock.LockedError, lock.LockUnavailableError, client.ControlError) as error:
        raise _TroubleError(str(error)) from error
    finally:
        logging.shutdown()  # waits until all lines are written
    return OK


def _once(options: argparse.Namespace) -> int:
    from resolver_agent import once
    from resolver_agent.citus import flush
    from resolver_agent.hosts import atomic_file, block
    from resolver_agent.system import lock

    config = _load(options)
    _say_warnings(config)
    role = _assumed_role(options, config)
    try:
        found = once.look(config, role=role)
        if not options.dry_run and found.old != found.new:
            once.write(config, found)
    except (lock.LockedError, lock.LockUnavailableError, atomic_file.HostsFileError) as error:
        raise _TroubleError(str(error)) from error
    except block.BlockError as error:
        raise _TroubleError(f"{config.hosts_file}: {error}") from error
    except flush.FlushError as error:
        raise _TroubleError(
            f"{config.hosts_file} is written, but sessions may keep old connections: {error}"
        ) from error
    for target in found.targets:
        print(target)
    wrong = {"alert": found.alerts, "could not be asked": found.unasked, "has no address": found.left_out}
    for fault, about in wrong.items():
        for one in about:
            print(f"{fault}: {one}", file=sys.stderr)
    diff = block.unified_diff(found.old, found.new, path=config.hosts_file)
    if diff:
        print(_coloured(diff) if _has_colour() else diff, end="")
    if found.unasked or found.left_out:
        return TROUBLE
    return DIFFERENT if options.dry_run and diff else OK


def _assumed_role(options: argparse.Namespace, config: Config) -> Role | None:
    from resolver_agent.config.model import NO_LOCAL
    from resolver_agent.routing.observation import Role

    if options.role == "auto":
        return None
    if not config.has_local:
        raise _TroubleError(f"--role {options.role}: {NO_LOCAL}")
    return Role(options.role)


class _Shown(NamedTuple):
    """What a status shows, what it says on standard error, and its exit code."""

    text: str
    faults: tuple[str, ...] = ()
    code: int = OK


def _status(options: argparse.Namespace) -> int:
    if options.watch:
        _watch(options)
    shown = _look(options)
    if shown.text:
        print(shown.text)
    for fault in shown.faults:
        print(f"resolver-agent: {fault}", file=sys.stderr)
    return shown.code


def _look(options: argparse.Namespace) -> _Shown:
    """Return the status of the agent, or what the hosts file says if no agent can be asked."""
    from resolver_agent.control import client, report, selection
    from resolver_agent.control.status_text import as_text

    runtime_dir, hosts_file, fault = _agent_places(options)
    faults = (fault,) if fault else ()
    try:
        found = report.from_json(report.Status, client.ask_running(runtime_dir, "status"))
    except client.ControlError as error:
        shown = _look_into_file(str(error), hosts_file, options)
        return shown._replace(faults=(*faults, *shown.faults))
    found = _of_names(found, options.names)
    code = DIFFERENT if fault or any(alert.wants_attention for alert in found.alerts) else OK
    if options.json:
        chosen = selection.problems(found) if options.problems else found
        text = _json(report.as_json(chosen), options)
    else:
        text = as_text(found, style=_style(), details=bool(options.names), only_problems=options.problems)
    return _Shown(text=text, faults=faults, code=code)


def _agent_places(options: argparse.Namespace) -> tuple[str, str, str]:
    """Return the runtime folder and hosts file of the agent, and what is wrong with the configuration if it is read.

    An agent with the default runtime folder is asked without the configuration: loading PyYAML takes time.
    """
    from resolver_agent.system import lock

    if hasattr(options, "config") or (not lock.is_held(_DEFAULT_RUNTIME_DIR) and os.access(_DEFAULT_CONFIG, os.R_OK)):
        return _places(options)
    return _DEFAULT_RUNTIME_DIR, _DEFAULT_HOSTS_FILE, ""


def _metrics(options: argparse.Namespace) -> int:
    from resolver_agent.control import client

    runtime_dir, _, fault = _agent_places(options)
    if fault:
        print(f"resolver-agent: {fault}", file=sys.stderr)
    try:
        text = client.ask_running(runtime_dir, "metrics").get("text")
    except client.ControlError as error:
        raise _TroubleError(str(error)) from error
    if not isinstance(text, str):
        raise _TroubleError("the agent gave an unexpected answer")
    print("\n".join(map(printable, text.splitlines())))
    return OK


def _places(options: argparse.Namespace) -> tuple[str, str, str]:
    """Return the runtime folder, the hosts file, and what is wrong with the configuration that gives them."""
    from resolver_agent.config.load import ConfigError, load, locations

    path = getattr(options, "config", _DEFAULT_CONFIG)
    try:
        config = load(path)
    except ConfigError as error:
        # The agent may still run with what the file said before.
        return *locations(path)[:2], "the configuration is not usable\n" + "\n".join(error.errors)
    return config.runtime_dir, config.hosts_file, ""


def _look_into_file(why: str, hosts_file: str, options: argparse.Namespace) -> _Shown:
    """Return what the hosts file says, as no agent can be asked."""
    from resolver_agent.control import report
    from resolver_agent.hosts import atomic_file, block

    try:
        targets = block.recall(atomic_file.HostsFileWriter(hosts_file).read().content)
    except atomic_file.HostsFileError as error:
        return _Shown(text="", faults=(f"{why}\n{error}",), code=TROUBLE)
    except block.BlockError as error:
        return _Shown(text="", faults=(f"{why}\n{hosts_file}: {error}",), code=TROUBLE)
    if options.names:
        targets = tuple(target for target in targets if target.name in options.names)
    found = report.FileStatus(error=why, hosts_file=hosts_file, names=tuple(map(report.name_in_file, targets)))
    text = _json(report.as_json(found), options) if options.json else "\n".join(map(str, targets))
    return _Shown(text=text, faults=(f"{why}; the names are those in {hosts_file}",), code=TROUBLE)


def _of_names(found: Status, names: Sequence[str]) -> Status:
    """Return the status of these names; of all, if there are none. Raise if the agent does not manage one of them."""
    from resolver_agent.control import selection

    known = [one.name for one in found.names]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise _TroubleError(f"the agent has no name {', '.join(unknown)}; it has {', '.join(known)}")
    return selection.of_names(found, names) if names else found


def _check(options: argparse.Namespace) -> int:
    from resolver_agent.control import check, client, report

    runtime_dir, _, fault = _agent_places(options)
    try:
        found = report.from_json(report.Status, client.ask_running(runtime_dir, "status"))
        state, line = check.judge(_of_names(found, options.names), fault=fault)
    except (client.ControlError, _TroubleError) as error:
        state, line = check.unknown(f"{error}; {fault}" if fault else str(error))
    print(line)
    return state.value


def _json(data: Any, options: argparse.Namespace) -> str:
    return to_json(data, indent=None if options.watch else 2)


def _style() -> Style:
    """Return how text is laid out on standard output."""
    import shutil

    from resolver_agent.control.status_text import Style

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    return Style(width=width, colour=_has_colour())


def _has_colour() -> bool:
    """Report whether standard output is a terminal, and its user has nothing against colours: https://no-color.org."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _watch(options: argparse.Namespace) -> NoReturn:
    """Show the status once a second, until Ctrl-C: on a terminal each in the place of the last one."""
    print(end=_CLEAR_SCREEN if sys.stdout.isatty() else "")
    while True:
        due = time.monotonic() + _WATCH_S
        try:
            shown = _look(options)
        except _TroubleError as error:
            shown = _Shown(text="", faults=(str(error),))
        print(end=_frame(shown, options), flush=True)
        time.sleep(max(0.0, due - time.monotonic()))


def _frame(shown: _Shown, options: argparse.Namespace) -> str:
    import shutil

    from resolver_agent.control import report, status_text
    from resolver_agent.system.clock import boottime

    if options.json:
        return f"{shown.text or _json(report.as_json(report.FileStatus(error=shown.faults[0])), options)}\n"
    now = boottime()
    faults = [f"resolver-agent: {fault}" for fault in shown.faults]
    text = "\n".join([str(report.wall_time(now, now=now)), *faults, shown.text])
    return status_text.on_screen(text, rows=shutil.get_terminal_size().lines) if sys.stdout.isatty() else f"{text}\n\n"


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not int(text[:9]):
        raise argparse.ArgumentTypeError(f"{text!r} found, expected a whole number from 1 on")
    return int(text[:9])


def _history(options: argparse.Namespace) -> int:
    from resolver_agent.changes import change, history_file
    from resolver_agent.system.state_file import StateError

    path = history_file.path_of(_state_dir(options))
    wanted = {name.lower() for name in options.names}
    try:
        found = [one for one in history_file.read(path)[0] if not wanted or one.name in wanted]
    except StateError as error:
        raise _TroubleError(str(error)) from error
    found = found[-options.last :] if options.last is not None else found
    if options.json:
        print(to_json([one.as_json() for one in found], indent=2))
    elif found:
        print(change.as_text(found))
    else:
        print(f"no change is recorded in {path}", file=sys.stderr)
    return OK


def _state_dir(options: argparse.Namespace) -> str:
    """Return the folder of what outlives a restart. PyYAML is loaded only where the configuration may name another."""
    from resolver_agent.config import source

    path = getattr(options, "config", _DEFAULT_CONFIG)
    try:
        names_it = b"state_dir" in source.read(path).content
    except (OSError, ValueError) as error:
        if hasattr(options, "config"):
            raise _TroubleError(f"{path}: {error}, expected a configuration file that can be read") from error
        names_it = False
    if not names_it:
        return _DEFAULT_STATE_DIR
    from resolver_agent.config.load import locations

    return locations(path)[2]


def _pre_promote_by_hand(options: argparse.Namespace) -> int:
    """Show what an announced promotion would do, or take it back; the hook itself does not come here."""
    from resolver_agent.control import client, report

    try:
        if options.cancel:
            ended = report.from_json(report.PromotionCancelled, client.ask(options.socket, "pre-promote-cancel"))
            print("the announced promotion is taken back" if ended.announced else "no promotion was announced")
            if ended.holds_lock:
                print("the local Patroni holds the leader lock: the names stay on primaries")
            return OK
        found = report.from_json(report.PromotionCheck, client.ask(options.socket, "pre-promote-check"))
    except client.ControlError as error:
        raise _TroubleError(str(error)) from error
    print("a promotion is announced" if found.announced else "no promotion is announced; with one, these would move:")
    print("\n".join(found.moves) or "no name would move")
    return OK


def _before_stop_by_hand(options: argparse.Namespace) -> int:
    """Show what an announced stop would do, or take it back; the hook itself does not come here."""
    from resolver_agent.control import client, report

    folder, asked = os.path.split(options.socket)[0] or ".", "cancel" if options.cancel else "check"
    try:
        answer = client.ask_running(folder, f"{before_stop.NAME}-{asked}", socket=options.socket)
        if options.cancel:
            ended = report.from_json(report.StopCancelled, answer)
            print("the announced stop is taken back" if ended.announced else "no stop was announced")
            return OK
        found = report.from_json(report.StopCheck, answer)
    except client.ControlError as error:
        raise _TroubleError(str(error)) from error
    print(f"a planned stop would {'' if found.would_wait else 'not '}wait: {found.why}")
    for name in found.names:
        print(f"{name} would queue")
    return OK


def _duration_s(text: str) -> float:
    from resolver_agent.config.values import duration_s

    try:
        return duration_s(text, least="1s", most="168h")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _ask(options: argparse.Namespace, kind: type[_T], command: str, **arguments: Any) -> _T:
    """Return the running agent's answer, which is of this kind."""
    from resolver_agent.control import client, report

    try:
        return report.from_json(kind, client.ask_running(_agent_places(options)[0], command, **arguments))
    except client.RefusedError as error:
        raise _TroubleError(error.answer) from error
    except client.ControlError as error:
        raise _TroubleError(str(error)) from error


def _pin(options: argparse.Namespace) -> int:
    from resolver_agent.control import report

    wanted = {name: getattr(options, name) for name in ("name", "address", "force", "for_s", "reason")}
    found = _ask(options, report.PinAnswer, "pin", **wanted)
    if found.ignored is not None:
        raise _TroubleError(f"the pin does not count: {found.ignored}; `resolver-agent unpin {options.name}` ends it")
    print(found.target)
    _say_consequences(kept=found.kept)
    if not found.written:
        raise _TroubleError("the hosts file does not say this yet: `resolver-agent status` says why")
    return OK


def _unpin(options: argparse.Namespace) -> int:
    from resolver_agent.control import report

    found = _ask(options, report.UnpinAnswer, "unpin", name=options.name)
    print(found.target if found.pinned else f"{printable(options.name)} is not pinned")
    _warn_unless_kept("may bring it back", kept=found.kept)
    return OK


def _pause(options: argparse.Namespace) -> int:
    from resolver_agent.control import report

    found = _ask(options, report.PauseAnswer, "pause", for_s=options.for_s, reason=options.reason)
    print(f"names are paused until {found.until}")
    _say_consequences(kept=found.kept)
    return OK


def _resume(options: argparse.Namespace) -> int:
    from resolver_agent.control import report

    found = _ask(options, report.ResumeAnswer, "resume")
    print("names move again" if found.paused else "names are not paused")
    _warn_unless_kept("may bring it back", kept=found.kept)
    return OK


def _say_consequences(*, kept: bool) -> None:
    print("2PC recovery waits meanwhile")
    _warn_unless_kept("ends it", kept=kept)


def _warn_unless_kept(what: str, *, kept: bool) -> None:
    if not kept:
        print(f"warning: a restart of the agent {what}: it could not be saved in state_dir", file=sys.stderr)


def _remove(options: argparse.Namespace) -> int:
    from resolver_agent.citus import flush
    from resolver_agent.config.model import NO_LOCAL
    from resolver_agent.hosts import atomic_file, block
    from resolver_agent.system import lock

    config = _load(options)
    try:
        with lock.exclusive(config.runtime_dir, config.hosts_file):
            writer = atomic_file.HostsFileWriter(config.hosts_file)
            if config.has_local and not options.force:
                _refuse_if_used(config, block.recall(writer.read().content))
            writer.sweep()
            outcome = writer.update(block.remove)
    except (lock.LockedError, lock.LockUnavailableError, atomic_file.HostsFileError) as error:
        raise _TroubleError(f"{error}; nothing was removed") from error
    except block.BlockError as error:
        raise _TroubleError(f"{config.hosts_file}: {error}; nothing was removed") from error
    done = "had no block" if outcome.state is atomic_file.State.UNCHANGED else "no longer has the block"
    print(f"{config.hosts_file} {done}")
    if not config.has_local:  # on a coordinator that is configured like an application host, its queries now fail
        print(f"pg_dist_node was not asked whether it holds the names: {NO_LOCAL}")
    try:
        if config.citus:
            flush.reset(config)
    except flush.FlushError as error:
        left = f"the parameters of Citus could not be reset to their values without the agent: {error}"
        if not options.force:
            raise _TroubleError(left) from error
        print(f"warning: {left}", file=sys.stderr)
    return OK


def _refuse_if_used(config: Config, targets: Sequence[Target]) -> None:
    """Raise if the metadata holds one of the names: without the block, every query through it would fail."""
    from resolver_agent.citus import metadata

    names = [target.name for target in targets]
    try:
        used = metadata.names_in_use(config, names) if names else []
    except metadata.MetadataUnknownError as error:
        raise _TroubleError(f"{error}\nnothing was removed; --force removes without asking") from error
    if used:
        raise _TroubleError(
            f"pg_dist_node still holds {', '.join(used)}: put addresses back first, with the script of "
            "`resolver-agent doctor --to-addresses`; nothing was removed"
        )


def _doctor(options: argparse.Namespace) -> int:
    from resolver_agent.doctor import report as doctor_report
    from resolver_agent.doctor.check import State

    report = doctor_report.examine(_load(options, verbose=False))
    if options.to_addresses:
        if report.to_addresses is None:
            raise _TroubleError(
                "the local PostgreSQL has no pg_dist_node of a coordinator, or cannot be asked, or there is none "
                "(local: off)"
            )
        print(report.to_addresses, end="")
        return OK
    marks = (_MARKS if _can_print("".join(_MARKS)) else _ASCII_MARKS) if getattr(options, "verbose", False) else None
    shown = report.as_text(marks and dict(zip(State, marks, strict=True)))
    print(to_json(report.as_json(), indent=2) if options.json else shown)
    return OK if report.fit else DIFFERENT


def _explain(options: argparse.Namespace) -> int:
    from resolver_agent.control import explain

    try:
        print(explain.explain(" ".join(options.about)))
    except explain.UnknownSymptomError as error:
        raise _TroubleError(str(error)) from error
    return OK


def _can_print(text: str) -> bool:
    """Report whether the encoding of the output has all letters of a text."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _show(options: argparse.Namespace) -> int:
    from importlib import resources

    print((resources.files("resolver_agent") / "systemd" / _SHOWN[options.file]).read_text("utf-8"), end="")
    return OK


def _help(options: argparse.Namespace) -> int:
    parser = command_line()
    print((parser.commands[options.topic] if options.topic else parser).format_help(), end="")
    return OK


def _demo(_options: argparse.Namespace) -> int:
    from resolver_agent.demo import steps

    return steps.main()


def _coloured(diff: str) -> str:
    lines = (
        f"\033[{_COLOURS[line[0]]}m{line.rstrip()}\033[0m\n" if line[:1] in _COLOURS else line
        for line in diff.splitlines(keepends=True)
    )
    return "".join(lines)


if __name__ == "__main__":
    sys.exit(main())
