"""Learning rates at the corners of each schedule."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from train import schedule


def _rates(steps, **settings):
  config = schedule.ScheduleConfig(peak=1.0, **settings)
  make = schedule.make(config, run_steps=steps)
  return np.array([np.asarray(make(step)) for step in range(steps + 1)])


class ScheduleTest(parameterized.TestCase):
  @parameterized.parameters(
    ("constant", {}),
    ("cosine", {}),
    ("linear", {}),
    ("wsd", {"decay_steps": 5}),
  )
  def test_warm_up_rises_in_equal_parts_to_the_peak(self, kind, extra):
    rates = _rates(20, kind=kind, warmup_steps=4, **extra)
    np.testing.assert_allclose(rates[:4], [0.25, 0.5, 0.75, 1.0], rtol=1e-6)
    self.assertLessEqual(rates.max(), 1.0)

  @parameterized.parameters("cosine", "linear")
  def test_decays_to_the_final_ratio(self, kind):
    rates = _rates(20, kind=kind, warmup_steps=4, final_ratio=0.2)
    self.assertAlmostEqual(rates[20], 0.2, places=6)
    self.assertAlmostEqual(rates[12], 0.6, places=6)  # Half-way in both.
    self.assertTrue((np.diff(rates[4:]) <= 0).all())

  def test_wsd_is_stable_then_linear(self):
    rates = _rates(
      20, kind="wsd", warmup_steps=2, decay_steps=10, final_ratio=0.0
    )
    np.testing.assert_allclose(rates[2:11], 1.0)
    np.testing.assert_allclose(rates[10:], np.linspace(1, 0, 11), atol=1e-6)

  def test_inverse_sqrt_falls_by_half_in_four_times_the_steps(self):
    rates = _rates(64, kind="inverse_sqrt", warmup_steps=4)
    np.testing.assert_allclose(rates[[3, 4, 16, 64]], [1, 1, 0.5, 0.25])

  def test_constant_stays(self):
    np.testing.assert_allclose(_rates(5, kind="constant"), 1.0)

  def test_one_step_of_warm_up_is_the_peak_at_once(self):
    np.testing.assert_allclose(_rates(3, kind="constant", warmup_steps=1), 1.0)

  def test_own_length_outlives_the_run(self):
    config = schedule.ScheduleConfig(kind="linear", peak=1.0, steps=40)
    make = schedule.make(config, run_steps=20)
    self.assertAlmostEqual(np.asarray(make(20)).item(), 0.55, places=6)

  @parameterized.parameters(
    ({"peak": 0.0}, "schedule.peak=0.0 must be positive"),
    ({"peak": 1.0, "final_ratio": 1.5}, "final_ratio=1.5 must be between"),
    ({"peak": 1.0, "kind": "wsd"}, "decay_steps=None.*set it for wsd"),
    ({"peak": 1.0, "decay_steps": 3}, "decay_steps=3 with.*'cosine'"),
    ({"peak": 1.0, "kind": "inverse_sqrt"}, "warmup_steps=0 with.*1 or more"),
    ({"peak": 1.0, "warmup_steps": -1}, "warmup_steps=-1"),
    ({"peak": 1.0, "steps": 0}, "schedule.steps=0"),
  )
  def test_refuses(self, settings, message):
    with self.assertRaisesRegex(ValueError, message):
      schedule.ScheduleConfig(**settings)

  def test_refuses_what_does_not_fit(self):
    config = schedule.ScheduleConfig(
      kind="wsd", peak=1.0, warmup_steps=6, decay_steps=5
    )
    with self.assertRaisesRegex(ValueError, "exceed the 10 steps"):
      schedule.make(config, run_steps=10)


if __name__ == "__main__":
  absltest.main()
