#!/bin/sh
# @NAME@: a program and all it needs but CPython @PYTHON@, for
# @SYSTEM@ @MACHINE@, accelerator: @ACCELERATOR@. What follows this
# script is a zip archive.
#
# It is unpacked once into $CACAO_UNPACK_DIR, by default
# $XDG_CACHE_HOME/cacao/deploy (~/.cache/cacao/deploy), and run from there.
# CACAO_PYTHON names the interpreter, by default python@PYTHON@ on PATH.
# It sees no other packages and none of the PYTHON* variables.

fail() {
  printf '%s: %s\n' '@NAME@' "$*" >&2
  exit 1
}

system=$(uname -s) machine=$(uname -m)
[ "$system $machine" = '@SYSTEM@ @MACHINE@' ] ||
  fail "was built for @SYSTEM@ @MACHINE@, but this is $system $machine."

fits() {
  "$1" -I -S -c 'import sys
sys.exit([sys.implementation.name, *sys.version_info[:2]] != @VERSION@)' \
    2>/dev/null
}
python=
if [ -n "$CACAO_PYTHON" ]; then
  fits "$CACAO_PYTHON" ||
    fail "CACAO_PYTHON=$CACAO_PYTHON is no CPython @PYTHON@."
  python=$CACAO_PYTHON
else
  for name in python@PYTHON@ python3 python; do
    if fits "$name"; then
      python=$name
      break
    fi
  done
  [ -n "$python" ] || fail "needs CPython @PYTHON@, and there is none on PATH." \
    "Install it (python@PYTHON@, or: uv python install @PYTHON@) or name one:" \
    "CACAO_PYTHON=/path/to/python@PYTHON@ $0"
fi

unpack=$CACAO_UNPACK_DIR
if [ -z "$unpack" ]; then
  cache=${XDG_CACHE_HOME:-${HOME:+$HOME/.cache}}
  [ -n "$cache" ] || fail "neither HOME nor XDG_CACHE_HOME is set; name a" \
    "folder of your own to unpack into: CACAO_UNPACK_DIR=/path $0"
  unpack=$cache/cacao/deploy
fi
tree=$unpack/@NAME@-@DIGEST@
if [ ! -d "$tree" ]; then
  # A copy that was cut off has no end, where an archive's contents are.
  size=$(wc -c <"$0")
  [ "$size" -eq @SIZE@ ] ||
    fail "$0 is damaged: it has $size bytes instead of @SIZE@. Copy it again."
  "$python" -I -S "$0" "$tree" || exit
fi
# Large arrays in large pages: on a CPU, 5% more tokens a second.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
exec "$python" -I -S "$tree/start.py" "$0" "$@"
