#!/usr/bin/env python3
"""A client at a constant rate, whatever the answers take: each latency counts from when its request was due.

open_loop.py load ADDRESS:PORT RATE SECONDS WARM_UP: prints {"latencies": [ms…], "failures": n, "reasons": {error: n}, "late": [ms…], "hosts": {name: n}}.
open_loop.py changes ADDRESS:PORT AGENT_SOCKET HOST COUNT: prints how long after each report of health new connections followed it, and how much CPU
time a hypervisor took from this machine within 0.1 s of it: {"failing": [{"ms": ms, "stolen_ms": ms}...], "healthy": [...]}.
open_loop.py watch ADDRESS:PORT HOST: prints when connections began, {"host": [s...], "others": [s...]}, until its input ends.
"""

import asyncio
import json
import sys

from sleeper import put

GIVE_UP = 30
STEP = 0.002
# So many connections that go elsewhere show that no more come.
ENOUGH = 25
WINDOW = 0.1


class Fetch(asyncio.Protocol):
    """One request; its future has the host's name."""

    def __init__(self, path, answered):
        self.path = path
        self.answered = answered
        self.data = b""

    def connection_made(self, transport):
        transport.write(f"GET {self.path} HTTP/1.0\r\n\r\n".encode())

    def data_received(self, data):
        self.data += data

    def connection_lost(self, exc):
        if not self.answered.done():
            if self.data.startswith(b"HTTP/1.0 200"):
                self.answered.set_result(self.data.split()[-1].decode())
            else:
                self.answered.set_exception(exc or ConnectionError(f"ended after {len(self.data)} bytes"))


async def fetch(address, path="/", reasons=None):
    """The name of the host that answers; None if none does, and then `reasons` gets one more."""
    loop = asyncio.get_running_loop()
    answered = loop.create_future()
    transport = None
    try:
        async with asyncio.timeout(GIVE_UP):
            transport, _ = await loop.create_connection(lambda: Fetch(path, answered), *address)
            return await answered
    except (OSError, TimeoutError) as error:
        if reasons is not None:
            reasons[repr(error)] = reasons.get(repr(error), 0) + 1
        return None
    finally:
        if transport:
            transport.abort()


async def load(address, rate, seconds, warm_up):
    loop = asyncio.get_running_loop()
    result = {"latencies": [], "late": [], "failures": 0, "reasons": {}, "hosts": {}}

    async def request(due, counts):
        late = loop.time() - due
        host = await fetch(address, reasons=result["reasons"])
        if host is None:
            result["failures"] += 1
        elif counts:
            result["hosts"][host] = result["hosts"].get(host, 0) + 1
        if counts:
            result["latencies"].append(round((loop.time() - due) * 1000, 2))
            result["late"].append(round(late * 1000, 2))

    begin = loop.time() + 0.1
    async with asyncio.TaskGroup() as group:
        for number in range(round(rate * seconds)):
            due = begin + number / rate
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            group.create_task(request(due, number >= rate * warm_up))
    return result


async def changes(address, socket, host, count):
    """Connections go on all the time; each change of health is timed by who answers them."""
    loop = asyncio.get_running_loop()
    seen = []
    stop = asyncio.Event()

    async def one():
        begun = loop.time()
        seen.append((begun, await fetch(address, "/now")))

    async def stream(group):
        while not stop.is_set():
            group.create_task(one())
            await asyncio.sleep(STEP)

    def to_host(begun):
        return sorted(at for at, by in seen if by == host and at >= begun)

    async def failing(begun):
        """The first connection after the last one that still went there."""
        while True:
            last = max(to_host(begun), default=begun)
            after = sorted(at for at, _ in seen if at > last)
            if len(after) > ENOUGH:
                return after[0]
            await asyncio.sleep(STEP)

    async def healthy(begun):
        """The first connection that goes there again."""
        while not (after := to_host(begun)):
            await asyncio.sleep(STEP)
        return after[0]

    times = {"failing": [], "healthy": []}
    async with asyncio.TaskGroup() as group:
        streaming = group.create_task(stream(group))
        reader, writer = await asyncio.open_unix_connection(socket)
        await asyncio.sleep(0.5)
        for number in range(count):
            health, follow = (("failing", failing), ("healthy", healthy))[number % 2]
            seen.clear()
            begun, stolen = loop.time(), stolen_ms()
            await put(reader, writer, "1/health", {"health": health})
            followed = group.create_task(follow(begun))
            await asyncio.sleep(max(0, begun + WINDOW - loop.time()))
            stolen = stolen_ms() - stolen
            async with asyncio.timeout(GIVE_UP):
                times[health].append({"ms": round((await followed - begun) * 1000, 2), "stolen_ms": stolen})
            # Those that follow meet a unit that has come to rest.
            await asyncio.sleep(WINDOW)
        stop.set()
        await streaming
    return times


def stolen_ms():
    """The time that a hypervisor has taken from this machine's CPUs, of all of them together."""
    with open("/proc/stat") as stat:
        return int(stat.readline().split()[8]) * 10


async def watch(address, host):
    """For what cannot be seen from here: when new connections began, those to a host that goes away and the others."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    ended = loop.create_task(reader.read())
    times = {"host": [], "others": []}

    async def one():
        begun = loop.time()
        if by := await fetch(address, "/now"):
            times["host" if by == host else "others"].append(begun)

    async with asyncio.TaskGroup() as group:
        while not ended.done():
            group.create_task(one())
            await asyncio.sleep(STEP)
    # CLOCK_MONOTONIC is the same in every process.
    return times


def main():
    command, address, *words = sys.argv[1:]
    host, _, port = address.rpartition(":")
    address = (host, int(port))
    match command:
        case "load":
            work = load(address, float(words[0]), float(words[1]), float(words[2]))
        case "changes":
            work = changes(address, words[0], words[1], int(words[2]))
        case "watch":
            work = watch(address, words[0])
    print(json.dumps(asyncio.run(work)))


if __name__ == "__main__":
    main()
