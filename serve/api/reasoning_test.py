from absl.testing import absltest
from absl.testing import parameterized

from serve.api import reasoning


def _read(prompt, pieces):
  reader = reasoning.Reader(prompt)
  parts = [reader.push(piece) for piece in pieces] + [reader.finish()]
  return "".join(a for a, _ in parts), "".join(b for _, b in parts)


class ReasoningTest(parameterized.TestCase):
  @parameterized.parameters(
    ("", "Hi.", "", "Hi."),
    ("", "", "", ""),
    ("", " Hi.\n", "", " Hi.\n"),
    ("", "<think>\nWell.\n</think>\n\nHi.", "Well.", "Hi."),
    ("", "\n<think>a</think>b", "a", "b"),
    ("<|im_start|>assistant\n<think>\n", "a b\n</think>\n\nHi.", "a b", "Hi."),
    ("<think>\n\n</think>\n\n", "Hi.", "", "Hi."),
    ("<think>", "still at it </thi", "still at it </thi", ""),
    ("", "<thin", "", "<thin"),
    ("", "a <think>b</think>", "", "a <think>b</think>"),
    ("", "<think></think>x </think> y", "", "x </think> y"),
  )
  def test_splits(self, prompt, answer, thought, said):
    self.assertEqual(_read(prompt, [answer]), (thought, said))
    self.assertEqual(_read(prompt, list(answer)), (thought, said))

  def test_which_templates(self):
    self.assertTrue(reasoning.is_known("{{ x.split('</think>') }}"))
    self.assertFalse(reasoning.is_known("{{ x }}"))


if __name__ == "__main__":
  absltest.main()
