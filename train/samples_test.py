import pathlib

from absl.testing import absltest

from data import pipeline
from train import samples


def rows(step):
  return [
    pipeline.Row(source="a", epoch=0, number=10 * step + place, documents=())
    for place in range(2)
  ]


class SamplesTest(absltest.TestCase):
  def test_goes_on_without_a_hole_or_a_double(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    log = samples.Log(folder, start_step=0)
    for step in range(1, 6):
      log.write(step, rows(step))
    log.close()
    with samples.path(folder, 0).open("a") as file:
      file.write('{"step": 6, "ro')
    self.assertLen(samples.read(folder), 5)

    log = samples.Log(folder, start_step=3)
    for step in range(4, 8):
      log.write(step, rows(step))
    log.close()
    lines = samples.read(folder)
    self.assertEqual([line["step"] for line in lines], list(range(1, 8)))
    self.assertEqual(lines[4]["rows"], [["a", 0, 50], ["a", 0, 51]])

  def test_hosts_have_logs_of_their_own(self):
    folder = pathlib.Path("/run")
    self.assertLen({samples.path(folder, host) for host in range(3)}, 3)


if __name__ == "__main__":
  absltest.main()
