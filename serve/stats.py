"""What an engine says of itself: what it is doing, and what it has done."""

import collections
from collections.abc import Sequence
import dataclasses
import enum
from typing import Any

from serve import batch as batch_lib
from serve import request as request_lib

# A result that took no longer was there before it was asked for.
_AT_ONCE = 100e-6


class Phase(enum.Enum):
  """What an engine is doing."""

  STARTING = "starting"
  SERVING = "serving"
  DRAINING = "draining"
  STOPPED = "stopped"
  DEAD = "dead"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stats:
  """An engine at one moment; counts are since its start, times in seconds.

  Attributes:
    phase: What it is doing.
    is_alive: Whether its thread runs.
    step: Training step of the parameters in use.
    last_progress: When a step was last finished, on time.monotonic's clock.
    num_running: Requests that have a slot.
    num_waiting: Requests that wait for one.
    num_waiting_tokens: Tokens of their prompts.
    pages_used: Share of the cache's pages that running requests hold, 0 to 1.
    prefix_queries: Prompt tokens of admitted requests.
    prefix_hits: Those of them that were found computed.
    num_preemptions: Times that a request had to give back its pages.
    num_prefill_steps: Steps that read texts.
    num_decode_steps: Steps that continued them.
    num_prompt_tokens: Tokens computed of prompts, again after preemption too.
    num_decode_rows: Rows of all decode steps; by steps, the mean occupancy.
    num_output_tokens: Tokens chosen and handed out.
    num_drafted_tokens: Guesses that were verified.
    num_accepted_tokens: Those that were right.
    finished: Requests by the reason of their end.
    prefill_time: Of steps that read texts, from launch to result.
    decode_time: Of steps that continued them.
    plan_time: The host's, to plan steps.
    launch_time: The host's, to launch them.
    update_time: The host's, to take results in and hand them out.
    device_wait_time: In which the host had nothing to do but wait for a step.
    device_idle_time: In which there were requests but no step was under way, as
      far as the host can tell: at most this.
    idle_time: Without requests.
  """

  phase: Phase
  is_alive: bool
  step: int
  last_progress: float
  num_running: int = 0
  num_waiting: int = 0
  num_waiting_tokens: int = 0
  pages_used: float = 0.0
  prefix_queries: int = 0
  prefix_hits: int = 0
  num_preemptions: int = 0
  num_prefill_steps: int = 0
  num_decode_steps: int = 0
  num_prompt_tokens: int = 0
  num_decode_rows: int = 0
  num_output_tokens: int = 0
  num_drafted_tokens: int = 0
  num_accepted_tokens: int = 0
  finished: dict[request_lib.FinishReason, int] = dataclasses.field(
    default_factory=dict
  )
  prefill_time: float = 0.0
  decode_time: float = 0.0
  plan_time: float = 0.0
  launch_time: float = 0.0
  update_time: float = 0.0
  device_wait_time: float = 0.0
  device_idle_time: float = 0.0
  idle_time: float = 0.0


class Counts:
  """The counts and times of `Stats`, as they grow. Not for several threads."""

  def __init__(self):
    self._counts: dict[str, Any] = collections.defaultdict(int)
    self._finished: dict[request_lib.FinishReason, int] = dict.fromkeys(
      request_lib.FinishReason, 0
    )

  def add(self, name: str, amount: float) -> None:
    """Adds to a field of `Stats`."""
    self._counts[name] += amount

  def add_finished(self, reason: request_lib.FinishReason) -> None:
    """A request has ended."""
    self._finished[reason] += 1

  def add_step(
    self,
    batch: batch_lib.Batch,
    results: Sequence[batch_lib.RowResult],
    *,
    started: float,
    asked: float,
    done: float,
  ) -> None:
    """A step was computed.

    Args:
      batch: What was computed.
      results: What came of it.
      started: When the device could begin: the step was launched, and the one
        before it was done.
      asked: When the host began to wait for it.
      done: When its result was there.
    """
    counts, rows = self._counts, batch.rows
    if batch.is_prefill:
      counts["num_prefill_steps"] += 1
      counts["num_prompt_tokens"] += sum(len(row.tokens) for row in rows)
      counts["prefill_time"] += done - started
    else:
      counts["num_decode_steps"] += 1
      counts["num_decode_rows"] += len(rows)
      counts["decode_time"] += done - started
      for row, result in zip(rows, results, strict=True):
        if row.num_tokens > 1 and result.tokens:
          counts["num_drafted_tokens"] += row.num_tokens - 1
          counts["num_accepted_tokens"] += len(result.tokens) - 1
    counts["device_wait_time"] += done - asked
    if done - asked < _AT_ONCE:
      counts["device_idle_time"] += asked - started

  def fields(self) -> dict[str, Any]:
    """Those fields of `Stats` that are counted here."""
    return {**self._counts, "finished": dict(self._finished)}
