"""What the command line takes, and the exit statuses that it gives."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

import anyio
import click

from nsorch import CommandNotFoundError, NsorchError, SetupError, Topology, TopologyError, __version__
from nsorch.cli.convert import KINDS, convert
from nsorch.cli.doctor import report
from nsorch.cli.graph import FORMATS, write_graph
from nsorch.cli.run import Options, run_topology
from nsorch.cli.terminal import drop_output
from nsorch.cli.unpack import unpack_image
from nsorch.cli.validate import validate_files
from nsorch.cli.watch import Watched, state_of

if TYPE_CHECKING:
    from collections.abc import Callable

_PATH = click.Path(readable=False)  # one that can't be read is no wrong usage, and may be written
_PERIOD = 0.1  # seconds, between two looks for signals
FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nsorch")
def nsorch() -> None:
    """Labs of Linux namespaces: many workers, wired together, from one file."""


class _WithCommand(click.Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as exc:
            hint = f"{exc.message} Those of a COMMAND come after --."
            raise click.NoSuchOption(exc.option_name, hint, exc.possibilities, exc.ctx) from None


@nsorch.command(cls=_WithCommand)
@click.argument("file", type=_PATH)
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND...]")
@click.option("--check", is_flag=True, help="Ping every pair that the links connect, print a table, and end.")
@click.option("--events", is_flag=True, help="Print each event as it happens.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the result as a document, events as lines.")
@click.option("--watch", is_flag=True, help="Apply FILE again whenever it changes: only what differs is touched.")
@click.option("--in", "worker", metavar="WORKER", help="Run COMMAND in this worker instead of on the host.")
@click.option("--backend", type=click.Choice(["asyncio", "trio"]), default="asyncio", show_default=True)
@click.option("--delay", type=click.Choice(["geo"]), help="Of GraphML's links: by the coordinates of their nodes.")
@click.option("--missing", default="error", show_default=True, help="The delay without coordinates: 5ms, none, error.")
@click.option("--rate", type=click.Choice(["label"]), help="Of GraphML's links: their LinkSpeedRaw.")
def run(
    file: str,
    command: tuple[str, ...],
    check: bool,
    events: bool,
    as_json: bool,
    watch: bool,
    worker: str | None,
    backend: str,
    delay: str | None,
    missing: str,
    rate: str | None,
) -> None:
    """Bring the topology of FILE up, run COMMAND or wait for a signal, and take it down.

    \b
    Exit status: COMMAND's own, 128 + n if signal n ended it, 130 after SIGINT,
    143 after SIGTERM; 1 if a pair doesn't answer --check; 2 for wrong usage;
    125 if nsorch failed, 126 if COMMAND isn't executable, 127 if there is none.
    """
    if worker is not None and not command:
        raise click.UsageError("--in needs a COMMAND, after --")
    if check and command:
        raise click.UsageError("--check and a COMMAND don't go together")
    if watch and (check or command):
        raise click.UsageError("--watch goes on until a signal: it goes with neither --check nor a COMMAND")

    def load() -> Topology:
        return Topology.load(file, delay=delay, missing=missing, rate=rate)

    options = Options(
        check=check,
        events=events,
        as_json=as_json,
        worker=worker,
        command=command,
        watched=Watched(file, load, state_of(file)) if watch else None,
    )

    def act() -> int:
        topology = _in_thread(load)
        if worker is not None and worker not in topology.workers:
            known = ", ".join(list(topology.workers)[:20])
            raise TopologyError(f'there is no worker "{worker}", only {known}', source=file)
        return anyio.run(run_topology, topology, options, backend=backend)

    sys.exit(_guarded(act, hears_signals=True))


@nsorch.command()
@click.argument("files", nargs=-1, required=True, type=_PATH)
@click.option("--json", "as_json", is_flag=True, help="Print the results as a JSON document.")
def validate(files: tuple[str, ...], as_json: bool) -> None:
    """Check topology FILES, and print every problem as FILE:LINE: PROBLEM. Exit status 1 if there is any."""
    sys.exit(_guarded(lambda: validate_files(files, as_json)))


@nsorch.command()
@click.argument("file", type=_PATH)
@click.option("-f", "--format", "form", type=click.Choice(FORMATS), help="By default the suffix of OUTPUT, or dot.")
@click.option("-o", "--output", type=_PATH, help="A file instead of standard output.")
def graph(file: str, form: str | None, output: str | None) -> None:
    """Draw the topology of FILE, for Graphviz or Mermaid, or turn it into GraphML or JSON. An SVG needs Graphviz."""

    def act() -> int:
        write_graph(file, form, output)
        return 0

    sys.exit(_guarded(act))


@nsorch.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as a JSON document.")
def doctor(as_json: bool) -> None:
    """Say what this host can do, and what forbids the rest. Exit status 1 if no lab can run."""
    sys.exit(_guarded(lambda: report(as_json)))


@nsorch.command()
@click.argument("image", type=_PATH)
@click.argument("directory", type=_PATH)
@click.option("--tag", help="Which image of a layout.")
@click.option("--platform", help="Such as linux/arm64/v8 instead of this machine's.")
@click.option("--squash/--keep-owners", default=None, help="By default owners are kept as root alone.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as a JSON document.")
def unpack(
    image: str, directory: str, tag: str | None, platform: str | None, squash: bool | None, as_json: bool
) -> None:
    """Unpack IMAGE, an OCI image layout or a tarball of a root file system, into DIRECTORY, which must not exist or
    be empty. An entry that leads outside is refused, and nothing is left then."""
    sys.exit(
        _guarded(lambda: unpack_image(image, directory, tag=tag, platform=platform, squash=squash, as_json=as_json))
    )


@nsorch.command("import")
@click.argument("kind", type=click.Choice(list(KINDS)))
@click.argument("file", type=_PATH)
@click.option("-o", "--output", type=_PATH, help="A .toml, .yaml or .json file instead of standard output.")
def import_(kind: str, file: str, output: str | None) -> None:
    """Turn FILE of another tool into a topology file. What can't be carried over is listed on standard error."""

    def act() -> int:
        convert(kind, file, output)
        return 0

    sys.exit(_guarded(act))


