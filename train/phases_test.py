"""Phases add up to wall time, nested or not."""

import time
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from train import phases

Phase = phases.Phase


class ClockTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.now = 100.0
    self.enter_context(
      mock.patch.object(time, "perf_counter", lambda: self.now)
    )
    self.enter_context(mock.patch.object(time, "time", lambda: self.now + 1e9))

  def test_every_moment_is_in_one_phase(self):
    clock = phases.Clock()
    self.now += 2
    clock.enter(Phase.OTHER)
    self.now += 1
    with clock.phase(Phase.CHECKPOINT):
      self.now += 10
      with clock.phase(Phase.DEVICE):
        self.now += 5
      self.now += 20
    self.now += 3
    seconds = clock.seconds()
    expected = dict.fromkeys(Phase, 0.0) | {
      Phase.STARTUP: 2.0,
      Phase.OTHER: 4.0,
      Phase.CHECKPOINT: 30.0,
      Phase.DEVICE: 5.0,
    }
    self.assertEqual(seconds, expected)
    self.assertEqual(sum(seconds.values()), self.now - 100)

  def test_begins_before_it_was_made(self):
    clock = phases.Clock(began=self.now + 1e9 - 7)
    self.now += 1
    self.assertEqual(clock.seconds()[Phase.STARTUP], 8.0)
    # A clock that was set back must not make time negative.
    clock = phases.Clock(began=self.now + 1e9 + 50)
    self.assertEqual(clock.seconds()[Phase.STARTUP], 0.0)

  def test_a_phase_named_when_it_is_over(self):
    clock = phases.Clock()
    with clock.phase(Phase.DATA_WAIT) as span:
      self.now += 4
      span.phase = Phase.DEVICE
    self.assertEqual(clock.seconds()[Phase.DEVICE], 4.0)
    self.assertEqual(clock.seconds()[Phase.DATA_WAIT], 0.0)

  def test_an_exception_ends_the_phase(self):
    clock = phases.Clock()
    with self.assertRaises(KeyError), clock.phase(Phase.EVALUATE):
      self.now += 4
      raise KeyError
    self.now += 1
    self.assertEqual(clock.seconds()[Phase.EVALUATE], 4.0)
    self.assertEqual(clock.seconds()[Phase.STARTUP], 1.0)


class TimeTest(parameterized.TestCase):
  def test_process_start(self):
    age = time.time() - phases.process_start()
    self.assertGreater(age, 0)
    self.assertLess(age, 3600)

  @parameterized.parameters(
    (0.4, "0:00"), (61, "1:01"), (3599.6, "1:00:00"), (7325, "2:02:05")
  )
  def test_duration(self, seconds, text):
    self.assertEqual(phases.duration(seconds), text)


if __name__ == "__main__":
  absltest.main()
