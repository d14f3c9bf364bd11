from typing import Any

from absl.testing import absltest
from absl.testing import parameterized

from serve import scheduler_config


def _config(**changes):
  fields: dict[str, Any] = {
    "max_rows": 2,
    "prefill_tokens": 16,
    "max_len": 64,
    "page_size": 4,
    "num_pages": {0: 17, 8: 8},
  }
  return scheduler_config.SchedulerConfig(**(fields | changes))


class SchedulerConfigTest(parameterized.TestCase):
  def test_one_text_fits(self):
    _config().check()
    _config(num_pages={}, recurrent=True).check()

  @parameterized.parameters(
    ({"max_rows": 0}, "max_rows=0"),
    ({"prefill_tokens": 15}, "prefill_tokens=15"),
    ({"max_len": 1}, "max_len=1"),
    ({"page_size": 0}, "page_size=0"),
    ({"max_queued_requests": 0}, "max_queued_requests=0"),
    ({"num_drafts": -1}, "num_drafts=-1"),
    ({"num_drafts": 1, "recurrent": True}, "method=none"),
    ({"max_len": 65}, "window 0.*max_len=65.*needs 17"),
    ({"prefill_tokens": 32}, "window 8.*needs 11: raise cache_tokens"),
  )
  def test_says_what_is_wrong(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      _config(**changes).check()

  def test_what_is_found(self):
    self.assertTrue(_config().can_find)
    self.assertFalse(_config(prefix_caching=False).can_find)
    self.assertFalse(_config(recurrent=True).can_find)
    self.assertFalse(_config(num_pages={}).can_find)


if __name__ == "__main__":
  absltest.main()
