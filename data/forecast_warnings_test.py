import dataclasses
import pathlib
import tempfile

from absl.testing import absltest

from data import config as config_lib
from data import fixtures
from data import forecast
from data import forecast_warnings

_Stage = config_lib.StageConfig
_SHAPE = {"seq_len": 32, "batch_size": 4}


class ForecastWarningsTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = tempfile.TemporaryDirectory()
    cls.addClassCleanup(folder.cleanup)
    cls.config = fixtures.write_mixture(pathlib.Path(folder.name))

  def warnings(self, num_steps, *, max_epochs=0.0, **settings):
    a, b = self.config.sources
    b = dataclasses.replace(b, max_epochs=max_epochs)
    config = dataclasses.replace(self.config, sources=(a, b), **settings)
    return forecast.make(config, num_steps=num_steps, **_SHAPE).warnings

  def test_none(self):
    self.assertEmpty(self.warnings(50))

  def test_many_epochs(self):
    (warning,) = self.warnings(500)
    self.assertEqual(forecast_warnings.MANY_EPOCHS, 4)
    self.assertRegex(
      warning, r"^read more than 4 times: a \d+\.\d\d times, b \d\.\d\d times; "
    )

  def test_stages(self):
    tokens = 10 * 4 * 32
    stages = (_Stage(tokens=tokens, weights=(1, 0)), _Stage(tokens=tokens))
    self.assertEqual(
      self.warnings(10, stages=stages),
      [
        "data.stages[1] is not reached: it begins at step 10, the run ends"
        " after step 10",
        "data.sources[b] rests in every stage that is reached: it is never"
        " used",
      ],
    )
    cut, coarse = self.warnings(11, stages=stages)
    self.assertEqual(
      cut, "data.stages[1] is cut short: the run takes 1 of its 10 steps"
    )
    self.assertEqual(
      coarse,
      "data.stages[1] has 4 samples, too few for the shares that are asked: b"
      " 25.00% instead of 30.00%, a 75.00% instead of 70.00%",
    )
    (ends,) = self.warnings(25, stages=stages)
    self.assertIn(
      "data ends after step 20 of 25: the last of data.stages", ends
    )
    self.assertIn("set run.steps to 20", ends)

  def test_never_reached(self):
    warnings = self.warnings(1, stages=(_Stage(weights=(1000, 1)),))
    self.assertIn(
      "data.sources[b] is never reached: the run takes no sample of it",
      warnings,
    )

  def test_used_up(self):
    used_up, shares = self.warnings(
      90, max_epochs=0.5, on_exhaustion="renormalize"
    )
    self.assertRegex(
      used_up,
      r"^data.sources\[b\] is used up \(max_epochs=0.5\) at step \d+: .*others"
      r" share its weight",
    )
    self.assertRegex(
      shares,
      r"^the run delivers other shares than asked: b \d+\.\d+% instead of"
      r" 30.00%, a .* \(b used up\)$",
    )
    (ends,) = self.warnings(90, max_epochs=0.5, on_exhaustion="stop")
    self.assertIn(
      "data.sources[b] is used up (max_epochs=0.5, on_exhaustion=stop)", ends
    )

  def test_no_held_out_part(self):
    a, b = self.config.sources
    sources = (dataclasses.replace(a, eval_path=""), b)
    config = dataclasses.replace(self.config, sources=sources)
    (warning,) = forecast.make(config, num_steps=50, **_SHAPE).warnings
    self.assertEqual(
      warning,
      "no loss is evaluated on a: set eval_path or held_out of data.sources",
    )


if __name__ == "__main__":
  absltest.main()
