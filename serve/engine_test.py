import resource
import threading
import time
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from serve import engine as engine_lib
from serve import fixtures
from serve import ngram
from serve import request as request_lib
from serve import scheduler as scheduler_lib
from serve import scheduler_config
from serve import stats as stats_lib

_Reason = request_lib.FinishReason
_PROMPT = (3, 1, 4, 1, 5)


def _request(name="a", prompt=_PROMPT, max_tokens=8, **settings):
  return request_lib.Request(
    id=name, prompt=tuple(prompt), max_tokens=max_tokens, **settings
  )


class _Rules:
  """A constraint: even tokens and odd ones take turns.

  Attributes:
    is_complete: Whether so many tokens are there.
  """

  def __init__(self, num=99):
    self._num = num
    self._accepted = []

  def masks(self, drafts):
    masks = np.full([1 + len(drafts), 4], 0x55555555, np.uint32)
    masks[(len(self._accepted) + 1) % 2 :: 2] <<= 1
    return masks

  def accept(self, tokens):
    self._accepted += tokens
    for place, token in enumerate(self._accepted):
      assert token % 2 == place % 2, self._accepted

  @property
  def is_complete(self):
    return len(self._accepted) >= self._num

  @staticmethod
  def continuation(prompt, num):
    """What the fake model says under this constraint."""
    text = list(prompt)
    for place in range(num):
      token = fixtures.next_token(text)
      while token % 2 != place % 2:
        token = (token + 1) % fixtures.VOCAB_SIZE
      text.append(token)
    return text[len(prompt) :]


