from absl.testing import absltest

from model import config as model_config
from model import flops
from model.presets import catalogue
from model.presets import gemma
from model.presets import qwen
from model.presets import shrink


def kinds(config):
  """What its blocks are, sizes left out."""
  return {
    (
      type(block.mixer),
      getattr(block.mixer, "window", None) is None,
      type(block.feed_forward),
      block.norms,
    )
    for block in config.layers
  }


class ShrinkTest(absltest.TestCase):
  def test_keeps_the_kinds_of_blocks(self):
    for make in catalogue.PUBLISHED:
      config = make()
      tiny = shrink.shrink(config)
      self.assertEqual(kinds(tiny), kinds(config), config.name)
      self.assertEqual(len(tiny.groups), len(config.groups), config.name)
      self.assertEqual(tiny.norm, config.norm)
      self.assertEqual(tiny.mtp is None, config.mtp is None)
      self.assertLess(flops.count_parameters(tiny).total, 150_000)

  def test_runs_inside_a_pattern_become_one_block(self):
    windows = [
      getattr(block.mixer, "window", None)
      for block in shrink.shrink(gemma.v3_1b()).layers
    ]
    self.assertEqual(windows, [5, None, 5, None, 5, 5])
    mixers = [
      type(block.mixer)
      for block in shrink.shrink(qwen.v3_next_80b_a3b()).layers
    ]
    self.assertEqual(
      mixers,
      [model_config.GatedDeltaNetConfig, model_config.AttentionConfig] * 2,
    )

  def test_it_is_itself_when_shrunk_again(self):
    tiny = shrink.shrink(gemma.v3_4b())
    again = shrink.shrink(tiny)
    self.assertEqual(again.groups, tiny.groups)


if __name__ == "__main__":
  absltest.main()
