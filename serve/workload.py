"""A load on a server, and how it bore it: the work of //serve:benchmark.

So many clients ask, each the next thing as soon as its last was answered. The
prompts are random tokens, which no cache knows; answers have their full length,
so that two runs compute the same.
"""

import asyncio
from collections.abc import Sequence
import dataclasses
import json
import queue
import time
from typing import Any, Protocol

import aiohttp
import numpy as np

from serve import engine as engine_lib
from serve import request as request_lib
from serve import stats as stats_lib


class Engine(Protocol):
  """What is asked of the engine."""

  def submit(
    self, request: request_lib.Request, on_output: engine_lib.OnOutput
  ) -> None: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
  """What is asked.

  Attributes:
    num_clients: That ask at a time.
    num_requests: In all.
    prompt_tokens: Of each.
    new_tokens: Of each answer.
    shared_tokens: With which all prompts begin.
    temperature: 0: greedy.
    vocab_size: Every id is smaller.
    seed: Of prompts.
  """

  num_clients: int
  num_requests: int
  prompt_tokens: int
  new_tokens: int
  vocab_size: int
  shared_tokens: int = 0
  temperature: float = 0.0
  seed: int = 0

  def prompts(self) -> list[list[int]]:
    """One for each request."""
    rng = np.random.default_rng(self.seed)
    shape = (self.num_requests, self.prompt_tokens)
    tokens = rng.integers(0, self.vocab_size, shape)
    tokens[:, : self.shared_tokens] = tokens[:1, : self.shared_tokens]
    return tokens.tolist()


@dataclasses.dataclass
class Timing:
  """Of one request, in seconds.

  Attributes:
    sent: When.
    arrivals: When something came, and how many tokens.
  """

  sent: float
  arrivals: list[tuple[float, int]] = dataclasses.field(default_factory=list)

  @property
  def num_tokens(self) -> int:
    """That came."""
    return sum(num for _, num in self.arrivals)

  @property
  def first(self) -> float:
    """From the question to the first token."""
    return self.arrivals[0][0] - self.sent

  @property
  def per_token(self) -> float:
    """Between tokens, on average."""
    num = self.num_tokens - self.arrivals[0][1]
    return (self.arrivals[-1][0] - self.arrivals[0][0]) / max(1, num)

  @property
  def gaps(self) -> np.ndarray:
    """Between one arrival and the next."""
    return np.diff([moment for moment, _ in self.arrivals])


def drive(engine: Engine, workload: Workload) -> tuple[list[Timing], float]:
  """Loads an engine of this process.

  Returns:
    The timing of each request, and the seconds that all took.

  Raises:
    RuntimeError: A request failed.
  """
  done: queue.SimpleQueue[request_lib.Output] = queue.SimpleQueue()
  prompts = workload.prompts()
  timings: dict[str, Timing] = {}
  began = time.monotonic()

  def on_output(output: request_lib.Output) -> None:
    if output.tokens:
      arrival = (time.monotonic(), len(output.tokens))
      timings[output.request_id].arrivals.append(arrival)
    if output.finish is not None:
      done.put(output)

  def submit() -> None:
    index = len(timings)
    timings[str(index)] = Timing(sent=time.monotonic())
    request = request_lib.Request(
      id=str(index),
      prompt=tuple(prompts[index]),
      max_tokens=workload.new_tokens,
      sampling=request_lib.Sampling(
        temperature=workload.temperature, seed=index
      ),
    )
    engine.submit(request, on_output)

  for _ in range(min(workload.num_clients, workload.num_requests)):
    submit()
  for _ in range(workload.num_requests):
    output = done.get()
    if output.finish is not request_lib.FinishReason.LENGTH:
      raise RuntimeError(f"A request ended with {output}")
    if len(timings) < workload.num_requests:
      submit()
  return list(timings.values()), time.monotonic() - began


