#!/bin/bash
# The extension has no SQLite of its own and asks the linker for none: all of SQLite's functions come from the host's table.
# usage: symbols.sh libreplvfs.so
set -euo pipefail
library="$1"
failed=0

# What it defines: the entry point, and no other name of SQLite's, local ones included.
if ! nm -D --defined-only "$library" | grep -qE ' T sqlite3_replvfs_init$'; then
    echo "$library does not export sqlite3_replvfs_init" >&2
    failed=1
fi
own="$(nm "$library" 2>/dev/null | awk '{print $NF}' | grep -E '^sqlite3_' | grep -vE '^sqlite3_replvfs_init$' || true)"
if [ -n "$own" ]; then
    echo "$library contains functions of SQLite:" >&2
    echo "$own" | head -20 >&2
    failed=1
fi

# What it needs: nothing of SQLite's.
needed="$(nm -D --undefined-only "$library" | awk '{print $NF}' | grep -E '^sqlite3' || true)"
if [ -n "$needed" ]; then
    echo "$library needs from the linker: $needed" >&2
    failed=1
fi
if ldd "$library" | grep -i sqlite >&2; then
    echo "$library is linked with a SQLite library" >&2
    failed=1
fi

# Strings survive stripping: SQLite's source id stands in every library that has SQLite inside.
if grep -qaE '20[0-9]{2}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2} [0-9a-f]{64}' "$library"; then
    echo "$library contains SQLite's source id" >&2
    failed=1
fi
# What it exports could be taken for a function of the host's or of another extension's. crc-fast, a dependency of OpenDAL's S3, exports
# its C functions from whatever it is linked into; build.rs hides them, which has no effect with link-time optimisation.
exported="$(nm -D --defined-only "$library" | awk '{print $NF}' | grep -v '^crc_fast_' | sort | tr '\n' ' ')"
if [ "$exported" != "sqlite3_replvfs_init " ]; then
    echo "$library exports more than its entry point: $exported" >&2
    failed=1
fi
[ "$failed" = 0 ] && echo "no SQLite inside, none needed"
exit "$failed"
