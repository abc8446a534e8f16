#!/bin/bash
# Gets what the hosts need that a machine does not have: Python packages, better-sqlite3, a Node that it runs on, old SQLites. Below a folder, nothing elsewhere;
# what is there already stays.
# usage: prepare.sh folder
#   folder/python       an environment with apsw, pysqlite3, Django and Flask
#   folder/node         node, node_modules
#   folder/sqlite-*     sqlite3.o and sqlite3.h: the newest that is refused, the oldest that will do
set -euo pipefail
here="$(dirname "$(realpath "$0")")"
mkdir -p "$1"
cd "$1"

requirements=("$here/python/requirements.txt" "$here/../../examples/python/requirements.txt")

# Does what is to be done once for these files; what has failed is begun anew the next time.
once() {
    local ready="$1.ready" what="$1"
    shift
    cat /dev/null "$@" | cmp -s - "$ready" && return
    rm -f "$ready"
    "$what"
    cat /dev/null "$@" >"$ready"
}

python() {
    rm -rf python
    /usr/bin/python3 -m venv python
    python/bin/pip install --quiet --disable-pip-version-check --no-compile --only-binary :all: $(printf -- '-r %s ' "${requirements[@]}")
}

# Node of this machine, if it has what better-sqlite3 needs; otherwise npm has one, too.
node() {
    local quiet=(--silent --no-package-lock --no-audit --no-fund --prefix node) own
    own="$(type -P node || true)"
    rm -rf node
    mkdir node
    cp "$here/node/package.json" node/
    npm install "${quiet[@]}"
    if [ -n "$own" ] && "$own" -e 'process.exit(process.versions.napi >= 10 ? 0 : 1)'; then
        ln -s "$own" node/node
    else
        local package
        package="node-linux-$(uname -m | sed 's/x86_64/x64/; s/aarch64/arm64/')"
        npm install "${quiet[@]}" --no-save "$package@22.23.3"
        ln -s "node_modules/$package/bin/node" node/node
    fi
    echo "node $(node/node --version)"
}

# better-sqlite3's packages have SQLite's source inside.
sqlite() {
    local work
    work="$(mktemp -d)"
    npm pack --silent --pack-destination "$work" "better-sqlite3@$2" >"$work/log"
    tar -xOf "$work/better-sqlite3-$2.tgz" package/deps/sqlite3.tar.gz | tar -xz -C "$work"
    mkdir -p "sqlite-$1"
    cc -O0 -w -DSQLITE_THREADSAFE=1 -c "$work/sqlite3.c" -o "sqlite-$1/sqlite3.o"
    cp "$work/sqlite3.h" "sqlite-$1/"
    rm -rf "$work"
}
sqlites() {
    sqlite 3.32.0 7.1.0
    sqlite 3.31.1 6.0.1
}

once python "${requirements[@]}" &
jobs=($!)
if ! command -v npm >/dev/null; then
    [ "${CI:-}" != true ] || { echo "npm is missing" >&2; exit 1; }
    echo "SKIPPED: npm is missing" >&2
    wait "${jobs[0]}"
    exit
fi
# One npm at a time.
{ once node "$here/node/package.json"; once sqlites; } &
jobs+=($!)
for job in "${jobs[@]}"; do wait "$job"; done
