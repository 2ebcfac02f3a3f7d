#!/bin/sh
# Builds chat.pyz, the one file that is handed round.
#
#     ./build.sh                   make chat.pyz
#     ./build.sh run [ARGS...]     make it if something has changed, and run it with ARGS
#     ./build.sh test [ARGS...]    make it and run all tests; ARGS go to pytest
#     ./build.sh bench [ARGS...]   make it and run tests/bench.py
#     ./build.sh torture [ARGS...] make it and run tests/torture.py
#
# Needs Python 3.8 or newer with venv, and a package index the first time. PYTHON=... chooses the Python.
# Everything installed goes into .venv beside this file, nothing anywhere else.
set -eu
unset PYTHONHOME PYTHONPATH SOURCE_DATE_EPOCH  # would change what is built
top=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
venv=$top/.venv

fail() {
    echo "build.sh: $1" >&2
    exit 1
}

# Run a step without a word; if it fails, show all it said.
quietly() {
    said=$("$@" 2>&1 </dev/null) || {
        printf '%s\n' "$said" >&2
        fail "failed: $*"
    }
}

# Set $python to the first interpreter that is new enough.
find_python() {
    if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- python3 python; fi
    for python do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null && return
    done
    fail "no Python 3.8 or newer found (tried: $*); install one or name it: PYTHON=/path/to/python3 ./build.sh"
}

# Make the virtual environment, unless this very Python has made it and it still works.
make_venv() {
    find_python
    maker=$("$python" -c 'import sys; print(sys.version, sys.base_prefix)')
    if [ "$(cat "$venv/maker" 2>/dev/null)" = "$maker" ] && "$venv/bin/python" -c 'import pip' 2>/dev/null; then
        return
    fi
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python has no venv module (on Debian and Ubuntu: apt install python3-venv)"
    rm -rf "$venv"
    quietly "$python" -m venv "$venv"
    printf '%s\n' "$maker" >"$venv/maker"
}

# The entries of a list in pyproject.toml; Python reads TOML itself only since 3.11.
pins() {
    sed -n "/^$1 = \[/,/^]/s/^ *\"\(.*\)\",\$/\1/p" "$top/pyproject.toml"
}

# Install the packages chat runs with and those of one extra. Where just these are there, pip asks no network.
install() {
    # shellcheck disable=SC2046  # one word per package
    quietly "$venv/bin/python" -m pip install --no-cache-dir --disable-pip-version-check \
        $(pins dependencies) $(pins "$1")
}

build() {
    make_venv
    install build
    # shellcheck disable=SC2046  # the same
    quietly "$venv/bin/python" "$top/.pyz/pack.py" "$top/chat.pyz" $(pins dependencies)
}

# Is chat.pyz missing, or older than anything it is made from?
changed() {
    [ ! -e "$top/chat.pyz" ] && return
    newer=$(cd "$top" && find chat.py sessions pyproject.toml .pyz -newer chat.pyz 2>/dev/null || true)
    [ -n "$newer" ]
}

case ${1:-} in
'')
    build
    echo "made chat.pyz ($(($(wc -c <"$top/chat.pyz") / 1000)) kB); try: python3 chat.pyz"
    ;;
run)
    shift
    find_python
    if changed; then build; fi
    exec "$python" "$top/chat.pyz" "$@"
    ;;
test)
    shift
    build
    install test
    cd "$top"
    exec "$venv/bin/python" -m pytest "$@"
    ;;
bench)
    shift
    build
    install test
    exec "$venv/bin/python" "$top/tests/bench.py" "$@"
    ;;
torture)
    shift
    build
    install test
    exec "$venv/bin/python" "$top/tests/torture.py" "$@"
    ;;
*)
    sed -n 's/^#     \(.*\)/\1/p' "$0" >&2
    exit 2
    ;;
esac
