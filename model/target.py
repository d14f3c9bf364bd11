"""What a program is compiled for, which need not be what is here.

A mesh of TPUs that are only described (//train:compile) makes programs for
them on any machine; what chooses an implementation by platform asks here.
"""

import jax


def platform() -> str:
  """Of the mesh that is set, else JAX's default: tpu, gpu or cpu."""
  mesh = jax.sharding.get_abstract_mesh()
  device = None if mesh.empty else mesh.abstract_device
  if device is not None and device.device_kind.startswith("TPU"):
    return "tpu"
  return jax.default_backend()
