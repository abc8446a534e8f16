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
 * Everything else works through SQL: PRAGMA replvfs_flush, replvfs_txid, replvfs_acked, replvfs_status.
 *
 * All functions may be called from any thread. None of them throws or unwinds into the caller.
 */
#ifndef REPLVFS_H
#define REPLVFS_H

#ifdef __cplusplus
extern "C" {
#endif

/* The results are those of SQLite's codes of the same name. */
#define REPLVFS_OK 0
#define REPLVFS_ERROR 1

/*
 * Registers the VFSes "replvfs" and "replvfs-remote" with the SQLite that this program is linked with. They stay for the life of
 * the process. A second call does nothing, and succeeds.
 *
 * Returns REPLVFS_OK or REPLVFS_ERROR. In case of an error, *error is set to a text that says what to do, to be freed
 * with replvfs_free(); otherwise to NULL. error may be NULL.
 */
int replvfs_register(char **error);

/* The version of this library, such as "0.1.0". Static: not to be freed. */
const char *replvfs_version(void);

/* Frees a text that a function of this library has returned. NULL is allowed. */
void replvfs_free(char *text);

#ifdef __cplusplus
}
#endif

#endif /* REPLVFS_H */
