#!/bin/bash
# The C library as a C programmer has it: the header, the symbols, a program with the system's SQLite and one with sqlite3.c compiled into it.
# usage: c.sh [prefix]    where replicator/packaging/c-library.sh has put the library; without it that is run first
set -euo pipefail
root="$(realpath "$(dirname "$0")/../..")"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

fail() { echo "FAILED: $*" >&2; exit 1; }

prefix="${1:-$work/prefix}"
[ $# -gt 0 ] || "$root/replicator/packaging/c-library.sh" "$prefix"
prefix="$(realpath "$prefix")"
# Wherever it is copied to.
cp -r "$prefix" "$work/moved"
export PKG_CONFIG_PATH="$work/moved/lib/pkgconfig"
strict=(-Wall -Wextra -Werror -pedantic)
replvfs_cflags=($(pkg-config --cflags replvfs))
replvfs_libs=($(pkg-config --static --libs replvfs))
amalgamation="$(cd "$root" && cargo metadata --format-version 1 --locked |
    /usr/bin/python3 -c 'import json, os, sys
path, = (p["manifest_path"] for p in json.load(sys.stdin)["packages"] if p["name"] == "libsqlite3-sys")
print(os.path.join(os.path.dirname(path), "sqlite3"))')"
cd "$work"

echo "-- the header"
printf '#include <replvfs.h>\n#include <replvfs.h>\n' >header.c
for standard in c99 c11 c17; do
    cc -std=$standard "${strict[@]}" "${replvfs_cflags[@]}" -fsyntax-only header.c
done
for standard in c++11 c++17; do
    c++ -std=$standard "${strict[@]}" "${replvfs_cflags[@]}" -x c++ -fsyntax-only header.c
done

echo "-- the symbols"
cc -E -P "$prefix/include/replvfs.h" | grep -oE 'replvfs_[a-z_]+ *\(' | tr -d ' (' | sort -u >declared
nm --defined-only --extern-only --format=just-symbols "$prefix/lib/libreplvfs.a" | grep -vE '^$|:$' | sort >exported
diff declared exported || fail "replvfs.h declares (<) something else than libreplvfs.a exports (>)"
# zstd and a program's own functions of the same names get on with each other.
cat >own.c <<'C'
#include <replvfs.h>
#include <stdio.h>
int ZSTD_compress(void) { return 7; }
int blake3_hasher_init(void) { return 7; }
int rust_eh_personality(void) { return 7; }
int main(void)
{
    puts(replvfs_version());
    return replvfs_register(NULL) || ZSTD_compress() + blake3_hasher_init() + rust_eh_personality() != 21;
}
C
cc -std=c99 "${strict[@]}" "${replvfs_cflags[@]}" own.c -o own "${replvfs_libs[@]}" $(pkg-config --libs sqlite3)
./own

notes() {
    local folder="$work/notes-$RANDOM"
    mkdir "$folder"
    "$@" "$folder" >notes.out || fail "$*"
    cat notes.out
    grep -q '^status: {' notes.out || fail "there is no status"
    grep -qx 'now: buy milk, the milk is sour' notes.out || fail "what is in the replica"
    grep -qx 'before: buy milk' notes.out || fail "what was in it"
    grep -qx 'restored: buy milk' notes.out || fail "what was restored"
}

echo "-- the example, with the system's SQLite"
cp -r "$root/examples/c" with-system
make -s -C with-system
notes with-system/notes

if command -v valgrind >/dev/null; then
    echo "-- the example, under valgrind"
    source "$root/tests/sanitizers/memcheck.sh"
    notes "${memcheck[@]}" with-system/notes
elif [ "${CI:-}" = true ]; then
    fail "there is no valgrind"
else
    echo "SKIPPED: the example under valgrind, which is not there"
fi

echo "-- the example, with sqlite3.c"
cp -r "$root/examples/c" with-own
sanitized=(-O0 -g -fsanitize=address)
make -s -C with-own SQLITE="$amalgamation/sqlite3.c" CFLAGS="${sanitized[*]}"
if ldd with-own/notes | grep sqlite; then fail "it is linked with the system's SQLite"; fi
export ASAN_OPTIONS=detect_leaks=1
notes with-own/notes

echo "-- the example, by CMake"
cmake -S "$root/examples/c" -B by-cmake -DCMAKE_BUILD_TYPE=Release >cmake.log || { cat cmake.log; fail cmake; }
cmake --build by-cmake >cmake.log || { cat cmake.log; fail cmake; }
notes by-cmake/notes

echo "-- what the header promises"
sources=("$root/tests/hosts/c/misuse.c")
cc -std=gnu99 "${strict[@]}" "${sanitized[@]}" "${replvfs_cflags[@]}" -I"$amalgamation" "${sources[@]}" with-own/sqlite3.o -o misuse "${replvfs_libs[@]}"
mkdir misuse-c
./misuse "$work/misuse-c"
c++ -std=gnu++11 "${strict[@]}" "${replvfs_cflags[@]}" -x c++ "${sources[@]}" -x none -o misuse++ "${replvfs_libs[@]}" $(pkg-config --libs sqlite3)
mkdir misuse-c++
./misuse++ "$work/misuse-c++"
if command -v valgrind >/dev/null; then
    # A child of its leaves what its parent had where it is, so leaks are looked for in the example.
    mkdir misuse-valgrind
    "${memcheck[@]}" --leak-check=no ./misuse++ "$work/misuse-valgrind"
fi

strip -o notes-stripped with-system/notes
size() { stat -c %s "$1"; }
echo "c: passed; libreplvfs.a has $(size "$prefix/lib/libreplvfs.a") bytes, a stripped program with it $(size notes-stripped)"
