import collections
import random
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from serve import batch as batch_lib
from serve import request as request_lib
from serve import scheduler as scheduler_lib
from serve import scheduler_config
from serve import simulated_runner

_Reason = request_lib.FinishReason


class _OddEven:
  """Even and odd tokens take turns; complete after `num`."""

  def __init__(self, num: int):
    self._num = num
    self.accepted: list[int] = []

  def _mask(self, num: int) -> int:
    return sum(
      1 << t for t in range(simulated_runner.VOCAB) if t % 2 == num % 2
    )

  def masks(self, drafts: list[int]) -> np.ndarray:
    masks, num = [self._mask(len(self.accepted))], len(self.accepted)
    for draft in drafts:
      is_right = masks[-1] >> draft & 1 and masks[-1] != 2**32 - 1
      num += 1
      masks.append(self._mask(num) if is_right else 2**32 - 1)
    return np.array(masks, np.uint32)[:, None]

  def accept(self, tokens: list[int]) -> None:
    for token in tokens:
      if not self._mask(len(self.accepted)) >> token & 1:
        raise ValueError(f"{token} is not allowed.")
      self.accepted.append(token)

  @property
  def is_complete(self) -> bool:
    return len(self.accepted) >= self._num


class _Oracle:
  """Guesses that are often right."""

  def __init__(self, config, rng):
    self._config = config
    self._random = rng
    self._text = []

  def __len__(self):
    return len(self._text)

  def extend(self, tokens):
    self._text += tokens

  def propose(self, num_tokens):
    request = request_lib.Request(id="", prompt=(0,), max_tokens=1)
    regime = simulated_runner.regime(self._config.turns, len(self._text))
    guesses = []
    for _ in range(self._random.randint(0, num_tokens)):
      state = simulated_runner.states([*self._text, *guesses], regime)[-1]
      right = simulated_runner.choose(state, request, can_stop=True)
      wrong = self._random.randrange(simulated_runner.VOCAB)
      guesses.append(right if self._random.random() < 0.8 else wrong)
    return guesses


