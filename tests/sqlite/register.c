/*
 * What makes replvfs the default VFS of SQLite's test programs, where the environment says so (REPLVFS_DEFAULT=1), and tells their fault injection
 * which calls are replvfs's own.
 *
 * The scripts let the n-th allocation or I/O fail, and expect an error, or no difference where SQLite says that it can do without ("benign"). replvfs has
 * handles of its own on a database, through the same VFS; what fails there is its own trouble, which no statement is to feel. So these
 * handles are opened through a VFS beneath replvfs that calls all they do benign. It knows them by their names, which replvfs makes with
 * sqlite3_create_filename(): in the archive that is linked here, that is suite_create_filename(). All other files are the "unix" VFS's, untouched.
 */
#include <replvfs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sqlite3.h"

#ifdef SQLITE_TEST
/* What SQLite's own code uses for it. */
void sqlite3BeginBenignMalloc(void);
void sqlite3EndBenignMalloc(void);
extern int sqlite3_io_error_benign;
#else
/* Nothing is injected. */
#define sqlite3BeginBenignMalloc() ((void)0)
#define sqlite3EndBenignMalloc() ((void)0)
static int sqlite3_io_error_benign;
#endif

static _Thread_local const char *own_name;
static sqlite3_vfs *real_vfs;

typedef int benign;

static benign begin_benign(void)
{
    benign before = sqlite3_io_error_benign;
    sqlite3_io_error_benign = 1;
    sqlite3BeginBenignMalloc();
    return before;
}

static void end_benign(benign before)
{
    sqlite3EndBenignMalloc();
    sqlite3_io_error_benign = before;
}

const char *suite_create_filename(const char *database, const char *journal, const char *wal, int count, const char **parameters)
{
    benign before = begin_benign();
    own_name = sqlite3_create_filename(database, journal, wal, count, parameters);
    end_benign(before);
    return own_name;
}

/* Behind the file of the "unix" VFS: the methods that it has. */
static const sqlite3_io_methods **methods_of(sqlite3_file *file)
{
    return (const sqlite3_io_methods **)((char *)file + ((real_vfs->szOsFile + 15) & ~15));
}

#define OWN(method, declared, passed)                            \
    static int own_##method declared                             \
    {                                                            \
        benign before = begin_benign();                          \
        int code = (*methods_of(file))->x##method passed;        \
        end_benign(before);                                      \
        return code;                                             \
    }

OWN(Close, (sqlite3_file * file), (file))
OWN(Read, (sqlite3_file * file, void *data, int amount, sqlite3_int64 at), (file, data, amount, at))
OWN(Write, (sqlite3_file * file, const void *data, int amount, sqlite3_int64 at), (file, data, amount, at))
OWN(Truncate, (sqlite3_file * file, sqlite3_int64 size), (file, size))
OWN(Sync, (sqlite3_file * file, int flags), (file, flags))
OWN(FileSize, (sqlite3_file * file, sqlite3_int64 *size), (file, size))
OWN(Lock, (sqlite3_file * file, int level), (file, level))
OWN(Unlock, (sqlite3_file * file, int level), (file, level))
OWN(CheckReservedLock, (sqlite3_file * file, int *is), (file, is))
OWN(FileControl, (sqlite3_file * file, int control, void *value), (file, control, value))
OWN(SectorSize, (sqlite3_file * file), (file))
OWN(DeviceCharacteristics, (sqlite3_file * file), (file))
OWN(ShmMap, (sqlite3_file * file, int region, int size, int extend, void volatile **at), (file, region, size, extend, at))
OWN(ShmLock, (sqlite3_file * file, int slot, int count, int flags), (file, slot, count, flags))
OWN(ShmUnmap, (sqlite3_file * file, int deletes), (file, deletes))
OWN(Fetch, (sqlite3_file * file, sqlite3_int64 at, int amount, void **page), (file, at, amount, page))
OWN(Unfetch, (sqlite3_file * file, sqlite3_int64 at, void *page), (file, at, page))

static void own_ShmBarrier(sqlite3_file *file)
{
    (*methods_of(file))->xShmBarrier(file);
}

static const sqlite3_io_methods own_methods = {
    3,           own_Close,     own_Read,  own_Write,             own_Truncate,    own_Sync,       own_FileSize,
    own_Lock,    own_Unlock,    own_CheckReservedLock,            own_FileControl, own_SectorSize, own_DeviceCharacteristics,
    own_ShmMap,  own_ShmLock,   own_ShmBarrier, own_ShmUnmap,     own_Fetch,       own_Unfetch,
};

static int suite_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *out_flags)
{
    benign before;
    int code;

    (void)vfs;
    if (name == NULL || name != own_name)
        return real_vfs->xOpen(real_vfs, name, file, flags, out_flags);
    own_name = NULL;
    before = begin_benign();
    code = real_vfs->xOpen(real_vfs, name, file, flags, out_flags);
    end_benign(before);
    if (code == SQLITE_OK) {
        *methods_of(file) = file->pMethods;
        file->pMethods = &own_methods;
    }
    return code;
}

static sqlite3_vfs suite_vfs;

/*
 * SQLite calls it at the end of sqlite3_initialize(), when it was built with -DSQLITE_EXTRA_INIT=suite_initialized: also after each
 * sqlite3_shutdown(), behind which the "unix" VFS has made itself the default again.
 */
int suite_initialized(const char *unused)
{
    const char *wanted = getenv("REPLVFS_DEFAULT");
    char *error;
    sqlite3_vfs *vfs;

    (void)unused;
    if (wanted == NULL || strcmp(wanted, "1") != 0)
        return SQLITE_OK;
    if (real_vfs == NULL) {
        real_vfs = sqlite3_vfs_find(NULL);
        suite_vfs = *real_vfs;
        suite_vfs.zName = "suite";
        suite_vfs.szOsFile = ((real_vfs->szOsFile + 15) & ~15) + 16;
        suite_vfs.xOpen = suite_open;
        sqlite3_vfs_register(&suite_vfs, 1);
    }
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
