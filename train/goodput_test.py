"""The ledger adds up to wall time, over crashes and restarts."""

import json
import pathlib
import time
from unittest import mock

from absl.testing import absltest
import jax

from train import goodput
from train import phases

Phase = phases.Phase


class LedgerTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(self.create_tempdir().full_path)
    self.path = self.workdir / goodput.LEDGER_FILE
    self.now = 1000.0
    for name in ("time", "perf_counter"):
      self.enter_context(mock.patch.object(time, name, lambda: self.now))

  def _spend(self, clock, phase, seconds):
    with clock.phase(phase):
      self.now += seconds

  def _start(self, from_step):
    clock = phases.Clock()
    self.now += 3  # Startup.
    clock.enter(Phase.OTHER)
    return clock, goodput.Ledger(self.workdir, clock, start_step=from_step)

  def test_one_start(self):
    clock, ledger = self._start(0)
    self._spend(clock, Phase.DEVICE, 16)
    self._spend(clock, Phase.DATA_WAIT, 1)
    account = ledger.account()
    self.assertEqual(account.total, 20)
    self.assertEqual(account.goodput, 0.8)
    ledger.write(5)
    ledger.close()
    self.assertEqual(goodput.read(self.workdir).flat(), account.flat())

  def test_a_crash_and_a_stop(self):
    clock, ledger = self._start(0)
    self._spend(clock, Phase.DEVICE, 100)
    self._spend(clock, Phase.CHECKPOINT, 2)
    ledger.write(10)  # Saved.
    self._spend(clock, Phase.DEVICE, 40)
    ledger.write(14)
    self._spend(clock, Phase.DEVICE, 5)  # Killed: nothing is written of it.
    with self.path.open("a") as file:
      file.write('{"time": 7, "st')

    self.now += 60
    clock, ledger = self._start(10)
    self._spend(clock, Phase.DEVICE, 200)
    ledger.write(20)
    ledger.close()  # Ended by a signal, after saving.

    self.now += 30
    clock, ledger = self._start(20)
    self._spend(clock, Phase.DISPATCH, 50)
    account = ledger.account()
    self.assertEqual(account.starts, 3)
    self.assertEqual(account.repeated, 40)
    self.assertEqual(account.down, 5 + 60 + 30)
    self.assertEqual(account.seconds[Phase.DEVICE], 300)
    self.assertEqual(account.seconds[Phase.STARTUP], 9)
    # All of it, and nothing twice.
    self.assertEqual(account.total, self.now - 1000)
    self.assertEqual(account.goodput, 350 / account.total)
    ledger.close()
    self.assertEqual(goodput.read(self.workdir).flat(), account.flat())

  def test_a_checkpoint_that_was_damaged(self):
    clock, ledger = self._start(0)
    for step in (1, 2, 3):
      self._spend(clock, Phase.DEVICE, 10 * step)
      ledger.write(step)
    ledger.close()
    _, ledger = self._start(1)
    self.assertEqual(ledger.account().repeated, 50)
    self.assertEqual(ledger.account().total, self.now - 1000)

  def test_a_clock_set_back_is_not_negative_time(self):
    _, ledger = self._start(0)
    ledger.close()
    self.now -= 500
    _, ledger = self._start(0)
    self.assertEqual(ledger.account().down, 0)

  def test_other_processes_write_nothing(self):
    self.enter_context(mock.patch.object(jax, "process_index", return_value=1))
    clock, ledger = self._start(0)
    self._spend(clock, Phase.DEVICE, 1)
    ledger.write(1)
    self.assertEqual(ledger.account().total, 4)
    ledger.close()
    self.assertFalse(self.path.exists())

  def test_lines_are_only_added(self):
    clock, ledger = self._start(0)
    self._spend(clock, Phase.DEVICE, 1)
    ledger.close()
    before = self.path.read_text()
    self._start(0)[1].close()
    self.assertStartsWith(self.path.read_text(), before)
    self.assertEqual(
      json.loads(before.splitlines()[0]), {"start": 1000.0, "from_step": 0}
    )

  def test_table(self):
    text = goodput.table(
      goodput.Account(
        seconds={"device": 7000.0, "startup": 500.0},
        repeated=1500.0,
        down=1000.0,
        starts=2,
      )
    )
    self.assertEqual(
      text.splitlines(),
      [
        "startup           8:20    5.0 %",
        "device         1:56:40   70.0 %",
        "repeated         25:00   15.0 %",
        "down             16:40   10.0 %",
        "total          2:46:40  100.0 %",
        "goodput (dispatch and device) 70.0 %; started 2 times",
      ],
    )

  def test_no_ledger(self):
    self.assertEqual(goodput.read(self.workdir).goodput, 0)


if __name__ == "__main__":
  absltest.main()
