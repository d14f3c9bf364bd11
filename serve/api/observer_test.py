"""What is seen of requests on their way to the engine and back."""

from typing import Any

from absl.testing import absltest
from absl.testing import parameterized

from serve import batch as batch_lib
from serve import request as request_lib
from serve import scheduler as scheduler_lib
from serve import stats as stats_lib
from serve.api import health
from serve.api import metrics as metrics_lib
from serve.api import observer
from serve.api import trace

_Reason = request_lib.FinishReason


class _Engine:
  """Keeps what was submitted."""

  def __init__(self):
    self.asked = {}
    self.aborted = []
    self.error = None

  def submit(self, request, on_output):
    if self.error is not None:
      raise self.error
    self.asked[request.id] = (request, on_output)

  def abort(self, request_id):
    self.aborted.append(request_id)

  def stats(self):
    return stats_lib.Stats(
      phase=stats_lib.Phase.SERVING, is_alive=True, step=0, last_progress=0.0
    )


class _Runner:
  """Keeps what was called."""

  def __init__(self):
    self.calls = []

  def admit(self, slot, request, tokens):
    self.calls.append(("admit", slot, request.id, tokens))

  def run(self, batch) -> Any:
    self.calls.append(("run", batch))
    return "handle"

  def prepare_params(self, params):
    return f"prepared {params}"

  def set_params(self, prepared):
    self.calls.append(("set_params", prepared))


class ObserverTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.now = 100.0
    self.engine = _Engine()
    self.inner: Any = _Runner()
    self.metrics = metrics_lib.Metrics(health.Status())
    requests = self.metrics.serve(
      metrics_lib.Served(
        model_name="tiny", max_len=100, cache={}, stats=self.engine.stats
      )
    )
    clock = lambda: self.now
    self.runner = observer.Runner(self.inner, requests, clock=clock)
    self.observer = observer.Observer(
      self.engine,
      requests,
      runners=[self.runner],
      max_seconds=60.0,
      clock=clock,
    )
    self.call = trace.Call(id="call", user="key-3", arrived=99.0)
    trace.begin(self.call)
    self.addCleanup(trace.begin, None)
    self.outputs = []

  def _submit(self, name="a", **settings):
    request = request_lib.Request(
      id=name, prompt=(1, 2, 3), max_tokens=50, **settings
    )
    self.observer.submit(request, self.outputs.append)

  def _answer(self, at, *tokens, name="a", **settings):
    self.now = at
    output = request_lib.Output(request_id=name, tokens=tokens, **settings)
    self.engine.asked[name][1](output)
    return output

  def _sample(self, name):
    return self.metrics.sample(name, {"model_name": "tiny"})

  def _assert_times(self, **expected):
    for name, value in expected.items():
      self.assertAlmostEqual(
        self._sample(f"vllm:{name}_seconds_sum"), value, msg=name
      )

  def test_a_request(self):
    self._submit()
    self.now = 101.0
    self.runner.admit(4, self.engine.asked["a"][0], (1, 2, 3))
    self.assertEqual(self.inner.calls, [("admit", 4, "a", (1, 2, 3))])
    outputs = [
      self._answer(103.0, 7, num_cached=2),
      self._answer(104.0, 8, 9),
      self._answer(107.0, 10, finish=_Reason.STOP),
    ]
    self.assertEqual(self.outputs, outputs)
    self._assert_times(
      time_to_first_token=3,
      inter_token_latency=4,
      request_time_per_output_token=4 / 3,
      e2e_request_latency=7,
      request_queue_time=1,
      request_prefill_time=2,
      request_decode_time=4,
      request_inference_time=6,
    )
    self.assertEqual(self._sample("vllm:prompt_tokens_total"), 3)
    self.assertEqual(self._sample("vllm:request_generation_tokens_sum"), 4)
    self.assertEqual(self._sample("vllm:inter_token_latency_seconds_count"), 2)
    (seen,) = self.call.traces
    self.assertEqual((seen.num_prompt, seen.num_cached), (3, 2))
    self.assertEqual((seen.first, seen.last), (103.0, 107.0))
    self.assertEqual(seen.finish, _Reason.STOP)
    self.assertIsNone(self.runner.take_admission("a"))

  def test_admitted_again(self):
    self._submit()
    request = self.engine.asked["a"][0]
    for at in (101.0, 105.0):
      self.now = at
      self.runner.admit(1, request, request.prompt)
    self._answer(106.0, 7)
    self.runner.admit(1, request, request.prompt)
    self._answer(107.0, 7, finish=_Reason.LENGTH)
    self._assert_times(request_queue_time=1)
    self.assertIsNone(self.runner.take_admission("a"))

  @parameterized.parameters((None, 159.0), (130.0, 130.0), (500.0, 159.0))
  def test_deadline(self, own, expected):
    self._submit(deadline=own)
    self.assertEqual(self.engine.asked["a"][0].deadline, expected)

  def test_on_whose_behalf(self):
    self._submit(user="somebody")
    self.assertEqual(self.engine.asked["a"][0].user, "key-3")
    self.call.user = ""
    self._submit("b", user="somebody")
    self.assertEqual(self.engine.asked["b"][0].user, "somebody")
    self._submit("c")
    self.assertEqual(self.engine.asked["c"][0].user, "")
    trace.begin(None)
    self._submit("d", user="me")
    self.assertEqual(self.engine.asked["d"][0].user, "me")
    self.assertEqual(self.engine.asked["d"][0].deadline, 160.0)

  @parameterized.parameters(_Reason.ABORTED, _Reason.ERROR, _Reason.DEADLINE)
  def test_who_was_not_served_has_no_latency(self, reason):
    self._submit()
    self._answer(150.0, finish=reason)
    self.assertEqual(self._sample("vllm:e2e_request_latency_seconds_count"), 0)
    self.assertEqual(self.call.finish, reason.value)

  def test_refused(self):
    self.engine.error = scheduler_lib.QueueFullError("full", 2.0)
    with self.assertRaises(scheduler_lib.QueueFullError):
      self._submit()
    self.engine.error = ValueError("too long")
    with self.assertRaises(ValueError):
      self._submit()
    self.assertEqual(self._sample("vllm:admission_rejections_total"), 1)
    self.assertEqual(self.call.traces, [])

  def test_passes_on(self):
    self.observer.abort("x")
    self.assertEqual(self.engine.aborted, ["x"])
    self.assertEqual(self.observer.stats(), self.engine.stats())
    self.runner.set_params(self.runner.prepare_params("params"))
    kinds: list[tuple[str, dict[str, Any]]] = [
      ("a", {}),
      ("b", {"drafts": (1, 2, 3)}),
      ("c", {"num_drafts": 2}),
    ]
    rows = [
      batch_lib.Row(
        request_id=name, slot=1, start=0, length=9, tables={}, **settings
      )
      for name, settings in kinds
    ]
    batch = batch_lib.Batch(rows=tuple(rows))
    self.assertEqual(self.runner.run(batch), "handle")
    self.assertEqual(
      self.inner.calls, [("set_params", "prepared params"), ("run", batch)]
    )
    self.assertEqual(self._sample("vllm:iteration_tokens_total_sum"), 8)
    self.assertEqual(self._sample("vllm:spec_decode_num_drafts_total"), 2)


if __name__ == "__main__":
  absltest.main()
