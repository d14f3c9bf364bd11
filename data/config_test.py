from absl.testing import absltest
from absl.testing import parameterized

from data import config as config_lib

_A = config_lib.SourceConfig(name="a", path="/a")
_RECIPE = {"kind": config_lib.Kind.RECIPE, "recipe": "quickstart"}
_DATASETS = {
  "kind": config_lib.Kind.DATASETS,
  "sources": (_A,),
  "tokenizer": "/t",
}
_SYNTHETIC = {"kind": config_lib.Kind.SYNTHETIC, "vocab_size": 100}


class ConfigTest(parameterized.TestCase):
  @parameterized.parameters(_RECIPE, _DATASETS, _SYNTHETIC)
  def test_accepts(self, **fields):
    config = config_lib.DataConfig(**fields)
    self.assertEqual(config.kind, fields["kind"])

  @parameterized.parameters(
    (_RECIPE | {"kind": "recipe"}, "data.kind is 'recipe'"),
    (_RECIPE | {"recipe": ""}, "data.recipe is empty"),
    (_RECIPE | {"tokenizer": "/t"}, "data.tokenizer is '/t' but data.kind"),
    (_RECIPE | {"sources": (_A,)}, r"sources\[a\].path is set"),
    (_DATASETS | {"sources": ()}, "data.sources is empty"),
    (_DATASETS | {"sources": (_A, _A)}, "every name must be different"),
    (_DATASETS | {"tokenizer": ""}, "data.tokenizer is empty"),
    (_DATASETS | {"root": "/r"}, "data.root is '/r' but"),
    (_DATASETS | {"recipe": "x"}, "data.recipe is 'x' but"),
    (_DATASETS | {"vocab_size": 9}, "data.vocab_size is 9 but"),
    (
      _DATASETS | {"sources": (config_lib.SourceConfig(name="b"),)},
      r"sources\[b\].path is empty",
    ),
    (_SYNTHETIC | {"vocab_size": 1}, "data.vocab_size is 1"),
    (_SYNTHETIC | {"sources": (_A,)}, "data.sources is"),
    (_SYNTHETIC | {"seed": -1}, "data.seed is -1"),
    (_SYNTHETIC | {"prefetch_batches": -1}, "data.prefetch_batches is -1"),
    (_SYNTHETIC | {"num_workers": -1}, "data.num_workers is -1"),
  )
  def test_refuses(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      config_lib.DataConfig(**fields)

  @parameterized.parameters(
    ({"name": ""}, "name is empty"),
    ({"name": "blend"}, "the name is taken by the mixture"),
    ({"name": "a", "weight": 0.0}, "weight is 0.0"),
    ({"name": "a", "weight": -1.0}, "weight is -1.0"),
    ({"name": "a", "weight": float("nan")}, "weight is nan"),
    ({"name": "a", "weight": float("inf")}, "weight is inf"),
  )
  def test_refuses_sources(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      config_lib.SourceConfig(**fields)

  def test_source_by_name(self):
    config = config_lib.DataConfig(**_DATASETS)
    self.assertEqual(config.source("a"), _A)
    with self.assertRaisesRegex(ValueError, "no 'b'; it has a"):
      config.source("b")


if __name__ == "__main__":
  absltest.main()
