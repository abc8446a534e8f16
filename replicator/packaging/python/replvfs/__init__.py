"""Continuous replication for SQLite, from inside its VFS.

    import sqlite3, replvfs

    replvfs.load()
    db = sqlite3.connect("file:app.db?vfs=replvfs&replica=s3://bucket/app", uri=True)
"""

import pathlib
import sqlite3

__all__ = ["EXTENSION", "load"]

#: The loadable extension, for other modules that load extensions into a SQLite.
EXTENSION = str(pathlib.Path(__file__).with_name("replvfs.so"))


def load(connection=None):
    """Adds the VFSes ``replvfs`` and ``replvfs-remote`` to the SQLite of this process, for all connections that are opened from now on.

    They stay for the life of the process; a second call does nothing. ``connection`` is any connection of the ``sqlite3`` module, or of another one with the same
    methods and a SQLite of its own; without one, a database in memory is opened for a moment. Loading of extensions is off for it afterwards.

    Raises ``sqlite3.OperationalError`` if SQLite refuses, and ``sqlite3.NotSupportedError`` if this Python was built without loadable extensions.
    """
    if connection is None:
        connection = sqlite3.connect(":memory:")
        try:
            load(connection)
        finally:
            connection.close()
        return
    if not hasattr(connection, "enable_load_extension"):
        raise sqlite3.NotSupportedError("this Python was built without loadable extensions of SQLite: take another one")
    connection.enable_load_extension(True)
    try:
        connection.load_extension(EXTENSION)
    finally:
        connection.enable_load_extension(False)
