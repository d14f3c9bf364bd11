import pathlib
import re

from absl.testing import absltest

from data import config as config_lib
from data import fixtures
from data import listing


class ListingTest(absltest.TestCase):
  def lines(self, config, step=3, width=0):
    shape = {"seq_len": 64, "batch_size": 4, "num_steps": 10}
    return list(listing.lines(config, **shape, step=step, width=width))

  def test_says_what_the_rows_are(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    config = fixtures.write_mixture(folder, shuffle=False)
    lines = self.lines(config, step=0)
    self.assertEqual(lines[0], "batch 0 (update 1): 4 rows of 64 tokens")
    self.assertLen(lines, 1 + 3 * 4)
    self.assertEqual(
      lines[1], "row 0: a, epoch 0, sequence 0, 64 tokens, 64 targets"
    )
    self.assertStartsWith(lines[2], "  documents 0[0:")
    self.assertStartsWith(lines[3].strip(), listing.visible(fixtures.text(0)))
    self.assertLen({line for line in lines if "row" in line}, 5)
    for line in self.lines(config, width=12)[3::3]:
      self.assertRegex(line, re.compile(r"^  .{12}\.\.\.$"))

  def test_text_is_one_line(self):
    self.assertEqual(listing.visible("a\n\t한 b\x00"), r"a\n\t한 b\x00")

  def test_synthetic_has_ids(self):
    config = config_lib.DataConfig(
      kind=config_lib.Kind.SYNTHETIC, vocab_size=10
    )
    self.assertRegex(self.lines(config)[3], r"^  \d( \d)+$")
    with self.assertRaisesRegex(ValueError, "no batch 10: .* from 0 to 9"):
      self.lines(config, step=10)


if __name__ == "__main__":
  absltest.main()
