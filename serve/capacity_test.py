from typing import Any

from absl.testing import absltest

from serve import capacity
from serve import config as serve_config


class Device:
  """An accelerator with so much memory."""

  platform = "gpu"

  def __init__(self, free: int):
    self._free = free

  def memory_stats(self) -> dict[str, int]:
    return {"bytes_limit": 2 * self._free, "bytes_in_use": self._free}


def plan(*, free=10**12, page_bytes=None, **settings) -> capacity.Capacity:
  defaults: dict[str, Any] = {
    "page_size": 16,
    "max_rows": 4,
    "prefill_tokens": 64,
  }
  return capacity.plan(
    serve_config.RunnerConfig(**(defaults | settings)),
    max_seq_len=1024,
    page_bytes=page_bytes or {0: 100},
    num_drafts=0,
    device=Device(free),
  )


class CapacityTest(absltest.TestCase):
  def test_every_text_of_full_length(self):
    room = plan()
    self.assertEqual(room.max_len, 1024)
    self.assertEqual(room.num_pages, {0: 4 * 64 + 1})

  def test_as_memory_allows(self):
    room = plan(free=100 * 100)
    self.assertBetween(room.num_pages[0], 80, 85)
    self.assertEqual(room.max_len, 1024)
    # Not even one text of full length fits.
    room = plan(free=10 * 100)
    self.assertBetween(room.max_len, 100, 128)
    with self.assertRaisesRegex(ValueError, "runner.max_len"):
      plan(free=10 * 100, max_len=512)

  def test_as_told(self):
    room = plan(cache_tokens=100, max_len=50)
    self.assertEqual(room.num_pages, {0: 7 + 1})
    self.assertEqual(room.max_len, 50)
    with self.assertRaisesRegex(ValueError, "at most 1024"):
      plan(max_len=1025)
    with self.assertRaisesRegex(ValueError, "runner.cache_tokens"):
      plan(cache_tokens=100, max_len=101)

  def test_windows_forget(self):
    room = plan(page_bytes={0: 100, 32: 100})
    # 32 + 64 tokens of each text, which need not begin with a page.
    self.assertEqual(room.num_pages, {0: 257, 32: 4 * 7 + 1})

  def test_without_pages(self):
    """Linear attention alone."""
    room = capacity.plan(
      serve_config.RunnerConfig(max_len=100),
      max_seq_len=1024,
      page_bytes={},
      num_drafts=0,
      device=Device(0),
    )
    self.assertEqual(room, capacity.Capacity(num_pages={}, max_len=100))


if __name__ == "__main__":
  absltest.main()
