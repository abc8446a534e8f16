#!/bin/bash
# SQLite's test programs that are no Tcl scripts, with the plain VFS and then with replvfs. Called by suite.sh.
# usage: programs.sh target/sqlite-suite
set -euo pipefail
suite="$1"
programs="$suite/build/programs"
mptest="$suite/src/sqlite/mptest"
runs="${SQLITE_SUITE_RUNS:-$suite/runs}"
repeat="${SQLITE_SUITE_REPEAT:-5}"
failures=0

# each NAME SECONDS COMMAND…: in a folder of its own
each() {
    local name="$1" limit="$2" mode code begin
    shift 2
    for mode in plain replvfs; do
        local folder="$runs/programs-$mode-$name"
        rm -rf "$folder"
        mkdir -p "$folder/run" "$folder/replica" "$suite/results/programs"
        local log="$suite/results/programs/$name-$mode.log"
        local settings=()
        [ $mode = plain ] || settings=(REPLVFS_DEFAULT=1 "REPLVFS_REPLICA=fs://$folder/replica/{path}" REPLVFS_RESTORE=never)
        begin=$(date +%s.%N)
        code=0
        (cd "$folder/run" && env "${settings[@]}" timeout -k 5 "$limit" "$@" >"$log" 2>&1 </dev/null) || code=$?
        # mptester takes every message of SQLite's log for an error. Through rollback journals only one process can replicate, and it says when another one has written.
        if [ $code = 1 ] && [ $mode = replvfs ] && grep -q '^Summary: ' "$log" && ! grep 'ERROR:' "$log" | grep -qv 'ERROR: (errcode=28) replvfs: '; then
            code=0
        fi
        printf '%-8s %-28s exit %s, %.1f s: %s\n' $mode "$name" $code "$(awk "BEGIN { print $(date +%s.%N) - $begin }")" "$(tail -1 "$log" | cut -c1-100)"
        [ $code = 0 ] || failures=$((failures + 1))
        rm -rf "$folder"
    done
}

for journal in DELETE WAL PERSIST TRUNCATE; do
    for script in crash01 multiwrite01; do
        each "mptest-$script-$journal" 600 "$programs/mptester" mptest.db "$mptest/$script.test" --repeat "$repeat" --journalmode $journal
    done
done
each threadtest3 1800 "$programs/threadtest3"
for options in "" --wal --commit-before-fork "--wal --commit-before-fork"; do
    # shellcheck disable=SC2086
    each "fork-test${options// /}" 120 "$programs/fork-test" fork.db $options
done
for options in "" "--journal wal"; do
    # shellcheck disable=SC2086
    each "speedtest1${options// /}" 900 "$programs/speedtest1" --size 20 $options speed.db
done
echo "$failures programs failed"
[ $failures = 0 ]
