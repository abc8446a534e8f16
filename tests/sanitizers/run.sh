#!/bin/bash
# The tests under one of LLVM's sanitizers, with Rust's own library and SQLite instrumented as well.
# usage: run.sh thread|address [what cargo test is to be told]    without more: the tests whose threads meet
# Needs a nightly Rust with rust-src, gcc, and llvm-symbolizer. What is built goes to target/sanitizer-thread, or -address.
set -euo pipefail
root="$(realpath "$(dirname "$0")/../..")"
cd "$root"
sanitizer="$1"
shift

target="$(rustc -vV | sed -n 's/^host: //p')"
export CARGO_TARGET_DIR="target/sanitizer-$sanitizer"
export CARGO_INCREMENTAL=0
export CARGO_PROFILE_DEV_OPT_LEVEL=1 CARGO_PROFILE_DEV_DEBUG=line-tables-only
export RUSTFLAGS="-Zsanitizer=$sanitizer -Cunsafe-allow-abi-mismatch=sanitizer"
# What the examples in the documentation are compiled with.
export RUSTDOCFLAGS="$RUSTFLAGS"
export "CFLAGS_${target//-/_}=-fsanitize=$sanitizer -g1"
case "$sanitizer" in
thread)
    export TSAN_OPTIONS="suppressions=$root/tests/sanitizers/tsan.supp history_size=4 second_deadlock_stack=1"
    ;;
address)
    # What is leaked is meant: VFSes are never freed, and the tests' own programs die in many ways. valgrind looks at leaks.
    export ASAN_OPTIONS="detect_leaks=0 detect_stack_use_after_return=1"
    ;;
*)
    echo "usage: $0 thread|address [what cargo test is to be told]" >&2
    exit 2
    ;;
esac

sanitized() { cargo +nightly test -Zbuild-std --target "$target" --locked --no-fail-fast "$@"; }

if [ $# -gt 0 ]; then
    sanitized "$@"
    exit
fi
# What one part finds does not keep the others from being looked at.
failed=0
sanitized -p replvfs-vfs || failed=1
sanitized -p replvfs --lib pipeline || failed=1
tests=()
for test in threads durability strict shutdown step_aside reopening soak; do tests+=(--test "$test"); done
REPLVFS_SOAK_SECONDS="${REPLVFS_SOAK_SECONDS:-60}" sanitized -p replvfs-tests "${tests[@]}" || failed=1
exit $failed
