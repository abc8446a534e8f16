/*
 * What makes replvfs the default VFS of SQLite's test programs, where the environment says so (REPLVFS_DEFAULT=1).
 *
 * SQLite calls it at the end of sqlite3_initialize(), when it was built with -DSQLITE_EXTRA_INIT=suite_initialized: also after each
 * sqlite3_shutdown(), behind which the "unix" VFS has made itself the default again.
 */
#include <replvfs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sqlite3.h"

int suite_initialized(const char *unused)
{
    const char *wanted = getenv("REPLVFS_DEFAULT");
    char *error;
    sqlite3_vfs *vfs;

    (void)unused;
    if (wanted == NULL || strcmp(wanted, "1") != 0)
        return SQLITE_OK;
    if (replvfs_register(&error) != REPLVFS_OK) {
        fprintf(stderr, "replvfs: %s\n", error);
        exit(70);
    }
    vfs = sqlite3_vfs_find("replvfs-default");
    if (vfs == NULL) {
        fputs("replvfs is not registered\n", stderr);
        exit(70);
    }
    return sqlite3_vfs_register(vfs, 1);
}
