#!/usr/bin/env bash
# Installs from the bundle that this file lies in, without a network.
#
#   install.sh DIGEST TARGET       DIGEST is the SHA-256 of SHA256SUMS, as the maker of the bundle told you
#   install.sh --unsigned TARGET   checks the wheels against the list beside them alone
#
# PYTHON names the interpreter, which has pip 22.3 or newer; the result has none.
set -euo pipefail
export LC_ALL=C PIP_DISABLE_PIP_VERSION_CHECK=1

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

[ $# -eq 2 ] || fail "expected DIGEST TARGET"
digest=$1
target=$2
here=$(cd "$(dirname "$0")" && pwd)
[ ! -e "$target" ] || fail "$target: is there already"

if [ "$digest" != --unsigned ]; then
    [ "$(sha256sum "$here/SHA256SUMS" | cut -d' ' -f1)" = "$digest" ] || fail "SHA256SUMS: not the list that was told"
    (cd "$here" && sha256sum --check --strict --quiet SHA256SUMS) || fail "a file is not as listed"
    extra=$(cd "$here" && comm -13 <(sed 's/^[0-9a-f]*  //' SHA256SUMS | sort) <(find . -type f ! -name SHA256SUMS | sort))
    [ -z "$extra" ] || fail "not in the list: $extra"
fi

python=${PYTHON:-python3}
"$python" -m venv --without-pip "$target" || fail "$target: cannot be made"
pip=("$python" -m pip --python "$target/bin/python")
if ! env -u PIP_INDEX_URL -u PIP_EXTRA_INDEX_URL -u PIP_FIND_LINKS -u PIP_CONSTRAINT PIP_CONFIG_FILE=/dev/null \
    "${pip[@]}" --quiet install --no-index --no-deps --no-cache-dir --only-binary :all: \
    --find-links "$here/wheels" --require-hashes --requirement "$here/requirements-hashed.txt"; then
    rm -rf "$target"
    fail "nothing was installed"
fi
"${pip[@]}" check
echo "$target: installed"
