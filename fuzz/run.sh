#!/bin/bash
# Fuzzes targets for some seconds each, two beside each other: fuzz/run.sh SECONDS [TARGET...]. Needs a C++ compiler, and no other toolchain than the usual one: what
# is compiled for the workspace's tests serves here, and our own crates alone are compiled with what libFuzzer and the address sanitizer need.
# REPLVFS_FUZZ_SEED: what decides the inputs; another one each time without it.
# What is found is below fuzz/artifacts, what is new in a folder of its own, so that corpus/ stays as it is in the repository.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=$1
shift
[ $# -gt 0 ] || set -- config history manifest remote replica segment state uri wal_scan
target=${CARGO_TARGET_DIR:-target}

# An hour is worth what it takes to optimise, a minute is not. And by its debug level what is compiled here is told from what the tests have.
level=$((seconds < 600 ? 0 : 2))
options=()
for package in replvfs replvfs-vfs replvfs-fuzz; do
    options+=(--config "profile.dev.package.$package.debug=1" --config "profile.dev.package.$package.opt-level=$level")
done
RUSTC_WRAPPER="$PWD/fuzz/instrumented.sh" cargo build --manifest-path fuzz/Cargo.toml --no-default-features --features libfuzzer --bins --locked \
    --target-dir "$target" "${options[@]}"

fuzz_one() {
    local name=$1 found=$target/fuzz/$1
    mkdir -p "$found" fuzz/artifacts
    # Leaks are looked for once, at the end: after each execution that takes as long as a history does.
    # Three times what the slowest execution of the corpus takes on a slow machine; a length that becomes an allocation is told by the target itself.
    if "$target/debug/$name" "$found" "fuzz/corpus/$name" -max_total_time="$seconds" -seed="${REPLVFS_FUZZ_SEED:-0}" -timeout=30 -rss_limit_mb=2048 -max_len=65536 -detect_leaks=0 -print_final_stats=1 \
        -artifact_prefix="fuzz/artifacts/$name-" >"$found.log" 2>&1; then
        echo "$name: $(sed -n 's/^stat::number_of_executed_units: *//p' "$found.log") executions, $(grep -o 'cov: [0-9]*' "$found.log" | tail -1)"
    else
        tail -60 "$found.log"
        echo "$name: FAILED, see $found.log and fuzz/artifacts"
        return 1
    fi
}
export -f fuzz_one
export seconds target
printf '%s\n' "$@" | xargs -P 2 -I{} bash -c 'fuzz_one {}'
