from absl.testing import absltest
import jax

from serve import programs
from serve import runner_fixtures


def num_aliased(ahead: programs.Programs, *key) -> int:
  """Arguments of a program that are updated in place."""
  text = ahead._lower(key).compile().as_text()
  assert text is not None
  aliased = text.split("input_output_alias=")[1].split("\n")[0]
  return aliased.count("may-alias")


class ProgramsTest(absltest.TestCase):
  def test_compiles_ahead_or_not_at_all(self):
    runner = runner_fixtures.make_runner(runner_fixtures.DENSE, num_drafts=1)
    ahead = runner._programs
    self.assertEqual(ahead.nums_drafts, (0, 1))
    keys = ahead._keys()
    self.assertLen(set(keys), len(keys))
    one = ahead.call("admit", False)
    self.assertIs(ahead.call("admit", False), one)
    self.assertEqual(ahead.num_compiled, 1)
    ahead._keys = lambda: [("admit", False), ("admit", True)]
    reports = []
    ahead.compile_all(lambda done, total: reports.append((done, total)))
    self.assertEqual(reports, [(1, 1)])
    self.assertIs(ahead.call("admit", False), one)
    with self.assertRaises(programs.NotCompiledError):
      ahead.call("go_on", 2, 0)

  def test_donates_pages_and_state(self):
    runner = runner_fixtures.make_runner(runner_fixtures.DENSE)
    ahead, target = runner._programs, runner._target
    pages = jax.tree.leaves(target.layers)
    self.assertEqual(num_aliased(ahead, "go_on", 2, 0), len(pages))
    state = len(jax.tree.leaves(runner._state))
    self.assertEqual(num_aliased(ahead, "choose", 2, 0, 0), state)


if __name__ == "__main__":
  absltest.main()
