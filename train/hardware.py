"""Peak matmul rates, for model FLOPs utilisation (MFU)."""

import dataclasses
import time

import jax
import jax.numpy as jnp

# Published dense bf16 peaks per device as JAX counts devices, in FLOP/s:
# Google Cloud TPU and NVIDIA data sheets. Keys are jax.Device.device_kind.
BF16_PEAK = {
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5": 459e12,
  "TPU v6 lite": 918e12,
  "TPU7x": 1153.5e12,
  "NVIDIA A100-SXM4-40GB": 312e12,
  "NVIDIA A100-SXM4-80GB": 312e12,
  "NVIDIA H100 80GB HBM3": 989e12,
  "NVIDIA H200": 989e12,
}
_CPU_MATMUL = 2048


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peak:
  """What utilisation is measured against.

  Attributes:
    flops: FLOP/s of all devices together; 0 if unknown.
    source: Where the number is from, for people.
  """

  flops: float
  source: str


def peak(compute_dtype: str) -> Peak:
  """The peak of this process group's devices.

  Accelerators: the published bf16 peak, whatever `compute_dtype` is. CPUs: the
  best rate that a matmul of 2048^3 in `compute_dtype` reaches here, now.
  """
  device = jax.devices()[0]
  if device.platform == "cpu":
    rate = _measure_cpu(compute_dtype) * jax.process_count()
    size = _CPU_MATMUL
    return Peak(
      flops=rate, source=f"measured {compute_dtype} matmul of {size}^3"
    )
  if device.device_kind in BF16_PEAK:
    flops = BF16_PEAK[device.device_kind] * jax.device_count()
    return Peak(flops=flops, source=f"published bf16, {device.device_kind}")
  return Peak(flops=0.0, source=f"unknown device {device.device_kind!r}")


def _measure_cpu(dtype: str, repeats: int = 5) -> float:
  """FLOP/s of the fastest of a few matmuls, on all cores."""
  size = _CPU_MATMUL
  x = jnp.ones((size, size), dtype)
  matmul = jax.jit(
    lambda a, b: jnp.dot(a, b, preferred_element_type=jnp.float32)
  )
  matmul(x, x).block_until_ready()
  best = float("inf")
  for _ in range(repeats):
    start = time.perf_counter()
    matmul(x, x).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return 2 * size**3 / best
