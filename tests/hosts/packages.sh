#!/bin/bash
# The packages, as their users take them: crates, a Debian package, a wheel. Installs nothing on this machine.
# usage: packages.sh
set -euo pipefail
root="$(realpath "$(dirname "$0")/../..")"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$root"

fail() { echo "FAILED: $*" >&2; exit 1; }

echo "-- crates"
crates=(replvfs-vfs replvfs replvfs-cli)
cargo package --no-verify --locked --allow-dirty --color never --target-dir "$work/target" $(printf -- '-p %s ' "${crates[@]}") 2>"$work/crates.log" ||
    { cat "$work/crates.log"; fail "cargo package"; }
if grep -A4 '^warning' "$work/crates.log"; then fail "cargo package warns"; fi
version="$(cargo pkgid --locked -p replvfs | sed 's/.*[#@]//')"
for crate in "${crates[@]}"; do
    tar -tf "$work/target/package/$crate-$version.crate" >"$work/listed"
    for file in README.md LICENSE-MIT LICENSE-APACHE Cargo.lock; do
        grep -qx "$crate-$version/$file" "$work/listed" || fail "$crate has no $file"
    done
    if grep -E '/(capi|packaging|extension)/' "$work/listed"; then fail "$crate has what is not its own"; fi
    echo "$crate-$version.crate: $(wc -l <"$work/listed") files"
done
# What was packed must compile without what lies around it. The profile is the workspace's, so that what they need is there already.
mkdir "$work/unpacked"
for crate in "${crates[@]}"; do tar -xf "$work/target/package/$crate-$version.crate" -C "$work/unpacked"; done
{
    echo "[workspace]"
    echo 'resolver = "3"'
    printf 'members = ['
    printf "\"%s-$version\", " "${crates[@]}"
    echo ']'
    sed -n '/^\[profile\.dev/,/^$/p' Cargo.toml
    echo '[patch.crates-io]'
    printf "%s = { path = \"%s-$version\" }\n" replvfs-vfs replvfs-vfs replvfs replvfs
} >"$work/unpacked/Cargo.toml"
cp Cargo.lock "$work/unpacked/"
cargo check --quiet --offline --manifest-path "$work/unpacked/Cargo.toml" --workspace --target-dir target ||
    fail "what was packed does not compile"

echo "-- Debian package"
replicator/packaging/deb.sh "$work"
dpkg-deb --info "$work"/replvfs_*.deb control
dpkg-deb --extract "$work"/replvfs_*.deb "$work/installed"
libraries="$(dirname "$(find "$work/installed" -name replvfs.so)")"
"$work/installed/usr/bin/replvfs" --version | grep -F "$version"
[ -s "$work/installed/usr/share/man/man1/replvfs-restore.1.gz" ] || fail "there are no manual pages"
bash -n "$work/installed/usr/share/bash-completion/completions/replvfs"
# Loaded by its name alone, as from /usr/lib.
LD_LIBRARY_PATH="$libraries" sqlite3 -bail :memory: '.load replvfs' ".open 'file:$work/app.db?vfs=replvfs&replica=fs://$work/replica'" \
    'CREATE TABLE t(v)' 'INSERT INTO t VALUES (7)' 'PRAGMA replvfs_flush' >/dev/null
"$work/installed/usr/bin/replvfs" restore "fs://$work/replica" "$work/restored.db"
[ "$(sqlite3 "$work/restored.db" 'SELECT v FROM t')" = 7 ] || fail "the restored database is another one"
cp -r "$work/installed/usr/share/doc/replvfs/examples" "$work/example"
PKG_CONFIG_SYSROOT_DIR="$work/installed" PKG_CONFIG_PATH="$libraries/pkgconfig" \
    make -s -C "$work/example" PKG_CONFIG="env PKG_CONFIG_ALLOW_SYSTEM_CFLAGS=1 PKG_CONFIG_ALLOW_SYSTEM_LIBS=1 pkg-config"
mkdir "$work/notes"
"$work/example/notes" "$work/notes" | grep -x 'restored: buy milk'

echo "-- wheel"
wheel="$(/usr/bin/python3 replicator/packaging/wheel.py "$libraries/replvfs.so" "$version" "$work")"
cp "$wheel" "$work/first.whl"
/usr/bin/python3 replicator/packaging/wheel.py "$libraries/replvfs.so" "$version" "$work" >/dev/null
cmp "$work/first.whl" "$wheel" || fail "another wheel each time"
/usr/bin/python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-index "$wheel"
cd /
"$work/venv/bin/python" - "$work" <<'PYTHON'
import sqlite3, sys
import replvfs

folder = sys.argv[1]
assert replvfs.__file__.startswith(folder), replvfs.__file__
replvfs.load()
db = sqlite3.connect(f"file:{folder}/py.db?vfs=replvfs&replica=fs://{folder}/py-replica", uri=True)
# Again, and with a connection that is there.
replvfs.load(db)
try:
    db.load_extension("nothing")
    raise SystemExit("extensions may still be loaded")
except sqlite3.OperationalError as error:
    assert "not authorized" in str(error), error
db.execute("PRAGMA journal_mode=WAL")
db.execute("CREATE TABLE t(v)")
db.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(100)])
db.commit()
db.execute("PRAGMA replvfs_flush").fetchall()
past = sqlite3.connect(f"file:py?vfs=replvfs-remote&replica=fs://{folder}/py-replica", uri=True)
assert past.execute("SELECT count(*) FROM t").fetchone() == (100,)
PYTHON
"$work/venv/bin/pip" uninstall --quiet --disable-pip-version-check --yes replvfs
size() { stat -c %s "$1"; }
echo "packages: passed; $(basename "$work"/replvfs_*.deb) has $(size "$work"/replvfs_*.deb) bytes, $(basename "$wheel") $(size "$wheel")"
