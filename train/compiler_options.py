"""Compiler options by device, with which the train step is compiled.

XLA's defaults are those of programs for one device: on some TPUs collectives
then wait in line with the matmuls. `//train:compile` shows whether they do, and
refuses an option that a new compiler no longer knows.
"""

# The SparseCores move data while the TensorCore multiplies: gathers, reductions
# and scatters of sharded parameters become asynchronous. What the compiler
# would fuse into matmuls instead is for v5e alone, and off.
_SPARSE_CORE = {
  "xla_tpu_enable_sparse_core_collective_offload_all_gather": True,
  "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": True,
  "xla_tpu_enable_sparse_core_collective_offload_all_reduce": True,
  "xla_tpu_enable_all_gather_offload_tracing": True,
  "xla_tpu_enable_reduce_scatter_offload_tracing": True,
  "xla_tpu_enable_all_reduce_offload_tracing": True,
  "xla_tpu_use_tc_device_shape_on_sc": True,
  "xla_sc_enable_instruction_fusion": False,
  "xla_sc_disable_megacore_partitioning": True,
  "xla_tpu_enable_async_collective_fusion_fuse_all_gather": False,
  "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": False,
  "xla_tpu_enable_async_collective_fusion_fuse_reduce_scatter": False,
}

_BY_DEVICE_KIND: dict[str, dict[str, bool]] = {
  # 7x does this by default; v5e and v5p have no such cores for it.
  "TPU v6 lite": _SPARSE_CORE,
}


def for_device(device_kind: str) -> dict[str, bool]:
  """Of a jax.Device.device_kind; none where XLA's defaults are as good."""
  return dict(_BY_DEVICE_KIND.get(device_kind, {}))
