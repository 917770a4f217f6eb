//! The files that a disk has open, by number, and the directory that they are in.

use crate::io::FileId;
use crate::io::disk_file::DiskFile;
use crate::limits::DISK_FILES_MAX;
use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// See the module.
pub(super) struct DiskFiles {
    path: PathBuf,
    /// The directory, once a file was opened.
    opened: Option<File>,
    /// `None`: the number is free.
    files: Vec<Option<Arc<DiskFile>>>,
}

impl DiskFiles {
    /// None yet, in a directory that exists.
    pub(super) fn new(directory: &Path) -> DiskFiles {
        DiskFiles { path: directory.to_owned(), opened: None, files: Vec::new() }
    }

    /// Opens a file, made if it is missing, under the lowest number that is free.
    pub(super) fn open(&mut self, name: &str) -> Result<FileId> {
        if name.is_empty() || name.contains('/') || name == "." || name == ".." {
            return Err(Error::new(ErrorKind::InvalidInput, "not the name of a file"));
        }
        let free = self.files.iter().position(Option::is_none).unwrap_or(self.files.len());
        if free == DISK_FILES_MAX {
            return Err(Error::new(ErrorKind::QuotaExceeded, "too many files of one disk"));
        }
        let file = DiskFile::open(&self.path.join(name))?;
        if self.opened.is_none() {
            self.opened = Some(File::open(&self.path)?);
        }
        // So that a file that was just made is still there after a crash.
        self.opened.iter().try_for_each(File::sync_all)?;
        self.files.resize(self.files.len().max(free + 1), None);
        self.files[free] = Some(Arc::new(file));
        Ok(FileId(free as u32))
    }

    /// An open file.
    ///
    /// # Panics
    /// If it is not open.
    pub(super) fn at(&self, file: FileId) -> &Arc<DiskFile> {
        let open = self.files.get(file.0 as usize).and_then(Option::as_ref);
        open.expect("a file that is open")
    }

    /// Frees a number; the file is closed as soon as nobody uses it.
    ///
    /// # Panics
    /// If it is not open.
    pub(super) fn close(&mut self, file: FileId) {
        let open = self.files.get_mut(file.0 as usize).and_then(Option::take);
        assert!(open.is_some(), "closed, and not open");
    }

    /// Names of files that begin so, in order.
    pub(super) fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            // What is not UTF-8 was not made here.
            if let Ok(name) = entry.file_name().into_string()
                && name.starts_with(prefix)
                && !entry.file_type()?.is_dir()
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Free bytes of the file system, without those that only root may use.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        let directory = self.opened.as_ref()?;
        // SAFETY: plain numbers, for which all zeros is a value.
        let mut answer: libc::statvfs = unsafe { std::mem::zeroed() };
        // SAFETY: `answer` is a valid place for the answer, alone ours; the file is open.
        let outcome = unsafe { libc::fstatvfs(directory.as_raw_fd(), &raw mut answer) };
        (outcome == 0).then(|| answer.f_bavail.saturating_mul(answer.f_frsize))
    }
}
