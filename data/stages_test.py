from absl.testing import absltest

from data import config
from data import stages


class StagesTest(absltest.TestCase):
  def resolve(self, *parts):
    return stages.resolve(parts, seq_len=16, batch_size=4)

  def test_without_stages_the_run_is_one(self):
    (stage,) = self.resolve()
    self.assertEqual((stage.first_step, stage.num_steps), (0, None))
    self.assertEqual((stage.batch_size, stage.seq_len), (4, 16))
    self.assertIsNone(stages.num_steps([stage]))
    self.assertEqual(stages.num_rows([stage], 10), 40)

  def test_stages_end_with_the_batch_that_reaches_their_tokens(self):
    first, second, third = plan = self.resolve(
      config.StageConfig(tokens=3 * 64 + 1),
      config.StageConfig(tokens=100, seq_len=5, batch_size=10),
      config.StageConfig(weights=(1.0,)),
    )
    self.assertEqual((first.num_steps, second.num_steps), (4, 2))
    self.assertEqual((second.first_step, third.first_step), (4, 6))
    self.assertEqual((second.first_row, third.first_row), (16, 36))
    self.assertEqual((third.batch_size, third.seq_len), (4, 16))
    self.assertEqual(third.weights, (1.0,))
    found = [stages.at(plan, step) for step in range(8)]
    self.assertEqual(found, [first] * 4 + [second] * 2 + [third] * 2)
    rows = [stages.num_rows(plan, step) for step in range(9)]
    self.assertEqual(rows, [0, 4, 8, 12, 16, 26, 36, 40, 44])
    self.assertIsNone(stages.num_steps(plan))

  def test_the_last_stage_may_end_the_data(self):
    plan = self.resolve(config.StageConfig(tokens=640))
    self.assertEqual(stages.num_steps(plan), 10)


if __name__ == "__main__":
  absltest.main()
