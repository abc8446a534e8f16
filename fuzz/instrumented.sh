#!/bin/bash
# In place of rustc (RUSTC_WRAPPER): our own crates tell libFuzzer where they come by and have the address sanitizer; what others have written is taken as the
# workspace's tests have compiled it.
set -eu
ours=
is_program=
previous=
for argument in "$@"; do
    case "$previous $argument" in
        "--crate-name replvfs" | "--crate-name replvfs_vfs" | "--crate-name replvfs_fuzz") ours=1 ;;
        "--crate-type bin") is_program=1 ;;
    esac
    previous=$argument
done
# The programs are named after their targets.
[ -n "$ours" ] || [ -n "$is_program" ] && [ "${CARGO_PKG_NAME-}" = replvfs-fuzz ] && ours=1
[ -n "$ours" ] || exec "$@"
llvm=()
for option in sanitizer-coverage-level=4 sanitizer-coverage-inline-8bit-counters sanitizer-coverage-pc-table sanitizer-coverage-trace-compares \
    simplifycfg-branch-fold-threshold=0; do
    llvm+=("-Cllvm-args=-$option")
done
# Sanitizers and their kind are unstable options. Set for all, it would have half of the other crates compiled anew.
export RUSTC_BOOTSTRAP=1
exec "$@" --cfg fuzzing -Cpasses=sancov-module "${llvm[@]}" -Zsanitizer=address -Cunsafe-allow-abi-mismatch=sanitizer -Cdebug-assertions -Coverflow-checks
