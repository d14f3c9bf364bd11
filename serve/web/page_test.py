"""The page's files: whole, and nothing from elsewhere."""

import pathlib
import re
import unittest

from absl.testing import absltest
from aiohttp import test_utils
from aiohttp import web

from serve.web import page

_FOLDER = pathlib.Path(page.__file__).parent


class PageTest(unittest.IsolatedAsyncioTestCase):
  async def asyncSetUp(self):
    app = web.Application()
    app.add_routes(page.Page(lambda: {"phase": "ready"}).routes())
    self.client = test_utils.TestClient(test_utils.TestServer(app))
    await self.client.start_server()
    self.addAsyncCleanup(self.client.close)

  async def _get(self, path):
    async with self.client.get(path) as response:
      self.assertEqual(response.status, 200, path)
      return response, await response.text()

  async def test_everything_that_is_named_is_there(self):
    _, html = await self._get("/")
    named = re.findall(r'(?:href|src)="([^"]+)"', html)
    self.assertIn("page.js", named)
    for path in named:
      if path != "data:,":
        await self._get(f"/{path}")
    _, script = await self._get("/page.js")
    for path in re.findall(r'from "\./([^"]+)"', script):
      await self._get(f"/{path}")

  async def test_headers(self):
    for route in page.ROUTES:
      response, _ = await self._get(route)
      policy = response.headers["Content-Security-Policy"]
      self.assertIn("default-src 'none'", policy)
      self.assertNotIn("unsafe", policy)
      self.assertEqual(response.headers["X-Content-Type-Options"], "nosniff")
      self.assertTrue(response.content_type.startswith("text/"), route)

  async def test_stats(self):
    response, text = await self._get(page.STATS)
    self.assertEqual(text, '{"phase": "ready"}')
    self.assertEqual(response.headers["Cache-Control"], "no-store")

  def test_nothing_from_other_hosts_and_no_markup_from_strings(self):
    files = [
      f for f in _FOLDER.iterdir() if f.suffix in (".html", ".css", ".js")
    ]
    self.assertEqual(len(files), len(page.ROUTES))
    for file in files:
      text = file.read_text()
      for banned in (
        *("http://", "https://", "innerHTML", "outerHTML", "insertAdjacent"),
        *("document.write", "eval(", "Function(", "style=", " onclick="),
      ):
        self.assertNotIn(banned, text, file.name)

  def test_every_field_has_a_label_and_an_id_once(self):
    html = (_FOLDER / "index.html").read_text()
    ids = re.findall(r' id="([^"]+)"', html)
    self.assertEqual(len(ids), len(set(ids)))
    fields = re.findall(r"<(?:input|select|textarea) id=\"([^\"]+)\"", html)
    self.assertEqual(
      sorted(fields), sorted(re.findall(r' for="([^"]+)"', html))
    )

  def test_the_script_knows_the_page(self):
    html = (_FOLDER / "index.html").read_text()
    script = (_FOLDER / "page.js").read_text()
    ids = set(re.findall(r' id="([^"]+)"', html))
    used = re.findall(r'(?:element|setText)\("([^"]+)"', script)
    self.assertTrue(used)
    self.assertEqual(set(used) - ids, set())


if __name__ == "__main__":
  absltest.main()
