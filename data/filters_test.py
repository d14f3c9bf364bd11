import dataclasses

from absl.testing import absltest
from absl.testing import parameterized

from data import filters

_TEXTS = {
  "en": "In the beginning was the word, and the word was rather long.",
  "ko": "모든 문장은 끝에서 다시 시작한다. 문장의 순서는 섞인다.",
  "de": "Der schnelle braune Fuchs springt über den faulen Hund.",
  "ja": "吾輩は猫である。名前はまだ無い。",
}


class FiltersTest(parameterized.TestCase):
  def test_lengths_are_of_characters(self):
    chosen = filters.Filters(min_chars=2, max_chars=3)
    lengths = range(6)
    short = [chosen.is_short("한" * n) for n in lengths]
    long = [chosen.is_long("한" * n) for n in lengths]
    self.assertEqual(short, [True, True, False, False, False, False])
    self.assertEqual(long, [False, False, False, False, True, True])

  def test_nothing_is_asked_by_default(self):
    chosen = filters.Filters()
    for text in ("", "x", *_TEXTS.values()):
      self.assertFalse(chosen.is_short(text) or chosen.is_long(text))
      self.assertFalse(chosen.is_foreign(text))

  @parameterized.parameters(*_TEXTS)
  def test_languages(self, language):
    others = tuple(set(_TEXTS) - {language})
    one = filters.Filters(languages=(language,))
    self.assertFalse(one.is_foreign(_TEXTS[language]))
    self.assertTrue(
      filters.Filters(languages=others).is_foreign(_TEXTS[language])
    )

  def test_two_languages_share_the_confidence(self):
    both = filters.Filters(languages=("en", "ko"), min_confidence=0.9)
    self.assertFalse(both.is_foreign(_TEXTS["en"] + _TEXTS["ko"]))

  def test_probabilities_are_of_the_start(self):
    known = filters.language_probabilities(_TEXTS["en"] * 100)
    self.assertEqual(max(known, key=known.__getitem__), "en")
    self.assertAlmostEqual(sum(known.values()), 1, places=4)
    longer = _TEXTS["en"] * 100 + _TEXTS["ko"] * 1000
    self.assertEqual(filters.language_probabilities(longer), known)

  @parameterized.parameters(
    ({"min_chars": -1}, "min_chars is -1"),
    ({"min_chars": 5, "max_chars": 4}, "max_chars is 4"),
    ({"min_confidence": 1.5}, "min_confidence is 1.5"),
    (
      {"languages": ("en", "klingon")},
      "languages has klingon; known are ace, af",
    ),
  )
  def test_refuses(self, settings, message):
    with self.assertRaisesRegex(ValueError, message):
      dataclasses.replace(filters.Filters(), **settings)


if __name__ == "__main__":
  absltest.main()
