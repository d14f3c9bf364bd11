import dataclasses
import pathlib

from absl.testing import absltest

from data import catalog
from data import config as config_lib
from data import fixtures
from data import tokenizer as tokenizer_lib


class CatalogTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    self.config = fixtures.write_mixture(self.root)

  def test_opens_what_the_config_names(self):
    train = catalog.open_train(self.config)
    self.assertEqual(
      [(s.name, s.weight) for s in train], [("a", 0.7), ("b", 0.3)]
    )
    self.assertEqual(catalog.eval_sources(self.config), ("a", "b"))
    self.assertEqual(catalog.vocab_size(self.config), 300)
    held_out = catalog.open_eval(self.config, "a")
    self.assertNotEqual(held_out.digest, train[0].digest)
    self.assertLess(held_out.tokens.num_tokens, train[0].tokens.num_tokens)

  def test_refuses_another_tokenizer(self):
    other = self.root / "other"
    texts = [fixtures.text(index) for index in range(200)]
    tokenizer_lib.Tokenizer.train(texts, vocab_size=299).save(other)
    config = dataclasses.replace(self.config, tokenizer=str(other))
    with self.assertRaisesRegex(ValueError, r"sources\[a\].*made by the token"):
      catalog.open_train(config)
    with self.assertRaisesRegex(ValueError, r"sources\[b\].*made by the token"):
      catalog.open_eval(config, "b")

  def test_refuses_a_recipe_that_is_not_resolved(self):
    config = config_lib.DataConfig(kind=config_lib.Kind.RECIPE, recipe="x")
    for function in (
      catalog.open_train,
      catalog.eval_sources,
      catalog.vocab_size,
    ):
      with self.assertRaisesRegex(ValueError, "recipes.resolve first"):
        function(config)

  def test_refuses_a_split_that_is_not_there(self):
    a, b = self.config.sources
    config = dataclasses.replace(
      self.config, sources=(a, dataclasses.replace(b, eval_path=""))
    )
    self.assertEqual(catalog.eval_sources(config), ("a",))
    with self.assertRaisesRegex(ValueError, r"sources\[b\] has no held-out"):
      catalog.open_eval(config, "b")

  def test_synthetic_splits_differ(self):
    config = config_lib.DataConfig(
      kind=config_lib.Kind.SYNTHETIC, vocab_size=1000
    )
    (train,) = catalog.open_train(config)
    held_out = catalog.open_eval(config, *catalog.eval_sources(config))
    self.assertNotEqual(
      train.tokens.read(0, 50).tolist(), held_out.tokens.read(0, 50).tolist()
    )


if __name__ == "__main__":
  absltest.main()
