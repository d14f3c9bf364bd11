from absl.testing import absltest
from absl.testing import parameterized

from serve import batch


def row(**kw):
  return batch.Row(
    request_id="a", slot=1, start=0, length=3, tables={0: (1,)}, **kw
  )


class RowTest(parameterized.TestCase):
  @parameterized.parameters(
    ({"tokens": (4, 5, 6)}, 3),
    ({}, 1),
    ({"drafts": (7, 8)}, 3),
    ({"num_drafts": 4}, 5),
  )
  def test_num_tokens(self, fields, expected):
    self.assertEqual(row(**fields).num_tokens, expected)


class BatchTest(absltest.TestCase):
  def test_is_prefill(self):
    self.assertTrue(batch.Batch(rows=(row(tokens=(4,)),)).is_prefill)
    self.assertFalse(batch.Batch(rows=(row(drafts=(4,)),)).is_prefill)


if __name__ == "__main__":
  absltest.main()
