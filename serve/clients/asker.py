"""Asks a server over HTTP, also as none should, and looks what it holds."""

import asyncio
from collections.abc import AsyncIterator
import contextlib
import json
import os
import pathlib
import socket
import time
from typing import Any
import urllib.parse

import aiohttp

from serve.clients import fixtures

PROMPT = "In the beginning"
_IDLE = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")


class Asker:
  """Asks one server; mistakes are noted.

  Attributes:
    wrong: What is not as it has to be.
  """

  def __init__(self, server: fixtures.Server, session: aiohttp.ClientSession):
    """Asks nothing yet.

    Args:
      server: That runs.
      session: Without a limit of connections.
    """
    self.server = server
    self.wrong: list[str] = []
    self._session = session
    self._model = ""

  def check(self, is_right: bool, what: str) -> None:
    """Notes what is wrong."""
    if not is_right:
      self.wrong.append(what)

  async def figures(self) -> dict[str, float]:
    """Of /metrics."""
    return await asyncio.to_thread(self.server.figures)

  async def find_model(self) -> None:
    """Learns the model's name."""
    async with self._session.get(f"{self.server.base_url}/models") as found:
      self._model = (await found.json())["data"][0]["id"]

  async def complete(
    self, **fields: Any
  ) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers and body of a completion."""
    body = {"model": self._model, "prompt": PROMPT} | fields
    url = f"{self.server.base_url}/completions"
    async with self._session.post(url, json=body) as response:
      return response.status, dict(response.headers), await response.json()

  async def text(self, prompt: Any, num: int = 24) -> Any:
    """Token ids that the likeliest answer has."""
    status, _, body = await self.complete(
      prompt=prompt,
      max_tokens=num,
      temperature=0,
      ignore_eos=True,
      return_token_ids=True,
    )
    return body["choices"][0]["token_ids"] if status == 200 else status

  @contextlib.asynccontextmanager
  async def stream(
    self, **fields: Any
  ) -> AsyncIterator[tuple[asyncio.AbstractEventLoop, socket.socket]]:
    """A socket with little room, to which an answer is streamed."""
    parts = urllib.parse.urlsplit(self.server.url)
    body = {"model": self._model, "prompt": PROMPT, "stream": True} | fields
    data = json.dumps(body).encode()
    head = (
      f"POST /v1/completions HTTP/1.1\r\nHost: {parts.netloc}\r\n"
      "Content-Type: application/json\r\nConnection: close\r\n"
      f"Content-Length: {len(data)}\r\n\r\n"
    ).encode()
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
      sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
      sock.setblocking(False)
      await loop.sock_connect(sock, (parts.hostname, parts.port))
      await loop.sock_sendall(sock, head + data)
      yield loop, sock

  async def until_free(self, seconds: float) -> float:
    """Seconds until nothing runs or waits, and no page is used."""
    began = time.monotonic()
    while True:
      figures = await self.figures()
      left = {n: figures[f"vllm:{n}"] for n in _IDLE if figures[f"vllm:{n}"]}
      taken = time.monotonic() - began
      if not left:
        return taken
      if taken > seconds:
        self.wrong.append(f"after {seconds:g} s: {left}")
        return taken
      await asyncio.sleep(0.005)

  async def status(self, path: str) -> int:
    """Of a GET."""
    async with self._session.get(f"{self.server.url}{path}") as response:
      return response.status

  async def until_status(self, path: str, status: int, seconds: float) -> float:
    """Seconds until a GET is answered with this status."""
    began = time.monotonic()
    while True:
      found = await self.status(path)
      taken = time.monotonic() - began
      if found == status:
        return taken
      if taken > seconds:
        self.wrong.append(f"after {seconds:g} s, {path} is {found}")
        return taken
      await asyncio.sleep(0.02)

  @property
  def memory(self) -> int:
    """MiB of the server's process."""
    pages = pathlib.Path(f"/proc/{self.server.pid}/statm").read_text().split()
    return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20

  @property
  def num_files(self) -> int:
    """File descriptors that the server has open, sockets among them."""
    return len(os.listdir(f"/proc/{self.server.pid}/fd"))
