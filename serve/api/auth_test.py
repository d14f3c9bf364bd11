"""Keys, and pages that may not ask."""

import os
import pathlib
import time
import unittest
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from serve import server_fixtures
from serve.api import auth


class KeysTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path, "keys")

  def _write(self, text):
    # Whatever the clock of the file system is, the file is another.
    self.path.unlink(missing_ok=True)
    self.path.write_text(text)

  def test_comments_and_spaces(self):
    self._write("# a team\n  one  \n\ntwo\n#three\n")
    keys = auth.Keys(self.path)
    self.assertLen(keys, 2)
    self.assertEqual(keys.find("one"), 1)
    self.assertEqual(keys.find("two"), 2)
    for other in ("", "three", "#three", "One", "on", "one ", "\udcff", "ö"):
      self.assertIsNone(keys.find(other), other)

  @parameterized.parameters("", "# none\n", "two words\n", "schlüssel\n")
  def test_unusable(self, text):
    self._write(text)
    with self.assertRaisesRegex(ValueError, "--api_keys=.*keys"):
      auth.Keys(self.path)

  def test_no_key_is_in_a_message(self):
    self._write("very secret\n")
    with self.assertRaises(ValueError) as caught:
      auth.Keys(self.path)
    self.assertNotIn("secret", str(caught.exception))

  def test_all_keys_are_compared(self):
    self._write("one\ntwo\nthree\n")
    keys = auth.Keys(self.path)
    with mock.patch.object(
      auth.hmac, "compare_digest", wraps=auth.hmac.compare_digest
    ) as compare:
      self.assertEqual(keys.find("one"), 1)
    self.assertEqual(compare.call_count, 3)

  def test_reads_a_changed_file(self):
    self._write("one\n")
    keys = auth.Keys(self.path)
    self._write("two\n")
    keys.reload_if_changed()
    self.assertEqual(keys.find("one"), 1)  # It has looked just now.
    later = time.monotonic() + 60
    with mock.patch.object(auth.time, "monotonic", lambda: later):
      keys.reload_if_changed()
    self.assertIsNone(keys.find("one"))
    self.assertEqual(keys.find("two"), 1)

  def test_keeps_the_keys_of_a_file_that_is_gone(self):
    self._write("one\n")
    keys = auth.Keys(self.path)
    for change in (lambda: self._write(""), lambda: os.remove(self.path)):
      change()
      with self.assertLogs("serve.api.auth", "ERROR"):
        keys.reload()
      self.assertEqual(keys.find("one"), 1)


class PagesTest(unittest.IsolatedAsyncioTestCase):
  async def test_foreign_pages(self):
    async with server_fixtures.Running() as server:
      own = server.url.removeprefix("http://")
      port = own.rpartition(":")[2]
      for headers, expected in (
        ({}, 200),
        ({"Origin": f"http://{own}"}, 200),
        ({"Host": f"localhost:{port}"}, 200),
        ({"Host": f"[::1]:{port}"}, 200),
        ({"Host": "localhost"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:1"}, 403),
        ({"Host": f"evil.example:{port}"}, 403),
        ({"Host": f"127.0.0.1.evil.example:{port}"}, 403),
      ):
        with self.subTest(headers):
          status, _ = await server.get("/stats", headers=headers)
          self.assertEqual(status, expected)

  async def test_with_keys_any_name_will_do(self):
    with open(f"{absltest.TEST_TMPDIR.value}/keys", "w") as file:
      file.write("one\n")
    async with server_fixtures.Running(api_keys=file.name) as server:
      for scheme in ("Bearer", "bearer"):
        headers = {"Authorization": f"{scheme} one", "Host": "model.example"}
        status, _ = await server.get("/stats", headers=headers)
        self.assertEqual(status, 200)
      for value in ("one", "Basic one", "Bearer", "Bearer one two", "Bearer ö"):
        status, body = await server.get(
          "/stats", headers={"Authorization": value}
        )
        self.assertEqual(status, 401, value)
        self.assertNotIn("one", body["error"]["message"])


if __name__ == "__main__":
  absltest.main()
