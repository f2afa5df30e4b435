"""``nsorch run``: one lab, up and down again."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from typing import TYPE_CHECKING

import anyio
import click
from attrs import frozen

from nsorch import CommandNotFoundError, NsorchError, State, Supervisor
from nsorch.cli.orphans import Orphans
from nsorch.cli.output import Outputs
from nsorch.cli.progress import progress
from nsorch.cli.report import check_result, count_links, render_check
from nsorch.cli.signals import SIGNALS, await_signal
from nsorch.cli.terminal import is_terminal, lent_terminal
from nsorch.cli.watch import watch

if TYPE_CHECKING:
    from nsorch import Event, Topology, Worker
    from nsorch.cli.watch import Watched

# Up to so many pairs each is asked from both sides.
_BOTH_WAYS = 50_000
# Events that are written at once; seconds that their reader has for the last ones after a signal.
_TOGETHER, _PATIENCE = 500, 1.0


@frozen(kw_only=True)
class Options:
    check: bool
    events: bool
    as_json: bool
    worker: str | None
    command: tuple[str, ...]
    watched: Watched | None = None


async def run_topology(topology: Topology, options: Options) -> int:
    """Bring *topology* up, do what *options* say, take it down. Returns the exit status."""
    for note in topology.notes:
        click.echo(f"nsorch: {note}", err=True)
    sup, outputs = Supervisor(topology.name), Outputs()
    status = 0
    failure: BaseException | None = None
    async with anyio.create_task_group() as tasks:
        printed = await tasks.start(_print_events, sup, outputs, options.as_json) if options.events else None
        with anyio.CancelScope() as body:
            interrupted = await tasks.start(await_signal, body)
            try:
                async with sup:
                    status = await _use(sup, topology, options, outputs)
            except (Exception, SystemExit) as exc:
                failure = exc
        if printed is not None:
            with anyio.CancelScope() as interrupted.scope:
                if interrupted.number:  # whoever reads them may have stopped
                    interrupted.scope.deadline = anyio.current_time() + _PATIENCE
                await printed.wait()
        tasks.cancel_scope.cancel()
    for number in SIGNALS:  # all is down, and the status known: a second one doesn't make another of it
        signal.signal(number, signal.SIG_IGN)
    if failure is not None:
        raise failure
    return 128 + interrupted.number if interrupted.number else status


async def _use(sup: Supervisor, topology: Topology, options: Options, outputs: Outputs) -> int:
    begin = time.monotonic()
    async with progress("bringing up", len(topology.workers) + count_links(topology), lambda: _count_up(sup)):
        deployment = await sup.deploy(topology)
    count = f"{len(topology.workers)} workers, {len(topology.bridges)} bridges, {len(sup.links)} links"
    summary = f"{topology.name or 'the lab'}: {count}, up in {time.monotonic() - begin:.1f} s"
    if options.check:
        return await _check(sup, topology, options, outputs, summary)
    pinned: set[Worker] = set()
    await _pin(sup, pinned, outputs)
    if options.worker is not None:
        return await _run_inside(sup, options.worker, options.command)
    if options.command:
        return await _run_outside(options.command, outputs)
    await outputs.tell(f"{summary}; Ctrl-C takes it down")
    if options.watched is not None:
        await watch(deployment, options.watched, lambda: _pin(sup, pinned, outputs), outputs.tell)
    await anyio.sleep_forever()
    raise AssertionError("unreachable")


def _count_up(sup: Supervisor) -> int:
    workers = sum(worker.state is not State.STARTING for worker in sup.workers.values())
    return workers + sum(link.is_up for link in sup.links.values())


async def _pin(sup: Supervisor, pinned: set[Worker], outputs: Outputs) -> None:
    """For root's ``ip netns exec``, by the name of the worker unless another lab has it; those that aren't *pinned*."""
    pinned &= set(sup.workers.values())
    for name, worker in list(sup.workers.items()):
        if "net" in worker.namespaces and worker not in pinned and not sup.rootless:
            pinned.add(worker)
            try:
                await sup.pin(worker)
            except NsorchError as exc:
                await outputs.tell(f"{name} is not pinned: {exc}")


async def _check(sup: Supervisor, topology: Topology, options: Options, outputs: Outputs, summary: str) -> int:
    components = topology.components()
    names = [name for name in topology.workers if sup.workers[name].addresses]
    part = {name: number for number, component in enumerate(components) for name in component}
    sizes = collections.Counter(part[name] for name in names)
    total = sum(size * (size - 1) for size in sizes.values())
    # An answer has gone both ways: many pairs are asked from one side.
    once = total > _BOTH_WAYS
    pairs = (
        (source, target)
        for number, source in enumerate(names)
        for target in (names[number + 1 :] if once else names)
        if source != target and part[source] == part[target]
    )
    done = 0

    def count(answered: int) -> None:
        nonlocal done
        done = answered

    begin = time.monotonic()
    async with progress("pinging", total // 2 if once else total, lambda: done):
        reachability = await sup.ping_all(pairs, progress=count)
    summary += f"; {len(reachability.pairs)} pairs asked in {time.monotonic() - begin:.1f} s"
    if options.as_json:
        await outputs.print(json.dumps(check_result(reachability, components), indent=None if options.events else 2))
    else:
        await outputs.print(render_check(topology, reachability, components, summary))
    return 0 if reachability.ok else 1


async def _run_inside(sup: Supervisor, worker: str, command: tuple[str, ...]) -> int:
    """With the terminal, if there is one: the command may take it, and we take it back."""
    if not command[0]:
        raise CommandNotFoundError('there is no command ""', worker=worker)
    terminal, env = is_terminal(sys.stdin), sup.workers[worker].spec.env
    if terminal and env is not None and "TERM" in os.environ:
        env = {"TERM": os.environ["TERM"], **env}
    with lent_terminal() as loan:
        process = await sup.workers[worker].popen(
            command,
            stdin=None,
            stdout=None,
            stderr=None,
            env=env,
            start_new_session=not terminal,
            process_group=0 if loan.to_a_job else None,
        )
        async with process, anyio.create_task_group() as tasks:
            if loan.to_a_job:
                tasks.start_soon(loan.follow, process.pid)
            loan.code = code = await process.wait()
            tasks.cancel_scope.cancel()
    return code if code >= 0 else 128 - code


async def _run_outside(command: tuple[str, ...], outputs: Outputs) -> int:
    with lent_terminal() as loan:
        loan.code = code = await _run_on_host(command, outputs)
    return code if code >= 0 else 128 - code


async def _run_on_host(command: tuple[str, ...], outputs: Outputs) -> int:
    """Its return code, negative for a signal."""
    try:
        process = await anyio.open_process(command, stdin=None, stdout=None, stderr=None)
    except FileNotFoundError:
        await outputs.tell(f'there is no command "{command[0]}"')
        return 127
    except PermissionError:
        if not _is_there(command[0]):
            await outputs.tell(f'there is no command "{command[0]}"')
            return 127
        await outputs.tell(f'"{command[0]}" is not executable')
        return 126
    try:
        return await process.wait()
    except BaseException:
        orphans = Orphans()
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(1):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
            await orphans.end()
        raise


def _is_there(program: str) -> bool:
    """False where only a directory of PATH can't be searched."""
    return shutil.which(program, os.F_OK) is not None or ("/" in program and os.path.isdir(program))


async def _print_events(
    sup: Supervisor, outputs: Outputs, as_json: bool, *, task_status: anyio.abc.TaskStatus[anyio.Event]
) -> None:
    """Tells of the last one by an event of another kind."""
    printed = anyio.Event()
    async with sup.events(since=0, buffer=1 << 20) as events:
        task_status.started(printed)
        async for event in events:
            together = [event]
            with contextlib.suppress(anyio.WouldBlock, anyio.EndOfStream):
                while len(together) < _TOGETHER:
                    together.append(events.receive_nowait())
            await outputs.print("\n".join(json.dumps(e.to_dict()) if as_json else _line(e) for e in together))
    printed.set()


def _line(event: Event) -> str:
    fields = event.to_dict()
    head = f"{fields.pop('seq', 0):>6} {fields.pop('kind')}"
    for key in ("time", "mono", "incarnation"):
        fields.pop(key, None)
    worker = fields.pop("worker", None)
    rest = " ".join(f"{key}={value}" for key, value in fields.items() if value not in (None, "", {}, []))
    return " ".join(part for part in (head, worker, rest) if part)
