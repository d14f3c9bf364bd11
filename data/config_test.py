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
_LIMITED = config_lib.SourceConfig(name="a", path="/a", max_epochs=2.0)
_CHAT = config_lib.SequenceConfig(kind="chat")
_MEGATRON = _DATASETS | {"mixture": "megatron"}


def stages(*parts):
  return {"stages": tuple(config_lib.StageConfig(**part) for part in parts)}


class ConfigTest(parameterized.TestCase):
  @parameterized.parameters(
    _RECIPE,
    _DATASETS,
    _SYNTHETIC,
    _MEGATRON,
    _DATASETS | {"sources": (_LIMITED,), "on_exhaustion": "stop"},
    _DATASETS | {"sequence": _CHAT, "mask_documents": True},
    _DATASETS | stages({"tokens": 9, "seq_len": 5}, {"weights": (1.0,)}),
    _RECIPE | stages({"weights": (1.0, 0.0)}),
  )
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
    (_RECIPE | {"sequence": _CHAT}, "kind is chat.* data.kind is recipe"),
    (
      _SYNTHETIC | {"sequence": config_lib.SequenceConfig(kind="pack")},
      "leave data.sequence unset",
    ),
    (_DATASETS | {"sequence": _CHAT}, "data.mask_documents is off"),
    (_DATASETS | stages({}, {}), r"stages\[0\].tokens is 0, but another"),
    (_SYNTHETIC | stages({"weights": (1.0,)}), r"stages\[0\].weights is"),
    (_DATASETS | stages({"weights": (1.0, 2.0)}), "2 numbers for the 1 of"),
    (
      _DATASETS
      | stages({"seq_len": 5})
      | {"sequence": config_lib.SequenceConfig(kind="pack")},
      r"stages\[0\].seq_len is 5, but .* is pack",
    ),
    (_DATASETS | {"sources": (_LIMITED,)}, "on_exhaustion is repeat"),
    (_DATASETS | {"on_exhaustion": "stop"}, "no source has max_epochs"),
    (_SYNTHETIC | {"on_exhaustion": "stop"}, "no source has max_epochs"),
    (
      _DATASETS | {"megatron": config_lib.MegatronConfig(split="9,1,0")},
      "data.mixture is weighted",
    ),
    (_RECIPE | {"mixture": "megatron"}, "data.kind is recipe"),
    (_MEGATRON | stages({}), "data.stages is .* is megatron"),
    (_MEGATRON | {"shuffle": False}, "data.shuffle is False"),
    (
      _MEGATRON
      | {
        "sources": (config_lib.SourceConfig(name="a", path="/a", held_out=0.1),)
      },
      r"sources\[a\] has .*held_out=0.1",
    ),
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
    ({"name": "a", "held_out": 1.0}, "held_out is 1.0"),
    ({"name": "a", "held_out": 0.1, "eval_path": "/e"}, "two held-out splits"),
    ({"name": "a", "max_epochs": -1.0}, "max_epochs is -1.0"),
  )
  def test_refuses_sources(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      config_lib.SourceConfig(**fields)

  @parameterized.parameters(
    (config_lib.StageConfig, {"tokens": -1}, "tokens -1"),
    (config_lib.StageConfig, {"weights": (-1.0,)}, "each must be a positive"),
    (config_lib.StageConfig, {"weights": (0.0,)}, "must have a positive one"),
    (config_lib.SequenceConfig, {"fim_rate": 1.5}, "fim_rate is 1.5"),
    (
      config_lib.SequenceConfig,
      {"too_long": "drop"},
      "too_long is 'drop', but",
    ),
    (config_lib.SequenceConfig, {"skip_untrainable": True}, "skip_untrainable"),
    (config_lib.SequenceConfig, {"kind": "chat", "fim_rate": 0.5}, "fim_rate"),
    (config_lib.MegatronConfig, {"surplus": -0.1}, "surplus is -0.1"),
    (config_lib.MegatronConfig, {"eval_samples": -1}, "eval_samples is -1"),
  )
  def test_refuses_parts(self, part, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      part(**fields)

  def test_source_by_name(self):
    config = config_lib.DataConfig(**_DATASETS)
    self.assertEqual(config.source("a"), _A)
    with self.assertRaisesRegex(ValueError, "no 'b'; it has a"):
      config.source("b")


if __name__ == "__main__":
  absltest.main()
