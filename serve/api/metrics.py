"""Figures for Prometheus, under vLLM's names where it has one.

So its dashboards work, and Kubernetes' inference gateway and autoscalers find
what they look for. What vLLM has no name for is called `cacao:`. Gauges and
counters that the engine keeps are read when they are asked for.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses

from aiohttp import web
import prometheus_client
from prometheus_client import exposition
from prometheus_client import metrics_core
from prometheus_client import registry as registry_lib

from serve import request as request_lib
from serve import stats as stats_lib
from serve.api import health

ROUTE = "/metrics"

# Upper ends of the histograms' buckets: seconds, and tokens of a step.
_TO_FIRST = (
  *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0),
  *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_PER_TOKEN = (
  *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
  *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_WHOLE = (
  *(0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0),
  *(30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_STEP_TOKENS = (1, *(2**n for n in range(3, 15)))

# vLLM's words for reasons that have another name here.
_REASONS = {request_lib.FinishReason.ABORTED: "abort"}

_LABEL = "model_name"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served:
  """What is served, as far as figures tell.

  Attributes:
    model_name: A label of all.
    max_len: Tokens of a prompt and its continuation.
    cache: Labels of `vllm:cache_config_info`.
    stats: The engine's figures.
  """

  model_name: str
  max_len: int
  cache: Mapping[str, str]
  stats: Callable[[], stats_lib.Stats]


class Metrics:
  """All figures of a server, and the route that gives them."""

  def __init__(self, status: health.Status):
    """Figures of the process and of HTTP; `serve` adds the model's.

    Args:
      status: Where the server stands.
    """
    prometheus_client.disable_created_metrics()
    self._registry = prometheus_client.CollectorRegistry()
    prometheus_client.ProcessCollector(registry=self._registry)
    ready = prometheus_client.Gauge(
      "cacao:ready",
      "1 while requests are taken.",
      registry=self._registry,
    )
    ready.set_function(lambda: float(status.is_ready))
    self._http = prometheus_client.Counter(
      "cacao:http_requests_total",
      "HTTP requests by route and status.",
      ("route", "status"),
      registry=self._registry,
    )
    self._connections = prometheus_client.Gauge(
      "cacao:http_connections", "Open connections.", registry=self._registry
    )

  def count_http(self, route: str, status: int) -> None:
    """Counts a request."""
    self._http.labels(route, str(status)).inc()

  def watch_connections(self, count: Callable[[], int]) -> None:
    """Lets the figures ask how many connections are open."""
    self._connections.set_function(count)

  def serve(self, served: Served) -> "Requests":
    """Adds the figures of a model that is served, once."""
    self._registry.register(_Engine(served))
    return Requests(served, self._registry)

  def sample(self, name: str, labels: Mapping[str, str]) -> float | None:
    """One figure as it is now; None: there is no such."""
    return self._registry.get_sample_value(name, dict(labels))

  def routes(self) -> list[web.RouteDef]:
    """The route."""
    return [web.get(ROUTE, self._get)]

  async def _get(self, request: web.Request) -> web.Response:
    encode, content_type = exposition.choose_encoder(
      request.headers.get("Accept", "")
    )
    return web.Response(
      body=encode(self._registry), headers={"Content-Type": content_type}
    )


class Requests:
  """What is counted when it happens, from any thread."""

  def __init__(
    self, served: Served, registry: prometheus_client.CollectorRegistry
  ):
    """Registers itself.

    Args:
      served: What is served.
      registry: Of all figures.
    """

    def histogram(
      name: str, text: str, buckets: Sequence[float]
    ) -> prometheus_client.Histogram:
      return prometheus_client.Histogram(
        f"vllm:{name}", text, (_LABEL,), buckets=buckets, registry=registry
      ).labels(served.model_name)

    def counter(name: str, text: str) -> prometheus_client.Counter:
      return prometheus_client.Counter(
        name, text, (_LABEL,), registry=registry
      ).labels(served.model_name)

    lengths = list(_one_two_five(served.max_len))
    self.time_to_first = histogram(
      "time_to_first_token_seconds", "Seconds to the first token.", _TO_FIRST
    )
    self.inter_token = histogram(
      "inter_token_latency_seconds",
      "Seconds between the tokens of a request, those of a step together.",
      _PER_TOKEN,
    )
    self.per_token = histogram(
      "request_time_per_output_token_seconds",
      "Mean seconds of a request's token after its first.",
      _PER_TOKEN,
    )
    self.whole = histogram(
      "e2e_request_latency_seconds", "Seconds of a request.", _WHOLE
    )
    self.queue = histogram(
      "request_queue_time_seconds", "Seconds before it was admitted.", _WHOLE
    )
    self.inference = histogram(
      "request_inference_time_seconds", "Seconds since then.", _WHOLE
    )
    self.prefill = histogram(
      "request_prefill_time_seconds",
      "Seconds from its admission to its first token.",
      _WHOLE,
    )
    self.decode = histogram(
      "request_decode_time_seconds", "Seconds since its first token.", _WHOLE
    )
    self.prompt_len = histogram(
      "request_prompt_tokens", "Tokens of a prompt.", lengths
    )
    self.generation_len = histogram(
      "request_generation_tokens", "Tokens of a continuation.", lengths
    )
    self.max_tokens = histogram(
      "request_params_max_tokens", "Tokens that it might have had.", lengths
    )
    self.step_tokens = histogram(
      "iteration_tokens_total", "Tokens computed in a step.", _STEP_TOKENS
    )
    self.prompt_tokens = counter(
      "vllm:prompt_tokens_total", "Tokens of prompts, cached ones too."
    )
    self.rejections = counter(
      "vllm:admission_rejections_total", "Requests refused: too many wait."
    )
    self.drafts = counter(
      "vllm:spec_decode_num_drafts_total", "Rows with guesses."
    )
    self.late_compiles = counter(
      "cacao:compiles_after_ready_total",
      "Programs compiled while requests waited: none, if all is well.",
    )


class _Engine(registry_lib.Collector):
  """What the engine knows at the moment when it is asked."""

  def __init__(self, served: Served):
    self._served = served

  def collect(self) -> Iterable[metrics_core.Metric]:
    stats = self._served.stats()

    gauge = self._gauge
    yield gauge(
      "vllm:num_requests_running", "Requests in slots.", stats.num_running
    )
    yield gauge(
      "vllm:num_requests_waiting", "Requests that wait.", stats.num_waiting
    )
    yield gauge(
      "cacao:num_tokens_waiting",
      "Tokens of the prompts that wait.",
      stats.num_waiting_tokens,
    )
    yield gauge(
      "vllm:kv_cache_usage_perc",
      "Share of the cache that requests hold, 0 to 1.",
      stats.pages_used,
    )
    yield gauge(
      "cacao:checkpoint_step",
      "Training step of the parameters in use.",
      stats.step,
    )
    info = metrics_core.GaugeMetricFamily(
      "vllm:cache_config_info",
      "How the cache is made.",
      labels=(_LABEL, *self._served.cache),
    )
    info.add_metric(
      (self._served.model_name, *self._served.cache.values()), 1.0
    )
    yield info

    counter = self._counter
    yield counter(
      "vllm:prefix_cache_queries",
      "Prompt tokens looked up.",
      {(): stats.prefix_queries},
    )
    yield counter(
      "vllm:prefix_cache_hits",
      "Those of them that were found computed.",
      {(): stats.prefix_hits},
    )
    yield counter(
      "vllm:num_preemptions",
      "Requests that gave back their cache.",
      {(): stats.num_preemptions},
    )
    yield counter(
      "vllm:generation_tokens",
      "Tokens of continuations.",
      {(): stats.num_output_tokens},
    )
    yield counter(
      "vllm:spec_decode_num_draft_tokens",
      "Guesses that were verified.",
      {(): stats.num_drafted_tokens},
    )
    yield counter(
      "vllm:spec_decode_num_accepted_tokens",
      "Those of them that were right.",
      {(): stats.num_accepted_tokens},
    )
    yield counter(
      "vllm:request_success",
      "Requests by the reason of their end.",
      {
        (_REASONS.get(reason, reason.value),): stats.finished.get(reason, 0)
        for reason in request_lib.FinishReason
      },
      label="finished_reason",
    )
    yield counter(
      "cacao:steps",
      "Steps: prefill reads texts, decode continues them.",
      {
        ("prefill",): stats.num_prefill_steps,
        ("decode",): stats.num_decode_steps,
      },
      label="kind",
    )
    yield counter(
      "cacao:step_seconds",
      "Seconds of steps, from launch to result.",
      {("prefill",): stats.prefill_time, ("decode",): stats.decode_time},
      label="kind",
    )
    yield counter(
      "cacao:decode_rows",
      "Rows of decode steps; by steps, how full they are.",
      {(): stats.num_decode_rows},
    )
    yield counter(
      "cacao:host_seconds",
      "Seconds of the host, by what it did; by steps, its cost of one.",
      {
        ("plan",): stats.plan_time,
        ("update",): stats.update_time,
        ("wait_for_device",): stats.device_wait_time,
        ("wait_for_requests",): stats.idle_time,
      },
      label="kind",
    )
    yield counter(
      "cacao:device_idle_seconds",
      "Seconds with requests but without a step under way, at most.",
      {(): stats.device_idle_time},
    )

  def _gauge(self, name: str, text: str, value: float) -> metrics_core.Metric:
    family = metrics_core.GaugeMetricFamily(name, text, labels=(_LABEL,))
    family.add_metric((self._served.model_name,), value)
    return family

  def _counter(
    self,
    name: str,
    text: str,
    values: Mapping[tuple[str, ...], float],
    *,
    label: str | None = None,
  ) -> metrics_core.Metric:
    labels = (_LABEL,) if label is None else (_LABEL, label)
    family = metrics_core.CounterMetricFamily(name, text, labels=labels)
    for key, value in values.items():
      family.add_metric((self._served.model_name, *key), value)
    return family


def _one_two_five(limit: int) -> Iterable[int]:
  """1, 2, 5, 10, 20, ... up to the limit, which is the last."""
  scale = 1
  while True:
    for digit in (1, 2, 5):
      if digit * scale >= limit:
        yield limit
        return
      yield digit * scale
    scale *= 10
