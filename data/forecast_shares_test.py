import fractions
import pathlib
from unittest import mock

from absl.testing import absltest
import numpy as np

from data import config as config_lib
from data import fixtures
from data import forecast_counts
from data import forecast_shares
from data import indexed
from data import plan as plan_lib

_WEIGHTS = (3.0, 2.0, 0.1, 0.1)


class ForecastSharesTest(absltest.TestCase):
  def config(self, **settings):
    root = pathlib.Path(self.create_tempdir().full_path)
    sources = []
    for index, weight in enumerate(_WEIGHTS):
      with indexed.Writer(root / f"s{index}", np.uint16) as writer:
        for length in range(10, 40):
          writer.add_document([np.arange(length)])
      sources.append(
        config_lib.SourceConfig(
          name=f"s{index}", weight=weight, path=str(root / f"s{index}")
        )
      )
    return config_lib.DataConfig(
      kind=config_lib.Kind.DATASETS,
      sources=tuple(sources),
      tokenizer=str(fixtures.write_tokenizer(root / "tokenizer")),
      **settings,
    )

  def count(self, config, num_steps):
    plan = plan_lib.make(
      config,
      seq_len=8,
      batch_size=5,
      num_steps=num_steps if config.mixture == "megatron" else None,
    )
    counters = [forecast_counts.make(plan, i) for i in range(len(_WEIGHTS))]
    return forecast_shares.count(config, plan, counters, end=num_steps)

  def test_windows(self):
    stages = (config_lib.StageConfig(tokens=7 * 40), config_lib.StageConfig())
    made, windows = self.count(self.config(stages=stages), 207)
    self.assertEqual([stage.num_steps for stage in made], [7, 200])
    self.assertLen(windows, 1 + 5)
    step = 0
    for window in windows:
      self.assertEqual(window.first_step, step)
      self.assertEqual(window.first_token, 40 * step)
      self.assertAlmostEqual(sum(window.delivered), 1)
      step += window.num_steps
    self.assertEqual(step, 207)

  def test_what_is_asked_of_the_run_weighs_stages_by_tokens(self):
    stages = (
      config_lib.StageConfig(tokens=10 * 40, weights=(1, 0, 0, 0)),
      config_lib.StageConfig(weights=(0, 1, 0, 0), seq_len=16),
    )
    made, _ = self.count(self.config(stages=stages), 15)
    total = forecast_shares.total(made)
    self.assertEqual(total[0].asked, fractions.Fraction(1, 2))
    self.assertEqual(total[0].num_samples, 50)
    self.assertEqual(total[1].num_samples, 25)
    self.assertEqual([s.delivered for s in total], [0.5, 0.5, 0, 0])

  def test_many_samples_of_megatron_are_estimated(self):
    config = self.config(mixture="megatron")
    exact, _ = self.count(config, 99)
    with mock.patch.object(forecast_shares, "_MOST_COUNTED", 10):
      (stage,), _ = self.count(config, 99)
    self.assertEqual(sum(share.num_samples for share in stage.shares), 5 * 99)
    for share, counted in zip(stage.shares, exact[0].shares, strict=True):
      self.assertTrue(share.is_estimate)
      self.assertFalse(counted.is_estimate)
      self.assertAlmostEqual(share.num_samples, counted.num_samples, delta=2)


if __name__ == "__main__":
  absltest.main()
