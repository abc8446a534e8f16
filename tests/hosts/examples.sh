#!/bin/bash
# The examples that are not Rust or C, run as their READMEs say, each until its database is restored from what it wrote. c.sh runs the C one.
# usage: examples.sh libreplvfs.so replvfs [a `notes` of examples/sqlx]    after prepare.sh target/hosts
set -euo pipefail
root="$(realpath "$(dirname "$0")/../..")"
library="$(realpath "$1")"
replvfs="$(realpath "$2")"
sqlx="${3:+$(realpath "$3")}"
hosts="$root/target/hosts"
python="$hosts/python/bin/python"
work="$(mktemp -d)"
server=""
cleanup() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
cp -r "$root/examples" "$work/examples"
rm -rf "$work/examples/node/node_modules"
cd "$work"

fail() { echo "FAILED: $*" >&2; exit 1; }

# What the replica has: restored, and read without replvfs.
restored() {
    "$replvfs" restore "$1" restored.db --force --verify
    [ "$(sqlite3 restored.db "SELECT group_concat(text, ', ') FROM $2")" = "$3" ] || fail "what is restored from $1"
}

echo "-- shell"
examples/shell/notes.sh "$library" "fs://$work/shell" | tee shell.out
grep -qx 'restored: buy milk, the milk is sour' shell.out || fail "what is restored"
grep -qx 'before: buy milk' shell.out || fail "what was before"
if examples/shell/notes.sh "$library" "fs://$work/shell&no=parameter" >/dev/null; then fail "a script whose database cannot be opened goes on"; fi
rm -f notes.db*

"$python" "$root/replicator/packaging/wheel.py" "$library" 0.0.0 "$work" >/dev/null
"$python" -m pip install --quiet --disable-pip-version-check --no-index --target "$work/packages" ./replvfs-*.whl
export PYTHONPATH="$work/packages"

echo "-- Python"
"$python" examples/python/notes.py "fs://$work/python" "buy milk" "the milk is sour"
rm notes.db
"$python" examples/python/notes.py "fs://$work/python" "buy another one" | tee python.out
grep -qx '3 buy another one' python.out || fail "what was there before is missing"
restored "fs://$work/python" note "buy milk, the milk is sour, buy another one"
rm -f notes.db*

echo "-- Django"
export REPLICA="fs://$work/django" DATABASE="$work/django.db"
"$python" examples/python/django/manage.py migrate --verbosity 0
"$python" examples/python/django/manage.py add_note "buy milk"
rm django.db
"$python" examples/python/django/manage.py add_note "the milk is sour" | tee django.out
grep -qx '2 the milk is sour' django.out || fail "what was there before is missing"
"$python" examples/python/django/manage.py check
restored "$REPLICA" notes_note "buy milk, the milk is sour"

# Starts a command that is a server at $port, and waits until it answers.
port="$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
web() { "$python" -c 'import sys, urllib.parse, urllib.request
path, *fields = sys.argv[1:]
data = urllib.parse.urlencode(dict(field.split("=", 1) for field in fields)).encode() if fields else None
print(urllib.request.urlopen(f"http://127.0.0.1:'"$port"'/{path}", data, timeout=60).read().decode())' "$@"; }
serve() {
    "$@" >server.log 2>&1 &
    server=$!
    for ((tries = 0; tries < 300; tries++)); do
        if web notes >/dev/null 2>&1; then return; fi
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    cat server.log
    fail "$* does not answer"
}
stop() {
    kill "-$1" "$server"
    wait "$server" || true
    server=""
}

echo "-- Flask, in what a container does at its start"
export REPLICA="fs://$work/flask" DATABASE="$work/flask.db" PATH="$(dirname "$replvfs"):$PATH"
flask=(examples/docker/entrypoint.sh "$python" -m flask --app examples/python/flask_app run --port "$port")
if "${flask[@]}" >refused.out 2>&1; then fail "it starts though there is nothing to restore"; fi
cat refused.out
FIRST_START=1 serve "${flask[@]}"
web notes "text=buy milk"
web notes "text=the milk is sour"
web flush now=1
stop KILL
rm flask.db*
serve "${flask[@]}"
web notes | tee flask.out
grep -q 'the milk is sour' flask.out || fail "what was there before is missing"
stop TERM
restored "$REPLICA" note "buy milk, the milk is sour"

echo "-- Node"
export EXTENSION="$library" NODE_PATH="$hosts/node/node_modules"
"$hosts/node/node" examples/node/notes.js "fs://$work/node/{name}" "buy milk" "the milk is sour"
rm notes.db
"$hosts/node/node" examples/node/notes.js "fs://$work/node/{name}" "buy another one" | tee node.out
grep -qx '3 buy another one' node.out || fail "what was there before is missing"
[ "$("$hosts/node/node" --no-warnings examples/node/past.js "fs://$work/node/notes.db" 2)" = "1 buy milk" ] || fail "what was there after transaction 2"
restored "fs://$work/node/notes.db" note "buy milk, the milk is sour, buy another one"

echo "-- systemd"
mkdir -p units
sed -e "s|/usr/bin/replvfs|$replvfs|" -e "s|/usr/lib/notes/notes.py|/dev/null|" examples/systemd/notes.service >units/notes.service
systemd-analyze verify --man=no "$work/units/notes.service"
"$replvfs" check-config examples/systemd/replvfs.toml --database /var/lib/notes/notes.db

if [ -n "$sqlx" ]; then
    echo "-- sqlx"
    "$sqlx" | tee sqlx.out
    grep -qx 'now: buy milk, the milk is sour' sqlx.out || fail "what is in the database"
    grep -qx 'before: buy milk' sqlx.out || fail "what was in it"
fi
echo "examples: passed"
