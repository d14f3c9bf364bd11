import os
import pathlib
import pickle
from unittest import mock

from absl.testing import absltest
import numpy as np

from data import config as config_lib
from data import conversation_fixtures as fixtures
from data import preference
from data import rows as rows_lib
from data import tokenizer as tokenizer_lib

_SEQ_LEN = 48
_ROWS = [
  {"prompt": f"p{n}", "chosen": f"good {n}", "rejected": "bad" * (1 + n % 3)}
  for n in range(10)
]
_LONG = {
  "prompt": fixtures.chat("q" * 20, "r" * 20, "s", system="t"),
  "chosen": "a" * 9,
  "rejected": "b" * 2,
}


class PairsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.cache = pathlib.Path(self.create_tempdir().full_path)
    environment = {"XDG_CACHE_HOME": str(self.cache)}
    self.enter_context(mock.patch.dict(os.environ, environment))
    self.folder = fixtures.write_tokenizer(
      self.cache / "tokenizer", fixtures.CHATML
    )
    self.tokenizer = tokenizer_lib.Tokenizer.load(self.folder)

  def make(self, rows=_ROWS, *, field="", shuffle=True, **config):
    return preference.Pairs(
      fixtures.Rows(rows),
      tokenizer=self.tokenizer,
      tokenizer_folder=self.folder,
      field=field,
      name="votes",
      seq_len=_SEQ_LEN,
      seed=0,
      shuffle=shuffle,
      config=config_lib.SequenceConfig(kind="preference", **config),
    )

  def read(self, pairs, samples):
    """Text and targets of both rows of each sample."""
    rows = rows_lib.empty(2 * len(samples), _SEQ_LEN)
    pairs.fill(np.array(samples), rows, 2 * np.arange(len(samples)))
    texts = []
    for index in range(len(rows.tokens)):
      row = rows[index]
      used = int((row.segment_ids > 0).sum())
      self.assertTrue((row.segment_ids[:used] == 1).all())
      self.assertFalse(row.tokens[used:].any() or row.is_target[used:].any())
      texts.append(
        (
          self.tokenizer.decode(row.tokens[:used]),
          self.tokenizer.decode(row.tokens[row.is_target]),
        )
      )
    return list(zip(texts[::2], texts[1::2], strict=True))

  def test_every_pair_once_an_epoch(self):
    pairs = self.make()
    self.assertEqual(pairs.rows_per_sample, 2)
    self.assertEqual((pairs.num_pairs, pairs.num_samples(1.5)), (10, 15))
    orders = []
    for epoch in range(3):
      samples = 10 * epoch + np.arange(10)
      order = []
      for index, pair in zip(samples, self.read(pairs, samples), strict=True):
        sample = pairs.describe(int(index))
        self.assertEqual(sample.epoch, epoch)
        ((number, other),) = {
          (a.document, b.document) for a, b in [sample.documents]
        }
        self.assertEqual(number, other)
        row = _ROWS[number]
        for (text, target), side in zip(
          pair, ("chosen", "rejected"), strict=True
        ):
          self.assertEqual(target, f"{row[side]}<|im_end|>")
          self.assertEqual(
            text,
            f"<|im_start|>user\n{row['prompt']}<|im_end|>\n"
            f"<|im_start|>assistant\n{target}\n",
          )
        order.append(number)
      self.assertCountEqual(order, range(10))
      orders.append(tuple(order))
    self.assertLen(set(orders), 3)
    plain = self.make(shuffle=False)
    self.assertEqual(plain.describe(13).documents[0].document, 3)

  def test_what_is_too_long(self):
    with self.assertRaisesRegex(ValueError, "rows.jsonl:1; set .*too_long"):
      self.make([_LONG])
    self.assertEqual(
      self.make([_LONG, *_ROWS], too_long="drop").summary.num_dropped, 1
    )
    # The shorter side alone would fit with more: both have the same prompt.
    ((chosen, rejected),) = self.read(self.make([_LONG], too_long="left"), [0])
    for (text, target), answer in ((chosen, "a" * 9), (rejected, "b" * 2)):
      self.assertEqual(target, f"{answer}<|im_end|>")
      self.assertStartsWith(
        text,
        "<|im_start|>system\nt<|im_end|>\n<|im_start|>user\ns<|im_end|>",
      )
    longer = {**_LONG, "prompt": "q", "chosen": "a" * 80}
    for too_long in ("left", "right"):
      ((chosen, rejected),) = self.read(
        self.make([longer], too_long=too_long), [0]
      )
      self.assertRegex(chosen[1], "^a{20,}$")
      self.assertEqual(rejected[1], "bb<|im_end|>")

  def test_pairs_with_nothing_to_learn(self):
    equal = {"prompt": "a", "chosen": "b", "rejected": "b"}
    hidden = {**_LONG, "prompt": "q" * 99}
    for too_long in ("left", "right"):
      rows = [equal, *_ROWS, hidden]
      with self.assertRaisesRegex(
        ValueError, "2 of 12 rows .*: rows.jsonl:1, rows.jsonl:12; correct"
      ):
        self.make(rows, too_long=too_long)
      pairs = self.make(rows, too_long=too_long, skip_untrainable=True)
      self.assertEqual(pairs.num_pairs, 10)
      self.assertEqual(pairs.summary.num_untrainable, 2)

  def test_answers_that_the_template_writes_otherwise(self):
    self.folder.joinpath("chat_template.jinja").write_text(fixtures.THINKING)
    row = {
      "chosen": fixtures.chat("a", "<think>x</think>b", "c", "d"),
      "rejected": fixtures.chat("a", "e"),
    }
    with self.assertRaisesRegex(
      ValueError, r"rows.jsonl:1: its chosen has several answers"
    ):
      self.make([row])

  def test_refuses_a_field(self):
    with self.assertRaisesRegex(
      ValueError, r"sources\[votes\].field is 'text'"
    ):
      self.make(field="text")

  def test_goes_to_other_processes(self):
    pairs = self.make()
    self.assertEqual(
      self.read(pickle.loads(pickle.dumps(pairs)), range(5)),
      self.read(pairs, range(5)),
    )


if __name__ == "__main__":
  absltest.main()
