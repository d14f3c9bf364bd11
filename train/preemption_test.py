"""The first signal asks, the second one acts."""

import os
import signal
from unittest import mock

from absl.testing import absltest
import jax

from train import preemption


class PreemptionTest(absltest.TestCase):
  def test_first_signal_is_remembered(self):
    with preemption.StopRequest() as stop:
      self.assertEqual(stop.signal, 0)
      os.kill(os.getpid(), signal.SIGTERM)
      self.assertEqual(stop.signal, signal.SIGTERM)

  def test_second_interrupt_acts(self):
    with preemption.StopRequest() as stop:
      os.kill(os.getpid(), signal.SIGINT)
      self.assertEqual(stop.signal, signal.SIGINT)
      with self.assertRaises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)

  def test_leaves_the_handlers_as_they_were(self):
    before = signal.getsignal(signal.SIGTERM)
    with preemption.StopRequest():
      self.assertNotEqual(signal.getsignal(signal.SIGTERM), before)
    self.assertEqual(signal.getsignal(signal.SIGTERM), before)

  def test_several_hosts_keep_the_usual_effect(self):
    before = signal.getsignal(signal.SIGTERM)
    with (
      mock.patch.object(jax, "process_count", return_value=2),
      preemption.StopRequest(),
    ):
      self.assertEqual(signal.getsignal(signal.SIGTERM), before)


if __name__ == "__main__":
  absltest.main()
