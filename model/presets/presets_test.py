import math

from absl.testing import absltest
from absl.testing import parameterized
import jax

from model import config as model_config
from model import flops
from model import sharding
from model import transformer
from model.presets import catalogue
from model.presets import kanana
from model.presets import small

# Parameters of the published checkpoints, each array counted once. Gemma 3's
# from 4B on are those of the whole model less its vision tower (416,866,032)
# and projector. Where no checkpoint could be counted: the published figure.
_TOTALS = {
  "deepseek-v2-lite": 15_706_484_224,
  "deepseek-v2": 235_741_434_880,
  "deepseek-v3": 671_026_419_200,
  "deepseek-v3-mtp": None,
  "gemma-2-2b": 2_614_341_888,
  "gemma-2-9b": 9_241_705_984,
  "gemma-2-27b": 27_227_128_320,
  "gemma-3-270m": 268_098_176,
  "gemma-3-1b": 999_885_952,
  "gemma-3-4b": 4_300_079_472 - 416_866_032 - (2560 + 1) * 1152,
  "gemma-3-12b": 12_187_325_040 - 416_866_032 - (3840 + 1) * 1152,
  "gemma-3-27b": 27_432_406_640 - 416_866_032 - (5376 + 1) * 1152,
  "gpt2": 124_439_808,
  "gpt2-medium": 354_823_168,
  "gpt2-large": 774_030_080,
  "gpt2-xl": 1_557_611_200,
  "gpt-oss-20b": 20_914_757_184,
  "gpt-oss-120b": 116_829_156_672,
  "kanana-1.5-2.1b": 2_086_984_704,
  "kanana-1.5-8b": 8_030_285_824,
  "kanana-1.5-9.8b": 9_775_181_824,
  "kanana-moe-13.4b-a2.3b": 13.4,
  "kanana-2-30b-a3b": None,
  "llama-2-7b": 6_738_415_616,
  "llama-2-13b": 13_015_864_320,
  "llama-3-8b": 8_030_261_248,
  "llama-3-70b": 70_553_706_496,
  "llama-3.1-8b": 8_030_261_248,
  "llama-3.1-405b": 405_853_388_800,
  "llama-3.2-1b": 1_235_814_400,
  "llama-3.2-3b": 3_212_749_824,
  "mistral-7b-v0.1": 7_241_732_096,
  "mistral-7b-v0.3": 7_248_023_552,
  "mistral-nemo-12b": 12_247_782_400,
  "mixtral-8x7b": 46_702_792_704,
  "mixtral-8x22b": 140_620_634_112,
  "olmo-2-1b": 1_484_916_736,
  "olmo-2-7b": 7_298_617_344,
  "olmo-2-13b": 13_716_198_400,
  "olmo-2-32b": 32_234_279_936,
  "olmoe-1b-7b": 6_919_161_856,
  "phi-3-mini-4k": 3_821_079_552,
  "qwen2-0.5b": 494_032_768,
  "qwen2-1.5b": 1_543_714_304,
  "qwen2-7b": 7_615_616_512,
  "qwen2-72b": 72_706_203_648,
  "qwen2.5-7b": 7_615_616_512,
  "qwen2.5-14b": 14_770_033_664,
  "qwen2.5-32b": 32_763_876_352,
  "qwen3-0.6b": 596_049_920,
  "qwen3-1.7b": 1_720_574_976,
  "qwen3-4b": 4_022_468_096,
  "qwen3-8b": 8_190_735_360,
  "qwen3-14b": 14_768_307_200,
  "qwen3-32b": 32_762_123_264,
  "qwen3-30b-a3b": 30_532_122_624,
  "qwen3-235b-a22b": 235_093_634_560,
  "qwen3-next-80b-a3b": None,
  "smollm2-135m": 134_515_008,
  "smollm2-360m": 361_821_120,
  "smollm2-1.7b": 1_711_376_384,
}
# Published billions of active parameters, and whether they count the embedding
# table, which a token only looks up.
_ACTIVE = {
  "deepseek-v2-lite": ("2.4", False),
  "deepseek-v2": ("21", True),
  "deepseek-v3": ("37", False),
  "gpt-oss-20b": ("3.61", False),
  "gpt-oss-120b": ("5.13", False),
  "kanana-moe-13.4b-a2.3b": ("2.3", True),
  "kanana-2-30b-a3b": ("3", False),
  "mixtral-8x7b": ("12.9", True),
  "mixtral-8x22b": ("39", True),
  "olmoe-1b-7b": ("1.3", True),
  "qwen3-30b-a3b": ("3.3", True),
  "qwen3-235b-a22b": ("22", True),
}


