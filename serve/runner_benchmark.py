"""Steps of a runner without a scheduler or a server around it: a line of JSON.

  bazel run -c opt //serve:runner_benchmark -- --rows=8 --dtype=float32

A Llama of 100 million parameters, or with `--model=moe` a mixture of 228
million of which a token takes 52, both with the embedding; prompts of 128
tokens, greedy. Steps are launched one ahead, as the engine does. `weight_bytes`
are those of all parameters as they are computed with, `host_ms` is the time to
launch a step, `cpu_ms` the processor time of all threads: on a machine that is
busy with other things half of that (two cores) is what a step can take.
`bandwidth_ms` is how long it takes to read all parameters once.
"""

from collections.abc import Sequence
import json
import time
from typing import Any

from absl import app
from absl import flags
import jax
import jax.numpy as jnp

from model import config as model_config
from model import sharding
from model import transformer
from serve import batch as batch_lib
from serve import config as serve_config
from serve import request as request_lib
from serve import runner as runner_lib

_MODEL = flags.DEFINE_enum("model", "dense", ["dense", "moe"], "Its kind.")
_ROWS = flags.DEFINE_multi_integer(
  "rows", [1, 8, 32], "Requests at the same time."
)
_DTYPE = flags.DEFINE_enum(
  "dtype", "float32", ["float32", "bfloat16"], "Of activations."
)
_WEIGHTS = flags.DEFINE_enum("weights", "none", ["none", "int8"], "Stored as.")
_CACHE = flags.DEFINE_enum(
  "cache", "compute_dtype", ["compute_dtype", "int8"], "Stored as."
)
_PROMPT = flags.DEFINE_integer("prompt", 128, "Tokens of a prompt.")
_STEPS = flags.DEFINE_integer("steps", 64, "Tokens after it.")
_MAX_LEN = flags.DEFINE_integer("max_len", 512, "Tokens of a text, at most.")
_CACHE_FOLDER = flags.DEFINE_string(
  "compilation_cache", "", "Keeps compiled programs."
)


def main(argv: Sequence[str]) -> None:
  """Measures reading and going on for each number of rows."""
  del argv
  model = _dense() if _MODEL.value == "dense" else _mixture()
  dtype: Any = _DTYPE.value
  stored: dict[str, Any] = {"weights": _WEIGHTS.value, "cache": _CACHE.value}
  execution = model_config.ExecutionConfig(compute_dtype=dtype)
  mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
  params = jax.jit(lambda: transformer.init(model, execution, seed=0))()
  seconds = _read_seconds(sum(x.nbytes for x in jax.tree.leaves(params)))
  runner = runner_lib.Runner(
    runner_lib.Source(config=model, execution=execution, params=params),
    serve_config.RunnerConfig(
      compute_dtype=dtype,
      **stored,
      max_rows=max(_ROWS.value),
      max_len=_MAX_LEN.value,
      compilation_cache=_CACHE_FOLDER.value,
    ),
    mesh=mesh,
  )
  num_bytes = sum(x.nbytes for x in jax.tree.leaves(runner._target.params))
  began = time.perf_counter()
  if _CACHE_FOLDER.value:
    runner.warm_up()
    print(
      json.dumps(
        {
          "programs": runner.num_compiled,
          "seconds": round(time.perf_counter() - began, 1),
        }
      )
    )
  for num in _ROWS.value:
    result = {
      "model": model.name,
      "rows": num,
      "dtype": _DTYPE.value,
      "weights": _WEIGHTS.value,
      "weight_bytes": num_bytes,
    }
    result |= _measure(runner, num) | {"bandwidth_ms": _ms(seconds)}
    print(json.dumps(result), flush=True)


def _dense() -> model_config.ModelConfig:
  return model_config.dense(
    name="100m",
    vocab_size=32_000,
    dim=768,
    num_layers=12,
    num_heads=12,
    num_kv_heads=4,
    head_dim=64,
    mlp_dim=2048,
    tie_embeddings=True,
    max_seq_len=_MAX_LEN.value,
  )