async def drive_http(
  url: str, workload: Workload, *, model: str, api_key: str = ""
) -> tuple[list[Timing], float]:
  """Loads a server by OpenAI's API, with streams.

  Args:
    url: Such as http://127.0.0.1:8000.
    workload: What to ask.
    model: As the server calls it.
    api_key: If it wants one.

  Returns:
    As `drive`.
  """
  headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
  prompts = iter(enumerate(workload.prompts()))
  timings: list[Timing] = []

  async def ask(session: aiohttp.ClientSession) -> None:
    # Clients share one iterator: each takes what is next.
    for index, prompt in prompts:
      timing = Timing(sent=time.monotonic())
      timings.append(timing)
      body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": workload.new_tokens,
        "temperature": workload.temperature,
        "seed": index,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
      }
      await _stream(session, f"{url}/v1/completions", body, timing)

  connector = aiohttp.TCPConnector(limit=0)
  timeout = aiohttp.ClientTimeout(total=None)
  async with aiohttp.ClientSession(
    connector=connector, timeout=timeout, headers=headers
  ) as session:
    began = time.monotonic()
    await asyncio.gather(*(ask(session) for _ in range(workload.num_clients)))
    return timings, time.monotonic() - began


async def _stream(
  session: aiohttp.ClientSession, url: str, body: dict[str, Any], timing: Timing
) -> None:
  """Times one answer: chunks as they come, tokens as the usage counts them."""
  num_tokens = 0
  moments = []
  async with session.post(url, json=body) as response:
    if response.status != 200:
      text = await response.text()
      raise RuntimeError(f"{url} answers {response.status}: {text}")
    async for line in response.content:
      if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
        continue
      chunk = json.loads(line[6:])
      if "error" in chunk:
        raise RuntimeError(f"{url}: {chunk['error']}")
      # A token may add no text yet, but says so all the same.
      if chunk.get("choices"):
        moments.append(time.monotonic())
      if chunk.get("usage"):
        num_tokens = chunk["usage"]["completion_tokens"]
  if num_tokens < 1 or not moments:
    raise RuntimeError(f"{url} answered nothing")
  # Which chunk has how many is not told; the first has one.
  rest = num_tokens - 1
  timing.arrivals.append((moments[0], 1))
  for moment in moments[1:-1]:
    timing.arrivals.append((moment, min(1, rest)))
    rest -= min(1, rest)
  timing.arrivals.append((moments[-1], rest))


def summarize(timings: Sequence[Timing], seconds: float) -> dict[str, float]:
  """The figures that servers are compared by; times in milliseconds."""
  num_tokens = sum(timing.num_tokens for timing in timings)
  gaps = np.concatenate([timing.gaps for timing in timings])

  def milliseconds(values: Any, share: float) -> float:
    return round(1e3 * float(np.quantile(values, share)), 3)

  first = [timing.first for timing in timings]
  per_token = [timing.per_token for timing in timings]
  return {
    "seconds": round(seconds, 3),
    "requests_per_second": round(len(timings) / seconds, 3),
    "output_tokens_per_second": round(num_tokens / seconds, 2),
    "ttft_ms_p50": milliseconds(first, 0.5),
    "ttft_ms_p99": milliseconds(first, 0.99),
    "tpot_ms_p50": milliseconds(per_token, 0.5),
    "tpot_ms_p99": milliseconds(per_token, 0.99),
    "gap_ms_p50": milliseconds(gaps, 0.5) if gaps.size else 0.0,
    "gap_ms_p99": milliseconds(gaps, 0.99) if gaps.size else 0.0,
  }


def summarize_engine(
  before: stats_lib.Stats, after: stats_lib.Stats, seconds: float
) -> dict[str, float]:
  """What the engine did between two looks at it."""

  def spent(name: str) -> float:
    return getattr(after, name) - getattr(before, name)

  decode_steps = spent("num_decode_steps")
  steps = decode_steps + spent("num_prefill_steps")
  host = spent("plan_time") + spent("launch_time") + spent("update_time")
  figures = {
    "decode_steps": decode_steps,
    "prefill_steps": spent("num_prefill_steps"),
    "rows_per_decode_step": spent("num_decode_rows") / max(1, decode_steps),
    "decode_step_ms": 1e3 * spent("decode_time") / max(1, decode_steps),
    "prefill_step_ms": (
      1e3 * spent("prefill_time") / max(1, spent("num_prefill_steps"))
    ),
    "host_us_per_step": 1e6 * host / max(1, steps),
    "launch_us_per_step": 1e6 * spent("launch_time") / max(1, steps),
    "device_idle_share": spent("device_idle_time") / seconds,
    "preemptions": spent("num_preemptions"),
    "prefix_hit_share": spent("prefix_hits") / max(1, spent("prefix_queries")),
    "draft_hit_share": (
      spent("num_accepted_tokens") / max(1, spent("num_drafted_tokens"))
    ),
  }
  return {name: round(value, 4) for name, value in figures.items()}
