"""The host "Python, apsw" of tests/hosts/table.py, which tells what each command is to do. apsw has a SQLite of its own."""

import os
import signal
import sys

import apsw

command, name = sys.argv[1:]
apsw.config(apsw.SQLITE_CONFIG_LOG, lambda code, message: print(message, file=sys.stderr, flush=True))


def transactions(db, count):
    for _ in range(count):
        with db:
            db.executemany("INSERT INTO t(v) VALUES (?)", [(os.urandom(50).hex(),) for _ in range(20)])


def flush(db):
    print("flushed", db.execute("PRAGMA replvfs_flush").get, flush=True)


def show(db):
    print("rows", *db.execute("SELECT count(*), sum(id) FROM t").get, flush=True)


def run():
    loader = apsw.Connection(":memory:")
    loader.enable_load_extension(True)
    loader.load_extension(os.environ["EXTENSION"])
    loader.close()
    db = apsw.Connection(name, flags=apsw.SQLITE_OPEN_URI | apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)
    if command == "write":
        print("sqlite", apsw.sqlite_lib_version())
        assert db.pragma("journal_mode", "wal") == "wal"
        db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
        transactions(db, 5)
        flush(db)
        transactions(db, 3)
        print("waiting", flush=True)
        signal.pause()
    elif command == "resume":
        show(db)
        transactions(db, 1)
        flush(db)
    elif command == "read":
        show(db)
    else:
        db.execute("PRAGMA schema_version").fetchall()
    db.close()


if command == "refuse":
    try:
        run()
    except apsw.Error as error:
        print(f"refused: {error}")
    else:
        sys.exit("it was not refused")
else:
    run()
