import os
import pathlib
from unittest import mock

from absl.testing import absltest
import numpy as np

from data import config as config_lib
from data import conversation_fixtures as fixtures
from data import examples as examples_lib
from data import messages
from data import turns


def example(length, first_target):
  """Tokens that are their own places; from one place on, all are targets."""
  places = np.arange(length)
  return turns.Example(
    tokens=places.astype(np.int32), is_target=places >= first_target
  )


def encode(rows):
  """A row is the lengths and first targets of its examples."""
  results: list[list[turns.Example] | ValueError] = []
  for row in rows:
    if row["is"] == "equal":
      results.append(messages.UntrainableError("equal"))
    elif row["is"] == "bad":
      results.append(ValueError("bad"))
    else:
      results.append([example(*one) for one in row["is"]])
  return results


class ExamplesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.cache = pathlib.Path(self.create_tempdir().full_path)
    environment = {"XDG_CACHE_HOME": str(self.cache)}
    self.enter_context(mock.patch.dict(os.environ, environment))

  def make(self, rows, encode=encode, **key):
    records = fixtures.Rows([{"is": row} for row in rows])
    made = examples_lib.make(records, name="a", encode=encode, key=key)
    return made, records

  def select(self, rows, *, limit, group=1, **config):
    made, records = self.make(rows)
    summary = examples_lib.select(
      made,
      records,
      name="a",
      limit=limit,
      group=group,
      config=config_lib.SequenceConfig(kind="chat", **config),
    )
    return made, summary

  def test_what_is_written_is_read(self):
    # The first token of a text cannot be a target.
    made, _ = self.make(
      [[(5, 2), (3, 0)], [(4, 9)], "equal", [(1, 0)], [(6, 5)]]
    )
    self.assertEqual(made.document_lengths.tolist(), [5, 3, 6])
    self.assertEqual(made.document_starts.tolist(), [0, 5, 8])
    self.assertEqual(made.rows.tolist(), [0, 0, 4])
    self.assertEqual(made.first_targets.tolist(), [2, 1, 5])
    self.assertEqual(made.untrainable.tolist(), [1, 2, 3])
    self.assertEqual(made.num_tokens, 14)
    tokens = [*range(5), *range(3), *range(6)]
    self.assertEqual(made.read(0, 14).tolist(), tokens)
    self.assertEqual(
      made.targets.tolist(),
      [*[False] * 2, *[True] * 3, *[True] * 3, *[False] * 5, True],
    )

  def test_the_folder_is_of_what_decides(self):
    made = [
      self.make([[(5, 2)]])[0],
      self.make([[(5, 2)]], template="x")[0],
      self.make([[(5, 3)]])[0],
    ]
    self.assertLen({one._folder for one in made}, 3)
    self.assertEqual(made[0].digest, made[1].digest)
    self.assertNotEqual(made[0].digest, made[2].digest)

  def test_a_run_that_was_stopped_is_done_again(self):
    rows = [[(5, 2)]] * 600

    def stopped(batch):
      if len(batch) < 256:
        raise KeyboardInterrupt
      return encode(batch)

    with self.assertRaises(KeyboardInterrupt):
      self.make(rows, stopped)
    made, _ = self.make(rows)
    self.assertEqual(made.num_tokens, 3000)

  def test_an_error_names_the_row(self):
    with self.assertRaisesRegex(
      ValueError, r"data.sources\[a\]: rows.jsonl:2: bad"
    ):
      self.make([[(5, 2)], "bad"])

  def test_limits(self):
    rows = [[(5, 2)], [(9, 8), (4, 1)], [(8, 3)]]
    with self.assertRaisesRegex(
      ValueError, "2 of 4 .*: rows.jsonl:2, rows.jso"
    ):
      self.select(rows, limit=6)
    made, summary = self.select(rows, limit=6, too_long="drop")
    self.assertEqual(made.document_lengths.tolist(), [5, 4])
    self.assertEqual(
      summary,
      examples_lib.Summary(
        num_rows=3,
        num_examples=2,
        num_untrainable=0,
        num_dropped=2,
        num_cut=0,
      ),
    )
    with self.assertRaisesRegex(
      ValueError, "1 of 3 rows .*: rows.jsonl:2; corr"
    ):
      self.select(rows, limit=6, too_long="right")
    made, summary = self.select(
      rows, limit=6, too_long="right", skip_untrainable=True
    )
    self.assertEqual(made.document_lengths.tolist(), [5, 4, 6])
    self.assertEqual(made.document_starts.tolist(), [0, 14, 18])
    self.assertEqual((summary.num_untrainable, summary.num_cut), (1, 1))

  def test_groups_go_together(self):
    rows = [[(5, 2), (9, 3)], [(5, 2), (5, 2)], [(9, 8), (4, 1)]]
    made, _ = self.select(rows, limit=6, group=2, too_long="drop")
    self.assertEqual(made.rows.tolist(), [1, 1])
    made, summary = self.select(
      rows, limit=6, group=2, too_long="right", skip_untrainable=True
    )
    self.assertEqual(made.rows.tolist(), [0, 0, 1, 1])
    self.assertEqual(summary.num_untrainable, 1)

  def test_nothing_is_left(self):
    for rows in (["equal"], [[(9, 8)]]):
      with self.assertRaisesRegex(ValueError, "no conversation is left of 1"):
        self.select(rows, limit=6, too_long="drop", skip_untrainable=True)


if __name__ == "__main__":
  absltest.main()
