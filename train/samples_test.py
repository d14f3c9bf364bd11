import pathlib

from absl.testing import absltest

from data import pipeline
from model import slices
from train import samples


def rows(step):
  return [
    pipeline.Row(source="a", epoch=0, number=10 * step + place, documents=())
    for place in range(2)
  ]


def open_log(folder, *, start_step, index=0, count=1, is_first=True):
  part = slices.HostRows(
    index=index, count=count, is_first=is_first, shards=(index,)
  )
  return samples.Log(folder, start_step=start_step, rows=part)


class SamplesTest(absltest.TestCase):
  def test_goes_on_without_a_hole_or_a_double(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    log = open_log(folder, start_step=0)
    for step in range(1, 6):
      log.write(step, rows(step))
    log.close()
    with samples.path(folder, 0).open("a") as file:
      file.write('{"step": 6, "ro')
    self.assertLen(samples.read(folder), 5)

    log = open_log(folder, start_step=3)
    for step in range(4, 8):
      log.write(step, rows(step))
    log.close()
    lines = samples.read(folder)
    self.assertEqual([line["step"] for line in lines], list(range(1, 8)))
    self.assertEqual(lines[4]["rows"], [["a", 0, 50], ["a", 0, 51]])

  def test_hosts_have_logs_of_their_own(self):
    folder = pathlib.Path("/run")
    self.assertLen({samples.path(folder, part) for part in range(3)}, 3)

  def test_the_first_host_of_a_part_writes(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    log = open_log(folder, start_step=0, is_first=False)
    log.write(1, rows(1))
    log.close()
    self.assertEmpty(list(folder.iterdir()))

  def test_fewer_hosts_go_on(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    for index in range(2):
      log = open_log(folder, start_step=0, index=index, count=2)
      for step in range(1, 4):
        log.write(step, rows(step))
      log.close()
    open_log(folder, start_step=2).close()
    self.assertLen(samples.read(folder, 0), 2)
    self.assertLen(samples.read(folder, 1), 2)


if __name__ == "__main__":
  absltest.main()
