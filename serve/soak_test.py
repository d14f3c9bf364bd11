"""The soak, with a few clients."""

import asyncio

from absl.testing import absltest

from serve import soak


class SoakTest(absltest.TestCase):
  def test_nothing_is_left(self):
    with self.assertNoLogs(level="ERROR"):
      result = asyncio.run(
        soak.run(clients=42, rounds=1, write_seconds=0.5, seed=1)
      )
    self.assertEqual(result.left, [], soak.describe(result))
    kinds = {name.partition(":")[0] for name in result.done}
    self.assertLen(kinds, 7)
    self.assertIn("does_not_read: cut off", result.done)


if __name__ == "__main__":
  absltest.main()
