/*
 * replvfs: continuous replication for SQLite, from inside its VFS.
 *
 * Link with libreplvfs.a. Call replvfs_register() once, then open databases by URI with sqlite3_open_v2() and
 * SQLITE_OPEN_URI:
 *
 *     file:app.db?vfs=replvfs&replica=s3://bucket/app
 *
 * or, to read a replica without restoring it,
 *
 *     file:app.db?vfs=replvfs-remote&replica=s3://bucket/app&at=5%20minutes%20ago
 *
 * Everything works through SQL: PRAGMA replvfs_flush, replvfs_wait, replvfs_durability, replvfs_txid, replvfs_acked,
 * replvfs_status. The functions below are for those that have no connection at hand.
 *
 * All functions may be called from any thread. None of them throws or unwinds into the caller.
 */
#ifndef REPLVFS_H
#define REPLVFS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The results are those of SQLite's codes of the same name. */
#define REPLVFS_OK 0
#define REPLVFS_ERROR 1
#define REPLVFS_IOERR 10
#define REPLVFS_NOTFOUND 12
#define REPLVFS_MISUSE 21

/*
 * Registers the VFSes "replvfs" and "replvfs-remote" with the SQLite that this program is linked with. They stay for the life of
 * the process. A second call does nothing, and succeeds.
 *
 * Returns REPLVFS_OK or REPLVFS_ERROR. In case of an error, *error is set to a text that says what to do, to be freed
 * with replvfs_free(); otherwise to NULL. error may be NULL.
 */
int replvfs_register(char **error);

/*
 * Uploads at once what is committed in the database at this path, by whatever process of this machine, and waits until it can
 * be restored, for at most the database's timeout (30 s unless set otherwise). The database has to be open in this process. Where a
 * connection of this process has it for itself (locking_mode=EXCLUSIVE), use PRAGMA replvfs_flush on that one.
 *
 * Returns REPLVFS_OK, REPLVFS_IOERR if that was not confirmed (the upload goes on), REPLVFS_NOTFOUND if no connection of this
 * process has opened the database through replvfs, or it has no replica, REPLVFS_MISUSE if database is NULL, REPLVFS_ERROR. error: as
 * for replvfs_register().
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

/* The version of this library, such as "0.1.0". Static: not to be freed. */
const char *replvfs_version(void);

/* Frees a text that a function of this library has returned. NULL is allowed. */
void replvfs_free(char *text);

#ifdef __cplusplus
}
#endif

#endif /* REPLVFS_H */
