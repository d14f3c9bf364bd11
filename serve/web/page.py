"""The page at /, and the figures that it shows.

The page's files are beside this one. They are read once, need nothing from
other hosts, and may do nothing but ask this server. /stats gives a few of the
figures of /metrics as JSON.
"""

from collections.abc import Callable
import pathlib
from typing import Any

from aiohttp import web

STATS = "/stats"

_FILES = {
  "/": ("index.html", "text/html"),
  "/page.css": ("page.css", "text/css"),
  "/page.js": ("page.js", "text/javascript"),
  "/markdown.js": ("markdown.js", "text/javascript"),
  "/stream.js": ("stream.js", "text/javascript"),
}
# Open to anyone: there is nothing in them, and a key is entered on the page.
ROUTES = tuple(_FILES)

_HEADERS = {
  "Cache-Control": "no-cache",
  "Content-Security-Policy": (
    "default-src 'none'; script-src 'self'; style-src 'self';"
    " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'; require-trusted-types-for 'script'"
  ),
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
  "Referrer-Policy": "no-referrer",
  "X-Content-Type-Options": "nosniff",
  "X-Frame-Options": "DENY",
}


class Page:
  """The page's files and its figures."""

  def __init__(self, stats: Callable[[], dict[str, Any]]):
    """Reads the files.

    Args:
      stats: What /stats answers.
    """
    self._stats = stats
    folder = pathlib.Path(__file__).parent
    self._bodies = {
      route: (folder / name).read_bytes() for route, (name, _) in _FILES.items()
    }

  def routes(self) -> list[web.RouteDef]:
    """The routes."""
    files = [web.get(route, self._get_file) for route in _FILES]
    return [*files, web.get(STATS, self._get_stats)]

  async def _get_file(self, request: web.Request) -> web.Response:
    return web.Response(
      body=self._bodies[request.path],
      content_type=_FILES[request.path][1],
      charset="utf-8",
      headers=_HEADERS,
    )

  async def _get_stats(self, request: web.Request) -> web.Response:
    del request
    return web.json_response(
      self._stats(), headers={"Cache-Control": "no-store"}
    )
