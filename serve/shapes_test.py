from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from serve import shapes


class ShapesTest(parameterized.TestCase):
  @parameterized.parameters((1, 1), (2, 16), (5, 100), (32, 256), (3, 4096))
  def test_everything_fits(self, max_rows, prefill_tokens):
    made = shapes.make(max_rows=max_rows, prefill_tokens=prefill_tokens)
    for num in range(1, max_rows + 1):
      self.assertBetween(made.rows(num), num, 2 * num)
    for rows, tokens in made.prefill:
      self.assertLessEqual(rows * tokens, made.prefill_tokens)
      self.assertLessEqual(rows, made.decode_rows[-1])
    self.assertLess(made.prefill_tokens, max(2 * prefill_tokens, 17))

  @parameterized.parameters(
    ([5],),
    ([256],),
    ([1] * 32,),
    ([16] * 16,),
    ([100, 7, 3, 1, 1, 1],),
    ([128, 128],),
    ([200, 8, 8, 8, 8, 8, 8, 8],),
  )
  def test_plans_every_row_once(self, lengths):
    made = shapes.make(max_rows=32, prefill_tokens=256)
    calls = made.plan(lengths)
    planned = [i for call in calls for i in call.rows]
    self.assertCountEqual(planned, range(len(lengths)))
    for call in calls:
      self.assertIn((call.num_rows, call.num_tokens), made.prefill)
      self.assertLessEqual(len(call.rows), call.num_rows)
      self.assertLessEqual(max(lengths[i] for i in call.rows), call.num_tokens)

  def test_reads_together_what_is_alike(self):
    made = shapes.make(max_rows=32, prefill_tokens=256)
    (call,) = made.plan([128, 120])
    self.assertEqual((call.num_rows, call.num_tokens), (2, 128))
    # Two of sixteen rows would be used.
    calls = made.plan([9, 3])
    self.assertEqual([c.num_rows for c in calls], [1, 1])

  def test_packs(self):
    form = shapes.Format(windows=(0, 6), num_pieces=3)
    packed = form.make(2, 4)
    form.fill(packed, 1, np.array([7, 8, 0, 0, 9, 0]), (3, 5, 9, 2, 0, True))
    form.tokens(packed)[1, :2] = 11, 12
    inputs = form.unpack(jnp.array(packed))
    self.assertEqual(inputs.slot.tolist(), [0, 3])
    self.assertEqual(inputs.start.tolist(), [0, 5])
    self.assertEqual(inputs.length.tolist(), [0, 9])
    self.assertEqual(inputs.num_tokens.tolist(), [0, 2])
    self.assertEqual(inputs.active.tolist(), [0, 1])
    self.assertEqual(inputs.tables[0][1].tolist(), [7, 8, 0])
    self.assertEqual(inputs.tables[6][1].tolist(), [0, 9, 0])
    self.assertEqual(inputs.tokens[1].tolist(), [11, 12, 0, 0])
    header = form.header(packed, 4)
    self.assertEqual(form.unpack(jnp.array(header)).slot.shape, (4,))


if __name__ == "__main__":
  absltest.main()
