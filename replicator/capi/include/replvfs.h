/*
 * replvfs: continuous replication for SQLite, from inside its VFS.
 *
 * Link with libreplvfs.a and a SQLite (3.32 or newer, not built with SQLITE_THREADSAFE=0), be it the system's or sqlite3.c compiled into
 * the program. Call replvfs_register() once, then open databases by URI with sqlite3_open_v2() and SQLITE_OPEN_URI:
 *
 *     file:app.db?vfs=replvfs&replica=s3://bucket/app
 *
 * or, to read a replica without restoring it,
 *
 *     file:app.db?vfs=replvfs-remote&replica=s3://bucket/app&at=5%20minutes%20ago
 *
 * Everything works through SQL: PRAGMA replvfs_flush, replvfs_wait, replvfs_durability, replvfs_txid, replvfs_acked,
 * replvfs_status. The functions below are for those that have no connection at hand, for the end of a program, and for restores.
 *
 * Texts are UTF-8, and end with a NUL; paths may be any bytes, and are taken as sqlite3_open_v2() takes them, without "file:". Texts that
 * are passed are only read, and only before the function returns.
 *
 * Errors: a function that returns int returns one of the codes below. If its `error` is not NULL, *error is set in any case: to NULL if it returns
 * REPLVFS_OK, else to a text of one line that says what failed and what to do about it. That text is the caller's, to be freed with replvfs_free().
 * *error is not read, nor freed: a text of an earlier call has to be freed before.
 *
 * Threads: all functions may be called from any thread, also at the same time, but not from within SQLite's callbacks of a connection that somebody
 * waits for then, nor from a signal handler. None of them throws or unwinds into the caller. The library starts threads of its own, when a database is opened
 * through it for the first time; they stay, and wait without taking time when there is nothing to do.
 *
 * Warnings and errors are in SQLite's error log (SQLITE_CONFIG_LOG), which may be called by threads of the library, and never under a lock of its own. With
 * REPLVFS_LOG=info in the environment it writes a line each on standard error as well. With REPLVFS_METRICS=127.0.0.1:9464 it shows its metrics to Prometheus there, at
 * /metrics, from the moment on at which it begins to replicate a database or to read a replica; without it no port is opened.
 *
 * fork(): a child has none of its parent's replication. It may open databases anew, and call all functions for those; a connection that it has from its
 * parent must not be used, as ever with SQLite. replvfs_register() need not be called again.
 */
#ifndef REPLVFS_H
#define REPLVFS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The codes are SQLite's of the same names: REPLVFS_OK is SQLITE_OK, and so on. */
#define REPLVFS_OK 0
/* Something has to be changed first: a setting, a permission. Or a bug in replvfs; the text says so. */
#define REPLVFS_ERROR 1
/* The store, or a file, does not work now; perhaps it does later. */
#define REPLVFS_IOERR 10
/* The replica is damaged. */
#define REPLVFS_CORRUPT 11
/* There is no such database, replica or state. */
#define REPLVFS_NOTFOUND 12
/* A file is in the way. */
#define REPLVFS_CANTOPEN 14
/* An argument is wrong. */
#define REPLVFS_MISUSE 21

/*
 * Registers the VFSes "replvfs" and "replvfs-remote" with the SQLite that this program is linked with, and reads the environment (REPLVFS_REPLICA and so
 * on). They stay for the life of the process; databases that name no VFS do without them, unless a setting says otherwise. A second call does nothing, and
 * succeeds. To be called after sqlite3_config(), if that is called; calls sqlite3_initialize().
 *
 * Returns REPLVFS_OK or REPLVFS_ERROR.
 */
int replvfs_register(char **error);

/*
 * Uploads at once what is committed in the database at this path, by whatever process of this machine, and waits until it can
 * be restored, for at most the database's timeout (30 s unless set otherwise). The database has to be open in this process. Where a
 * connection of this process has it for itself (locking_mode=EXCLUSIVE), use PRAGMA replvfs_flush on that one.
 *
 * Returns REPLVFS_OK, REPLVFS_IOERR if that was not confirmed (the upload goes on), REPLVFS_NOTFOUND if no connection of this
 * process has opened the database through replvfs, or it has no replica, REPLVFS_MISUSE if database is NULL, REPLVFS_ERROR.
 */
