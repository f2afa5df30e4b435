"""Whether datagrams arrive, asked with sockets of workers."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import anyio

import nsorch


async def answers(source: nsorch.Worker, target: nsorch.Worker, address: object, *, timeout: float = 3.0) -> bool:
    """Whether a datagram from *source* to *address*, which is *target*'s, arrives, and an answer comes back."""
    ip = ip_address(str(address).partition("/")[0])
    async with (
        await target.create_udp_socket(local_host=ip) as server,
        await source.create_connected_udp_socket(ip, server.extra(anyio.abc.SocketAttribute.local_port)) as client,
    ):
        deadline = anyio.current_time() + timeout
        while anyio.current_time() < deadline:
            with anyio.move_on_after(min(0.3, timeout)):
                try:
                    await client.send(b"question")
                except (OSError, anyio.BrokenResourceError):  # no key, no route
                    await anyio.sleep_forever()
                _, who = await server.receive()
                await server.sendto(b"answer", *who)
                return await client.receive() == b"answer"
    return False


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def udp_packet(source: str, target: str, ports: tuple[int, int], data: bytes) -> bytes:
    """An IPv4 packet with a UDP datagram."""
    udp = struct.pack("!HHHH", *ports, 8 + len(data), 0) + data
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, ip_address(source).packed, ip_address(target).packed
    )
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + udp
