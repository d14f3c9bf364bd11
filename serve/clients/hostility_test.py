"""The program in small, with a tiny model."""

import json
import subprocess
import sys

from absl.testing import absltest

from serve.clients import fixtures
from serve.clients import hostility

_SECONDS = 500


class HostilityTest(absltest.TestCase):
  def test_nothing_is_wrong(self):
    made = subprocess.run(
      [
        *(sys.executable, "-m", hostility.__name__),
        *("--leavers=20", "--readers=6", "--rows=4", "--queued=8"),
      ],
      env=fixtures.environment(),
      stdout=subprocess.PIPE,
      text=True,
      timeout=_SECONDS,
    )
    found = json.loads(made.stdout)
    self.assertEqual(found["wrong"], [])
    self.assertEqual(made.returncode, 0)
    statuses = found["overload"]["statuses"]
    self.assertEqual(sum(statuses.values()), 48)
    self.assertGreaterEqual(statuses["200"], 12)
    self.assertEqual(sum(found["disconnects"]["left"].values()), 20)
    self.assertEqual(found["poison"]["statuses"].keys(), {"500"})
    self.assertTrue(found["freeze"]["texts_unchanged"])


if __name__ == "__main__":
  absltest.main()
