from absl.testing import absltest

from model import sharding
from model.presets import kanana
from train import pod_run

_SLICE = pod_run.Slice(
  mesh=sharding.MeshConfig(data=4, fsdp=8), batch_size=64, chunk_tokens=512
)


class PodRunTest(absltest.TestCase):
  def test_a_slice_decides_what_depends_on_memory(self):
    model = kanana.v1_5_2b()
    made = pod_run.make(model, _SLICE, peak=1e-3, steps=5000, decay_steps=100)
    self.assertEqual((made.mesh.data, made.mesh.fsdp), (4, 8))
    self.assertEqual((made.run.batch_size, made.run.seq_len), (64, 4096))
    self.assertEqual(made.loss.chunk_tokens, 512)
    self.assertEqual((made.schedule.peak, made.run.steps), (1e-3, 5000))
    self.assertEqual(made.data.vocab_size, model.vocab_size)

  def test_names_the_slices_that_there_are(self):
    slices = {"v5e-256": _SLICE, "v6e-256": _SLICE}
    self.assertIs(pod_run.choose(slices, "v6e-256", file="/a/b.py"), _SLICE)
    with self.assertRaisesRegex(
      ValueError, "^b.py:v4-8: there is only v5e-256, v6e"
    ):
      pod_run.choose(slices, "v4-8", file="/a/b.py")


if __name__ == "__main__":
  absltest.main()
