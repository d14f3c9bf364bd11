import dataclasses

from absl.testing import absltest
from absl.testing import parameterized

from data import forecast_fixtures
from data import forecast_table

_TWO_SOURCES = """\
100 steps (asked: 100), 3,000 tokens in rows, 2 sources

source    format  documents  tokens  text bytes  held-out docs\
  held-out tokens  cut  dropped  untrainable
-------  -------  ---------  ------  ----------  -------------\
  ---------------  ---  -------  -----------
source0  dataset         12   1.23M       5,000              6\
              789    3        4            5
source1  dataset         12   1.23M           -              -\
                -    3        4            5

stage  first step  steps  tokens  seq_len  batch  padding
-----  ----------  -----  ------  -------  -----  -------
0               0    100   3,000       10      3   10.00%

whole run  asked           delivered  samples  tokens  targets  padding  epochs
---------  -----  -------  ---------  -------  ------  -------  -------  ------
source0      1/3   33.33%     33.33%      100   1,000      900   10.00%   0.000
source1      2/3   66.67%     66.67%      200   2,000    1,800   10.00%   1.000
all               100.00%    100.00%      300   3,000    2,700   10.00%

No warnings."""


class ForecastTableTest(parameterized.TestCase):
  def test_one_stage(self):
    lines = list(forecast_table.lines(forecast_fixtures.make(2)))
    self.assertEqual("\n".join(lines), _TWO_SOURCES)

  def test_stages_and_warnings(self):
    made = forecast_fixtures.make(3, num_stages=2, warnings=("one", "two"))
    shares = [
      dataclasses.replace(share, is_estimate=True, targets_are_estimate=True)
      for share in made.total
    ]
    lines = list(forecast_table.lines(dataclasses.replace(made, total=shares)))
    titles = [line.split("  ")[0] for line in lines]
    for title in ("stage 0", "stage 1", "whole run"):
      self.assertEqual(titles.count(title), 1)
    # It rests: there is no padding of it.
    resting = lines[titles.index("stage 1") + 4]
    self.assertEqual(
      " ".join(resting.split()), "source2 0 0.00% 0.00% 0 0 0 - 0.000"
    )
    # A third of the first stage; of the second, with half the tokens, 2/3.
    middle = lines[titles.index("whole run") + 3]
    self.assertEqual(
      " ".join(middle.split()),
      "source1 44.44% 44.44% ~400 ~4,000 ~3,600 ~10.00% 2.000",
    )
    self.assertEqual(lines[-3:], ["2 warnings:", "- one", "- two"])
    self.assertIn("~ is an estimate: there is too much to count.", lines)

  @parameterized.parameters(
    (0, "0"),
    (999_999, "999,999"),
    (1_000_000, "1.00M"),
    (12_345_678, "12.3M"),
    (999_499_999, "999M"),
    (999_500_000, "1.00B"),
    (1_500_000_000_000, "1.50T"),
    (7 * 10**21, "7000E"),
  )
  def test_number(self, value, expected):
    self.assertEqual(forecast_table.number(value), expected)


if __name__ == "__main__":
  absltest.main()
