//! The file system that the data directory is on: how much is free and how much of it is ours, and
//! small files that are written whole or not at all. All of it blocks: for boot and for threads
//! that are no shard's.

use std::ffi::CString;
use std::fs::File;
use std::io::{Error, ErrorKind, Result, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes of a block as `st_blocks` counts them, on every file system.
const STAT_BLOCK_BYTES: u64 = 512;

/// Bytes that this process may still write to the file system that `path` is on.
///
/// # Errors
/// As the system says.
pub fn free_bytes(path: &Path) -> Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut answer = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends with a zero, and `answer` is a place for the answer, alone ours.
    if unsafe { libc::statvfs(path.as_ptr(), answer.as_mut_ptr()) } != 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it has filled the answer.
    let answer = unsafe { answer.assume_init() };
    Ok(answer.f_bavail.saturating_mul(answer.f_frsize))
}

/// Bytes on disk of the files of `directory` whose names begin and end so.
///
/// # Errors
/// As the system says; a file that goes away meanwhile uses nothing.
pub fn used_bytes(directory: &Path, prefix: &str, suffix: &str) -> Result<u64> {
    let mut bytes = 0_u64;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_ours = |name: &str| name.starts_with(prefix) && name.ends_with(suffix);
        if !name.to_str().is_some_and(is_ours) {
            continue;
        }
        match entry.metadata() {
            Ok(metadata) => bytes += metadata.blocks() * STAT_BLOCK_BYTES,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

/// Removes those files of `directory` whose names are picked.
///
/// # Errors
/// As the system says.
pub fn remove_files(directory: &Path, picked: impl Fn(&str) -> bool) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(&picked) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Puts a file with these bytes under `name`. After a crash there is the old file, the new one or
/// none, as before; never a part. On return the device has it.
///
/// The new bytes are written beside the old ones, so this fails where the file system is full.
///
/// # Errors
/// As the system says. The old file is untouched then.
pub fn replace_file(directory: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let (path, new) = (directory.join(name), directory.join(format!("{name}.new")));
    let written = (|| {
        let mut file = File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()
    })();
    if let Err(error) = written.and_then(|()| std::fs::rename(&new, &path)) {
        // Whatever there is of it is of no use; it may never have been made.
        drop(std::fs::remove_file(&new));
        return Err(error);
    }
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_leaves_nothing_beside_it() {
        let place = tempfile::tempdir().unwrap();
        for text in ["first", "the second one"] {
            replace_file(place.path(), "it", text.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(place.path().join("it")).unwrap(), text);
        }
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_replaced_stays_as_it_was() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("it");
        std::fs::create_dir_all(path.join("a directory is in the way")).unwrap();
        replace_file(place.path(), "it", b"x").unwrap_err();
        assert!(path.is_dir());
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
        replace_file(&place.path().join("missing"), "it", b"x").unwrap_err();
    }

    #[test]
    fn space_is_counted_in_blocks_of_files_with_the_right_names() {
        let place = tempfile::tempdir().unwrap();
        assert!(free_bytes(place.path()).unwrap() > 0);
        free_bytes(&place.path().join("missing")).unwrap_err();
        for (name, bytes) in [("spill-0.dat", 70_000), ("spill-1.dat", 1), ("other.dat", 1 << 20)] {
            replace_file(place.path(), name, &vec![1; bytes]).unwrap();
        }
        // A hole is no use of the disk.
        let sparse = File::create(place.path().join("spill-2.dat")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        let used = used_bytes(place.path(), "spill-", ".dat").unwrap();
        assert!((70_001..1 << 20).contains(&used), "{used}");
    }
}