def _in_thread(load: Callable[[], Topology]) -> Topology:
    """As a read that blocks, of a fifo, doesn't notice a signal that comes just before it."""
    loaded: Future[Topology] = Future()

    def work() -> None:
        try:
            loaded.set_result(load())
        except BaseException as exc:
            loaded.set_exception(exc)

    threading.Thread(target=work, daemon=True).start()
    while not loaded.done():
        with contextlib.suppress(TimeoutError):
            loaded.exception(_PERIOD)
    return loaded.result()


def main() -> None:
    """With what click itself writes, such as help, which may have no room."""

    def act() -> int:
        nsorch(prog_name="nsorch")
        return 0

    sys.exit(_guarded(act, hears_signals=True))


def _guarded(act: Callable[[], int], *, hears_signals: bool = False) -> int:
    """The exit status of *act*; errors are told in a line, not a traceback.

    :param hears_signals: it does so itself before it makes anything: until then SIGINT ends it as during imports. A
        KeyboardInterrupt may be lost, in a callback of the garbage collector's.
    """
    if not hears_signals and callable(signal.getsignal(signal.SIGINT)):  # of the time of imports
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return act()
    except KeyboardInterrupt:  # while a file was read; the loop hears signals itself
        return 128 + signal.SIGINT
    except (NsorchError, OSError, ExceptionGroup) as exc:
        leaves = _leaves(exc)
        if not all(isinstance(leaf, NsorchError | OSError) for leaf in leaves):
            raise
        if any(isinstance(leaf, BrokenPipeError) for leaf in leaves):
            drop_output()
            return 128 + signal.SIGPIPE
        with contextlib.suppress(OSError):  # then nobody can be told
            for leaf in leaves:
                click.echo(f"nsorch: {leaf}", err=True)
        for number, stream in ((1, sys.stdout), (2, sys.stderr)):
            try:
                if stream is not None:
                    stream.flush()
            except OSError:  # no room: the interpreter would try once more at its end, and have a status of its own
                drop_output(number)
        return _status(leaves[0])


def _leaves(exc: BaseException) -> list[BaseException]:
    if isinstance(exc, BaseExceptionGroup):
        return [leaf for part in exc.exceptions for leaf in _leaves(part)]
    return [exc]


def _status(exc: BaseException) -> int:
    if isinstance(exc, CommandNotFoundError):
        return NOT_FOUND
    if isinstance(exc, SetupError) and exc.stage in ("command", "exec"):
        return NOT_EXECUTABLE
    return FAILED
