"""Python from the machine, packages from a hash-locked requirements file.

`@python3_12` is the machine's CPython 3.12 as a Bazel toolchain; `@pypi` has
one `py_library` per distribution of the lock that `--config=tpu`,
`--config=cuda` or `--config=beam` selects (the CPU's otherwise):
`@pypi//ml_collections`.
`@pypi_clients` has large programs that only tests on purpose ask for.
"""

_VERSION = "3.12"

# Where version managers keep their interpreters, newest patch last.
_KNOWN_PLACES = """
for dir in "${{PYENV_ROOT:-$HOME/.pyenv}}"/versions/{v}* \
           "$HOME"/.local/share/uv/python/cpython-{v}* \
           "$HOME"/.local /usr/local /opt/python*{v}* /usr; do
  [ ! -x "$dir/bin/python{v}" ] || echo "$dir/bin/python{v}"
done
! command -v uv >/dev/null || uv python find {v} 2>/dev/null
true
""".format(v = _VERSION)

_PROBE = """
import os, sys
print("%d.%d" % sys.version_info[:2])
print(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))
"""

def _probe(rctx, candidate):
    """Returns the program behind a candidate (a pyenv shim, a venv), or why not."""
    result = rctx.execute([candidate, "-I", "-c", _PROBE])
    if result.return_code != 0:
        reason = (result.stderr.strip() or "exit code %d" % result.return_code).splitlines()[0]
        return struct(path = None, reason = reason)
    version, path = result.stdout.splitlines()
    if version != _VERSION:
        return struct(path = None, reason = "is CPython " + version)
    return struct(path = path, reason = None)

def _python_repository(rctx):
    chosen = rctx.getenv("CACAO_PYTHON")
    if chosen:
        candidates = [chosen]
    else:
        on_path = rctx.which("python" + _VERSION)
        known = rctx.execute(["sh", "-c", _KNOWN_PLACES]).stdout.splitlines()
        candidates = ([str(on_path)] if on_path else []) + known
    interpreter = None
    tried = []
    for candidate in candidates:
        found = _probe(rctx, candidate)
        if found.path:
            interpreter = found.path
            break
        tried.append("  {}: {}\n".format(candidate, found.reason))
    if not interpreter:
        fail((
            "\n\nNo CPython {v}.\n{tried}" +
            "Fix: install it (`uv python install {v}`, `pyenv install {v}`, " +
            "or your distribution's python{v}), or name one with " +
            "--repo_env=CACAO_PYTHON=/path/to/python{v}\n"
        ).format(
            v = _VERSION,
            tried = "".join(tried) or "  None on PATH nor where pyenv and uv keep theirs.\n",
        ))
    rctx.file("interpreter", interpreter)
    rctx.file("BUILD", """\
load("@rules_python//python:defs.bzl", "py_runtime", "py_runtime_pair")

exports_files(["interpreter"])

py_runtime(
    name = "runtime",
    interpreter_path = "{interpreter}",
    interpreter_version_info = {{
        "major": "{major}",
        "minor": "{minor}",
    }},
    python_version = "PY3",
    stub_shebang = "#!{interpreter} -I",
)

py_runtime_pair(
    name = "runtime_pair",
    py3_runtime = ":runtime",
)

toolchain(
    name = "toolchain",
    toolchain = ":runtime_pair",
    toolchain_type = "@rules_python//python:toolchain_type",
)
""".format(
        interpreter = interpreter,
        major = _VERSION.split(".")[0],
        minor = _VERSION.split(".")[1],
    ))

python_repository = repository_rule(implementation = _python_repository)

def _pypi_repository(rctx):
    locks = {name: lock for lock, name in rctx.attr.locks.items()}
    if len(locks) == 1:
        lock = locks.values()[0]
    else:
        accelerator = rctx.getenv("CACAO_ACCELERATOR", "cpu")
        if accelerator not in locks:
            fail("CACAO_ACCELERATOR={}: known are {}".format(
                accelerator,
                ", ".join(sorted(locks)),
            ))
        lock = locks[accelerator]
    rctx.report_progress("Installing {}".format(lock.name))
    result = rctx.execute(
        [
            rctx.read(rctx.attr.interpreter),
            "-I",
            rctx.path(rctx.attr.installer),
            rctx.path(lock),
            ".",
        ],
        timeout = 3600,
    )
    if result.return_code != 0:
        fail((
            "\n\nThe packages of {lock} can not be installed.\n{why}\n" +
            "Fix: if the index is at fault, the one that is set for pip or uv " +
            "(PIP_INDEX_URL, UV_DEFAULT_INDEX, SSL_CERT_FILE); if the lock " +
            "is, take it back from git.\n"
        ).format(lock = lock.name, why = result.stderr.strip()))

pypi_repository = repository_rule(
    implementation = _pypi_repository,
    attrs = {
        "installer": attr.label(mandatory = True),
        "interpreter": attr.label(mandatory = True),
        "locks": attr.label_keyed_string_dict(
            doc = "requirements file -> its accelerator, or any name if there is only one",
            mandatory = True,
        ),
    },
)

def _python(mctx):
    python_repository(name = "python3_12")
    pypi_repository(
        name = "pypi",
        installer = "//third_party/python:install.py",
        interpreter = "@python3_12//:interpreter",
        locks = {
            "//third_party/python:requirements_{}.txt".format(name): name
            for name in ["beam", "cpu", "cuda", "tpu"]
        },
    )

    # Not fetched before something that needs it is built.
    pypi_repository(
        name = "pypi_clients",
        installer = "//third_party/python:install.py",
        interpreter = "@python3_12//:interpreter",
        locks = {"//third_party/python:requirements_clients.txt": "clients"},
    )
    return mctx.extension_metadata(reproducible = True)

python = module_extension(implementation = _python)
