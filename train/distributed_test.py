"""What several processes do, in one; multihost_test has real ones."""

import io
import json
import logging as python_logging
import pathlib
from unittest import mock

from absl import logging
from absl.testing import absltest
import jax
from jax._src import distributed as jax_distributed
import numpy as np

from train import cluster
from train import distributed


class _Client:
  """The key-value store of several processes."""

  def __init__(self):
    self.values = {}

  def key_value_set(self, key, value):
    if key in self.values:
      raise jax.errors.JaxRuntimeError("ALREADY_EXISTS")
    self.values[key] = value

  def key_value_try_get(self, key):
    if key not in self.values:
      raise jax.errors.JaxRuntimeError("NOT_FOUND")
    return self.values[key]

  def key_value_dir_get(self, prefix):
    return [(k, v) for k, v in self.values.items() if k.startswith(prefix)]

  def wait_at_barrier(self, key, timeout):
    if timeout < 1000:
      raise jax.errors.JaxRuntimeError(f"DEADLINE_EXCEEDED {key}")


class DistributedTest(absltest.TestCase):
  def _join(self, process):
    """Makes this one of several processes."""
    client = _Client()
    state = mock.Mock(client=client, process_id=process)
    self.enter_context(
      mock.patch.object(jax_distributed, "global_state", state)
    )
    return client

  def test_alone_everything_is_as_it_was(self):
    distributed.start(None)
    self.assertFalse(distributed.has_others())
    self.assertEqual(distributed.from_first([1, "a"]), [1, "a"])
    self.assertTrue(distributed.all_agree(True))
    self.assertFalse(distributed.all_agree(False))
    folder = pathlib.Path(self.create_tempdir().full_path)
    distributed.check_shared(folder)
    distributed.log_to_file(folder)
    self.assertEmpty(list(folder.iterdir()))
    with self.assertRaisesRegex(KeyError, "x"), distributed.ending_together():
      raise KeyError("x")

  def test_others_that_cannot_be_reached(self):
    found = cluster.Cluster(
      coordinator="host:1", num_processes=2, process_id=1, source="flags"
    )
    error = jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: no answer")
    with (
      mock.patch.object(jax.distributed, "initialize", side_effect=error),
      mock.patch.object(jax.config, "update"),
      self.assertRaisesRegex(
        ValueError, r"Process 1 of 2 .* at host:1 .*\(flags\).*DEADLINE_EXC"
      ),
    ):
      distributed.start(found)

  def test_words(self):
    self._join(0)
    self.assertIsNone(distributed.read("key"))
    distributed.post("key", "first")
    distributed.post("key", "second")
    self.assertEqual(distributed.read("key"), "first")
    self.assertEqual(distributed.gather("steps", "7"), ["7"])
    with mock.patch.object(distributed, "_GATHER_SECONDS", 0):
      self.assertIsNone(distributed.gather("others", "7"))

  def test_a_failure_is_told(self):
    client = self._join(1)
    end = self.enter_context(mock.patch.object(distributed, "_end_soon"))
    with self.assertRaises(ValueError), distributed.ending_together():
      raise ValueError("bad row")
    end.assert_called_once()
    word = json.loads(client.values["run/failed"])
    self.assertEqual(word, {"process": 1, "reason": "ValueError: bad row"})

    # Whom it is told to.
    stopped = mock.Mock(wait=mock.Mock(side_effect=[False, True]))
    stderr = self.enter_context(
      mock.patch("sys.stderr", new_callable=io.StringIO)
    )
    distributed._watch(stopped)
    end.assert_called_once()  # Not the one that failed.
    jax_distributed.global_state.process_id = 0
    stopped.wait.side_effect = [False, True]
    distributed._watch(stopped)
    self.assertEqual(end.call_count, 2)
    self.assertIn("Process 1 failed, so all end: ValueError", stderr.getvalue())

  def test_decisions_of_the_first(self):
    sent = []

    def broadcast(x):
      sent.append(np.array(x))
      return x

    with (
      mock.patch.object(jax, "process_count", return_value=2),
      mock.patch.object(
        distributed.multihost_utils, "broadcast_one_to_all", broadcast
      ),
    ):
      value = {"단계": [1, 2]}
      self.assertEqual(distributed.from_first(value), value)
      # Another process hears it, whatever it has itself.
      replies = iter(sent)
      with (
        mock.patch.object(jax, "process_index", return_value=1),
        mock.patch.object(
          distributed.multihost_utils,
          "broadcast_one_to_all",
          lambda x: next(replies),
        ),
      ):
        self.assertEqual(distributed.from_first("other"), value)

  def test_a_workdir_that_is_not_shared(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    with (
      mock.patch.object(jax, "process_count", return_value=2),
      mock.patch.object(distributed, "from_first", lambda value: value),
      mock.patch.object(distributed, "all_agree", lambda holds: False),
      mock.patch.object(distributed.multihost_utils, "sync_global_devices"),
      self.assertRaisesRegex(ValueError, "not the same directory on all hosts"),
    ):
      distributed.check_shared(folder)
    self.assertEmpty(list(folder.iterdir()))

  def test_log_of_another_process(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    before = list(python_logging.getLogger().handlers)
    with mock.patch.object(jax, "process_index", return_value=2):
      distributed.log_to_file(folder)
    added = set(python_logging.getLogger().handlers) - set(before)
    self.assertLen(added, 1)
    logging.info("a line")
    for handler in added:
      python_logging.getLogger().removeHandler(handler)
      handler.close()
    text = (folder / "logs" / "process-2.log").read_text()
    self.assertIn("a line", text)


if __name__ == "__main__":
  absltest.main()
