import _thread
import dataclasses
import fcntl
import multiprocessing
import os
import pathlib
import signal
import threading
import time

from absl.testing import absltest
from absl.testing import parameterized

from data import worker_pool


@dataclasses.dataclass(frozen=True)
class Part:
  name: str
  size: int
  folder: pathlib.Path


def do(part):
  """Writes a file; in a process of a pool."""
  worker_pool.report(part.size)
  (part.folder / part.name).write_text(str(os.getpid()))


def refuse(part):
  raise ValueError(f"{part.name} is at fault")


def be_killed(part):
  """As when memory is short, at the worst moment: the others wait for it."""
  if part.name == "part1":
    with worker_pool._bytes_read.get_lock():
      os.kill(os.getpid(), signal.SIGKILL)
  go_on(part)


def refuse_one(part):
  if part.name == "part1":
    raise ValueError(f"{part.name} is at fault")
  go_on(part)


def go_on(part):
  """Works until it is stopped; holds a lock as long as it lives."""
  with (part.folder / part.name).open("w") as stream:
    fcntl.flock(stream, fcntl.LOCK_EX)
    (part.folder / f"{part.name}.started").touch()
    while True:
      worker_pool.report(1)
      time.sleep(0.01)


def run_pool(parts):
  """In a process of its own, which a test kills."""
  worker_pool.Pool(num_workers=2)(go_on, parts, label="Doing", bytes_done=0)


def wait_for(files):
  while not all(file.exists() for file in files):
    time.sleep(0.01)


class WorkerPoolTest(parameterized.TestCase):
  def parts(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    return [Part(f"part{i}", 10, folder) for i in range(3)]

  @parameterized.parameters(1, 2)
  def test_every_part_is_done(self, num_workers):
    parts = self.parts()
    worker_pool.Pool(num_workers=num_workers)(
      do, parts, label="Doing", bytes_done=5
    )
    done = {(part.folder / part.name).read_text() for part in parts}
    self.assertEqual(str(os.getpid()) in done, num_workers == 1)

  @parameterized.parameters(1, 2)
  def test_an_error_is_the_users(self, num_workers):
    with self.assertRaisesRegex(ValueError, "part. is at fault"):
      worker_pool.Pool(num_workers=num_workers)(
        refuse, self.parts(), label="Doing", bytes_done=0
      )

  def test_an_error_stops_the_others(self):
    with self.assertRaisesRegex(ValueError, "part1 is at fault"):
      worker_pool.Pool(num_workers=2)(
        refuse_one, self.parts(), label="Doing", bytes_done=0
      )

  def test_a_killed_worker_is_told(self):
    with self.assertRaisesRegex(
      worker_pool.WorkerKilledError, "of Doing was killed.* fewer workers"
    ):
      worker_pool.Pool(num_workers=2)(
        be_killed, self.parts(), label="Doing", bytes_done=0
      )

  def test_an_interrupt_stops_the_workers(self):
    parts = self.parts()
    started = [part.folder / f"{part.name}.started" for part in parts[:2]]

    def interrupt():
      wait_for(started)
      _thread.interrupt_main()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with self.assertRaises(KeyboardInterrupt):
      run_pool(parts)
    thread.join()

  def test_workers_end_when_their_parent_is_killed(self):
    parts = self.parts()
    parent = multiprocessing.get_context("spawn").Process(
      target=run_pool, args=(parts,)
    )
    parent.start()
    wait_for([part.folder / f"{part.name}.started" for part in parts[:2]])
    parent.kill()
    parent.join()
    for part in parts[:2]:
      with (part.folder / part.name).open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # Else it waits forever.

  def test_check_made(self):
    file = pathlib.Path(self.create_tempfile("note.json").full_path)
    worker_pool.check_made([file])
    with self.assertRaisesRegex(ValueError, "none.json was not made"):
      worker_pool.check_made([file, file.with_name("none.json")])

  def test_attempts(self):
    output = pathlib.Path(self.create_tempdir().full_path)
    with worker_pool.attempt(output, name="part", note="a.json") as one:
      with worker_pool.attempt(output, name="part", note="a.json") as two:
        for folder in (one, two):
          (folder / "a.json").write_text("done")
          (folder / "b").write_text("content")
        self.assertFalse((output / "b").exists())
      self.assertTrue((output / "a.json").exists())
    with (
      self.assertRaises(KeyError),
      worker_pool.attempt(output, name="part", note="c.json") as failed,
    ):
      (failed / "c.json").write_text("half")
      raise KeyError
    self.assertEqual({f.name for f in output.iterdir()}, {"a.json", "b"})
    # As after a kill.
    (output / "part.x.partial").mkdir()
    (output / "part.y.partial").write_text("half")
    worker_pool.remove_attempts(output)
    self.assertEqual({f.name for f in output.iterdir()}, {"a.json", "b"})

  def test_nothing_to_report_to(self):
    worker_pool.report(1)


if __name__ == "__main__":
  absltest.main()