class _Server:
  """An engine's loop, in which anything may happen at any time."""

  def __init__(self, config, *, seed=0, make_guesser=None):
    self.config = config
    self.random = random.Random(seed)
    self.runner = simulated_runner.SimulatedRunner(config, seed=seed)
    self.scheduler = scheduler_lib.Scheduler(config, make_guesser=make_guesser)
    self.flights = collections.deque()
    self.requests = {}
    self.outputs = collections.defaultdict(list)
    self.now = 0.0

  def add(self, **fields):
    request = request_lib.Request(**fields)
    self.scheduler.add(request)
    self.requests[request.id] = request
    return request

  def tell(self, outputs):
    for output in outputs:
      told = self.outputs[output.request_id]
      assert not told or told[-1].finish is None, "More after the end."
      told.append(output)

  def abort(self, request_id, reason=_Reason.ABORTED):
    output = self.scheduler.abort(request_id, reason)
    if output is not None:
      self.tell([output])

  def update(self):
    batch, results = self.flights.popleft()
    self.tell(self.scheduler.update(batch, results))

  def turn(self, depth=1):
    """One turn of the loop; up to `depth` steps are ahead of their updates."""
    self.now += 1.0
    self.tell(self.scheduler.expire(self.now))
    # Without, those who need it wait, and others go on.
    heeds = self.random.random() < 0.8
    while heeds and self.flights and self.scheduler.needs_feedback:
      self.update()
    batch = self.scheduler.schedule(self.now)
    if batch is not None:
      self.flights.append((batch, self.runner.run(batch)))
    else:
      is_idle = not self.scheduler.has_work or self.scheduler._failed
      assert self.flights or is_idle, "It stands still."
    while len(self.flights) > depth or (batch is None and self.flights):
      self.update()
    self.check_pages()
    return batch

  def finish(self):
    for _ in range(10_000):
      if not (self.scheduler.has_work or self.flights):
        break
      self.turn()
    else:
      raise AssertionError("It never ends.")
    self.check_pages()
    figures = self.scheduler.figures()
    assert figures.num_running == figures.num_waiting == 0
    assert figures.num_waiting_tokens == 0
    assert figures.pages_used == 0
    stays = self.scheduler._stays
    assert sorted(stays._slots) == list(range(1, self.config.max_rows + 1))

  def check_pages(self):
    """Users are counted right; a shared page is full, and in one place."""
    stays = self.scheduler._stays
    tables = [stay.table.pages for stay in stays]
    users = simulated_runner.references(tables)
    for window, pool in stays._pages.pools.items():
      num = self.config.num_pages[window]
      assert pool.num_users(batch_lib.NULL_PAGE) == 0
      for page in range(1, num):
        assert pool.num_users(page) == users.get((window, page), 0)
      used = sum(w == window for w, _ in users)
      assert pool.num_free == num - 1 - used
      free = [*pool._blank, *pool._kept]
      assert len(free) == len(set(free)) and batch_lib.NULL_PAGE not in free
    blocks = {}
    for stay in stays:
      for window, pages in stay.table.pages.items():
        for i, page in enumerate(pages):
          if users.get((window, page), 0) > 1:
            size = self.config.page_size
            assert (i + 1) * size <= stay.computed
            text = tuple(stay.task.tokens[: (i + 1) * size])
            assert blocks.setdefault((window, page), text) == text

  def text_of(self, request_id):
    return [t for o in self.outputs[request_id] for t in o.tokens]

  def check(self, request_id):
    """What was told of a request that is over."""
    request = self.requests[request_id]
    outputs = self.outputs[request_id]
    finish = outputs[-1].finish
    assert finish is not None, request_id
    text = self.text_of(request_id)
    if request.constraint is None:
      whole = simulated_runner.write(request, self.config)
      assert text == whole[: len(text)], request_id
      if finish in (_Reason.STOP, _Reason.LENGTH):
        assert text == whole, request_id
        is_stop = bool(text) and text[-1] in request.stop_ids
        assert finish == (_Reason.STOP if is_stop else _Reason.LENGTH)
    else:
      assert text == request.constraint.accepted
    if finish in (_Reason.STOP, _Reason.LENGTH):
      self.check_prompt(request, outputs)

  def check_prompt(self, request, outputs):
    prompt = request.prompt
    states = simulated_runner.states(
      prompt, simulated_runner.regime(self.config.turns, len(prompt))
    )
    told = [o.prompt_logprobs for o in outputs if o.prompt_logprobs is not None]
    if request.num_prompt_logprobs is None:
      assert not told
    else:
      expected = [
        simulated_runner.logprob(*pair)
        for pair in zip(states, prompt[1:], strict=False)
      ]
      assert told == [(None, *expected)]
    pooled = [o.pooled for o in outputs if o.pooled is not None]
    assert len(pooled) == request.pools
    for mean in pooled:
      expected = np.mean([simulated_runner.hidden(s) for s in states], axis=0)
      np.testing.assert_allclose(mean, expected, rtol=1e-5)


def _config(**changes):
  fields: dict[str, Any] = {
    "max_rows": 4,
    "prefill_tokens": 16,
    "max_len": 48,
    "page_size": 4,
    "num_pages": {0: 49},
  }
  return scheduler_config.SchedulerConfig(**(fields | changes))


def _random_config(rng, *, drafts, recurrent):
  windows = rng.choice([(0,), (0, 5), (3, 9), (1, 0, 8), (4,)])
  if recurrent:
    windows = rng.choice([(), (0,), (0, 5)])
  config: dict[str, Any] = {
    "max_rows": rng.randint(1, 5),
    "prefill_tokens": rng.choice([16, 24, 32]),
    "max_len": rng.choice([20, 33, 48]),
    "page_size": rng.choice([1, 2, 4]),
    "prefix_caching": rng.random() < 0.8,
    "num_drafts": drafts,
    "recurrent": recurrent,
    "turns": rng.choice([(), (), (14,), (10, 25)]),
  }
  num_pages = {}
  for window in windows:
    # Just enough for one text, or more.
    num = 2
    while True:
      try:
        scheduler_config.SchedulerConfig(
          **config, num_pages={window: num}
        ).check()
        break
      except ValueError:
        num += 1
    num_pages[window] = num + rng.choice([0, 0, 3, 10, 60])
  return scheduler_config.SchedulerConfig(**config, num_pages=num_pages)