class _Case(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.listener = fixtures.Listener()
    self.runner = fixtures.FakeRunner()
    self.deaths = []

  def make(self, *, guesses=0, draft_model=False, clock=None, **settings):
    limits: dict[str, Any] = {
      "max_rows": 3,
      "prefill_tokens": 16,
      "max_len": 64,
      "page_size": 4,
      "num_pages": {0: 65},
      "num_drafts": guesses,
    }
    config = scheduler_config.SchedulerConfig(**(limits | settings))
    make_guesser = None
    if guesses and not draft_model:
      make_guesser = lambda: ngram.Lookup(min_ngram=1, max_ngram=3)
    engine = engine_lib.Engine(
      self.runner,
      scheduler_lib.Scheduler(config, make_guesser=make_guesser),
      on_death=self.deaths.append,
      clock=clock or time.monotonic,
    )
    self.addCleanup(engine.stop)
    return engine

  def expect(self, name, prompt=_PROMPT, num=8, params=0):
    self.assertEqual(
      self.listener.tokens(name), fixtures.continuation(prompt, num, params)
    )


class EngineTest(_Case):
  def test_a_request(self):
    engine = self.make()
    engine.start()
    engine.submit(_request(), self.listener)
    self.listener.wait("a")
    self.expect("a")
    self.assertIs(self.listener.finish("a"), _Reason.LENGTH)
    self.assertEqual(engine.num_requests, 0)

  def test_a_step_is_launched_before_the_last_one_is_read(self):
    engine = self.make()
    engine.submit(_request(max_tokens=4), self.listener)
    engine.start()
    self.listener.wait("a")
    engine.stop()
    self.assertEqual(
      self.runner.events,
      [
        "admit a",
        *("run 0", "run 1", "result 0"),
        *("run 2", "result 1", "run 3", "result 2", "result 3"),
      ],
    )

  @parameterized.parameters(False, True)
  def test_guesses_wait_for_what_was_chosen(self, draft_model):
    engine = self.make(guesses=2, draft_model=draft_model)
    engine.submit(_request(max_tokens=12), self.listener)
    engine.start()
    self.listener.wait("a")
    engine.stop()
    self.expect("a", num=12)
    for index, event in enumerate(self.runner.events[1:]):
      self.assertStartsWith(event, ("run", "result")[index % 2])
    stats = engine.stats()
    if draft_model:
      self.assertGreater(stats.num_drafted_tokens, stats.num_accepted_tokens)
      self.assertGreater(stats.num_accepted_tokens, 0)

  @parameterized.parameters(
    {}, {"guesses": 3}, {"guesses": 3, "draft_model": True}
  )
  def test_constraints_among_others(self, **settings):
    engine = self.make(num_pages={0: 18}, **settings)
    prompts = {str(i): (i, 1, i) for i in range(12)}
    for name, prompt in prompts.items():
      rules = _Rules(num=20) if int(name) % 2 else None
      request = _request(name, prompt, 15 + int(name), constraint=rules)
      engine.submit(request, self.listener)
    engine.start()
    self.listener.wait(*prompts)
    for name, prompt in prompts.items():
      num = 15 + int(name)
      if int(name) % 2 == 0:
        self.expect(name, prompt, num)
        continue
      expected = _Rules.continuation(prompt, min(num, 20))
      self.assertEqual(self.listener.tokens(name), expected)
      reason = _Reason.LENGTH if num < 20 else _Reason.STOP
      self.assertIs(self.listener.finish(name), reason)

  def test_stop_ids_end_a_request_and_its_stale_row_is_dropped(self):
    text = fixtures.continuation(_PROMPT, 8)
    engine = self.make()
    engine.start()
    engine.submit(
      _request(max_tokens=50, stop_ids=frozenset({text[5]})), self.listener
    )
    self.listener.wait("a")
    self.assertIs(self.listener.finish("a"), _Reason.STOP)
    self.expect("a", num=text.index(text[5]) + 1)

  def test_many_at_once_are_each_as_alone(self):
    engine = self.make(num_pages={0: 18})
    engine.start()
    rng = np.random.default_rng(0)
    prompts = {
      str(i): rng.integers(0, fixtures.VOCAB_SIZE, 1 + i % 17)
      for i in range(40)
    }
    for name, prompt in prompts.items():
      prompt = tuple(prompt.tolist())
      engine.submit(_request(name, prompt, 1 + int(name) % 31), self.listener)
    self.listener.wait(*prompts)
    for name, prompt in prompts.items():
      self.expect(name, prompt.tolist(), 1 + int(name) % 31)
    self.assertTrue(engine.drain(time.monotonic() + 10))
    stats = engine.stats()
    self.assertGreater(stats.num_preemptions, 0)
    self.assertEqual(stats.num_running + stats.num_waiting, 0)
    self.assertEqual(
      stats.num_output_tokens, sum(1 + i % 31 for i in range(40))
    )
    self.assertEqual(stats.finished[_Reason.LENGTH], 40)

  def test_submit_refuses_at_once(self):
    engine = self.make(max_rows=1, max_queued_requests=1)
    with self.assertRaisesRegex(ValueError, "prompt"):
      engine.submit(_request("long", range(70)), self.listener)
    engine.submit(_request("a"), self.listener)
    with self.assertRaisesRegex(ValueError, "id is 'a'"):
      engine.submit(_request("a"), self.listener)
    engine.submit(_request("b"), self.listener)
    with self.assertRaises(scheduler_lib.QueueFullError):
      engine.submit(_request("c"), self.listener)
    engine.start()
    self.listener.wait("a", "b")
    engine.submit(_request("c"), self.listener)
    self.listener.wait("c")
    self.assertEqual([*self.listener.outputs], ["a", "b", "c"])

  def test_an_id_can_be_used_again(self):
    engine = self.make()
    engine.start()
    for num in (3, 5):
      self.listener.outputs.clear()
      engine.submit(_request(max_tokens=num), self.listener)
      self.listener.wait("a")
      self.expect("a", num=num)


class AbortTest(_Case):
  def test_abort_frees_within_a_step(self):
    self.runner.gate = threading.Semaphore(6)
    engine = self.make()
    engine.submit(_request("a", max_tokens=50), self.listener)
    engine.submit(_request("b", max_tokens=50), self.listener)
    engine.start()
    self.assertTrue(self.runner.is_blocked.wait(30))
    num = len(self.listener.tokens("a"))
    self.assertGreater(num, 0)
    engine.abort("a")
    self.assertEqual(engine.stats().num_running, 1)
    engine.abort("a")
    engine.abort("nobody")
    # It is told as soon as the step under way is done.
    self.runner.gate.release()
    self.listener.wait("a")
    self.assertIs(self.listener.finish("a"), _Reason.ABORTED)
    self.runner.gate.release(100)
    self.listener.wait("b")
    self.expect("a", num=num)
    self.expect("b", num=50)
    self.assertEqual(engine.stats().pages_used, 0)

  def test_a_stop_string_is_no_abort(self):
    engine = self.make()
    engine.start()

    def on_output(output):
      self.listener(output)
      engine.abort("a", _Reason.STOP)

    engine.submit(_request(max_tokens=50), on_output)
    self.listener.wait("a")
    self.assertIs(self.listener.finish("a"), _Reason.STOP)
    self.assertLen(self.listener.tokens("a"), 1)
    self.assertEqual(engine.stats().finished[_Reason.STOP], 1)

  def test_what_waits_is_aborted_at_once(self):
    engine = self.make()
    engine.submit(_request(), self.listener)
    engine.abort("a")
    engine.start()
    self.listener.wait("a")
    self.assertEqual(self.runner.events, [])

  def test_a_deadline_ends_a_request(self):
    now = 100.0
    engine = self.make(clock=lambda: now)
    self.runner.gate = threading.Semaphore(2)
    engine.submit(_request(max_tokens=50, deadline=105.0), self.listener)
    engine.start()
    self.listener.wait_for(lambda: len(self.listener.tokens("a")) == 2)
    now = 105.5
    self.runner.gate.release(2)
    self.listener.wait("a")
    self.assertIs(self.listener.finish("a"), _Reason.DEADLINE)


class PoisonTest(_Case):
  """One request's fault is nobody else's."""

  def check_the_other(self, engine, request, *, error):
    engine.start()
    engine.submit(_request("good", max_tokens=20), self.listener)
    engine.submit(request, self.listener)
    self.listener.wait("good", request.id)
    self.assertIs(self.listener.finish(request.id), _Reason.ERROR)
    self.assertIn(error, self.listener.error(request.id))
    self.expect("good", num=20)
    engine.submit(_request("later"), self.listener)
    self.listener.wait("later")
    self.expect("later")
    self.assertEqual(engine.stats().finished[_Reason.ERROR], 1)
    self.assertEqual(engine.stats().num_running, 0)
    self.assertEmpty(self.deaths)

  @parameterized.parameters("masks", "accept")
  def test_a_constraint_that_raises(self, method):
    rules = _Rules()
    calls = []

    def fail(argument):
      calls.append(argument)
      if len(calls) == 3:
        raise RuntimeError("no such rule")
      return original(argument)

    original = getattr(rules, method)
    setattr(rules, method, fail)
    self.check_the_other(
      self.make(), _request(constraint=rules), error="no such rule"
    )

  def test_an_admission_that_raises(self):
    def fail(request):
      if request.id == "bad":
        raise ValueError("logit_bias has too many")

    self.runner.before_admit = fail
    self.check_the_other(
      self.make(), _request("bad"), error="logit_bias has too many"
    )

  def test_numbers_that_are_not_finite(self):
    self.runner.not_finite.add("bad")
    self.check_the_other(self.make(), _request("bad"), error="finite")

  def test_a_listener_that_raises(self):
    engine = self.make()
    engine.start()

    def fail(output):
      del output
      raise RuntimeError("nobody listens")

    engine.submit(_request("bad", max_tokens=50), fail)
    engine.submit(_request("good", max_tokens=20), self.listener)
    self.listener.wait("good")
    self.expect("good", num=20)
    stats = engine.stats()
    self.assertEqual(stats.finished[_Reason.ABORTED], 1)
    self.assertEqual(stats.num_running, 0)


class DeathTest(_Case):
  @parameterized.parameters("before_result", "before_run")
  def test_a_device_that_fails_ends_all(self, when):
    def fail(index):
      if index == 3 or when == "before_run":
        raise RuntimeError("device lost")

    setattr(self.runner, when, fail)
    engine = self.make()
    swap = engine.swap(1, step=1)
    for name in "abcde":
      engine.submit(_request(name, max_tokens=20), self.listener)
    engine.start()
    self.listener.wait(*"abcde")
    for name in "abcde":
      self.assertIs(self.listener.finish(name), _Reason.ERROR)
      self.assertIn("device lost", self.listener.error(name))
    self.assertIsNone(swap.result(timeout=10))
    self.assertTrue(engine.stop(timeout=10))
    self.assertLen(self.deaths, 1)
    stats = engine.stats()
    self.assertIs(stats.phase, stats_lib.Phase.DEAD)
    self.assertFalse(stats.is_alive)
    with self.assertRaises(engine_lib.UnavailableError):
      engine.submit(_request("f"), self.listener)
    with self.assertRaises(engine_lib.UnavailableError):
      engine.swap(2, step=2)
    self.assertTrue(engine.drain(time.monotonic() + 10))

  def test_a_stall_is_seen_without_a_lock(self):
    now = 100.0
    self.runner.gate = threading.Semaphore(0)
    engine = self.make(clock=lambda: now)
    engine.start()
    self.assertFalse(engine.is_stalled(1000.0))
    now = 500.0
    engine.submit(_request(), self.listener)
    self.assertFalse(engine.is_stalled(559.0))
    with engine._changed:
      other = []
      thread = threading.Thread(
        target=lambda: other.append(engine.is_stalled(561.0))
      )
      thread.start()
      thread.join(10)
      self.assertEqual(other, [True])
    now = 600.0
    self.runner.gate.release(100)
    self.listener.wait("a")
    self.assertFalse(engine.is_stalled(10_000.0))


class LifeTest(_Case):
  def test_an_idle_engine_sleeps(self):
    engine = self.make()
    engine.start()
    engine.submit(_request(), self.listener)
    self.listener.wait("a")
    time.sleep(0.05)
    before = resource.getrusage(resource.RUSAGE_SELF)
    time.sleep(0.5)
    after = resource.getrusage(resource.RUSAGE_SELF)
    self.assertLess(after.ru_nvcsw - before.ru_nvcsw, 20)

  def test_drain_waits_and_takes_no_more(self):
    self.runner.gate = threading.Semaphore(0)
    engine = self.make()
    engine.start()
    engine.submit(_request(), self.listener)
    drained = []
    thread = threading.Thread(
      target=lambda: drained.append(engine.drain(time.monotonic() + 30))
    )
    thread.start()
    while engine.stats().phase is not stats_lib.Phase.DRAINING:
      time.sleep(0.001)
    with self.assertRaises(engine_lib.UnavailableError):
      engine.submit(_request("b"), self.listener)
    self.runner.gate.release(100)
    thread.join(30)
    self.assertEqual(drained, [True])
    self.expect("a")
    self.assertTrue(engine.stop(timeout=10))
    self.assertIs(engine.stats().phase, stats_lib.Phase.STOPPED)

  def test_drain_ends_what_is_left(self):
    self.runner.gate = threading.Semaphore(2)
    engine = self.make()
    engine.start()
    engine.submit(_request(max_tokens=50), self.listener)
    self.listener.wait_for(lambda: len(self.listener.tokens("a")) >= 1)
    self.assertFalse(engine.drain(time.monotonic()))
    self.runner.gate.release(10)
    self.listener.wait("a")
    self.assertIs(self.listener.finish("a"), _Reason.ERROR)
    self.assertIn("shutting down", self.listener.error("a"))

  def test_stop_tells_what_is_left(self):
    engine = self.make()
    engine.submit(_request("a"), self.listener)
    self.assertTrue(engine.stop())
    self.listener.wait("a")
    self.assertIs(self.listener.finish("a"), _Reason.ERROR)
    with self.assertRaises(engine_lib.UnavailableError):
      engine.submit(_request("b"), self.listener)
    self.assertTrue(engine.stop())

  def test_swap_between_two_steps(self):
    self.runner.gate = threading.Semaphore(4)
    engine = self.make()
    engine.start()
    engine.submit(_request(max_tokens=20), self.listener)
    self.listener.wait_for(lambda: len(self.listener.tokens("a")) == 4)
    done = engine.swap(7, step=40)
    bad = engine.swap("seven", step=41)
    self.runner.gate.release(100)
    self.listener.wait("a")
    done.result(timeout=10)
    with self.assertRaisesRegex(TypeError, "seven"):
      bad.result(timeout=10)
    outputs = self.listener.outputs["a"]
    steps = [output.step for output in outputs]
    self.assertEqual(sorted(set(steps)), [0, 40])
    self.assertEqual(steps, sorted(steps))
    # The text goes on where it is, with the other parameters.
    old = sum(step == 0 for step in steps)
    text = fixtures.continuation(_PROMPT, old)
    text += fixtures.continuation([*_PROMPT, *text], 20 - old, params=7)
    self.assertEqual(self.listener.tokens("a"), text)
    # What was computed before is not found.
    engine.submit(_request("b"), self.listener)
    self.listener.wait("b")
    self.expect("b", params=7)
    self.assertEqual(engine.stats().step, 40)
    self.assertEqual(engine.stats().prefix_hits, 0)
    engine.submit(_request("c"), self.listener)
    self.listener.wait("c")
    self.expect("c", params=7)
    self.assertEqual(engine.stats().prefix_hits, 4)

  def test_tokens_flow_while_parameters_are_prepared(self):
    is_preparing, may_go_on = threading.Event(), threading.Event()

    def prepare(params):
      if params == 7:
        is_preparing.set()
        assert may_go_on.wait(30)
        self.assertNotEqual(threading.current_thread().name, "engine")

    self.runner.before_prepare = prepare
    self.runner.gate = threading.Semaphore(2)
    engine = self.make()
    engine.start()
    engine.submit(_request(max_tokens=20), self.listener)
    swaps = []
    swapping = threading.Thread(
      target=lambda: swaps.append(engine.swap(7, step=40))
    )
    swapping.start()
    self.assertTrue(is_preparing.wait(30))
    self.runner.gate.release(8)
    self.listener.wait_for(lambda: len(self.listener.tokens("a")) == 10)
    self.assertEqual(engine.stats().step, 0)
    may_go_on.set()
    swapping.join(30)
    self.runner.gate.release(100)
    swaps[0].result(timeout=30)
    self.listener.wait("a")
    outputs = self.listener.outputs["a"]
    old = sum(len(o.tokens) for o in outputs if o.step == 0)
    self.assertBetween(old, 10, 12)  # Steps that were launched already.
    text = fixtures.continuation(_PROMPT, old)
    text += fixtures.continuation([*_PROMPT, *text], 20 - old, params=7)
    self.assertEqual(self.listener.tokens("a"), text)

  def test_stats(self):
    engine = self.make()
    self.assertIs(engine.stats().phase, stats_lib.Phase.STARTING)
    engine.start()
    engine.submit(_request(max_tokens=3), self.listener)
    self.listener.wait("a")
    engine.stop()
    stats = engine.stats()
    self.assertEqual(stats.num_prompt_tokens, 5)
    self.assertEqual(stats.num_prefill_steps, 1)
    self.assertEqual(stats.num_decode_steps, 2)
    self.assertEqual(stats.num_decode_rows, 2)
    self.assertEqual(stats.num_output_tokens, 3)
    self.assertEqual(stats.prefix_queries, 5)
    self.assertGreater(stats.decode_time, 0)
    self.assertGreater(stats.plan_time, 0)
    self.assertGreater(stats.update_time, 0)


if __name__ == "__main__":
  absltest.main()
