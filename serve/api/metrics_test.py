"""Names that others look for, and what they tell."""

import unittest

from absl.testing import absltest
from aiohttp import test_utils
from aiohttp import web
from prometheus_client import parser

from serve import request as request_lib
from serve import stats as stats_lib
from serve.api import health
from serve.api import metrics

_Reason = request_lib.FinishReason

# What vLLM's dashboards, Kubernetes' inference gateway, autoscalers and
# benchmark programs read.
_EXPECTED = {
  "counter": (
    "generation_tokens",
    "num_preemptions",
    "prefix_cache_hits",
    "prefix_cache_queries",
    "prompt_tokens",
    "request_success",
    "spec_decode_num_accepted_tokens",
    "spec_decode_num_draft_tokens",
    "spec_decode_num_drafts",
  ),
  "gauge": (
    "cache_config_info",
    "kv_cache_usage_perc",
    "num_requests_running",
    "num_requests_waiting",
  ),
  "histogram": (
    "e2e_request_latency_seconds",
    "inter_token_latency_seconds",
    "iteration_tokens_total",
    "request_decode_time_seconds",
    "request_generation_tokens",
    "request_inference_time_seconds",
    "request_params_max_tokens",
    "request_prefill_time_seconds",
    "request_prompt_tokens",
    "request_queue_time_seconds",
    "request_time_per_output_token_seconds",
    "time_to_first_token_seconds",
  ),
}


class MetricsTest(unittest.IsolatedAsyncioTestCase):
  async def asyncSetUp(self):
    self.status = health.Status()
    self.metrics = metrics.Metrics(self.status)
    app = web.Application()
    app.add_routes(self.metrics.routes())
    self.client = test_utils.TestClient(test_utils.TestServer(app))
    await self.client.start_server()
    self.addAsyncCleanup(self.client.close)
    self.stats = stats_lib.Stats(
      phase=stats_lib.Phase.SERVING,
      is_alive=True,
      step=300,
      last_progress=0.0,
      num_running=3,
      num_waiting=2,
      pages_used=0.25,
      prefix_queries=100,
      prefix_hits=60,
      num_output_tokens=77,
      finished={_Reason.STOP: 5, _Reason.ABORTED: 1},
      plan_time=1.5,
    )

  def _serve(self):
    return self.metrics.serve(
      metrics.Served(
        model_name='ti"ny',
        max_len=3000,
        cache={"block_size": "16", "num_gpu_blocks": "64"},
        stats=lambda: self.stats,
      )
    )

  async def _get(self, **headers):
    async with self.client.get("/metrics", headers=headers) as response:
      self.assertEqual(response.status, 200)
      return await response.text()

  async def _families(self):
    text = await self._get()
    return {f.name: f for f in parser.text_string_to_metric_families(text)}

  async def _value(self, family, **labels):
    families = await self._families()
    for sample in families[family].samples:
      if labels.items() <= sample.labels.items():
        return sample.value
    raise AssertionError(f"{family} {labels}")

  async def test_before_a_model_is_loaded(self):
    families = await self._families()
    self.assertIn("process_resident_memory_bytes", families)
    self.assertEqual(families["cacao:ready"].samples[0].value, 0)
    self.status.phase = health.Phase.READY
    self.assertEqual(await self._value("cacao:ready"), 1)

  async def test_names_of_vllm(self):
    self._serve()
    families = await self._families()
    for kind, names in _EXPECTED.items():
      for name in names:
        family = families[f"vllm:{name}"]
        self.assertEqual(family.type, kind, name)
        self.assertTrue(family.documentation.endswith("."), name)
        for sample in family.samples:
          self.assertEqual(sample.labels["model_name"], 'ti"ny')
          self.assertFalse(sample.name.endswith("_created"))

  async def test_figures_are_of_now(self):
    self._serve()
    name = "vllm:num_requests_running"
    self.assertEqual(await self._value(name), 3)
    self.stats = stats_lib.Stats(
      phase=stats_lib.Phase.SERVING,
      is_alive=True,
      step=301,
      last_progress=0.0,
    )
    self.assertEqual(await self._value(name), 0)
    self.assertEqual(await self._value("cacao:checkpoint_step"), 301)

  async def test_figures_of_the_engine(self):
    self._serve()
    for name, labels, expected in (
      ("vllm:kv_cache_usage_perc", {}, 0.25),
      ("vllm:prefix_cache_hits", {}, 60),
      ("vllm:generation_tokens", {}, 77),
      ("vllm:cache_config_info", {"block_size": "16"}, 1),
      ("vllm:request_success", {"finished_reason": "stop"}, 5),
      ("vllm:request_success", {"finished_reason": "abort"}, 1),
      ("vllm:request_success", {"finished_reason": "length"}, 0),
      ("cacao:host_seconds", {"kind": "plan"}, 1.5),
    ):
      self.assertEqual(await self._value(name, **labels), expected, name)

  async def test_what_is_counted(self):
    requests = self._serve()
    requests.rejections.inc()
    requests.prompt_tokens.inc(12)
    requests.prompt_len.observe(12)
    self.metrics.count_http("/v1/models", 200)
    self.metrics.watch_connections(lambda: 4)
    self.assertEqual(await self._value("vllm:admission_rejections"), 1)
    self.assertEqual(await self._value("vllm:prompt_tokens"), 12)
    self.assertEqual(
      await self._value("cacao:http_requests", route="/v1/models"), 1
    )
    self.assertEqual(await self._value("cacao:http_connections"), 4)
    families = await self._families()
    samples = families["vllm:request_prompt_tokens"].samples
    ends = [s.labels["le"] for s in samples if "le" in s.labels]
    self.assertEqual(
      ends,
      [
        *("1.0", "2.0", "5.0", "10.0", "20.0", "50.0", "100.0", "200.0"),
        *("500.0", "1000.0", "2000.0", "3000.0", "+Inf"),
      ],
    )

  async def test_openmetrics(self):
    self._serve()
    text = await self._get(Accept="application/openmetrics-text")
    self.assertTrue(text.endswith("# EOF\n"))


if __name__ == "__main__":
  absltest.main()