def _random_request(server, i, *, feedback):
  rng, config = server.random, server.config
  begin = rng.choice([(1, 2, 3, 4, 5, 6, 7, 8), (1, 2, 3, 4, 1, 1), ()])
  begin = begin * rng.randint(1, 3)
  rest = [rng.randrange(4) for _ in range(rng.randint(1, 8))]
  prompt = tuple([*begin, *rest][: config.max_len - 1])
  leader = None
  if server.requests and rng.random() < 0.2:
    leader = rng.choice(list(server.requests))
    prompt = server.requests[leader].prompt
  is_bound = feedback and rng.random() < 0.3
  return {
    "id": str(i),
    "prompt": prompt,
    "max_tokens": rng.choice([0, 1, 12, 40]),
    "min_tokens": rng.choice([0, 0, 5]),
    "stop_ids": frozenset(rng.choice([(), (3,), (3, 5)]))
    if not is_bound
    else frozenset(),
    "sampling": request_lib.Sampling(seed=rng.randrange(3)),
    "constraint": _OddEven(rng.randint(1, 9)) if is_bound else None,
    "num_prompt_logprobs": rng.choice([None, None, None, 0]),
    "pools": rng.random() < 0.1,
    "priority": rng.choice([0, 0, 0, 1, -1]),
    "user": rng.choice("abc"),
    "deadline": server.now + rng.randint(1, 60) if rng.random() < 0.1 else None,
    "leader": leader,
  }


class PropertyTest(parameterized.TestCase):
  """Whatever happens, each text is what it would be alone."""

  @parameterized.parameters(
    ("none", False), ("none", True), ("host", False), ("device", False)
  )
  def test_random(self, speculation, recurrent):
    num_preemptions = num_hits = 0
    for seed in range(40):
      rng = random.Random(seed)
      drafts = 0 if speculation == "none" else rng.randint(1, 4)
      config = _random_config(rng, drafts=drafts, recurrent=recurrent)
      with self.subTest(seed=seed, config=config):
        guessers = None
        if speculation == "host":
          guessers = lambda c=config, r=rng: _Oracle(c, r)
        server = _Server(config, seed=seed, make_guesser=guessers)
        self.play(server)
        figures = server.scheduler.figures()
        num_preemptions += figures.num_preemptions
        num_hits += figures.num_prefix_hits
    # What is to be tested did happen.
    self.assertGreater(num_preemptions, 5)
    if not recurrent:
      self.assertGreater(num_hits, 500)

  def play(self, server):
    rng = server.random
    rate = rng.choice([0.1, 0.5])
    feedback = rng.random() < 0.5
    swap_rate = rng.choice([0.0, 0.01, 0.1])
    for i in range(150):
      if rng.random() < rate:
        server.add(**_random_request(server, i, feedback=feedback))
      if server.requests and rng.random() < 0.03:
        server.abort(rng.choice(list(server.requests)))
      if rng.random() < swap_rate:
        server.runner.step += 1
        server.scheduler.swap(server.runner.step)
      server.turn(depth=rng.choice([0, 1, 1, 1, 2]))
    server.finish()
    for request_id in server.requests:
      server.check(request_id)


class _Failing(_OddEven):
  """Fails when it is asked for masks, or told tokens, for the n-th time."""

  def __init__(self, *, masks=99, accept=99):
    super().__init__(99)
    self._left = {"masks": masks, "accept": accept}

  def _count(self, method):
    self._left[method] -= 1
    if self._left[method] < 0:
      raise ValueError(f"{method} failed.")

  def masks(self, drafts):
    self._count("masks")
    return super().masks(drafts)

  def accept(self, tokens):
    self._count("accept")
    super().accept(tokens)


