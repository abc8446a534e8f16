#!/bin/bash
# SQLite's own test suite through replvfs. See README.md.
# usage: suite.sh fetch | build | run OPTIONS… | programs | ci | all
set -euo pipefail
here="$(dirname "$(realpath "$0")")"
root="$(realpath "$here/../..")"
suite="$(mkdir -p "${SQLITE_SUITE:-$root/target/sqlite-suite}" && realpath "${SQLITE_SUITE:-$root/target/sqlite-suite}")"
debian="${SQLITE_SUITE_DEBIAN:-sid}"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
source="$suite/src/sqlite"
build="$suite/build"

fail() { echo "FAILED: $*" >&2; exit 1; }

# What Debian has to have installed.
packages() {
    local missing=() package
    for package in tcl-dev gcc libc6-dev make binutils xz-utils python3 procps zlib1g-dev gdb; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    local sudo=""
    [ "$(id -u)" = 0 ] || sudo=sudo
    $sudo apt-get update -q
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -qy --no-install-recommends "${missing[@]}"
}

# The mirror that this machine takes its packages from.
mirror() {
    cat /etc/apt/sources.list.d/*.sources 2>/dev/null | sed -n 's/^URIs: *\([^ ]*\).*/\1/p' >"$suite/apt/mirrors"
    cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null | sed -n 's/^deb \(\[[^]]*\] *\)\?\([^ ]*\) .*/\2/p' >>"$suite/apt/mirrors"
    grep -v security "$suite/apt/mirrors" | grep -m1 '/debian/*$' || fail "apt on this machine knows no mirror of Debian"
}

fetch() {
    [ ! -e "$suite/src/fetched" ] || return 0
    packages
    local apt="$suite/apt"
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$suite/src"
    echo "deb-src [signed-by=$keyring] $(mirror) $debian main" >"$apt/sources.list"
    cat >"$apt/apt.conf" <<APT
Dir::Etc::SourceList "$apt/sources.list";
Dir::Etc::SourceParts "-";
Dir::State::Lists "$apt/lists";
Dir::Cache "$apt/cache";
APT::Sandbox::User "root";
APT
    export APT_CONFIG="$apt/apt.conf"
    apt-get update -q
    (cd "$suite/src" && rm -f sqlite3_* && apt-get source -q --download-only sqlite3)
    # As upstream has it: without Debian's patches, and without the documentation.
    rm -rf "$source"
    mkdir "$source"
    tar xJf "$suite"/src/sqlite3_*.orig.tar.xz -C "$source" --strip-components=1
    [ -f "$source/test/tester.tcl" ] || fail "there is no test suite in Debian's source"
    printf '%s\n' "source {$here/hide.tcl}" >>"$source/test/tester.tcl"
    touch "$suite/src/fetched"
    echo "SQLite $(cat "$source/VERSION")"
}

# libreplvfs.a, if nobody says where it is.
library() {
    [ -z "${SQLITE_SUITE_LIBRARY:-}" ] || { realpath "$SQLITE_SUITE_LIBRARY"; return; }
    "$root/replicator/packaging/c-library.sh" "$suite/library" >&2
    echo "$suite/library"
}

build() {
    fetch
    packages
    local prefix
    prefix="$(library)"
    # See register.c.
    mkdir -p "$build"
    objcopy --redefine-sym sqlite3_create_filename=suite_create_filename "$prefix/lib/libreplvfs.a" "$build/libreplvfs.a"
    local libs=("$build/libreplvfs.a" -lgcc_s -lutil -lrt -lpthread -lm -ldl -lc)
    if [ ! -e "$build/Makefile" ]; then
        (cd "$build" && CFLAGS=-O1 "$source/configure" --enable-all --disable-readline >configure.log 2>&1) || { tail "$build/configure.log" >&2; fail configure; }
    fi
    local made=(make -s -C "$build" -j "$(nproc)" -f "$here/testfixture.mk" "SUITE_SOURCE=$here/register.c" "SUITE_FAULTS=$here/faults.sed"
        "SUITE_CFLAGS=-I$root/replicator/capi/include" "SUITE_ARCHIVE=$build/libreplvfs.a" "SUITE_LIBS=${libs[*]}")
    "${made[@]}" "${@:-testfixture-replvfs}" >"$build/make.log" 2>&1 || { grep -E 'error|undefined' "$build/make.log" >&2; fail "make; see $build/make.log"; }
    echo "$build/testfixture-replvfs with SQLite $(cat "$source/VERSION")"
}

# mptest, threadtest3, the fork test and speedtest1, each with the plain VFS first.
programs() {
    build programs
    "$here/programs.sh" "$suite"
}

# What fits into CI.
ci() {
    build
    run --set ci --timeout 120
}

# What takes hours. `all --new` goes on where it was interrupted.
all() {
    build
    local failures=0 permutation
    run --set permutation:veryquick --timeout 3600 "$@" || failures=1
    run --set files --timeout 3600 "$@" || failures=1
    for permutation in wal exclusive exclusive-truncate persistent_journal persistent_journal_error truncate_journal no_journal \
        no_journal_error autovacuum_crash autovacuum_ioerr coverage-wal coverage-pager singlethread multithread fullmutex onefile; do
        run --set "permutation:$permutation" --timeout 3600 "$@" || failures=1
    done
    # Of these, which run nearly everything, what touches files.
    for permutation in mmap inmemory_journal journaltest; do
        run --set "permutation:$permutation" --of files --timeout 3600 "$@" || failures=1
    done
    programs || failures=1
    return $failures
}

run() { /usr/bin/python3 -B "$here/run.py" "$suite" "$@"; }

case "${1:-}" in
    fetch | build | run | programs | ci | all) "$@" ;;
    *) sed -n 's/^# usage: /usage: /p' "$0" >&2; exit 2 ;;
esac
