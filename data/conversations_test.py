import os
import pathlib
import pickle
from unittest import mock

from absl.testing import absltest
import numpy as np

from data import config as config_lib
from data import conversation_fixtures as fixtures
from data import conversations
from data import rows as rows_lib
from data import tokenizer as tokenizer_lib

_SEQ_LEN = 96
_ROWS = [
  {"messages": fixtures.chat(*[str(n + i) * (1 + n % 5) for i in range(turns)])}
  for n in range(40)
  for turns in ((2, 2, 4, 3)[n % 4],)
]
_LONG = {"messages": fixtures.chat("q", "a" * 150, "r", "b" * 9, system="s")}
_SILENT = {"messages": fixtures.chat("a")}


class ChatsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.cache = pathlib.Path(self.create_tempdir().full_path)
    environment = {"XDG_CACHE_HOME": str(self.cache)}
    self.enter_context(mock.patch.dict(os.environ, environment))
    self.folder = fixtures.write_tokenizer(
      self.cache / "tokenizer", fixtures.CHATML
    )
    self.tokenizer = tokenizer_lib.Tokenizer.load(self.folder)

  def make(self, rows=_ROWS, *, seq_len=_SEQ_LEN, field="", **config):
    return conversations.Chats(
      fixtures.Rows(rows),
      tokenizer=self.tokenizer,
      tokenizer_folder=self.folder,
      field=field,
      name="talks",
      seq_len=seq_len,
      seed=0,
      shuffle=True,
      config=config_lib.SequenceConfig(kind="chat", **config),
    )

  def read(self, chats, samples, *, seq_len=_SEQ_LEN):
    rows = rows_lib.empty(len(samples), seq_len)
    chats.fill(np.array(samples), rows, np.arange(len(samples)))
    return rows

  def segments(self, rows):
    """Text and targets of each segment."""
    for tokens, ids, is_target in zip(
      rows.tokens, rows.segment_ids, rows.is_target, strict=True
    ):
      for number in range(1, ids.max() + 1):
        mine = ids == number
        yield (
          self.tokenizer.decode(tokens[mine]),
          self.tokenizer.decode(tokens[mine & is_target]),
        )

  def test_every_conversation_once_an_epoch(self):
    chats = self.make()
    expected = []
    for row in _ROWS:
      turns = row["messages"]
      if turns[-1]["role"] == "user":
        turns = turns[:-1]
      expected.append(
        (
          "".join(
            f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n"
            for m in turns
          ),
          "".join(f"{m['content']}<|im_end|>" for m in turns[1::2]),
        )
      )
    num_packs = chats.packs.num_packs
    self.assertEqual(chats.num_samples(2), 2 * num_packs)
    self.assertLess(num_packs, len(_ROWS))
    epochs = []
    for epoch in range(2):
      samples = epoch * num_packs + np.arange(num_packs)
      rows = self.read(chats, samples)
      self.assertCountEqual(self.segments(rows), expected)
      epochs.append(rows.tokens.tobytes())
      documents = [
        span.document
        for s in samples
        for span in chats.describe(int(s)).documents
      ]
      self.assertCountEqual(documents, range(len(_ROWS)))
    self.assertNotEqual(*epochs)

  def test_is_made_once(self):
    first = self.make()
    with mock.patch.object(conversations, "encode_rows") as encode:
      again = self.make()
      other = self.make(seq_len=95)  # The texts are the same.
    encode.assert_not_called()
    self.assertEqual(first.digest, again.digest)
    self.assertEqual(first.digest, other.digest)
    rows, same = self.read(first, range(9)), self.read(again, range(9))
    np.testing.assert_array_equal(rows.tokens, same.tokens)
    (store,) = (self.cache / "cacao/data/conversations").iterdir()
    # What was cut by a crash, or by a full disk, is made again.
    for file in ("tokens.bin", "targets.bin", "examples.npz"):
      (store / file).write_bytes((store / file).read_bytes()[:-1])
      again = self.make()
      self.assertEqual(first.digest, again.digest)
      np.testing.assert_array_equal(
        rows.tokens, self.read(again, range(9)).tokens
      )

  def test_is_made_again_for_other_settings(self):
    digests = {self.make().digest, self.make(_ROWS[1:]).digest}
    self.folder.joinpath("chat_template.jinja").write_text(
      fixtures.DEFAULT_SYSTEM
    )
    digests.add(self.make().digest)
    renamed = [{"said": row["messages"]} for row in _ROWS]
    self.assertIn(self.make(renamed, field="said").digest, digests)
    self.assertLen(digests, 3)

  def test_goes_to_other_processes(self):
    chats = self.make()
    rows = self.read(chats, range(5))
    sent = pickle.dumps(chats)
    self.assertLess(len(sent), 20_000)
    same = self.read(pickle.loads(sent), range(5))
    np.testing.assert_array_equal(rows.tokens, same.tokens)
    np.testing.assert_array_equal(rows.is_target, same.is_target)

  def test_what_is_too_long(self):
    rows = [*_ROWS, _LONG]
    with self.assertRaisesRegex(
      ValueError,
      r"sources\[talks\]: 1 of 41 .* 97 tokens .*: rows.jsonl:41; set"
      " data.sequence.too_long",
    ):
      self.make(rows)
    summary = self.make(rows, too_long="drop").summary
    self.assertEqual((summary.num_dropped, summary.num_examples), (1, 40))
    for too_long, context, targets in (
      ("left", "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nr<", "bbb"),
      ("right", "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<", "aaa"),
    ):
      chats = self.make([_LONG], too_long=too_long)
      self.assertEqual(chats.summary.num_cut, 1)
      ((text, target),) = self.segments(self.read(chats, [0]))
      self.assertStartsWith(text, context)
      self.assertStartsWith(target, targets)
    self.assertTrue(target.endswith("a"))

  def test_rows_with_nothing_to_learn(self):
    rows = [_SILENT, *_ROWS, {"messages": []}]
    with self.assertRaisesRegex(
      ValueError,
      "2 of 42 rows .*: rows.jsonl:1, rows.jsonl:42;"
      " correct them, or set data.sequence.skip_untrainable",
    ):
      self.make(rows)
    chats = self.make(rows, skip_untrainable=True)
    self.assertEqual(chats.summary.num_untrainable, 2)
    # All targets are cut off; seven more rows are named by their number.
    rows = [{"messages": fixtures.chat("q" * 199, "a")}] * 7
    with self.assertRaisesRegex(ValueError, "7 of 7 .* and 2 more; correct"):
      self.make(rows, too_long="right")
    with self.assertRaisesRegex(
      ValueError, "no conversation is left of 7 rows"
    ):
      self.make(rows, too_long="right", skip_untrainable=True)

  def test_errors_name_the_row(self):
    with self.assertRaisesRegex(
      ValueError, r"sources\[talks\]: rows.jsonl:41: .* no list of messages"
    ):
      self.make([*_ROWS, {"messages": 1}])

  def test_a_row_of_several_texts(self):
    self.folder.joinpath("chat_template.jinja").write_text(fixtures.THINKING)
    talk = fixtures.chat("a", "<think>x</think>b", "c", "<think>y</think>d")
    chats = self.make([{"messages": talk}])
    self.assertEqual(chats.summary.num_examples, 2)
    documents = [
      span.document
      for sample in range(chats.num_samples(1))
      for span in chats.describe(sample).documents
    ]
    self.assertEqual(documents, [0, 0])


if __name__ == "__main__":
  absltest.main()
