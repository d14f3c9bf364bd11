"""Evaluation during a run: held-out loss and samples of text."""

from collections.abc import Iterator
import dataclasses
import pathlib
from typing import Any

from absl import logging
import jax

from data import baseline
from data import catalog
from data import config as data_config
from data import held_out
from data import pipeline
from data import tokenizer as tokenizer_lib
from model import sharding
from train import config as config_lib
from train import evaluate
from train import metrics as metrics_lib
from train import program as program_lib
from train import report
from train import sample


class Evaluator:
  """Scores a run's held-out splits and continues its prompts."""

  def __init__(
    self,
    config: config_lib.RunConfig,
    data: data_config.DataConfig,
    program: program_lib.Program,
    mesh: jax.sharding.Mesh,
    writer: metrics_lib.Writer,
  ):
    """`data` is the resolved config.data; results go to `writer`."""
    self._config = config
    self._data = data
    self._program = program
    self._mesh = mesh
    self._writer = writer
    self._sampler = None
    if config.eval.prompts and data.tokenizer:
      self._sampler = sample.Sampler(
        graphdef=program.graphdef,
        tokenizer=tokenizer_lib.Tokenizer.load(data.tokenizer),
        prompts=config.eval.prompts,
        num_tokens=config.eval.sample_tokens,
        temperature=config.eval.temperature,
      )

  def score(
    self, params: Any, step: int, max_batches: int | None
  ) -> dict[str, evaluate.HeldOut]:
    """Scores each held-out split, and their blend."""
    results = {}
    for name, batches in self._held_out(max_batches):
      results[name] = evaluate.score(
        params,
        batches,
        num_bytes=batches.num_bytes,
        eval_step=self._program.eval_step,
        mesh=self._mesh,
      )
    if not results:
      return {}
    weights = {s.name: s.weight for s in self._data.sources} or dict.fromkeys(
      results, 1.0
    )
    results[baseline.BLEND] = evaluate.blend(results, weights)
    for name, result in results.items():
      self._writer.write(step, f"eval/{name}", dataclasses.asdict(result))
    shown = ", ".join(f"{n} {r.nats_per_token:.3f}" for n, r in results.items())
    logging.info("step %d held-out nats/token: %s", step, shown)
    return results

  def sample(self, params: Any, step: int) -> None:
    """Continues the configured prompts."""
    if self._sampler is None:
      return
    prompts = self._config.eval.prompts
    texts = self._sampler(params, seed=step)
    for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
      logging.info("step %d sample of %r:\n%s", step, prompt, text)
      self._writer.write(step, f"sample/{i}", {"text": text})

  def finish(
    self, params: Any, step: int, workdir: pathlib.Path
  ) -> dict[str, evaluate.HeldOut]:
    """The last evaluation, over all held-out text, beside the baselines."""
    results = self.score(params, step, None)
    self.sample(params, step)
    if jax.process_index() != 0:
      return results
    baselines = {}
    # Baselines are counted in held-out files, token by token.
    has_tokens = (
      self._data.kind is data_config.Kind.DATASETS
      and self._data.sequence.kind in ("chunk", "pack")
      and not self._data.megatron.eval_samples
    )
    if results and has_tokens:
      baselines = dict(baseline.measure(self._data))
    if results:
      logging.info(
        "After %d steps:\n%s", step, report.table(results, baselines)
      )
    curve = report.draw_curve(workdir, baselines)
    logging.info("Loss curve: %s", curve)
    return results

  def _held_out(
    self, max_batches: int | None
  ) -> Iterator[tuple[str, held_out.EvalBatches]]:
    """(source, this process's held-out batches)."""
    for name in catalog.eval_sources(self._data):
      batches = self._open(name, None)
      if max_batches is not None and max_batches < len(batches):
        batches = self._open(name, max_batches)
      yield name, batches

  def _open(self, name: str, num_batches: int | None) -> held_out.EvalBatches:
    rows = sharding.host_rows(self._mesh)
    return pipeline.make_eval(
      self._data,
      source=name,
      seq_len=self._config.run.seq_len,
      batch_size=self._config.run.batch_size // self._config.run.accumulation,
      num_batches=num_batches,
      shard_index=rows.index,
      shard_count=rows.count,
    )