class PresetsTest(parameterized.TestCase):
  def test_names(self):
    names = [make().name for make in catalogue.PUBLISHED]
    self.assertLen(set(names), len(names))
    self.assertEqual(set(names), set(_TOTALS))

  @parameterized.parameters(*catalogue.PUBLISHED)
  def test_published_parameters(self, make):
    config = make()
    count = flops.count_parameters(config)
    published = _TOTALS[config.name]
    if isinstance(published, int):
      self.assertEqual(count.total, published)
    elif published is not None:
      self.assertEqual(round(count.total / 1e9, 1), published)
    if config.name in _ACTIVE:
      billions, with_embedding = _ACTIVE[config.name]
      active = count.active - (0 if with_embedding else count.embedding)
      decimals = len(billions.partition(".")[2])
      # Some round, some cut off.
      cut = math.floor(active / 1e9 * 10**decimals) / 10**decimals
      self.assertIn(float(billions), (round(active / 1e9, decimals), cut))

  def test_parameters_where_no_checkpoint_could_be_counted(self):
    by_name = {make().name: make() for make in catalogue.PUBLISHED}
    count = flops.count_parameters
    # "30B" and "80B" (without the module that predicts further tokens).
    self.assertEqual(int(count(by_name["kanana-2-30b-a3b"]).total / 1e9), 30)
    next_count = count(by_name["qwen3-next-80b-a3b"])
    self.assertEqual(round(next_count.total / 1e9), 80)
    self.assertEqual(int(next_count.active / 1e9), 3)
    # The module is a decoder layer, three norms and a projection from 2 D.
    with_mtp = count(by_name["deepseek-v3-mtp"])
    self.assertEqual(with_mtp.total - with_mtp.mtp, _TOTALS["deepseek-v3"])
    self.assertEqual(round(with_mtp.mtp / 1e9, 1), 11.6)

  def test_the_9_8b_is_the_8b_with_more_layers(self):
    small_one, large_one = kanana.v1_5_8b(), kanana.v1_5_9_8b()
    self.assertEqual(small_one.groups[0].pattern, large_one.groups[0].pattern)
    self.assertEqual((small_one.num_layers, large_one.num_layers), (32, 40))

  def test_layers_with_a_window(self):
    """First to last: w has one, a dot sees everything."""
    wanted = {
      "gemma-2-2b": "w." * 13,
      "gemma-3-270m": "wwwww." * 3,
      "gemma-3-1b": "wwwww." * 4 + "ww",
      "gemma-3-4b": "wwwww." * 5 + "wwww",
      "gpt-oss-20b": "w." * 12,
      "mistral-7b-v0.1": "w" * 32,
      "mistral-7b-v0.3": "." * 32,
    }
    for make in catalogue.PUBLISHED:
      config = make()
      if config.name not in wanted:
        continue
      layers = "".join(
        "w" if getattr(block.mixer, "window", None) else "."
        for block in config.layers
      )
      self.assertEqual(layers, wanted[config.name], config.name)

  def test_few_groups(self):
    """Patterns are found: compile time does not grow with depth."""
    for make in catalogue.PUBLISHED:
      config = make()
      blocks = sum(len(group.pattern) for group in config.groups)
      self.assertLessEqual(blocks, 7, config.name)

  @parameterized.parameters(*catalogue.PUBLISHED)
  def test_eight_devices_hold_an_eighth_each(self, make):
    config = make()
    _, shapes = transformer.abstract(config, model_config.ExecutionConfig())
    sizes = {"fsdp": 8}
    # An odd vocabulary, or an odd number of heads, is not split.
    heads = [
      getattr(block.mixer, name)
      for block in config.layers
      for name in ("num_heads", "num_kv_heads", "num_key_heads")
      if hasattr(block.mixer, name)
    ]
    if all(size % 2 == 0 for size in (config.vocab_size, *heads)):
      sizes = {"fsdp": 2, "expert": 2, "tensor": 2}
    mesh = sharding.make_mesh(sharding.MeshConfig(**sizes), jax.devices())
    shardings = sharding.param_shardings(shapes, mesh)
    held = total = 0
    for leaf, placed in zip(
      jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True
    ):
      held += math.prod(placed.shard_shape(leaf.shape))
      total += leaf.size
    # Dense matrices are not split over `expert`, vectors not at all.
    share = 4 if "expert" in sizes and not _has_experts(config) else 8
    self.assertLess(held * share / total, 1.25)


def _has_experts(config):
  return any(
    isinstance(block.feed_forward, model_config.MoeConfig)
    for block in config.layers
  )


class SmallTest(parameterized.TestCase):
  @parameterized.parameters(
    (small.m1, "small-1m", 1e6),
    (small.m10, "small-10m", 1e7),
    (small.m100, "small-100m", 1e8),
  )
  def test_small_ones_are_near_their_names(self, make, name, wanted):
    config = make()
    self.assertEqual(config.name, name)
    total = flops.count_parameters(config).total
    self.assertAlmostEqual(total / wanted, 1, delta=0.15)

  @parameterized.parameters(small.m1, small.m10, small.m100)
  def test_vocabulary_is_free(self, make):
    a, b = (make(vocab_size=v) for v in (1000, 3000))
    difference = (
      flops.count_parameters(b).total - flops.count_parameters(a).total
    )
    self.assertEqual(difference, 2000 * a.dim)


if __name__ == "__main__":
  absltest.main()
