"""The first signal asks, the second one acts; several processes agree."""

import os
import signal
import threading
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from train import distributed
from train import preemption


class PreemptionTest(parameterized.TestCase):
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

  def test_alone_it_stops_at_once(self):
    with preemption.StopRequest() as stop:
      self.assertEqual(stop.after(7), 0)
      os.kill(os.getpid(), signal.SIGTERM)
      self.assertEqual(stop.after(8), signal.SIGTERM)

  @parameterized.parameters(
    # This process's signal, or another's; the others are at steps 3 and 9.
    (signal.SIGTERM, "", [0, 0, 0, 0, 15]),
    (0, str(int(signal.SIGINT)), [0, 0, 0, 0, 2]),
  )
  def test_all_stop_after_the_same_step(self, own, posted, answers):
    board = {"run/stop": posted} if posted else {}
    agreed = threading.Event()

    def gather(key, value):
      del key
      agreed.set()
      return ["3", value, "9"]

    with (
      mock.patch.multiple(
        distributed,
        has_others=lambda: True,
        post=board.__setitem__,
        read=lambda key: board.get(key),
        gather=gather,
      ),
      mock.patch.object(preemption, "_POLL_SECONDS", 0.01),
      preemption.StopRequest() as stop,
    ):
      if own:
        os.kill(os.getpid(), own)
      self.assertTrue(agreed.wait(5))
      # One after the latest that any has reached.
      self.assertEqual([stop.after(step) for step in range(6, 11)], answers)

  def test_others_do_not_answer(self):
    answered = threading.Event()

    def gather(key, value):
      del key, value
      answered.set()

    with (
      mock.patch.multiple(
        distributed,
        has_others=lambda: True,
        read=lambda key: "15",
        gather=gather,
      ),
      mock.patch.object(preemption, "_POLL_SECONDS", 0.01),
      preemption.StopRequest() as stop,
    ):
      self.assertTrue(answered.wait(5))
      self.assertEqual(stop.after(1), 0)


if __name__ == "__main__":
  absltest.main()
