import dataclasses
import itertools
import pathlib

from absl.testing import absltest
from matplotlib import image
import numpy as np

from data import forecast_fixtures
from data import forecast_plot


class ForecastPlotTest(absltest.TestCase):
  def draw(self, forecast):
    path = pathlib.Path(self.create_tempdir().full_path) / "mixture.png"
    forecast_plot.draw(forecast, path)
    self.assertEqual(path.read_bytes()[:8], b"\x89PNG\r\n\x1a\n")
    return image.imread(path)[..., :3]

  def places(self, pixels, color):
    """Which pixels have the colour."""
    return (np.abs(pixels - color) < 0.006).all(axis=-1)

  def test_areas_and_bars(self):
    pixels = self.draw(forecast_fixtures.make(4, num_stages=2))
    areas, bars = [], []
    middle = pixels.shape[1] * 3 // 5
    for color in forecast_plot.colors(4):
      found = self.places(pixels, color)
      areas.append(int(found[:, :middle].sum()))
      bars.append(int(found[:, middle:].sum()))
    # Tokens in two stages, of which the last source is in one. Their names hide
    # a little.
    expected = np.array([2, 4, 6, 4]) / 16
    shares = np.array(areas) / sum(areas)
    np.testing.assert_allclose(shares, expected, atol=0.03)
    # 0, 2, 4 and 3 epochs; each also has a mark.
    self.assertGreater(bars[0], 0)
    lengths = np.array(bars) - bars[0]
    np.testing.assert_allclose(lengths / lengths[1], [0, 1, 2, 1.5], atol=0.1)

  def test_many_sources_and_odd_names(self):
    made = forecast_fixtures.make(23)
    names = ["한국어 $x$", "_hidden", "x" * 90, *"abcdefghijklmnopqrst"]
    sources = [
      dataclasses.replace(source, name=name)
      for source, name in zip(made.sources, names, strict=True)
    ]
    total = [
      dataclasses.replace(share, name=name, epochs=share.epochs**3)
      for share, name in zip(made.total, names, strict=True)
    ]
    pixels = self.draw(dataclasses.replace(made, sources=sources, total=total))
    for color in forecast_plot.colors(20):
      self.assertTrue(self.places(pixels, color).any())

  def test_twenty_colors_are_far_apart(self):
    colors = forecast_plot.colors(23)
    self.assertEqual(colors[:3], colors[20:])
    for one, other in itertools.combinations(colors[:20], 2):
      self.assertGreater(np.abs(np.subtract(one, other)).max(), 0.15)


if __name__ == "__main__":
  absltest.main()
