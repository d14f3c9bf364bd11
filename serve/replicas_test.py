import threading
import time

from absl.testing import absltest

from serve import engine as engine_lib
from serve import fixtures
from serve import replicas as replicas_lib
from serve import request as request_lib
from serve import scheduler as scheduler_lib
from serve import scheduler_config
from serve import stats as stats_lib

_Reason = request_lib.FinishReason


def _request(name, prompt=(3, 1, 4), max_tokens=4, **settings):
  return request_lib.Request(
    id=name, prompt=tuple(prompt), max_tokens=max_tokens, **settings
  )


class ReplicasTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.listener = fixtures.Listener()
    self.runners = [fixtures.FakeRunner() for _ in range(3)]
    config = scheduler_config.SchedulerConfig(
      max_rows=1,
      prefill_tokens=16,
      max_len=64,
      page_size=4,
      num_pages={0: 33},
      max_queued_requests=3,
    )
    engines = [
      engine_lib.Engine(runner, scheduler_lib.Scheduler(config), step=5)
      for runner in self.runners
    ]
    self.replicas = replicas_lib.Replicas(engines, prefix_tokens=8, slack=2)
    self.addCleanup(self.replicas.stop)

  def counts(self):
    return [engine.num_requests for engine in self.replicas.engines]

  def test_the_least_loaded_is_first(self):
    for i in range(6):
      self.replicas.submit(_request(str(i)), self.listener)
    self.assertEqual(self.counts(), [2, 2, 2])
    self.assertEqual(self.replicas.num_requests, 6)
    self.replicas.start()
    self.listener.wait(*"012345")
    for i in range(6):
      self.assertEqual(
        self.listener.tokens(str(i)), fixtures.continuation((3, 1, 4), 4)
      )
    self.assertEqual(self.replicas.stats().num_output_tokens, 24)

  def test_what_begins_alike_stays_together(self):
    prompt = range(12)
    for i in range(3):
      self.replicas.submit(_request(str(i), prompt), self.listener)
    self.assertEqual(self.counts(), [3, 0, 0])
    # As long as it is not much busier.
    self.replicas.submit(_request("3", prompt), self.listener)
    self.assertEqual(self.counts(), [3, 1, 0])
    # Short prompts are spread.
    self.replicas.submit(_request("4"), self.listener)
    self.replicas.submit(_request("5"), self.listener)
    self.assertEqual(self.counts(), [3, 2, 1])

  def test_who_follows_a_leader_goes_where_it_is(self):
    for i in range(3):
      self.replicas.submit(_request(str(i)), self.listener)
    for name in "ab":
      self.replicas.submit(_request(name, leader="1"), self.listener)
    self.assertEqual(self.counts(), [1, 3, 1])

  def test_a_full_queue_is_passed_by(self):
    for i in range(12):
      self.replicas.submit(_request(str(i), range(12)), self.listener)
    self.assertEqual(self.counts(), [4, 4, 4])
    with self.assertRaises(scheduler_lib.QueueFullError):
      self.replicas.submit(_request("full"), self.listener)
    with self.assertRaisesRegex(ValueError, "id is '3'"):
      self.replicas.submit(_request("3"), self.listener)
    self.replicas.start()
    self.listener.wait(*map(str, range(12)))
    self.replicas.submit(_request("full"), self.listener)
    self.listener.wait("full")

  def test_a_refused_request_is_not_remembered(self):
    for _ in range(2):
      with self.assertRaisesRegex(ValueError, "prompt"):
        self.replicas.submit(_request("long", range(70)), self.listener)

  def test_abort_reaches_the_right_one(self):
    for i in range(4):
      self.replicas.submit(_request(str(i)), self.listener)
    self.replicas.abort("1")
    self.replicas.abort("nobody")
    self.replicas.start()
    self.listener.wait(*"0123")
    self.assertIs(self.listener.finish("1"), _Reason.ABORTED)
    self.assertIs(self.listener.finish("0"), _Reason.LENGTH)

  def test_swap_is_done_when_all_are(self):
    self.replicas.start()
    self.replicas.swap([1, 2, 3], step=9).result(timeout=30)
    self.assertEqual([runner.params for runner in self.runners], [1, 2, 3])
    self.assertEqual(self.replicas.stats().step, 9)
    bad = self.replicas.swap([1, "two", 3], step=10)
    with self.assertRaisesRegex(TypeError, "two"):
      bad.result(timeout=30)
    # One still has the older ones.
    self.assertEqual(self.replicas.stats().step, 9)

  def test_drain_and_stop(self):
    gate = threading.Semaphore(0)
    for runner in self.runners:
      runner.gate = gate
    for i in range(3):
      self.replicas.submit(_request(str(i)), self.listener)
    self.replicas.start()
    threading.Timer(0.05, lambda: gate.release(99)).start()
    self.assertTrue(self.replicas.drain(time.monotonic() + 30))
    with self.assertRaises(engine_lib.UnavailableError):
      self.replicas.submit(_request("late"), self.listener)
    self.assertIs(self.replicas.stats().phase, stats_lib.Phase.DRAINING)
    self.assertTrue(self.replicas.stop(timeout=30))
    self.assertIs(self.replicas.stats().phase, stats_lib.Phase.STOPPED)
    self.assertFalse(self.replicas.stats().is_alive)

  def test_one_that_stalls_or_dies_is_all(self):
    def fail(index):
      raise RuntimeError(f"device lost at {index}")

    self.replicas.start()
    self.assertFalse(self.replicas.is_stalled(time.monotonic() + 1000))
    self.runners[0].gate = threading.Semaphore(0)
    self.replicas.submit(_request("0"), self.listener)
    self.assertTrue(self.replicas.is_stalled(time.monotonic() + 1000))
    self.runners[0].before_result = fail
    self.runners[0].gate.release(9)
    self.listener.wait("0")
    self.assertIs(self.listener.finish("0"), _Reason.ERROR)
    self.assertTrue(self.replicas.engines[0].stop(timeout=30))
    self.assertIs(self.replicas.stats().phase, stats_lib.Phase.DEAD)
    # Until somebody ends the process, the others go on.
    self.replicas.submit(_request("1"), self.listener)
    self.listener.wait("1")
    self.assertIs(self.listener.finish("1"), _Reason.LENGTH)


if __name__ == "__main__":
  absltest.main()
