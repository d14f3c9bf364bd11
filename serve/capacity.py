"""How many pages a cache has, and how long a text can be.

Every kind of attention has its own pages: one whose window is w only needs
those of the last w tokens of each text, and of those that are being read.
"""

from collections.abc import Mapping
import dataclasses
import os
from typing import Any

import jax

from serve import batch
from serve import config as serve_config

# Of an accelerator's free memory: the rest is for what a step computes.
_SHARE_OF_DEVICE = 0.85
_SHARE_OF_HOST = 0.25


@dataclasses.dataclass(frozen=True, kw_only=True)
class Capacity:
  """What there is room for.

  Attributes:
    num_pages: By window, the null page among them.
    max_len: Tokens of a text.
  """

  num_pages: dict[int, int]
  max_len: int


def plan(
  config: serve_config.RunnerConfig,
  *,
  max_seq_len: int,
  page_bytes: Mapping[int, int],
  num_drafts: int,
  device: Any,
) -> Capacity:
  """As `config` says, and what it leaves open as memory allows.

  Args:
    config: The settings.
    max_seq_len: The longest text that the model can read.
    page_bytes: By window, of a page of all layers on a device.
    num_drafts: Tokens that a step computes ahead.
    device: One of those with pages; its parameters are there already.

  Raises:
    ValueError: Not even one text fits.
  """
  if config.max_len is not None and config.max_len > max_seq_len:
    raise ValueError(
      f"runner.max_len={config.max_len} is more than the model can read; set "
      f"it to at most {max_seq_len}."
    )
  wanted = config.max_len or max_seq_len

  def pages(tokens: int) -> dict[int, int]:
    """For so many tokens in all, of texts of the longest length."""
    longest = min(wanted, tokens)
    counts = {}
    for window in page_bytes:
      num = -(-tokens // config.page_size)
      if window != batch.NO_WINDOW:
        held = window + config.prefill_tokens + num_drafts
        # Neither end of what is held need be that of a page.
        of_text = -(-min(held, longest) // config.page_size) + 1
        num = min(num + config.max_rows, config.max_rows * of_text)
      counts[window] = num + 1
    return counts

  def size(tokens: int) -> int:
    return sum(num * page_bytes[w] for w, num in pages(tokens).items())

  tokens = config.cache_tokens
  if tokens is None:
    most = config.max_rows * wanted
    room = _room(device)
    tokens = most
    if room is not None and size(most) > room:
      low, high = 0, most
      while high - low > config.page_size:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= room else (low, middle)
      tokens = low // config.page_size * config.page_size
  max_len = min(wanted, tokens)
  if max_len < 2 or (config.max_len and max_len < config.max_len):
    raise ValueError(
      f"The cache has room for {tokens} tokens, but runner.max_len="
      f"{config.max_len}; make runner.max_len smaller, runner.cache_tokens "
      "larger, or set runner.cache=int8."
    )
  return Capacity(num_pages=pages(tokens), max_len=max_len)


def _room(device: Any) -> float | None:
  """Bytes that the cache may take; None: as many as it likes."""
  if device.platform == "cpu":
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return _SHARE_OF_HOST * total / jax.local_device_count()
  stats = device.memory_stats()
  if not stats or "bytes_limit" not in stats:
    return None
  return _SHARE_OF_DEVICE * (stats["bytes_limit"] - stats["bytes_in_use"])
