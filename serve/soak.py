"""Clients as bad as they get against a server with a fake model.

  bazel run //serve:soak -- --clients=200 --rounds=3

Each client does what the clock of chance says: reads all, reads slowly, leaves
in the midst, does not read, sends half a request, sends nonsense, asks for too
much. Behind each round the server must be as it was: no request runs, no page
is held, no connection is open, answers come. Then it drains under load. Code 1
says that something was left. //serve:soak_test does the same in small.
"""

import asyncio
import contextlib
import dataclasses
import os
import random
import signal
import socket
import sys
import time

from absl import app
from absl import flags
import aiohttp

from serve import server_fixtures

_CLIENTS = flags.DEFINE_integer("clients", 200, "At a time.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Of all clients.", lower_bound=1)
_WRITE_SECONDS = flags.DEFINE_float(
  "write_seconds", 2.0, "As of the server: until who does not read is cut off."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of what clients do.")

# Bytes beside each token: an answer does not fit into the kernel's buffers.
_PADDING = 20_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """What came of it.

  Attributes:
    done: How many clients did what, and how it ended for them.
    left: What was not as before; empty: all is well.
    seconds: That it took.
    memory: MiB of the process at the end of each round.
  """

  done: dict[str, int]
  left: list[str]
  seconds: float
  memory: list[float]


async def run(
  *, clients: int, rounds: int, write_seconds: float, seed: int
) -> Result:
  """Runs a server, the clients, and the drain."""
  began = time.monotonic()
  chance = random.Random(seed)
  fake = server_fixtures.Fake(step_seconds=0.001, max_rows=16, max_queued=64)
  done: dict[str, int] = {}
  left: list[str] = []
  memory: list[float] = []
  async with server_fixtures.Running(
    fake,
    keeps_connections=False,
    write_seconds=write_seconds,
    body_seconds=write_seconds,
    max_connections=10 * clients,
    drain_seconds=60.0,
  ) as server:
    for number in range(rounds):
      kinds = [chance.choice(_KINDS) for _ in range(clients)]
      ends = await asyncio.gather(
        *(kind(server, chance.random()) for kind in kinds)
      )
      for kind, end in zip(kinds, ends, strict=True):
        name = f"{kind.__name__.strip('_')}: {end}"
        done[name] = done.get(name, 0) + 1
      found = await _find_left(server, write_seconds)
      left += [f"round {number}: {what}" for what in found]
      memory.append(_memory())
    left += await _drain(server, clients)
  return Result(
    done=dict(sorted(done.items())),
    left=left,
    seconds=time.monotonic() - began,
    memory=memory,
  )


async def _find_left(
  server: server_fixtures.Running, write_seconds: float
) -> list[str]:
  """What is not as in a server that nobody has asked."""
  engine = server.fake.engine
  with contextlib.suppress(TimeoutError):
    async with asyncio.timeout(10 + 5 * write_seconds):
      while engine.num_requests or await _count_connections(server) > 1:
        await asyncio.sleep(0.05)
  stats = engine.stats()
  found = []
  for name in ("num_running", "num_waiting", "pages_used"):
    if getattr(stats, name):
      found.append(f"{name} is {getattr(stats, name)}")
  if await _count_connections(server) > 1:
    found.append(f"{await _count_connections(server)} connections are open")
  status, _ = await server.complete(max_tokens=3)
  if status != 200:
    found.append(f"a request is answered with {status}")
  return found


async def _count_connections(server: server_fixtures.Running) -> float:
  return await server.figure("cacao:http_connections")


async def _drain(server: server_fixtures.Running, clients: int) -> list[str]:
  """Ends the server under load: whoever was let in gets all."""
  answers = [
    asyncio.create_task(server.complete(max_tokens=60)) for _ in range(clients)
  ]
  await asyncio.sleep(0.2)
  os.kill(os.getpid(), signal.SIGTERM)
  found = []
  for answer in answers:
    try:
      status, events = await answer
    except aiohttp.ClientError:
      continue  # It came too late.
    if status not in (200, 429, 503):
      found.append(f"while it drains: {status}")
    elif status == 200 and events[-1].get("finish") != "length":
      found.append("while it drains: an answer is cut off")
  ended = await server.ended
  if ended.code or not ended.is_clean:
    found.append(f"the end: {ended}")
  return found


def _memory() -> float:
  with open("/proc/self/statm") as file:
    return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


# -- What clients do -----------------------------------------------------------


async def _reads_all(server: server_fixtures.Running, chance: float) -> str:
  status, events = await server.complete(max_tokens=1 + int(40 * chance))
  if status == 200:
    return events[-1]["finish"]
  return str(status)


async def _reads_slowly(server: server_fixtures.Running, chance: float) -> str:
  async with server.post(max_tokens=60, padding=_PADDING) as response:
    try:
      async for _ in response.content.iter_chunked(2**16):
        await asyncio.sleep(0.01 * chance)
    except aiohttp.ClientError:
      return "cut off"
    return str(response.status)


async def _leaves(server: server_fixtures.Running, chance: float) -> str:
  response = await server.post(max_tokens=4000)
  await asyncio.sleep(0.3 * chance)
  response.close()
  return str(response.status)


async def _does_not_read(server: server_fixtures.Running, chance: float) -> str:
  body = b'{"prompt": [1, 2], "max_tokens": 4000, "padding": %d}' % _PADDING
  async with _connect(server) as (loop, sock):
    await loop.sock_sendall(sock, _head(len(body)) + body)
    # Whether it was reset: what has arrived could still be read.
    while not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
      await asyncio.sleep(0.05 + 0.05 * chance)
      with contextlib.suppress(BlockingIOError):
        answer = sock.recv(12, socket.MSG_PEEK)  # It stays unread.
        if answer != b"HTTP/1.1 200":
          return answer[9:].decode()
  return "cut off"


async def _sends_half(server: server_fixtures.Running, chance: float) -> str:
  async with _connect(server) as (loop, sock):
    await loop.sock_sendall(sock, _head(1000) + b"{" * int(900 * chance))
    answer = await loop.sock_recv(sock, 4096)
  return answer[9:12].decode()


async def _sends_nonsense(
  server: server_fixtures.Running, chance: float
) -> str:
  async with _connect(server) as (loop, sock):
    data = random.Random(chance).randbytes(1000) + b"\r\n\r\n"
    await loop.sock_sendall(sock, data)
    answer = await loop.sock_recv(sock, 4096)
  return answer[9:12].decode()


async def _asks_for_too_much(
  server: server_fixtures.Running, chance: float
) -> str:
  prompt = (1,) * (server_fixtures.MAX_LEN + int(100 * chance))
  status, _ = await server.complete(max_tokens=1, prompt=prompt)
  return str(status)


_KINDS = (
  _reads_all,
  _reads_slowly,
  _leaves,
  _does_not_read,
  _sends_half,
  _sends_nonsense,
  _asks_for_too_much,
)


@contextlib.asynccontextmanager
async def _connect(server: server_fixtures.Running):
  """A socket with little room for what it does not read."""
  host, port = server.url.removeprefix("http://").split(":")
  loop = asyncio.get_running_loop()
  with socket.socket() as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await loop.sock_connect(sock, (host, int(port)))
    yield loop, sock


def _head(length: int) -> bytes:
  return (
    f"POST {server_fixtures.ROUTE} HTTP/1.1\r\nHost: localhost\r\n"
    f"Content-Length: {length}\r\n\r\n"
  ).encode()


def describe(result: Result) -> str:
  """For people."""
  lines = [f"{num:6} {name}" for name, num in result.done.items()]
  sizes = ", ".join(f"{size:.0f}" for size in result.memory)
  lines += [f"{result.seconds:.1f} s; MiB after each round: {sizes}"]
  lines += [f"LEFT: {what}" for what in result.left] or ["nothing is left"]
  return "\n".join(lines)


def main(argv: list[str]) -> None:
  """Runs it, and says what came of it."""
  del argv
  result = asyncio.run(
    run(
      clients=_CLIENTS.value,
      rounds=_ROUNDS.value,
      write_seconds=_WRITE_SECONDS.value,
      seed=_SEED.value,
    )
  )
  print(describe(result))
  sys.exit(bool(result.left))


if __name__ == "__main__":
  app.run(main)