int replvfs_flush(const char *database, char **error);

/*
 * Waits until the transaction with this number (as PRAGMA replvfs_txid gives it) can be restored, and hurries nothing. Otherwise as
 * replvfs_flush().
 */
int replvfs_wait(const char *database, uint64_t txid, char **error);

/*
 * The JSON object that PRAGMA replvfs_status gives for the database at this path, to be freed with replvfs_free(); NULL where
 * replvfs_flush() would return REPLVFS_NOTFOUND or REPLVFS_MISUSE. Never waits for the store.
 */
char *replvfs_status_json(const char *database);

/* For replvfs_restore(), as txid: the newest state, or that of the time. */
#define REPLVFS_NEWEST (-1)

/*
 * For replvfs_restore(), as flags. Replace what is at the path, and remove the -wal, -journal and -shm beside it; nobody may have
 * that database open.
 */
#define REPLVFS_RESTORE_FORCE 0x1u
/* Run SQLite's integrity check before the file appears. */
#define REPLVFS_RESTORE_VERIFY 0x2u

/*
 * Restores a state of the database in a replica to a new file. The file is written beside its final name, synced, and renamed when it is whole: after an error
 * everything is as it was. It may be opened with the same replica then: the newest state goes on with the history, an earlier one begins a new generation.
 *
 *   replica   its URI, as `replica` in the URI of a database, but an & in it stays an &
 *   path      the file to make
 *   at        NULL, or a time: the state after the last transaction that was committed by then. RFC 3339 ("2026-01-02T03:04:05Z", without an offset UTC), or
 *             "5 minutes ago". txid is REPLVFS_NEWEST then
 *   txid      REPLVFS_NEWEST, or the number of a transaction (0 or more): the state after it
 *   flags     0, or REPLVFS_RESTORE_FORCE and REPLVFS_RESTORE_VERIFY
 *   restored  NULL, or where the number of the last transaction in the file is stored, if all went well
 *
 * Returns REPLVFS_OK; what a user should know nevertheless is in SQLite's log (SQLITE_CONFIG_LOG) as SQLITE_WARNING. REPLVFS_CANTOPEN if there is a file
 * already, REPLVFS_NOTFOUND if the replica is not there, or has no such state, REPLVFS_CORRUPT if an object in the replica is damaged or missing, or
 * REPLVFS_RESTORE_VERIFY found fault, REPLVFS_IOERR if the store did not answer or the file could not be written, REPLVFS_MISUSE if replica or path is
 * NULL, a text is not UTF-8, a time cannot be read, a flag is unknown, or both a time and a transaction are given, REPLVFS_ERROR.
 *
 * Needs no replvfs_register(). Waits for the store as long as it answers at all: there is no limit on the whole.
 */
int replvfs_restore(const char *replica, const char *path, const char *at, int64_t txid, unsigned int flags, uint64_t *restored,
                    char **error);

/*
 * For the end of a program: uploads at once what is committed in the databases of this process, and waits until all of it can be restored, for at most
 * timeout_ms milliseconds, for all of them together. 0 starts the uploads, and tells how it stands. Best called when the connections are closed: a close waits for
 * the store for close_timeout (5 s) only, and the upload goes on behind it; whoever ends the process then ends the upload.
 *
 * Nothing ends by it. Connections that are open can be used on, what they commit afterwards is uploaded as ever, the VFSes stay registered and the
 * threads stay, since SQLite gives no way to tell that it will not need them any more. May be called again. Of a database that is open, all counts that is
 * committed by whatever process of this machine; of one that is closed, what this process has committed.
 *
 * Returns REPLVFS_OK when all of it is in the replicas, also if there are no databases; REPLVFS_IOERR if that was not confirmed for some of them, which the text
 * names (what is missing stays in their WALs, and is uploaded when they are opened the next time); REPLVFS_ERROR.
 */
int replvfs_shutdown(uint32_t timeout_ms, char **error);

/* The version of this library, such as "0.1.0". Static: not to be freed. */
const char *replvfs_version(void);

/* Frees a text that a function of this library has returned. NULL is allowed. */
void replvfs_free(char *text);

#ifdef __cplusplus
}
#endif

#endif /* REPLVFS_H */
