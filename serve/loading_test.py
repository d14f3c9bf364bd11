"""What surrounds the engine of a checkpoint; main_test serves a real one."""

import concurrent.futures
import pathlib
import threading
from typing import Any

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from model import sharding
from serve import assembly
from serve import checkpoint_fixtures
from serve import checkpoints
from serve import loading
from serve import replicas
from serve import stats as stats_lib
from serve.api import health
from serve.api import metrics


class _Engine:
  """Keeps what it is given."""

  def __init__(self):
    self.swapped = []

  def swap(self, params, *, step):
    self.swapped.append((params, step))
    future = concurrent.futures.Future()
    future.set_result(None)
    return future


class LoadingTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    (mesh,) = assembly.make_meshes(sharding.MeshConfig(fsdp=2))
    self.mesh = mesh

  def _model(self, tokenizer=None):
    folder = self.root / ("bare" if tokenizer is None else "run")
    checkpoint_fixtures.write(folder, step=5, tokenizer=tokenizer)
    return checkpoints.load(
      folder,
      mesh=self.mesh,
      compute_dtype="float32",
      import_folder=self.root / "imported",
    )

  def test_words(self):
    self.assertIsNone(loading.make_words(self._model(), max_rule_bytes=99))
    tokenizer = checkpoint_fixtures.write_tokenizer(self.root / "tokenizer")
    words = loading.make_words(self._model(tokenizer), max_rule_bytes=99)
    assert words is not None
    self.assertNotEmpty(words.tokenizer.encode("the word"))
    self.assertNotEmpty(words.prompts.templates.sources)

  def test_swap(self):
    model = self._model()
    engine: Any = _Engine()
    loading.swap(engine, [None], model)
    ((params, step),) = engine.swapped
    self.assertIs(params, model.params)
    self.assertEqual(step, 5)

  def test_swap_of_replicas(self):
    model = self._model()
    engines: list[Any] = [_Engine(), _Engine()]
    places = [
      jax.tree.map(lambda _, d=d: jax.sharding.SingleDeviceSharding(d), m)
      for d, m in zip(jax.devices(), [model.params] * 2, strict=True)
    ]
    loading.swap(replicas.Replicas(engines), places, model)
    for engine, device in zip(engines, jax.devices(), strict=True):
      ((params, step),) = engine.swapped
      self.assertEqual(step, 5)
      leaves = jax.tree.leaves(params)
      for leaf, own in zip(leaves, jax.tree.leaves(model.params), strict=True):
        self.assertEqual(leaf.devices(), {device})
        np.testing.assert_array_equal(leaf, own)

  def test_counts_what_the_engine_compiles(self):
    figures = metrics.Metrics(health.Status())
    requests = figures.serve(
      metrics.Served(
        model_name="tiny",
        max_len=64,
        cache={},
        stats=lambda: stats_lib.Stats(
          phase=stats_lib.Phase.SERVING,
          is_alive=True,
          step=0,
          last_progress=0.0,
        ),
      )
    )
    loading.count_compiles(requests)
    self.addCleanup(jax.monitoring.clear_event_listeners)

    def compile_on(name, number):
      work = jax.jit(lambda x: x * number)
      thread = threading.Thread(
        target=lambda: work(jnp.ones(number)).block_until_ready(), name=name
      )
      thread.start()
      thread.join()
      name = "cacao:compiles_after_ready_total"
      return figures.sample(name, {"model_name": "tiny"}) or 0

    self.assertEqual(compile_on("other", 3), 0)
    self.assertGreater(compile_on("engine", 5), 0)


if __name__ == "__main__":
  absltest.main()
