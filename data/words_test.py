from absl.testing import absltest
from absl.testing import parameterized

from data import words


class WordsTest(parameterized.TestCase):
  @parameterized.parameters(
    ("Hello, World!", ["hello", "world"]),
    ("snake_case 3.14", ["snake", "case", "3", "14"]),
    ("모든 문장은", ["모든", "문장은"]),
    ("これは本 a1", ["こ", "れ", "は", "本", "a1"]),
    ("\uff21\uff22 cafe\u0301", ["ab", "caf\u00e9"]),
    ("!? _", []),
    ("", []),
  )
  def test_split(self, text, expected):
    self.assertEqual(words.split(text), expected)


if __name__ == "__main__":
  absltest.main()
