#!/bin/sh
# Restores the database DATABASE from REPLICA if it is not there, and then becomes the program. The very first start, with nothing to restore, has to be
# told: FIRST_START=1. A store that cannot be reached would look the same.
#
# The program's first open would restore it as well (restore=if-missing). This verifies it, shows how far it is, and ends the container with the reason if it fails.
set -eu

if [ ! -s "$DATABASE" ] && [ "${FIRST_START:-0}" != 1 ]; then
    replvfs restore "$REPLICA" "$DATABASE" --verify
fi
exec "$@"
