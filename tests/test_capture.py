"""Packets of links, as a stream and as a file."""

from __future__ import annotations

import contextlib
import ctypes.util
import os
import shutil
import socket
import struct
import time
from typing import TYPE_CHECKING

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nsorch
from nsorch.net import pcapng
from nsorch.net.packets import Tap
from nsorch.supervisor.traffic import capture
from nsorch.supervisor.traffic.capture_file import CaptureFile

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterable, Iterator

# IPv4 with protocol 1, or nothing: what libpcap makes of "icmp"
ICMP = [(0x28, 0, 0, 12), (0x15, 0, 3, 0x0800), (0x30, 0, 0, 23), (0x15, 0, 1, 1), (0x06, 0, 0, 65535), (0x06, 0, 0, 0)]
needs_libpcap = pytest.mark.skipif(ctypes.util.find_library("pcap") is None, reason="libpcap is not installed")


def blocks(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and body of each block, both lengths checked."""
    while data:
        kind, length = struct.unpack_from("=II", data)
        assert length % 4 == 0
        assert struct.unpack_from("=I", data, length - 4) == (length,)
        yield kind, data[8 : length - 4]
        data = data[length:]


def options(body: bytes) -> dict[int, bytes]:
    found = {}
    while body:
        code, length = struct.unpack_from("=HH", body)
        if code == 0:
            assert body == bytes(4)
            return found
        found[code] = body[4 : 4 + length]
        body = body[4 + length + -length % 4 :]
    raise AssertionError("the options have no end")


@pytest.mark.once
@given(st.binary(max_size=100), st.integers(0, 2**63 - 1), st.text(max_size=20), st.booleans())
def test_blocks_of_pcapng(data: bytes, time_ns: int, name: str, outgoing: bool) -> None:
    text = b"".join(
        [
            pcapng.section(),
            pcapng.interface(name, 96),
            pcapng.packet(0, time_ns, data, 1500, outgoing=outgoing),
            pcapng.statistics(0, time_ns, 7, 2),
        ]
    )
    (a, head), (b, interface), (c, packet), (d, statistics) = blocks(text)
    assert (a, b, c, d) == (0x0A0D0D0A, 1, 6, 5)
    assert struct.unpack_from("=IHHq", head) == (0x1A2B3C4D, 1, 0, -1)
    assert struct.unpack_from("=HHI", interface) == (1, 0, 96)
    assert options(interface[8:]) == {2: name.encode(), 9: b"\x09"}
    number, high, low, kept, length = struct.unpack_from("=IIIII", packet)
    assert (number, high << 32 | low, kept, length) == (0, time_ns, len(data), 1500)
    assert packet[20 : 20 + kept] == data
    assert options(packet[20 + kept + -kept % 4 :]) == {2: struct.pack("=I", 2 if outgoing else 1)}
    assert options(statistics[12:]) == {4: struct.pack("=Q", 7), 5: struct.pack("=Q", 2)}


async def pair(sup: nsorch.Supervisor) -> nsorch.Link:
    await sup.start("a")
    await sup.start("b")
    return await sup.link("a", "b", subnet="10.0.0.0/24")


async def correspondents(sup: nsorch.Supervisor) -> list[socket.socket]:
    """A socket of each worker of a pair, connected to the other's."""
    socks = [await sup.workers[name].open_socket(socket.AF_INET, socket.SOCK_DGRAM) for name in ("a", "b")]
    for number, sock in enumerate(socks):
        sock.bind((f"10.0.0.{number + 1}", 9))
        sock.connect((f"10.0.0.{2 - number}", 9))
    await sup.ping_all([("a", "b")])  # they know each other's hardware addresses
    return socks


def times(data: bytes) -> list[int]:
    """Of the packets, in the order of the file."""
    stamps = [struct.unpack_from("=4xII", body) for kind, body in blocks(data) if kind == 6]
    return [high << 32 | low for high, low in stamps]


async def take(packets: nsorch.Capture, number: int) -> list[nsorch.Packet]:
    with anyio.fail_after(5):
        return [await packets.receive() for _ in range(number)]


@pytest.mark.anyio
async def test_each_packet_once_at_the_end_where_it_arrives() -> None:
    async with nsorch.Supervisor() as sup:
        link = await pair(sup)
        async with link.capture(filter=ICMP) as packets:
            assert (await sup.ping_all([("a", "b")])).ok
            request, reply = sorted(await take(packets, 2), key=lambda packet: packet.time_ns)
            assert (request.end, reply.end) == ("b:eth0", "a:eth0")
            assert not request.outgoing
            assert request.data[12:14] == b"\x08\x00"
            assert (request.data[34], reply.data[34]) == (8, 0)  # echo and echo reply
            assert request.length == len(request.data)
            assert packets.received >= 2
            assert packets.dropped == 0
            with anyio.move_on_after(0.05):
                await packets.receive()
                raise AssertionError("there was a third")
        with pytest.raises(anyio.EndOfStream):
            await packets.receive()
        async with link.capture(filter=ICMP, direction="both", snaplen=64) as packets:
            assert (await sup.ping_all([("a", "b")])).ok
            four = await take(packets, 4)
            assert sorted((packet.end, packet.outgoing) for packet in four) == [
                ("a:eth0", False),
                ("a:eth0", True),
                ("b:eth0", False),
                ("b:eth0", True),
            ]
            assert {len(packet.data) for packet in four} <= {packet.length for packet in four} | {64}


@pytest.mark.anyio
async def test_a_link_that_is_named_twice_is_one() -> None:
    async with nsorch.Supervisor() as sup:
        link = await pair(sup)
        async with sup.capture([link, link.name, link], filter=ICMP) as packets:
            assert (await sup.ping_all([("a", "b")])).ok
            assert {packet.end for packet in await take(packets, 2)} == {"a:eth0", "b:eth0"}
            with anyio.move_on_after(0.05):
                await packets.receive()
                raise AssertionError("there was a third")


@pytest.mark.anyio
async def test_several_links_into_one_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lab.pcapng"
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", "10.0.0.0/24")
        await sup.start_all([nsorch.WorkerSpec(name=name, links=[lan]) for name in ("a", "b")])
        async with sup.capture(sup.links.values(), filter=ICMP, file=path):
            assert (await sup.ping_all([("a", "b")])).ok
    found = list(blocks(path.read_bytes()))
    assert [kind for kind, _ in found[:5]] == [0x0A0D0D0A, 1, 1, 1, 1]
    names = [options(body[8:])[2].decode() for kind, body in found if kind == 1]
    assert sorted(names) == ["a:eth0", "b:eth0", "lan (a:eth0)", "lan (b:eth0)"]
    at = [names[struct.unpack_from("=I", body)[0]] for kind, body in found if kind == 6]
    assert sorted(at) == sorted(names)  # the request and the reply, each over two links
    assert [kind for kind, _ in found[-4:]] == [5, 5, 5, 5]


@pytest.mark.anyio
async def test_what_is_not_taken_is_counted_as_dropped() -> None:
    async with nsorch.Supervisor() as sup:
        link = await pair(sup)
        async with link.capture(filter=ICMP, buffer=1) as packets:
            for _ in range(5):
                assert (await sup.ping_all([("a", "b")])).ok
            with anyio.fail_after(5):
                while packets.dropped < 9:
                    await anyio.sleep(0.01)
            await take(packets, 1)


@pytest.mark.anyio
async def test_what_is_there_is_taken_in_few_turns_of_the_loop() -> None:
    """Else less is taken than comes."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async with nsorch.Supervisor() as sup:
        link = await pair(sup)
        with contextlib.ExitStack() as stack:
            sender, _ = [stack.enter_context(sock) for sock in await correspondents(sup)]
            async with link.capture() as packets, anyio.create_task_group() as tasks:
                for _ in range(200):
                    sender.send(b"packet")
                while len(packets._packets) < 200:
                    await anyio.lowlevel.checkpoint()
                tasks.start_soon(count)
                await anyio.lowlevel.checkpoint()
                await take(packets, 200)
                assert turns < 50
                tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_file_is_finished_while_packets_go_on_coming(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    reads = 0
    read = Tap.read

    def read_and_send(tap: Tap, most: int) -> Iterator[nsorch.Packet]:
        nonlocal reads
        reads += 1
        assert reads < 100, "it takes all that come"
        for _ in range(most):
            sender.send(b"more")
        return read(tap, most)

    async with nsorch.Supervisor() as sup:
        link = await pair(sup)
        with contextlib.ExitStack() as stack:
            sender, _ = [stack.enter_context(sock) for sock in await correspondents(sup)]
            async with link.capture(file=tmp_path / "file"):
                sender.send(b"first")
                monkeypatch.setattr(Tap, "read", read_and_send)
    assert len(times((tmp_path / "file").read_bytes())) == 1


@pytest.mark.anyio
async def test_packets_are_in_the_file_in_the_order_of_their_times(tmp_path: pathlib.Path) -> None:
    async with nsorch.Supervisor() as sup:
        link = await pair(sup)
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(sock) for sock in await correspondents(sup)]
            async with link.capture(file=tmp_path / "file", direction="both"):
                for _ in range(5):
                    for sock in socks:
                        sock.send(b"packet")
    found = times((tmp_path / "file").read_bytes())
    assert len(found) == 20
    assert found == sorted(found)


@pytest.mark.anyio
async def test_what_a_slow_disk_has_no_time_for_waits_in_the_kernel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    write, may_write = CaptureFile.write, anyio.Event()

    async def write_later(file: CaptureFile, written: Iterable[bytes]) -> None:
        with anyio.CancelScope(shield=True):
            await may_write.wait()
        await write(file, written)

    monkeypatch.setattr(capture, "_UNWRITTEN", 1000)
    monkeypatch.setattr(CaptureFile, "write", write_later)
    async with nsorch.Supervisor() as sup:
        link = await pair(sup)
        with contextlib.ExitStack() as stack:
            sender, _ = [stack.enter_context(sock) for sock in await correspondents(sup)]
            async with link.capture(file=tmp_path / "file") as written:
                for _ in range(500):
                    sender.send(bytes(100))
                for _ in range(100):
                    await anyio.lowlevel.checkpoint()
                assert 1000 < written._unwritten_size < 20_000  # of some 80,000
                may_write.set()
    assert len(times((tmp_path / "file").read_bytes())) == 500


@pytest.mark.anyio
async def test_a_fifo_whose_reader_is_slow(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)

    async def send() -> None:
        for _ in range(200):
            socks[0].send(bytes(1000))

    async with nsorch.Supervisor() as sup:
        link = await pair(sup)
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(sock) for sock in await correspondents(sup)]
            with anyio.move_on_after(0.05) as scope:
                async with link.capture(file=path):  # nobody reads
                    raise AssertionError("it is entered")
            assert scope.cancelled_caught
            reader = stack.enter_context(open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb"))
            with anyio.CancelScope() as scope:
                async with link.capture(file=path):
                    await send()
                    scope.cancel()
            assert reader.read(4) == struct.pack("=I", 0x0A0D0D0A)
            assert 50_000 < len(reader.read()) < 200_000
            os.set_blocking(reader.fileno(), True)
            async with anyio.create_task_group() as tasks:
                whole: list[bytes] = []
                async with link.capture(file=path):
                    await send()
                    tasks.start_soon(anyio.to_thread.run_sync, lambda: whole.append(reader.read()))
            assert len(times(whole[0])) == 200


@pytest.mark.anyio
async def test_it_ends_with_the_link() -> None:
    async with nsorch.Supervisor() as sup:
        link = await pair(sup)
        async with link.capture(filter=ICMP) as packets:
            await link.remove()
            with anyio.fail_after(5), pytest.raises(anyio.EndOfStream):
                await packets.receive()
        with pytest.raises(nsorch.ClosedError):
            async with link.capture():
                pass


@pytest.mark.anyio
async def test_wrong_arguments_leave_nothing(tmp_path: pathlib.Path) -> None:
    async with nsorch.Supervisor() as sup:
        link = await pair(sup)
        with pytest.raises(nsorch.ClosedError, match='there is no link "a-b"'):
            sup.capture(["a-b"])
        with pytest.raises(ValueError, match="direction"):
            link.capture(direction="up")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="snaplen"):
            link.capture(snaplen=10)
        with pytest.raises(nsorch.TopologyError, match="kernel refuses"):
            async with link.capture(filter=[(0xFFFF, 0, 0, 0)]):
                pass
        with pytest.raises(FileNotFoundError):
            async with link.capture(file=tmp_path / "no" / "file"):
                pass
        for instructions in ([(6, 0)], [(6, 0, 0, -1)], [("ret", 0, 0, 0)]):
            with pytest.raises(nsorch.TopologyError, match="an instruction is"):
                async with link.capture(filter=instructions):  # type: ignore[arg-type]
                    pass
        for text, why in (("icmp\0udp", "null character"), ("icmp\udc80", "not Unicode")):
            with pytest.raises(nsorch.TopologyError, match=why):
                async with link.capture(filter=text):
                    pass
        with pytest.raises(nsorch.UnsupportedError, match="tags beside packets"):
            async with link.capture(filter="vlan 10 and icmp"):
                pass


@pytest.mark.anyio
async def test_a_capture_is_used_once() -> None:
    async with nsorch.Supervisor() as sup:
        link = await pair(sup)
        packets = link.capture()
        await packets.aclose()  # that of one that was never entered
        async with packets:
            pass
        with pytest.raises(RuntimeError, match="once"):
            async with packets:
                pass


@pytest.mark.anyio
@needs_libpcap
async def test_expressions() -> None:
    async with nsorch.Supervisor() as sup:
        link = await pair(sup)
        async with link.capture(filter="icmp[icmptype] == icmp-echo") as packets:
            assert (await sup.ping_all([("a", "b")])).ok
            (request,) = await take(packets, 1)
            assert request.data[34] == 8
        with pytest.raises(nsorch.TopologyError, match="syntax error"):
            async with link.capture(filter="icmp and and"):
                pass


@pytest.mark.anyio
@pytest.mark.skipif(ctypes.util.find_library("pcap") is not None, reason="libpcap is installed")
async def test_an_expression_without_libpcap() -> None:
    async with nsorch.Supervisor() as sup:
        link = await pair(sup)
        with pytest.raises(nsorch.UnsupportedError, match="libpcap"):
            async with link.capture(filter="icmp"):
                pass


@pytest.mark.anyio
async def test_what_the_block_raises_leaves_it_as_it_is() -> None:
    async with nsorch.Supervisor() as sup:
        link = await pair(sup)
        with pytest.raises(KeyError, match="body"):
            async with link.capture():
                raise KeyError("body")
        with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
            async with link.capture(file="/dev/full"):
                assert (await sup.ping_all([("a", "b")])).ok
                await anyio.sleep(5)
                raise AssertionError("the block goes on")
        with anyio.move_on_after(0.05) as scope:
            async with link.capture():
                await anyio.sleep(5)
        assert scope.cancelled_caught


@pytest.mark.anyio
@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
async def test_tshark_reads_the_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lab.pcapng"
    async with nsorch.Supervisor() as sup:
        link = await pair(sup)
        async with sup.capture([link], filter=ICMP, file=path, direction="both"):
            assert (await sup.ping_all([("a", "b")])).ok
    fields = [argument for name in ("frame.interface_name", "icmp.type") for argument in ("-e", name)]
    done = await anyio.run_process(["tshark", "-r", str(path), "-T", "fields", *fields])
    assert sorted(done.stdout.decode().split()) == sorted(["a:eth0", "8", "b:eth0", "8", "b:eth0", "0", "a:eth0", "0"])


@pytest.mark.anyio
async def test_it_goes_on_after_the_link_was_down() -> None:
    async with nsorch.Supervisor() as sup:
        link = await pair(sup)
        async with link.capture(filter=ICMP) as packets:
            for _ in range(2):
                assert (await sup.ping_all([("a", "b")])).ok
                await take(packets, 2)
                await link.down()
                await link.up()
            await sup.workers["a"].run("ip link set eth0 down; ip link set eth0 up")
            assert (await sup.ping_all([("a", "b")])).ok
            await take(packets, 2)


@pytest.mark.anyio
@pytest.mark.parametrize("both", [False, True])
async def test_it_ends_with_the_workers(both: bool) -> None:
    async with nsorch.Supervisor() as sup:
        topology = nsorch.Topology()
        topology.worker("a")
        topology.worker("b")
        topology.link("a", "b", subnet="10.0.0.0/24")
        deployment = await sup.deploy(topology)
        (link,) = sup.links.values()
        async with link.capture(filter=ICMP) as packets:
            assert (await sup.ping_all([("a", "b")])).ok
            await take(packets, 2)
            assert (await sup.ping_all([("a", "b")])).ok
            if both:
                await deployment.remove()
            else:
                await sup.workers["b"].remove()
            await take(packets, 2)  # what came before
            with anyio.fail_after(5), pytest.raises(anyio.EndOfStream):
                await packets.receive()
            assert packets.received >= 8


@pytest.mark.anyio
async def test_packets_have_the_time_of_their_coming() -> None:
    for _ in range(5):
        async with nsorch.Supervisor() as sup:
            link = await pair(sup)
            async with link.capture(filter=ICMP) as packets:
                assert (await sup.ping_all([("a", "b")])).ok
                before = time.time_ns()
                for packet in await take(packets, 2):
                    assert packet.time_ns < before
                    assert packet.outgoing is False
