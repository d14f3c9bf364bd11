"""A runner on a mesh says what it says on one device."""

from absl.testing import absltest
from absl.testing import parameterized

from serve import runner_fixtures


class RunnerShardingTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("tensor", {"tensor": 2}, "dense", {}),
    ("both", {"tensor": 2, "expert": 2}, "moe", {}),
    ("int8", {"tensor": 2}, "dense", {"weights": "int8", "cache": "int8"}),
    ("moe_int8", {"tensor": 2, "expert": 2}, "moe", {"weights": "int8"}),
  )
  def test_says_the_same(self, axes, kind, settings):
    config = dict(runner_fixtures.KINDS)[kind]
    prompts = runner_fixtures.make_prompts(9, 3)
    num = 4 if len(axes) == 2 else 2
    mesh = runner_fixtures.make_mesh(num, **axes)
    runner = runner_fixtures.make_runner(config, mesh=mesh, **settings)
    said = runner_fixtures.Texts(runner, prompts).finish()
    if settings:
      alone = runner_fixtures.make_runner(config, **settings)
      wanted = runner_fixtures.Texts(alone, prompts).finish()
    else:
      wanted = runner_fixtures.expected(config, prompts)
    self.assertEqual(said, wanted)

  def test_params_are_in_parts(self):
    config = dict(runner_fixtures.KINDS)["dense"]
    mesh = runner_fixtures.make_mesh(2, tensor=2)
    runner = runner_fixtures.make_runner(
      config, mesh=mesh, weights="int8", max_len=16
    )
    target = runner._target
    q = target.params["group_1"]["block_0"]["mixer"]["q_DNH"]
    self.assertEqual(q.values.addressable_shards[0].data.shape, (1, 2, 8, 16))
    self.assertEqual(q.scale.addressable_shards[0].data.shape, (1, 2, 8))
    pages = target.layers["group_0"]["block_0"]["k_PKSH"]
    self.assertEqual(pages.addressable_shards[0].data.shape[2], 1)


if __name__ == "__main__":
  absltest.main()
