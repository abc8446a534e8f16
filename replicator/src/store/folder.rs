//! Creation of objects in a folder: at once exclusive, whole and durable; and deletion that is durable, too.
//!
//! OpenDAL's `fs` is either exclusive (it writes in place) or atomic (it checks, then renames over); a log slot needs both. So the object
//! is written beside, synced, and put into its slot by `link(2)`, which refuses an existing name; then the folder is synced.
//! On file systems without hard links a rename that refuses an existing name gives the same. Reading: OpenDAL's `fs` takes 2 MiB for whatever it reads, and with
//! hundreds of databases that begin together an allocator gives little of that back. Everything else of `fs://` goes through OpenDAL.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;

use super::{Body, Created, TEMP_FOLDER, TEMP_LIFETIME, TEMP_PREFIX};

/// The folder of one replica.
#[derive(Debug)]
pub(super) struct Folder {
    root: PathBuf,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    swept: bool,
    /// Folders whose own entries are known to be on disk, up to the root.
    durable: HashSet<PathBuf>,
}

impl Folder {
    pub(super) fn new(root: PathBuf) -> Folder {
        Folder {
            root,
            known: Mutex::default(),
        }
    }

    /// Blocks on the disk.
    pub(super) fn create(&self, path: &str, body: &Body) -> io::Result<Created> {
        let created = self.try_create(path, body);
        if created
            .as_ref()
            .is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        {
            // A folder went away under us: the next attempt looks at all of them again.
            *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Known::default();
            if !self.root.is_dir() {
                return Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    "the replica's folder is gone; mount its disk, or make the folder again",
                ));
            }
        }
        created
    }

    /// What stands behind `start`, but no more than `limit` bytes. Blocks on the disk.
    pub(super) fn read(&self, path: &str, start: u64, limit: u64) -> io::Result<Bytes> {
        let mut options = File::options();
        options.read(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt;
            // A pipe in the folder would be waited for.
            options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
        }
        let mut file = options.open(self.root.join(path))?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is not a file"));
        }
        let there = metadata.len().saturating_sub(start).min(limit);
        let room = usize::try_from(there).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(room)
            .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        file.seek(SeekFrom::Start(start))?;
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes.into())
    }

    fn try_create(&self, path: &str, body: &Body) -> io::Result<Created> {
        let slot = self.root.join(path);
        let home = slot.parent().unwrap_or(&self.root).to_owned();
        let temp_folder = self.root.join(TEMP_FOLDER);
        self.prepare(&home, &temp_folder)?;
        if fs::symlink_metadata(&slot).is_ok() {
            sync_folder(&home)?;
            return Ok(Created::Exists);
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix(TEMP_PREFIX);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let mut temp = builder.tempfile_in(&temp_folder)?;
        match body {
            Body::Bytes(bytes) => temp.write_all(bytes)?,
            Body::File(file, len) => {
                let copied = io::copy(&mut super::body::body_reader(file, *len)?, temp.as_file_mut())?;
                if copied != *len {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
        temp.as_file().sync_all()?;
        let created = put(temp, &slot)?;
        // Also when it was there already: its creator may have died before this.
        sync_folder(&home)?;
        Ok(created)
    }

    /// Blocks on the disk. Folders stay, even empty ones: somebody may be about to put something into them.
    pub(super) fn delete(&self, path: &str) -> io::Result<()> {
        let slot = self.root.join(path);
        match fs::remove_file(&slot) {
            Ok(()) => sync_parent(&slot),
            // Whoever deleted it may have died before this.
            Err(error) if error.kind() == io::ErrorKind::NotFound => match sync_parent(&slot) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                result => result,
            },
            Err(error) => Err(error),
        }
    }

    fn prepare(&self, home: &Path, temp_folder: &Path) -> io::Result<()> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.swept {
            ensure_folder(temp_folder)?;
            sweep(temp_folder, SystemTime::now());
            known.swept = true;
        }
        if known.durable.contains(home) {
            return Ok(());
        }
        let Ok(below) = home.strip_prefix(&self.root) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let mut folder = self.root.clone();
        for part in below {
            folder.push(part);
            // The root is never made here: when it is gone, its disk may just not be mounted.
            ensure_folder(&folder)?;
            sync_parent(&folder)?;
        }
        known.durable.insert(home.to_owned());
        Ok(())
    }
}

fn put(temp: tempfile::NamedTempFile, slot: &Path) -> io::Result<Created> {
    match fs::hard_link(temp.path(), slot) {
        Ok(()) => return Ok(Created::New),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(Created::Exists),
        // No hard links here (FAT, some FUSE and network file systems): each says so with another error.
        Err(_) => {}
    }
    match temp.persist_noclobber(slot) {
        Ok(_) => Ok(Created::New),
        Err(refused) if refused.error.kind() == io::ErrorKind::AlreadyExists => Ok(Created::Exists),
        Err(refused)
            if matches!(
                refused.error.kind(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported
            ) =>
        {
            Err(io::Error::new(
                refused.error.kind(),
                format!(
                    "{}; the file system must allow hard links, or renames that refuse an existing name",
                    refused.error
                ),
            ))
        }
        Err(refused) => Err(refused.error),
    }
}

fn ensure_folder(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// Removes what crashes left. Whatever fails here will be tried again by the next process.
fn sweep(temp_folder: &Path, now: SystemTime) {
    let Ok(entries) = fs::read_dir(temp_folder) else {
        return;
    };
    for entry in entries.flatten() {
        let ours = entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(OsStr::new(TEMP_PREFIX).as_encoded_bytes());
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let old = modified.is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age > TEMP_LIFETIME));
        if ours && old {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Makes the entry of `path` in its folder durable.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => sync_folder(parent),
        None => Ok(()),
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder)?.sync_all() {
        // Some network file systems cannot sync a folder; their entries are the server's care.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_old_files_of_ours_are_swept() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["replvfs-a", "other"] {
            fs::write(folder.path().join(name), b"x").expect("a file");
        }
        sweep(folder.path(), SystemTime::now());
        assert_eq!(fs::read_dir(folder.path()).expect("lists").count(), 2);
        sweep(folder.path(), SystemTime::now() + TEMP_LIFETIME * 2);
        let left: Vec<_> = fs::read_dir(folder.path())
            .expect("lists")
            .flatten()
            .map(|e| e.file_name())
            .collect();
        assert_eq!(left, ["other"]);
    }
}