class SchedulerTest(parameterized.TestCase):
  def add(self, server, name, *, prompt=(1, 2, 3), max_tokens=8, **fields):
    return server.add(id=name, prompt=prompt, max_tokens=max_tokens, **fields)

  def finish_of(self, server, name):
    return server.outputs[name][-1].finish

  def test_refuses_what_can_never_be_computed(self):
    server = _Server(_config(max_len=10))
    self.add(server, "a")
    with self.assertRaisesRegex(ValueError, "id='a'"):
      self.add(server, "a")
    with self.assertRaisesRegex(ValueError, "prompt is empty"):
      self.add(server, "b", prompt=())
    with self.assertRaisesRegex(ValueError, "prompt has 10 tokens.*max_len=10"):
      self.add(server, "b", prompt=(1,) * 10)
    # There is room for it, but not for a continuation.
    self.add(server, "c", prompt=(1,) * 10, max_tokens=0)
    # The context ends before max_tokens.
    self.add(server, "d", max_tokens=100)
    server.finish()
    self.assertLen(server.text_of("d"), 7)
    self.assertEqual(self.finish_of(server, "d"), _Reason.LENGTH)

  def test_the_queue_is_bounded(self):
    limits = {"max_queued_requests": 2, "max_queued_tokens": 20}
    server = _Server(_config(max_rows=1, **limits))
    # One slot is free.
    for name in "abc":
      self.add(server, name)
    with self.assertRaises(scheduler_lib.QueueFullError) as raised:
      self.add(server, "d")
    self.assertBetween(raised.exception.retry_after, 1, 60)
    server.turn()
    server.abort("b")
    self.assertEqual(server.scheduler.figures().num_waiting, 1)
    with self.assertRaises(scheduler_lib.QueueFullError):
      self.add(server, "d", prompt=(1,) * 18)
    self.add(server, "d", prompt=(1,) * 17)
    server.finish()
    # It would be refused for ever: nobody waits.
    self.add(server, "e", prompt=(1,) * 21)
    server.finish()

  def test_reading_and_continuing_take_turns(self):
    server = _Server(_config())
    self.add(server, "a", max_tokens=20)
    server.turn()
    self.add(server, "b", prompt=(1,) * 40)
    batches = [server.turn() for _ in range(8)]
    kinds = [batch is not None and batch.is_prefill for batch in batches]
    self.assertEqual(
      kinds, [False, True, False, True, False, True, False, False]
    )

  def test_several_prompts_are_read_at_once(self):
    server = _Server(_config(prefill_tokens=64))
    for name in "abcd":
      self.add(server, name, prompt=(1,) * 14)
    batch = server.turn()
    assert batch is not None
    self.assertLen(batch.rows, 4)

  def test_no_more_steps_than_tokens(self):
    server = _Server(_config())
    self.add(server, "a", max_tokens=6)
    self.add(server, "b", max_tokens=0)
    rows = []
    while server.scheduler.has_work:
      batch = server.turn()
      rows += batch.rows if batch else ()
    ids = collections.Counter(row.request_id for row in rows)
    self.assertEqual(ids, {"a": 6, "b": 1})
    self.assertLen(server.text_of("a"), 6)

  def test_a_row_behind_the_end_is_dropped(self):
    server = _Server(_config())
    stops = frozenset(range(simulated_runner.VOCAB - 1))
    self.add(server, "a", stop_ids=stops, min_tokens=2)
    num_rows = 0
    while server.scheduler.has_work or server.flights:
      batch = server.turn()
      num_rows += len(batch.rows) if batch else 0
    server.check("a")
    self.assertEqual(self.finish_of(server, "a"), _Reason.STOP)
    self.assertLen(server.text_of("a"), num_rows - 1)

  def test_an_id_is_free_while_its_row_is_under_way(self):
    server = _Server(_config())
    self.add(server, "a", prompt=(1, 2))
    server.turn()
    server.turn()
    self.assertLen(server.flights, 1)
    server.abort("a", _Reason.STOP)
    self.assertEqual(self.finish_of(server, "a"), _Reason.STOP)
    self.assertIsNone(server.scheduler.abort("a"))
    del server.outputs["a"]
    self.add(server, "a", prompt=(3, 1), max_tokens=4)
    server.finish()
    server.check("a")

  def test_deadlines(self):
    server = _Server(_config(max_rows=1))
    self.add(server, "a", max_tokens=40, deadline=10.0)
    self.add(server, "b", deadline=5.0)
    self.add(server, "c", deadline=500.0)
    self.assertEqual(server.scheduler.next_deadline, 5.0)
    server.finish()
    self.assertEqual(self.finish_of(server, "a"), _Reason.DEADLINE)
    self.assertNotEmpty(server.text_of("a"))
    self.assertEqual(self.finish_of(server, "b"), _Reason.DEADLINE)
    self.assertEmpty(server.text_of("b"))
    self.assertEqual(self.finish_of(server, "c"), _Reason.LENGTH)

  def test_the_deadline_of_another_with_the_same_id(self):
    server = _Server(_config())
    self.add(server, "a", deadline=3.0)
    server.abort("a")
    del server.outputs["a"]
    self.add(server, "a", max_tokens=20)
    server.finish()
    self.assertEqual(self.finish_of(server, "a"), _Reason.LENGTH)

  def test_priority(self):
    server = _Server(_config(max_rows=1))
    ends = []
    for name, priority in (("a", 1), ("b", 0), ("c", -1), ("d", 0)):
      self.add(server, name, priority=priority)
    while server.scheduler.has_work:
      server.turn()
      ends += [n for n in server.outputs if n not in ends]
    self.assertEqual(ends, ["c", "b", "d", "a"])

  def test_users_share_evenly(self):
    server = _Server(_config(max_queued_requests=99))
    for i in range(30):
      self.add(server, f"x{i}", user="x", max_tokens=10)
    for i in range(30):
      self.add(server, f"y{i}", user="y", max_tokens=5 + i % 10)
    for _ in range(60):
      server.turn()
    tokens = {
      user: sum(
        len(server.text_of(name)) for name in server.outputs if name[0] == user
      )
      for user in "xy"
    }
    self.assertGreater(tokens["x"], 60)
    self.assertLess(abs(tokens["x"] - tokens["y"]), 0.3 * tokens["x"])
    server.finish()

  def test_the_newest_makes_room(self):
    # Each text needs 11 pages in the end; there are 16.
    server = _Server(_config(num_pages={0: 17}, prefix_caching=False))
    self.add(server, "a", max_tokens=40)
    self.add(server, "b", max_tokens=40)
    ends = []
    while server.scheduler.has_work:
      server.turn()
      ends += [
        name
        for name, outputs in server.outputs.items()
        if outputs[-1].finish and name not in ends
      ]
    self.assertEqual(ends, ["a", "b"])
    # It comes back when there is room for good, not to be ousted at once.
    self.assertEqual(server.scheduler.figures().num_preemptions, 1)
    for name in "ab":
      server.check(name)

  def test_urgent_requests_make_no_room(self):
    server = _Server(_config(num_pages={0: 17}))
    self.add(server, "a", max_tokens=40, priority=1)
    self.add(server, "b", max_tokens=40, priority=0)
    server.finish()
    self.assertGreater(server.scheduler.figures().num_preemptions, 0)
    for name in "ab":
      server.check(name)

  def test_followers_find_their_leaders_prompt(self):
    server = _Server(_config(max_rows=8))
    prompt = tuple(range(7)) * 4
    self.add(server, "a", prompt=prompt)
    for name in "bcd":
      self.add(server, name, prompt=prompt, leader="a")
    # An unknown one is not waited for.
    self.add(server, "e", prompt=(5,), leader="x")
    server.finish()
    cached = {name: o[-1].num_cached for name, o in server.outputs.items()}
    # All whole blocks, but not the last token.
    self.assertEqual(cached, {"a": 0, "b": 24, "c": 24, "d": 24, "e": 0})
    figures = server.scheduler.figures()
    self.assertEqual(figures.num_prefix_queries, 4 * 28 + 1)
    self.assertEqual(figures.num_prefix_hits, 3 * 24)

  def test_followers_do_not_wait_for_the_dead(self):
    server = _Server(_config())
    self.add(server, "a")
    self.add(server, "b", leader="a")
    server.abort("a")
    server.finish()
    server.check("b")

  @parameterized.parameters(
    {"num_prompt_logprobs": 0}, {"pools": True}, {"max_tokens": 0}
  )
  def test_what_needs_all_of_the_prompt_finds_nothing(self, **fields):
    server = _Server(_config())
    prompt = tuple(range(7)) * 2
    self.add(server, "a", prompt=prompt)
    server.finish()
    self.add(server, "b", prompt=prompt, **fields)
    server.finish()
    server.check("b")
    finds = "max_tokens" in fields
    self.assertEqual(server.outputs["b"][-1].num_cached, 12 if finds else 0)

  def test_nothing_is_found_after_a_swap(self):
    server = _Server(_config())
    for name in "ab":
      self.add(server, name, prompt=(1,) * 9)
      server.finish()
    server.runner.step = 5
    server.scheduler.swap(5)
    self.add(server, "c", prompt=(1,) * 9)
    server.finish()
    found = [server.outputs[name][-1].num_cached for name in "abc"]
    self.assertEqual(found, [0, 8, 0])
    self.assertEqual([server.outputs[n][-1].step for n in "abc"], [0, 0, 5])

  def test_a_turn_reads_the_text_again(self):
    server = _Server(_config(turns=(10,)))
    self.add(server, "a", max_tokens=20)
    starts = []
    while server.scheduler.has_work:
      batch = server.turn()
      starts += [r.start for r in batch.rows if r.tokens] if batch else []
    self.assertEqual(starts, [0, 0])
    server.check("a")
    self.assertEqual(server.scheduler.figures().num_preemptions, 0)

  def test_a_result_that_is_not_finite_harms_nobody_else(self):
    server = _Server(_config())
    prompt = (1,) * 9
    self.add(server, "a", prompt=prompt)
    self.add(server, "b", prompt=(2,) * 9)
    server.turn()
    batch, results = server.flights.popleft()
    self.assertEqual(batch.rows[0].request_id, "a")
    bad = batch_lib.RowResult(tokens=(1,), is_finite=False)
    server.flights.append((batch, [bad, *results[1:]]))
    server.finish()
    self.assertEqual(self.finish_of(server, "a"), _Reason.ERROR)
    self.assertRegex(server.outputs["a"][-1].error, "not finite")
    server.check("b")
    # What it has computed is not found.
    self.add(server, "c", prompt=prompt)
    server.finish()
    self.assertEqual(server.outputs["c"][-1].num_cached, 0)

  @parameterized.parameters(
    {"masks": 0}, {"masks": 2}, {"accept": 0}, {"accept": 2}
  )
  def test_a_constraint_that_fails_harms_nobody_else(self, **fails):
    server = _Server(_config())
    self.add(server, "a", constraint=_Failing(**fails))
    self.add(server, "b")
    server.finish()
    self.assertEqual(self.finish_of(server, "a"), _Reason.ERROR)
    self.assertRegex(server.outputs["a"][-1].error, "failed")
    server.check("b")

  def test_feedback(self):
    server = _Server(_config())
    self.add(server, "a", constraint=_OddEven(4))
    server.turn()
    self.assertTrue(server.scheduler.needs_feedback)
    server.update()
    self.assertFalse(server.scheduler.needs_feedback)
    server.finish()
    self.assertEqual(self.finish_of(server, "a"), _Reason.STOP)
    self.assertLen(server.text_of("a"), 4)

  def test_all_fail_together(self):
    server = _Server(_config(max_rows=1))
    for name in "ab":
      self.add(server, name, prompt=(1,) * 9)
    server.turn()
    server.tell(server.scheduler.fail("The device is gone."))
    server.flights.clear()
    for name in "ab":
      self.assertEqual(self.finish_of(server, name), _Reason.ERROR)
      self.assertEqual(server.outputs[name][-1].error, "The device is gone.")
    self.add(server, "c", prompt=(1,) * 9)
    server.finish()
    self.assertEqual(server.outputs["c"][-1].num_cached, 0)
    server.check("c")

  def test_windows_keep_few_pages(self):
    # A long text fits in few pages, and so do several.
    server = _Server(_config(num_pages={4: 8}))
    for name in "abc":
      self.add(server, name, max_tokens=40)
    server.finish()
    for name in "abc":
      server.check(name)


if __name__ == "__main__":
  absltest.main()
