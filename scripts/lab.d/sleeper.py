#!/usr/bin/env python3
"""A host's application that sleeps: places for so many requests, a queue before them, and its load told to the agent.

sleeper.py NAME FOLDER PLACES SERVICE_MS PORT...: the answer to any request is the host's name. FOLDER has the agent's socket (agent.sock),
and gets control.sock, which takes {"slow": 2, "taken": 4} a line: times as slow, places that somebody else has. A path of /now is
answered at once.
"""

import asyncio
import collections
import json
import random
import sys
from pathlib import Path

CAPACITY = 80
TELL_EVERY = 0.05


class Places:
    """Who is served, and who waits."""

    def __init__(self, places, service):
        self.places = places
        self.service = service
        self.busy = 0
        self.taken = 0
        self.slow = 1
        self.waiting = collections.deque()

    def enter(self, answer):
        self.waiting.append(answer)
        self.serve()

    def serve(self):
        while self.waiting and self.busy + self.taken < self.places:
            self.busy += 1
            time = self.service * random.uniform(0.5, 1.5) * self.slow
            asyncio.get_running_loop().call_later(time, self.leave, self.waiting.popleft())

    def leave(self, answer):
        self.busy -= 1
        answer()
        self.serve()

    def set(self, slow=1, taken=0):
        self.slow, self.taken = slow, taken
        self.serve()

    def load(self):
        return min(CAPACITY, round(CAPACITY * (self.busy + self.taken) / self.places))


class Request(asyncio.Protocol):
    """One connection with one request."""

    def __init__(self, name, places):
        body = name.encode() + b"\n"
        self.reply = b"HTTP/1.0 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        self.places = places
        self.head = b""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.head += data
        if self.head.endswith(b"\r\n\r\n"):
            if self.head.startswith(b"GET /now "):
                self.answer()
            else:
                self.places.enter(self.answer)

    def answer(self):
        if not self.transport.is_closing():
            self.transport.write(self.reply)
            self.transport.close()


async def tell(folder, places):
    """Tells the agent how the application is: once that it is healthy, and its load for ever."""
    while True:
        try:
            reader, writer = await asyncio.open_unix_connection(folder / "agent.sock")
            for application in (1, 2, 3):
                await put(reader, writer, f"{application}/health", {"health": "healthy"})
            while True:
                await put(reader, writer, "1/load", {"load": places.load()})
                await asyncio.sleep(TELL_EVERY)
        except (OSError, asyncio.IncompleteReadError):
            await asyncio.sleep(0.1)


async def put(reader, writer, path, body):
    """One request to the agent on a connection that stays open."""
    body = json.dumps(body).encode()
    head = f"PUT /v1/applications/{path} HTTP/1.1\r\nhost: agent\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(answer.partition("content-length:")[2].split("\r\n")[0])
    body = await reader.readexactly(length)
    if " 200 " not in answer.splitlines()[0]:
        raise OSError(f"{path}: {answer.splitlines()[0]} {body!r}")


async def main():
    name, folder, count, service, *ports = sys.argv[1:]
    folder = Path(folder)
    places = Places(int(count), float(service) / 1000)
    loop = asyncio.get_running_loop()
    for port in ports:
        await loop.create_server(lambda: Request(name, places), "0.0.0.0", int(port), backlog=4096)

    async def control(reader, writer):
        while line := await reader.readline():
            places.set(**json.loads(line))
            writer.write(b"done\n")

    await asyncio.start_unix_server(control, folder / "control.sock")
    await tell(folder, places)


if __name__ == "__main__":
    asyncio.run(main())
