"""The Python rules of the tree: BUILD files load them from here."""

load(
    "@rules_python//python:defs.bzl",
    _py_binary = "py_binary",
    _py_library = "py_library",
    _py_test = "py_test",
)

py_library = _py_library

# Large arrays in large pages: a CPU that reads weights at the speed of its
# memory reads them 5% faster (//serve:runner_benchmark).
_MALLOC = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

_RUNNER = Label("//tools:test_runner.py")

# Tests compile much and compute little: without LLVM's optimizations they take
# half the time. XLA's own passes all run; programs and benchmarks run with both.
_XLA_FLAGS = " ".join([
    "--xla_backend_optimization_level=0",
    "--xla_force_host_platform_device_count={}",
])

def py_binary(name, env = {}, **kwargs):
    """A program.

    Args:
      name: of the target.
      env: environment variables of `bazel run`, over the defaults made here.
      **kwargs: what any program has: srcs, main, deps, data, ...
    """
    _py_binary(name = name, env = _MALLOC | env, **kwargs)

def py_test(name, srcs, args = [], env = {}, fake_devices = 1, **kwargs):
    """A test file, run on the CPU, that fails if no test ran.

    Args:
      name: as the file: `attention_test` runs `attention_test.py`.
      srcs: that file, and any it alone imports.
      args: arguments of the test program.
      env: environment variables, over the defaults made here.
      fake_devices: how many devices JAX makes of the CPU.
      **kwargs: what any test has: deps, data, size, shard_count, tags, ...
    """
    if name + ".py" not in srcs:
        fail("py_test {}: srcs has no {}.py; a test is named as its file".format(name, name))
    defaults = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": _XLA_FLAGS.format(fake_devices),
    }
    _py_test(
        name = name,
        srcs = srcs + [_RUNNER],
        args = ["{}/{}.py".format(native.package_name(), name)] + args,
        env = defaults | env,
        main = _RUNNER,
        **kwargs
    )
