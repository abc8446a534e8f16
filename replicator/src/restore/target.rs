//! The file that is restored to: made beside its place under a name that nobody can guess, put there when it is whole.
//! Owns what may be replaced and what may not; knows nothing of pages.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use replvfs_vfs::resume::Fingerprint;
use tempfile::NamedTempFile;

use super::{RestoreError, state};

/// What SQLite would read together with a database of the same name.
const LEFTOVERS: [&str; 3] = ["-wal", "-journal", "-shm"];

/// A database file that is not in its place yet. Dropped, it is gone.
#[derive(Debug)]
pub(super) struct TargetFile {
    place: PathBuf,
    folder: PathBuf,
    force: bool,
    temporary: NamedTempFile,
    file: Arc<File>,
}

impl TargetFile {
    /// Checks that the place is free, or may be replaced, and makes an empty file beside it.
    pub(super) fn create(place: &Path, force: bool) -> Result<TargetFile, RestoreError> {
        // As SQLite creates databases; the umask applies. Who may not read what is replaced must not read what comes.
        TargetFile::with_mode(place, force, mode_of(place).unwrap_or(0o644))
    }

    /// An empty file beside a database that stays: who may not read that one must not read what will be in it.
    pub(super) fn aside(place: &Path) -> Result<TargetFile, RestoreError> {
        TargetFile::with_mode(place, true, 0o600)
    }

    #[cfg_attr(not(unix), allow(unused_variables))]
    fn with_mode(place: &Path, force: bool, mode: u32) -> Result<TargetFile, RestoreError> {
        let name = place
            .file_name()
            .filter(|_| !place.is_dir())
            .ok_or_else(|| RestoreError::File {
                action: "restore to",
                path: place.to_owned(),
                error: io::Error::from(io::ErrorKind::IsADirectory),
            })?;
        let folder = match place.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        if !force {
            check_free(place)?;
        }
        let mut prefix = OsString::from(".");
        prefix.push(name);
        prefix.push(".");
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(".replvfs-restore");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(fs::Permissions::from_mode(mode));
        }
        let failed = |error| RestoreError::File {
            action: "create a file in",
            path: folder.clone(),
            error,
        };
        let temporary = builder.tempfile_in(&folder).map_err(failed)?;
        let file = Arc::new(temporary.as_file().try_clone().map_err(failed)?);
        Ok(TargetFile {
            place: place.to_owned(),
            folder,
            force,
            temporary,
            file,
        })
    }

    /// To write to, from any thread.
    pub(super) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// The path of the file while it is being written.
    pub(super) fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// The folder of both.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where it will be.
    pub(super) fn place(&self) -> &Path {
        &self.place
    }

    /// Makes the content durable and puts it in its place. Returns by what it will be known as long as nobody changes it, if the file
    /// system allows to tell.
    ///
    /// With force, leftovers are removed first and durably: a crash between the two steps then leaves the old database
    /// without its WAL, never the new one with the WAL of the old.
    pub(super) fn put_in_place(self) -> Result<Option<Fingerprint>, RestoreError> {
        let TargetFile {
            place,
            folder,
            force,
            temporary,
            file: _,
        } = self;
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |error| RestoreError::File { action, path, error }
        };
        let apart = state::set_apart(temporary.as_file());
        temporary
            .as_file()
            .sync_all()
            .map_err(failed("sync", temporary.path()))?;
        if force {
            for leftover in LEFTOVERS.map(|suffix| beside(&place, suffix)) {
                match fs::remove_file(&leftover) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(failed("remove", &leftover)(error));
                    }
                    _ => {}
                }
            }
            sync_folder(&folder)?;
            temporary
                .persist(&place)
                .map_err(|error| failed("replace", &place)(error.error))?;
        } else {
            check_free(&place)?;
            put_where_nothing_is(temporary, &place)?;
        }
        sync_folder(&folder)?;
        Ok(state::print(&place, apart))
    }
}

/// Without replacing a file that appeared since.
fn put_where_nothing_is(temporary: NamedTempFile, place: &Path) -> Result<(), RestoreError> {
    let exists = || RestoreError::Exists { path: place.to_owned() };
    let failed = |error| RestoreError::File {
        action: "create",
        path: place.to_owned(),
        error,
    };
    let refused = match temporary.persist_noclobber(place) {
        Ok(_) => return Ok(()),
        Err(refused) if refused.error.kind() == io::ErrorKind::AlreadyExists => return Err(exists()),
        Err(refused) => refused,
    };
    // A file system without links and exclusive renames: the name is taken by an empty file first.
    match File::create_new(place) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(exists()),
        Err(error) => return Err(failed(error)),
    }
    refused.file.persist(place).map(|_| ()).map_err(|refused| {
        // Best effort: the name was free before.
        let _ = fs::remove_file(place);
        failed(refused.error)
    })
}

fn check_free(place: &Path) -> Result<(), RestoreError> {
    let exists = |path: &Path| match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(RestoreError::File {
            action: "look for",
            path: path.to_owned(),
            error,
        }),
    };
    if exists(place)? {
        return Err(RestoreError::Exists { path: place.to_owned() });
    }
    for path in LEFTOVERS.map(|suffix| beside(place, suffix)) {
        if exists(&path)? {
            return Err(RestoreError::Leftover { path });
        }
    }
    Ok(())
}

/// Who may do what with the file that is there.
#[cfg(unix)]
fn mode_of(place: &Path) -> Option<u32> {
    use std::os::unix::fs::PermissionsExt;
    Some(fs::metadata(place).ok()?.permissions().mode() & 0o666)
}

#[cfg(not(unix))]
fn mode_of(_place: &Path) -> Option<u32> {
    None
}

fn beside(place: &Path, suffix: &str) -> PathBuf {
    let mut path = place.as_os_str().to_owned();
    path.push(suffix);
    PathBuf::from(path)
}

#[cfg(unix)]
pub(super) fn sync_folder(folder: &Path) -> Result<(), RestoreError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| RestoreError::File {
            action: "sync the folder",
            path: folder.to_owned(),
            error,
        })
}

/// Other systems have no such call.
#[cfg(not(unix))]
pub(super) fn sync_folder(_folder: &Path) -> Result<(), RestoreError> {
    Ok(())
}
