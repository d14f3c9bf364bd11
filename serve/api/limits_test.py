"""Clients that send or read too much, too slowly, or not at all."""

import asyncio
import contextlib
import socket
import unittest

from absl.testing import absltest

from serve import server_fixtures

_Running = server_fixtures.Running


async def _exchange(server, data):
  """What the server answers to bytes."""
  host, port = server.url.removeprefix("http://").split(":")
  reader, writer = await asyncio.open_connection(host, int(port))
  try:
    writer.write(data)
    async with asyncio.timeout(10):
      return await reader.read(4096)
  finally:
    writer.close()


def _post(length, headers=""):
  head = f"POST {server_fixtures.ROUTE} HTTP/1.1\r\nHost: localhost\r\n"
  return f"{head}Content-Length: {length}\r\n{headers}\r\n".encode()


@contextlib.asynccontextmanager
async def _no_logs(test):
  """Nothing that such a client sends is in a log: it might be a key."""
  with test.assertNoLogs(level="WARNING"):
    yield


class LimitsTest(unittest.IsolatedAsyncioTestCase):
  async def test_a_body_that_does_not_arrive(self):
    async with _Running(body_seconds=0.1) as server:
      answer = await _exchange(server, _post(10) + b"{")
      self.assertTrue(answer.startswith(b"HTTP/1.1 408 "), answer)
      self.assertIn(b"0.1 seconds", answer)
      self.assertIn(b"Connection: close", answer)

  async def test_a_body_that_is_too_long(self):
    async with _Running(max_body_bytes=1000) as server:
      # Refused before it is sent.
      answer = await _exchange(server, _post(1001))
      self.assertTrue(answer.startswith(b"HTTP/1.1 413 "), answer)
      # Its length is not said before.
      head = _post(0).replace(
        b"Content-Length: 0", b"Transfer-Encoding: chunked"
      )
      chunk = b"80000\r\n" + b" " * 0x80000 + b"\r\n"
      answer = await _exchange(server, head + 3 * chunk)
      self.assertTrue(answer.startswith(b"HTTP/1.1 413 "), answer)
      self.assertIn(b"max_body_bytes", answer)

  async def test_a_head_that_is_too_long(self):
    async with _Running() as server, _no_logs(self):
      for head in (
        b"GET /" + 9000 * b"x" + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        _post(0, f"X: {9000 * 'x'}\r\n"),
        _post(0, "".join(f"X{i}: y\r\n" for i in range(100))),
      ):
        answer = await _exchange(server, head)
        self.assertTrue(answer.startswith(b"HTTP/1.0 400 "), answer[:200])
      self.assertEqual((await server.complete(max_tokens=1))[0], 200)

  async def test_nonsense(self):
    async with _Running() as server, _no_logs(self):
      for data in (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"GET\r\n\r\n"):
        answer = await _exchange(server, data)
        self.assertTrue(answer.startswith(b"HTTP/1.0 400 "), answer)
      self.assertEqual((await server.complete(max_tokens=1))[0], 200)

  async def test_who_does_not_read_is_cut_off(self):
    fake = server_fixtures.Fake(step_seconds=0.0)
    async with _Running(fake, write_seconds=0.3) as server:
      body = b'{"prompt": [1], "max_tokens": 4000, "padding": 60000}'
      host, port = server.url.removeprefix("http://").split(":")
      with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, (host, int(port)))
        await loop.sock_sendall(sock, _post(len(body)) + body)
        await server.until(lambda: fake.engine.num_requests)
        await server.until(lambda: not fake.engine.num_requests)
        connections = await server.figure("cacao:http_connections")
        self.assertEqual(connections, 1)  # The one that asks for it.
      self.assertEqual((await server.complete(max_tokens=1))[0], 200)

  async def test_a_slow_reader_gets_all(self):
    fake = server_fixtures.Fake(step_seconds=0.0)
    async with _Running(fake, write_seconds=2.0) as server:
      num_bytes = 0
      async with server.post(max_tokens=200, padding=20_000) as response:
        async for chunk in response.content.iter_chunked(2**18):
          num_bytes += len(chunk)
          await asyncio.sleep(0.01)
      self.assertGreater(num_bytes, 200 * 20_000)


if __name__ == "__main__":
  absltest.main()
