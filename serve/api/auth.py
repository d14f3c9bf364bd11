"""Who may ask: whoever has a key of the file; nobody's web page.

A key is compared by its digest, with all of them, in constant time. What is
kept of whoever asked is the key's place in the file, never the key.
"""

import hashlib
import hmac
import ipaddress
import logging
import os
import pathlib
import time

from aiohttp import typedefs
from aiohttp import web

from serve.api import errors
from serve.api import health
from serve.api import refusals
from serve.api import trace

_LOG = logging.getLogger(__name__)

# The file is looked at as often, at most.
_SECONDS_BETWEEN_LOOKS = 1.0


class Keys:
  """The keys of a file, read again when it changes."""

  def __init__(self, path: str | os.PathLike[str]):
    """Reads the file.

    Raises:
      ValueError: It cannot be read, or has no key.
    """
    self._path = pathlib.Path(path)
    self._looked = time.monotonic()
    self._version = self._find_version()
    self._digests = _read(self._path)

  def __len__(self) -> int:
    return len(self._digests)

  def find(self, key: str) -> int | None:
    """The place of a key in the file, from 1; None if it is not there."""
    digest = _digest(key)
    found = None
    for index, known in enumerate(self._digests, start=1):
      if hmac.compare_digest(digest, known):
        found = index
    return found

  def reload(self) -> None:
    """Reads the file again; if it has become unusable, the old keys stay."""
    self._version = self._find_version()
    try:
      digests = _read(self._path)
    except ValueError as error:
      _LOG.error("The old API keys stay in force: %s", error)
      return
    if digests != self._digests:
      _LOG.info("There are %d API keys now.", len(digests))
    self._digests = digests

  def reload_if_changed(self) -> None:
    """Looks, now and then, whether the file is another."""
    now = time.monotonic()
    if now - self._looked < _SECONDS_BETWEEN_LOOKS:
      return
    self._looked = now
    if self._find_version() != self._version:
      self.reload()

  def _find_version(self) -> tuple[int, int, int] | None:
    try:
      stat = self._path.stat()
    except OSError:
      return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


class Auth:
  """The middleware; health and the page, which asks for a key, are open."""

  def __init__(
    self, keys: Keys | None, *, open_routes: frozenset[str], is_local: bool
  ):
    """Asks for a key if there are any.

    Args:
      keys: None: everyone may ask who reaches the server.
      open_routes: For which no key is needed.
      is_local: Only programs of this machine reach the server. Without keys,
        web pages that they show may not ask.
    """
    self._keys = keys
    self._open = open_routes.union(health.ROUTES)
    self._is_local = is_local

  @web.middleware
  async def middleware(
    self, request: web.Request, handler: typedefs.Handler
  ) -> web.StreamResponse:
    """Answers 401 or 403, or goes on."""
    if refusals.route(request) in self._open:
      return await handler(request)
    if self._keys is None:
      if self._is_local and _is_foreign_page(request):
        raise errors.ApiError(
          "Web pages of other hosts may not ask this server. Give it API keys"
          " (--api_keys) if it is asked under other names.",
          status=403,
          kind="permission_error",
          code="foreign_page",
        )
      return await handler(request)
    self._keys.reload_if_changed()
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    index = self._keys.find(key.strip())
    if scheme.lower() != "bearer" or index is None:
      given = "Another" if key else "An"
      raise errors.ApiError(
        f"{given} API key is needed, as `Authorization: Bearer KEY`.",
        status=401,
        kind="authentication_error",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
      )
    call = trace.current()
    assert call is not None  # Logs are outside of us.
    call.user = f"key-{index}"
    return await handler(request)


def _is_foreign_page(request: web.Request) -> bool:
  """Whether a browser asks for a page that is not ours.

  A page of another origin says so; one whose host's name was turned to this
  machine's address (DNS rebinding) calls this server by that name.
  """
  host = request.headers.get("Host", "")
  name, _, port = host.rpartition(":")
  if not port.isdecimal():
    name = host
  origin = request.headers.get("Origin")
  is_foreign = origin is not None and origin.partition("://")[2] != host
  return is_foreign or not _is_loopback(name)


def _is_loopback(name: str) -> bool:
  try:
    return ipaddress.ip_address(name.strip("[]")).is_loopback
  except ValueError:
    return name.lower() == "localhost"


def _read(path: pathlib.Path) -> list[bytes]:
  try:
    lines = path.read_text(encoding="utf-8").splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(f"--api_keys={path} cannot be read: {error}") from error
  keys = [line.strip() for line in lines]
  keys = [key for key in keys if key and not key.startswith("#")]
  if not keys:
    raise ValueError(f"--api_keys={path} has no key; write one a line.")
  for number, key in enumerate(keys, start=1):
    if not key.isascii() or not key.isprintable() or " " in key:
      raise ValueError(
        f"--api_keys={path}: key {number} cannot be sent in a header; use "
        "printable ASCII without spaces."
      )
  return [_digest(key) for key in keys]


def _digest(key: str) -> bytes:
  return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
