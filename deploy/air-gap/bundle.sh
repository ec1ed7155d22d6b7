#!/usr/bin/env bash
# Makes a folder from which privshare is installed on a machine without a network.
#
#   bundle.sh [--sbom] OUT [REQUIREMENT...]
#
# OUT gets wheels/, requirements-hashed.txt, install.sh, SHA256SUMS and, with --sbom, sbom.cdx.json. Without a REQUIREMENT it
# is this repository. Run it on the kind of machine that will install it: same system, processor and minor Python.
# PYTHON names the interpreter, which has pip; pip's own configuration says which index, and which build of torch.
set -euo pipefail
export LC_ALL=C PIP_DISABLE_PIP_VERSION_CHECK=1

fail() {
    echo "bundle.sh: $*" >&2
    exit 1
}

sbom=no
if [ "${1-}" = --sbom ]; then
    sbom=yes
    shift
fi
[ $# -ge 1 ] || fail "expected [--sbom] OUT [REQUIREMENT...]"
out=$1
shift
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
[ ! -e "$out" ] || fail "$out: is there already"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=${PYTHON:-python3}

mkdir -p "$work/bundle/wheels"
collect() {
    "$python" -m pip --quiet wheel --constraint "$root/constraints.txt" --wheel-dir "$work/bundle/wheels" "$@"
}
if [ $# -gt 0 ]; then
    collect "$@"
else
    # From a copy of what is committed: a build writes into its folder. torch first, as in the Makefile.
    mkdir "$work/source"
    git -C "$root" archive HEAD | tar -x -C "$work/source"
    collect torch "$work/source"
fi

cp "$here/install.sh" "$work/bundle/"
cp "$root/LICENSE" "$work/bundle/"
(
    cd "$work/bundle"
    for wheel in wheels/*.whl; do
        name=${wheel#wheels/}
        version=${name#*-}
        echo "${name%%-*}==${version%%-*} --hash=sha256:$(sha256sum "$wheel" | cut -d' ' -f1)"
    done > requirements-hashed.txt
)

if [ "$sbom" = yes ]; then
    # Of an environment that was installed from the bundle, without an index: so the bundle is also known to be whole.
    PYTHON=$python bash "$work/bundle/install.sh" --unsigned "$work/installed" >&2
    "$python" -m venv "$work/tool"
    "$work/tool/bin/python" -m pip --quiet install cyclonedx-bom
    "$work/tool/bin/cyclonedx-py" environment --output-reproducible --output-format JSON \
        --output-file "$work/bundle/sbom.cdx.json" "$work/installed"
fi

(cd "$work/bundle" && find . -type f -print0 | sort -z | xargs -0 sha256sum) > "$work/SHA256SUMS"
mv "$work/SHA256SUMS" "$work/bundle/"
mkdir -p "$(dirname "$out")"
mv "$work/bundle" "$out"
echo "$out: $(find "$out/wheels" -name '*.whl' | wc -l) wheels"
echo "send this by another way than the bundle: $(sha256sum "$out/SHA256SUMS" | cut -d' ' -f1)"
