"""The hosts "Python, sqlite3" and "Python, pysqlite3" of tests/hosts/table.py, which tells what each command is to do.

The module that is named first is the system's SQLite for `sqlite3`, and has a SQLite of its own for `pysqlite3`.
"""

import importlib
import os
import signal
import sys
import threading

module, command, name = sys.argv[1:]
sqlite3 = importlib.import_module(module)


def load():
    loader = sqlite3.connect(":memory:")
    loader.enable_load_extension(True)
    loader.load_extension(os.environ["EXTENSION"])
    loader.close()


def connect():
    return sqlite3.connect(name, uri=True, isolation_level=None, timeout=60)


def transactions(db, count):
    for _ in range(count):
        db.execute("BEGIN IMMEDIATE")
        db.executemany("INSERT INTO t(v) VALUES (?)", [(os.urandom(50).hex(),) for _ in range(20)])
        db.execute("COMMIT")


def flush(db):
    print("flushed", db.execute("PRAGMA replvfs_flush").fetchone()[0], flush=True)


def show(db):
    print("rows", *db.execute("SELECT count(*), sum(id) FROM t").fetchone(), flush=True)


def thread():
    load()
    db = connect()
    transactions(db, 5)
    db.close()


def run():
    load()
    db = connect()
    if command == "write":
        print("sqlite", sqlite3.sqlite_version)
        assert db.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
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
    elif command == "threads":
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
        db.close()
        threads = [threading.Thread(target=thread) for _ in range(4)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        db = connect()
        # A connection that has read nothing yet cannot flush.
        show(db)
        flush(db)
    else:
        db.execute("PRAGMA schema_version").fetchall()
    db.close()


if command == "refuse":
    try:
        run()
    except sqlite3.Error as error:
        print(f"refused: {error}")
    else:
        sys.exit("it was not refused")
else:
    run()
