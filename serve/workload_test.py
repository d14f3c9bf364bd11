import asyncio
import json

from absl.testing import absltest
from aiohttp import web

from serve import engine as engine_lib
from serve import fixtures
from serve import request as request_lib
from serve import scheduler as scheduler_lib
from serve import scheduler_config
from serve import workload as workload_lib


def _workload(**settings):
  values = {
    "num_clients": 3,
    "num_requests": 7,
    "prompt_tokens": 9,
    "new_tokens": 5,
    "vocab_size": fixtures.VOCAB_SIZE,
  }
  return workload_lib.Workload(**(values | settings))


class WorkloadTest(absltest.TestCase):
  def test_prompts(self):
    prompts = _workload(shared_tokens=4).prompts()
    self.assertLen(prompts, 7)
    self.assertEqual({len(prompt) for prompt in prompts}, {9})
    self.assertLen({tuple(prompt[:4]) for prompt in prompts}, 1)
    self.assertLen({tuple(prompt) for prompt in prompts}, 7)
    self.assertEqual(prompts, _workload(shared_tokens=4).prompts())
    self.assertNotEqual(prompts, _workload(shared_tokens=4, seed=1).prompts())

  def test_an_engine(self):
    config = scheduler_config.SchedulerConfig(
      max_rows=2,
      prefill_tokens=16,
      max_len=32,
      page_size=4,
      num_pages={0: 33},
    )
    engine = engine_lib.Engine(
      fixtures.FakeRunner(), scheduler_lib.Scheduler(config)
    )
    self.addCleanup(engine.stop)
    engine.start()
    before = engine.stats()
    timings, seconds = workload_lib.drive(engine, _workload(shared_tokens=8))
    figures = workload_lib.summarize(timings, seconds)
    self.assertEqual([timing.num_tokens for timing in timings], [5] * 7)
    tokens = figures["output_tokens_per_second"] * seconds
    self.assertAlmostEqual(tokens, 35, delta=0.1)
    self.assertGreater(figures["ttft_ms_p99"], 0)
    figures = workload_lib.summarize_engine(before, engine.stats(), seconds)
    self.assertBetween(figures["rows_per_decode_step"], 1, 2)
    self.assertGreater(figures["prefix_hit_share"], 0.5)
    self.assertGreater(figures["host_us_per_step"], 0)
    self.assertBetween(figures["device_idle_share"], 0, 1)

  def test_a_request_that_fails(self):
    def fail(request: request_lib.Request) -> None:
      raise ValueError(f"not {request.id}")

    runner = fixtures.FakeRunner()
    runner.before_admit = fail
    config = scheduler_config.SchedulerConfig(
      max_rows=2, prefill_tokens=16, max_len=32, page_size=4, num_pages={0: 33}
    )
    engine = engine_lib.Engine(runner, scheduler_lib.Scheduler(config))
    self.addCleanup(engine.stop)
    engine.start()
    with self.assertRaisesRegex(RuntimeError, "not 0"):
      workload_lib.drive(engine, _workload(num_clients=1))

  def test_figures(self):
    timings = [
      workload_lib.Timing(
        sent=start, arrivals=[(start + 1, 1), (start + 2, 1), (start + 5, 3)]
      )
      for start in (0.0, 10.0)
    ]
    figures = workload_lib.summarize(timings, 20.0)
    self.assertEqual(figures["requests_per_second"], 0.1)
    self.assertEqual(figures["output_tokens_per_second"], 0.5)
    self.assertEqual(figures["ttft_ms_p50"], 1000)
    self.assertEqual(figures["tpot_ms_p50"], 1000)
    self.assertEqual(figures["gap_ms_p50"], 2000)


class HttpTest(absltest.TestCase):
  def drive(self, handler, **settings):
    async def run():
      app = web.Application()
      app.router.add_post("/v1/completions", handler)
      runner = web.AppRunner(app)
      await runner.setup()
      site = web.TCPSite(runner, "127.0.0.1", 0)
      await site.start()
      assert runner.addresses
      url = f"http://127.0.0.1:{runner.addresses[0][1]}"
      try:
        return await workload_lib.drive_http(
          url, _workload(**settings), model="fake", api_key="secret"
        )
      finally:
        await runner.cleanup()

    return asyncio.run(run())

  def test_a_server(self):
    bodies = []

    async def handler(request):
      self.assertEqual(request.headers["Authorization"], "Bearer secret")
      bodies.append(await request.json())
      response = web.StreamResponse()
      await response.prepare(request)
      # Two of five tokens in one chunk.
      chunks = [{"choices": [{"text": "x"}]}] * 4
      usage = {"choices": [], "usage": {"completion_tokens": 5}}
      for chunk in [*chunks, usage]:
        await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
      await response.write(b"data: [DONE]\n\n")
      return response

    timings, _ = self.drive(handler)
    self.assertEqual([timing.num_tokens for timing in timings], [5] * 7)
    self.assertCountEqual(
      [body["prompt"] for body in bodies], _workload().prompts()
    )
    self.assertEqual(bodies[0]["model"], "fake")

  def test_a_server_that_refuses(self):
    async def handler(request):
      del request
      return web.json_response({"error": "no such model"}, status=404)

    with self.assertRaisesRegex(RuntimeError, "404.*no such model"):
      self.drive(handler, num_clients=1)


if __name__ == "__main__":
  absltest.main()