def _mixture() -> model_config.ModelConfig:
  """Eight layers of 64 experts, 8 of them for each token."""
  return model_config.ModelConfig(
    name="moe-228m",
    vocab_size=32_000,
    dim=512,
    max_seq_len=_MAX_LEN.value,
    tie_embeddings=True,
    groups=(
      model_config.LayerGroup(
        pattern=(
          model_config.BlockConfig(
            mixer=model_config.AttentionConfig(
              num_heads=8, num_kv_heads=4, head_dim=64
            ),
            feed_forward=model_config.MoeConfig(
              num_experts=64, experts_per_token=8, dim=256
            ),
          ),
        ),
        repeats=8,
      ),
    ),
  )


def _measure(runner: runner_lib.Runner, num: int) -> dict[str, Any]:
  """Reads prompts and goes on with them, twice: the first time compiles."""
  for _ in range(2):
    texts = [_Text(runner, slot) for slot in range(1, num + 1)]
    per_step = max(1, 256 // _PROMPT.value)
    began = time.perf_counter()
    for first in range(0, num, per_step):
      rows = tuple(text.read() for text in texts[first : first + per_step])
      runner.run(batch_lib.Batch(rows=rows)).result()
    prefill = time.perf_counter() - began

    steps, hosts, handle = [], [], None
    cpu, last = time.process_time(), time.perf_counter()
    for _ in range(_STEPS.value):
      rows = tuple(text.go_on() for text in texts)
      launched = time.thread_time()
      new = runner.run(batch_lib.Batch(rows=rows))
      hosts.append(time.thread_time() - launched)
      if handle is not None:
        handle.result()
        now = time.perf_counter()
        steps.append(now - last)
        last = now
      handle = new
    assert handle is not None
    handle.result()
    cpu = (time.process_time() - cpu) / _STEPS.value
  step = sorted(steps)[len(steps) // 2]
  return {
    "prefill_ms": _ms(prefill),
    "step_ms": _ms(step),
    "step_ms_min": _ms(min(steps)),
    "cpu_ms": _ms(cpu),
    "host_ms": _ms(sorted(hosts)[len(hosts) // 2]),
    "tokens_per_second": round(num / step, 1),
    "tokens_per_second_max": round(num / min(steps), 1),
  }


class _Text:
  """A text in a slot, with pages of its own."""

  def __init__(self, runner: runner_lib.Runner, slot: int):
    num = -(-runner.max_len // runner.page_size)
    first = 1 + (slot - 1) * num
    self._slot = slot
    self._tables = {0: tuple(range(first, first + num))}
    self._start = 0
    prompt = tuple((7 * slot + 13 * i) % 32_000 for i in range(_PROMPT.value))
    self._request = request_lib.Request(
      id=str(slot),
      prompt=prompt,
      max_tokens=_STEPS.value,
      sampling=request_lib.Sampling(temperature=0.0),
    )
    runner.admit(slot, self._request, prompt)

  def read(self) -> batch_lib.Row:
    return self._row(self._request.prompt)

  def go_on(self) -> batch_lib.Row:
    return self._row(())

  def _row(self, tokens: tuple[int, ...]) -> batch_lib.Row:
    start = self._start
    self._start += max(1, len(tokens))
    return batch_lib.Row(
      request_id=self._request.id,
      slot=self._slot,
      start=start,
      length=self._start,
      tokens=tokens,
      tables=self._tables,
    )


def _read_seconds(num_bytes: int) -> float:
  """How long it takes to read so many bytes."""
  x = jnp.ones(num_bytes // 4, jnp.float32)
  total = jax.jit(jnp.sum)
  times = []
  for _ in range(6):
    began = time.perf_counter()
    total(x).block_until_ready()
    times.append(time.perf_counter() - began)
  return min(times)


def _ms(seconds: float) -> float:
  return round(1e3 * seconds, 2)


if __name__ == "__main__":
  app.run(main)
