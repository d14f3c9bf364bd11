"""Hostile clients against the real server, and a request that is poison.

  bazel run -c opt //serve/clients:hostility
  bazel run -c opt //serve/clients:hostility -- --checkpoint=DIR

The server is a process of its own that computes a real model, without
--checkpoint a tiny random one; //serve:soak has a fake one. In turn: four times
as many clients as it has room for; 200 that leave, beside 50 that read slowly;
extremes of sampling beside texts that must not change; a drain under load. Then
tiny models: one in which the embedding of a token is NaN, asked with it, whose
pages others get afterwards; one whose decode loop stands still for a while, and
then for good. Prints one JSON line; code 1 if something is not as it has to be:
a 5xx that is not meant, a text that has changed, anything that is left over.
"""

import asyncio
import collections
from collections.abc import Awaitable, Callable, Iterable, Sequence
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import sys
import tempfile
import time
from typing import Any

from absl import app
from absl import flags
from absl import logging
import aiohttp

from serve import checkpoint_fixtures
from serve.clients import asker
from serve.clients import fixtures

_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", "", "A run's workdir or a checkpoint; unset: a tiny one."
)
_LEAVERS = flags.DEFINE_integer("leavers", 200, "Clients that leave.")
_READERS = flags.DEFINE_integer("readers", 50, "Clients that read slowly.")
_ROWS = flags.DEFINE_integer("rows", 8, "Requests computed at a time.")
_QUEUED = flags.DEFINE_integer("queued", 64, "Requests that may wait.")

_OVERLOAD = 4
_NUM_PROBES = 20
_TEXTS = (asker.PROMPT, "The quick brown fox", "1 + 1 = 2; 2 + 2 =")
_EXTREMES: Sequence[dict[str, Any]] = (
  {"logit_bias": {str(token): -100 for token in range(300)}},
  {"logit_bias": {"7": 100}, "temperature": 2},
  {"repetition_penalty": 0.01, "temperature": 2, "ignore_eos": True},
  {"repetition_penalty": 100, "presence_penalty": 2, "frequency_penalty": 2},
  {"top_p": 1e-9, "min_p": 1, "top_k": 1, "temperature": 1e-9},
  {"seed": -(2**63), "logprobs": 20, "n": 4, "temperature": 2},
)
# Of the tiny model.
_POISON = 290
_CACHE_TOKENS = 512
_STALL_SECONDS = 2.0
_DRAIN_SECONDS = 2.0
# After `drain_seconds`, for handlers and for a step that does not end.
_STOP_SECONDS = 30.0
_DRAINED_TOKENS = 256
# An allocator does not give all back.
_MEMORY_MIB = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
  """As `fixtures.Server` takes it."""

  workdir: pathlib.Path


class Hostility(asker.Asker):
  """What clients do, one kind after the other: each returns its figures."""

  async def overload(self, capacity: int) -> dict[str, Any]:
    """More requests at once than there is room for."""
    num = _OVERLOAD * capacity
    answers = await asyncio.gather(
      *(self.complete(max_tokens=16, ignore_eos=True) for _ in range(num))
    )
    statuses = collections.Counter(status for status, _, _ in answers)
    hints = [h.get("Retry-After") for s, h, _ in answers if s == 429]
    self.check(set(statuses) == {200, 429}, f"overload: {statuses}")
    self.check(statuses[200] >= capacity, f"overload served {statuses[200]}")
    self.check(all(hints), "a 429 has no Retry-After")
    for status, _, body in answers:
      if status == 200 and body["usage"]["completion_tokens"] != 16:
        self.wrong.append(f"overload: {body['usage']}")
    return {
      "clients": num,
      "capacity": capacity,
      "statuses": dict(sorted(statuses.items())),
      "retry_after": sorted({int(hint) for hint in hints if hint}),
    }

  async def leave(self, chance: random.Random, *, is_served: bool) -> str:
    """Asks for much, and leaves at some time; comes again if it is refused.

    Args:
      chance: When.
      is_served: Not before the answer has begun.
    """
    seconds = chance.uniform(0, 1)
    while True:
      async with self.stream(max_tokens=900, ignore_eos=True) as (loop, sock):
        began = time.monotonic()
        try:
          async with asyncio.timeout(None if is_served else seconds):
            head = await loop.sock_recv(sock, 12)
        except TimeoutError:
          return "while it waited"
        if head == b"HTTP/1.1 200":
          if not is_served:
            seconds -= time.monotonic() - began
          await asyncio.sleep(seconds)
          return "while it was answered"
      self.check(head == b"HTTP/1.1 429", f"leaving: {head!r}")
      await asyncio.sleep(0.1)

  async def read_slowly(self) -> str:
    """Takes all of a long answer, a little at a time."""
    while True:
      fields = {"max_tokens": 64, "ignore_eos": True, "logprobs": 20}
      async with self.stream(**fields) as (loop, sock):
        data = b""
        while piece := await loop.sock_recv(sock, 4096):
          data += piece
          await asyncio.sleep(0.03)
        if data.startswith(b"HTTP/1.1 429"):
          await asyncio.sleep(0.5)
        elif data.count(b'"finish_reason":') == 64 and b"data: [DONE]" in data:
          return "all"
        else:
          self.wrong.append(f"a slow reader got {data[:40]!r}, {data[-200:]!r}")
          return "cut off"

  async def disconnects(self) -> dict[str, Any]:
    """Clients that leave beside clients that read slowly."""
    chance = random.Random(0)
    before = await self.figures()
    began = time.monotonic()
    readers = [
      asyncio.create_task(self.read_slowly()) for _ in range(_READERS.value)
    ]
    left = await asyncio.gather(
      *(
        self.leave(chance, is_served=number % 2 == 0)
        for number in range(_LEAVERS.value)
      )
    )
    read = await asyncio.gather(*readers)
    seconds = time.monotonic() - began
    freed = await self.until_free(5.0)
    after = await self.figures()
    self.check(set(read) == {"all"}, f"slow readers: {set(read)}")
    name = "vllm:request_success_total"
    return {
      "left": dict(collections.Counter(left)),
      "slow_readers": dict(collections.Counter(read)),
      "requests_ended": after[name] - before[name],
      "seconds": round(seconds, 1),
      "seconds_until_free": round(freed, 3),
    }

  async def freeing(self) -> dict[str, Any]:
    """How long a request is still there when its client has left."""
    times = []
    for _ in range(_NUM_PROBES):
      async with self.stream(max_tokens=900, ignore_eos=True) as (loop, sock):
        while b"data: " not in await loop.sock_recv(sock, 4096):
          pass
      times.append(await self.until_free(5.0))
    times.sort()
    self.check(times[-1] < 1.0, f"a slot was free after {times[-1]:.2f} s")
    return {
      "probes": _NUM_PROBES,
      "ms_p50": round(1000 * times[len(times) // 2], 1),
      "ms_max": round(1000 * times[-1], 1),
    }

  async def extremes(self) -> dict[str, Any]:
    """Sampling at its limits, beside texts that must not change."""
    alone = [await self.text(text) for text in _TEXTS]
    room = asyncio.Semaphore(3)

    async def ask(fields: dict[str, Any]) -> int:
      async with room:
        return (await self.complete(max_tokens=24, **fields))[0]

    strange = [ask(fields) for fields in [*_EXTREMES] * 3]
    beside = asyncio.gather(*(self.text(text) for text in _TEXTS))
    statuses = collections.Counter(await asyncio.gather(*strange))
    self.check(set(statuses) == {200}, f"extremes: {statuses}")
    same = (await beside) == alone
    self.check(same, "texts have changed beside extremes")
    return {"statuses": dict(statuses), "others_unchanged": same}

  async def poison(self) -> dict[str, Any]:
    """Requests with a token whose embedding is NaN, beside and before others.

    They fill the cache, so that others get pages with NaN in them.
    """
    alone = [await self.text([5 + n] * 20) for n in range(4)]
    poisoned = [
      self.complete(prompt=[_POISON] * 20 + [n], max_tokens=24)
      for n in range(3 * _CACHE_TOKENS // 20)
    ]
    answers, beside = await asyncio.gather(
      asyncio.gather(*poisoned),
      asyncio.gather(*(self.text([5 + n] * 20) for n in range(4))),
    )
    after = [await self.text([5 + n] * 20) for n in range(4)]
    for seed in range(40):
      status, _, body = await self.complete(
        max_tokens=16, seed=seed, logit_bias={str(_POISON): -100}
      )
      self.check(status == 200, f"after poison: {status}: {body}")
    statuses = collections.Counter(status for status, _, _ in answers)
    self.check(set(statuses) == {500}, f"poisoned: {statuses}")
    self.check(beside == alone, "texts have changed beside poison")
    self.check(after == alone, "texts have changed after poison")
    await self.until_free(5.0)
    return {
      "statuses": dict(statuses),
      "others_unchanged": beside == alone and after == alone,
    }

  async def drain(self) -> dict[str, Any]:
    """SIGTERM while answers are streamed and others wait."""

    async def ask() -> str:
      fields = {"max_tokens": _DRAINED_TOKENS, "ignore_eos": True}
      async with self.stream(**fields) as (loop, sock):
        data = b""
        while piece := await loop.sock_recv(sock, 65536):
          data += piece
      num = data.count(b'"finish_reason":')
      is_whole = num == _DRAINED_TOKENS and b"data: [DONE]" in data
      return "all" if is_whole else data[9:12].decode()

    asked = [asyncio.create_task(ask()) for _ in range(3 * _ROWS.value)]
    while not (await self.figures())["vllm:num_requests_running"]:
      await asyncio.sleep(0.02)
    began = time.monotonic()
    self.server.end()
    await self.until_status("/readyz", 503, 1.0)
    try:
      late = str((await self.complete(max_tokens=4))[0])
    except aiohttp.ClientError as error:
      late = type(error).__name__
    ends = collections.Counter(await asyncio.gather(*asked))
    code = await asyncio.to_thread(self.server.wait, 60)
    self.check(set(ends) == {"all"}, f"drain: {ends}")
    self.check(code == 0, f"exit code {code}")
    self.check(late == "503", f"asked while it drains: {late}")
    return {
      "answers": dict(ends),
      "asked_late": late,
      "exit_code": code,
      "seconds": round(time.monotonic() - began, 1),
    }

  async def freeze(self, file: pathlib.Path) -> dict[str, Any]:
    """The decode loop stands still, and goes on.

    Args:
      file: While it exists, no step ends.
    """
    alone = [await self.text(text, 400) for text in _TEXTS]
    texts = [asyncio.create_task(self.text(text, 400)) for text in _TEXTS]
    async with self.stream(max_tokens=900, ignore_eos=True) as (loop, sock):
      while b"data: " not in await loop.sock_recv(sock, 4096):
        pass
      file.touch()
      stalled = await self.until_status("/livez", 503, _STALL_SECONDS + 5)
      ready = await self.status("/readyz")
      self.check(ready == 503, f"frozen: /readyz is {ready}")
      began = time.monotonic()
      late = "no answer"
      with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(5.0):
          late = (await self.complete(max_tokens=4, timeout=0.5))[0]
      taken = time.monotonic() - began
      self.check(late == 408, f"frozen: its timeout ends with {late}")
      before = await self.figures()
    began = time.monotonic()
    name = "vllm:num_requests_running"
    while (await self.figures())[name] == before[name]:
      if time.monotonic() - began > 5:
        self.wrong.append("frozen: who has left is still there")
        break
      await asyncio.sleep(0.005)
    left = time.monotonic() - began
    self.check(not any(t.done() for t in texts), "frozen: nothing stood still")
    file.unlink()
    thawed = await self.until_status("/livez", 200, 5.0)
    same = await asyncio.gather(*texts) == alone
    self.check(same, "texts have changed as the loop stood still")
    await self.until_free(5.0)
    return {
      "seconds_until_not_alive": round(stalled, 2),
      "asked_with_timeout": {"status": late, "seconds": round(taken, 2)},
      "seconds_until_who_left_is_gone": round(left, 3),
      "seconds_until_alive": round(thawed, 2),
      "texts_unchanged": same,
    }

  async def end_frozen(self, file: pathlib.Path) -> dict[str, Any]:
    """SIGTERM while the decode loop stands still for good."""

    async def ask() -> str:
      try:
        status, _, body = await self.complete(max_tokens=900, ignore_eos=True)
      except aiohttp.ClientError as error:
        return type(error).__name__
      return f"{status} {body['error']['code']}" if status != 200 else "200"

    asked = [asyncio.create_task(ask()) for _ in _TEXTS]
    while not (await self.figures())["vllm:num_requests_running"]:
      await asyncio.sleep(0.005)
    file.touch()
    began = time.monotonic()
    self.server.end()
    limit = _DRAIN_SECONDS + _STOP_SECONDS
    code = await asyncio.to_thread(self.server.wait, limit + 10)
    seconds = time.monotonic() - began
    self.check(seconds < limit, f"frozen: it ended after {seconds:.1f} s")
    ends = collections.Counter(await asyncio.gather(*asked))
    self.check("200" not in ends, f"frozen: {ends}")
    return {
      "answers": dict(ends),
      "exit_code": code,
      "seconds": round(seconds, 1),
    }

  async def fill(self) -> None:
    """All slots are there: as many requests are computed at a time."""
    num = _ROWS.value
    asked = asyncio.gather(
      *(self.complete(max_tokens=200, ignore_eos=True) for _ in range(num))
    )
    most = 0.0
    while not asked.done():
      most = max(most, (await self.figures())["vllm:num_requests_running"])
    self.check(most == num, f"only {most:g} of {num} slots are left")
    statuses = {status for status, _, _ in await asked}
    self.check(statuses == {200}, f"as many as slots: {statuses}")


_Act = Callable[[Hostility], Awaitable[dict[str, Any]]]


async def _run_all(hostility: Hostility) -> dict[str, Any]:
  await hostility.complete(max_tokens=4)
  found: dict[str, Any] = {}
  files, memory = [hostility.num_files], [hostility.memory]

  async def settle() -> None:
    await hostility.until_free(5.0)
    await asyncio.sleep(0.5)  # Sockets are closed.
    files.append(hostility.num_files)
    memory.append(hostility.memory)

  found["overload"] = await hostility.overload(_ROWS.value + _QUEUED.value)
  await settle()
  # Twice: what only grows the first time is no leak.
  for name in ("disconnects", "disconnects_again"):
    found[name] = await hostility.disconnects()
    await settle()
  found["freeing"] = await hostility.freeing()
  found["extremes"] = await hostility.extremes()
  await hostility.fill()
  await settle()
  figures = await hostility.figures()
  found["compiles_after_ready"] = figures["cacao:compiles_after_ready_total"]
  found["memory_mib"] = memory
  found["file_descriptors"] = files
  found["pages_left"] = figures["vllm:kv_cache_usage_perc"]
  found["connections_left"] = figures["cacao:http_connections"] - 1
  hostility.check(not found["connections_left"], "connections are left")
  hostility.check(not found["compiles_after_ready"], "something was compiled")
  hostility.check(files[-1] <= files[0] + 2, f"files are left: {files}")
  # Of the second round of disconnects and all after it.
  grown = memory[-1] - memory[2]
  hostility.check(grown <= _MEMORY_MIB, f"memory has grown: {memory}")
  found["drain"] = await hostility.drain()
  return found


def _serve(
  server: fixtures.Server, act: _Act, *, meant: Iterable[int]
) -> tuple[dict[str, Any], list[str]]:
  """Runs a server while clients act.

  Args:
    server: Not yet started.
    act: What they do.
    meant: Statuses from 500 on that are as they have to be.

  Returns:
    Figures, and what is wrong.
  """

  async def run() -> tuple[dict[str, Any], list[str]]:
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
      hostility = Hostility(server, session)
      await hostility.find_model()
      found = await act(hostility)
      logging.info("%s", found)
      return found, hostility.wrong

  with server:
    found, wrong = asyncio.run(run())
  statuses = collections.Counter(
    json.loads(line)["status"]
    for line in server.log
    # Of a request; probes are told that it is not alive.
    if line.startswith("{") and '"route": "/v1/' in line
  )
  found["statuses_of_all"] = dict(sorted(statuses.items()))
  if bad := {s for s in statuses if s >= 500} - set(meant):
    wrong.append(f"statuses {bad} of {statuses}")
  if "Traceback" in "".join(server.log):
    wrong.append("the log has a traceback")
  return found, wrong


def _run(folder: pathlib.Path) -> tuple[dict[str, Any], list[str]]:
  """All kinds of clients, each kind of server."""
  if _CHECKPOINT.value:
    directory = os.environ.get("BUILD_WORKING_DIRECTORY", "")
    served = Checkpoint(workdir=pathlib.Path(directory, _CHECKPOINT.value))
    cache = "~/.cache/cacao/compiled"
  else:
    served = fixtures.Model(folder)
    cache = ""
  server = fixtures.Server(
    served,
    folder,
    api__drain_seconds=60.0,
    engine__max_queued_requests=_QUEUED.value,
    runner__compilation_cache=cache,
    runner__max_len=1024,
    runner__max_rows=_ROWS.value,
    runner__prefill_tokens=256,
  )
  # 503 while it drains.
  found, wrong = _serve(server, _run_all, meant=[503])

  poisoned = Checkpoint(workdir=folder / "poisoned")
  checkpoint_fixtures.write(
    poisoned.workdir / "checkpoints",
    model=checkpoint_fixtures.config(tie_embeddings=False),
    tokenizer=checkpoint_fixtures.write_tokenizer(folder / "words"),
    poison=_POISON,
  )
  server = fixtures.Server(poisoned, folder, runner__cache_tokens=_CACHE_TOKENS)
  found["poison"], more = _serve(server, Hostility.poison, meant=[500])
  wrong += more

  file = folder / "freeze"

  async def freeze(hostility: Hostility) -> dict[str, Any]:
    thawed = await hostility.freeze(file)
    return thawed | {"end": await hostility.end_frozen(file)}

  server = fixtures.Server(
    fixtures.Model(folder / "freezing"),
    folder,
    main="serve.clients.freezable_main",
    variables={"CACAO_FREEZE": str(file)},
    api__drain_seconds=_DRAIN_SECONDS,
    engine__stall_seconds=_STALL_SECONDS,
  )
  found["freeze"], more = _serve(server, freeze, meant=[503])
  return found, wrong + more


def main(argv: list[str]) -> None:
  """Runs it, and says what came of it."""
  del argv
  with tempfile.TemporaryDirectory() as name:
    found, wrong = _run(pathlib.Path(name))
  print(json.dumps(found | {"wrong": wrong}))
  sys.exit(bool(wrong))


if __name__ == "__main__":
  app.run(main)
