//! A data directory, held by its lock: which files of journals it has, and their bytes.

use crate::base::pages::Pages;
use crate::cli::{Exit, Failure};
use crate::io::process::{DataDir, DataDirError};
use crate::limits::DISK_ALIGN_BYTES;
use crate::server::stores;
use crate::storage::journal;
use crate::store_tool::unusable;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// See the module.
pub struct Directory {
    held: DataDir,
}

/// Bytes that are asked for at a time.
const READ_BYTES: usize = 4 << 20;

impl Directory {
    /// Takes the lock. Makes no directory, and nothing in one that is no broker's.
    ///
    /// # Errors
    /// If a broker has it, or it is none.
    pub fn open(path: &Path) -> Result<Directory, Failure> {
        let names = names(path).map_err(|error| {
            unusable(format!("cannot read the data dir {}: {error}", path.display()))
        })?;
        let is_ours = |name: &String| {
            ["forebay.lock", "disk-limit", stores::FILE_NAME].contains(&name.as_str())
                || journal::file_numbers(name).is_some()
        };
        if !names.iter().any(is_ours) {
            let text = format!("{} is no data dir of a broker", path.display());
            return Err(unusable(text).hint("say the one that serve was given with --data-dir"));
        }
        let held = DataDir::lock(path).map_err(|error| match error {
            DataDirError::InUse { path, holder } => {
                let text = format!("data dir in use: {} is held by {holder}", path.display());
                Failure::new(Exit::Usage, "data_dir_in_use", text).hint("stop it first")
            }
            other => unusable(other),
        })?;
        Ok(Directory { held })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.held.path()
    }

    /// Numbers of the files of all journals, by store.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn journals(&self) -> Result<BTreeMap<u32, Vec<u32>>, Failure> {
        let mut journals: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for name in names(self.path()).map_err(|error| self.cannot("read", &error))? {
            if let Some((store, file)) = journal::file_numbers(&name) {
                journals.entry(store).or_default().push(file);
            }
        }
        journals.values_mut().for_each(|files| files.sort_unstable());
        Ok(journals)
    }

    /// Length of a file.
    ///
    /// # Errors
    /// Why it cannot be read at all.
    pub fn file_len(&self, name: &str) -> std::io::Result<u64> {
        let file = File::open(self.path().join(name))?;
        let metadata = file.metadata()?;
        if metadata.is_file() {
            Ok(metadata.len())
        } else {
            Err(std::io::ErrorKind::IsADirectory.into())
        }
    }

    /// The first bytes of a file, at most so many, with zeros up to a page and for what the device
    /// refuses to read; the offsets of that.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn read(&self, name: &str, bytes_max: u64) -> std::io::Result<(Pages, Vec<u64>)> {
        let file = File::open(self.path().join(name))?;
        let bytes = file.metadata()?.len().min(bytes_max) as usize;
        let mut pages = Pages::zeroed(bytes.next_multiple_of(DISK_ALIGN_BYTES));
        let mut unreadable = Vec::new();
        // As a recovery reads: what it does not get, we do not get.
        for at in (0..bytes).step_by(READ_BYTES) {
            let into = &mut pages.as_mut_slice()[at..bytes.min(at + READ_BYTES)];
            if file.read_exact_at(into, at as u64).is_err() {
                into.fill(0);
                unreadable.push(at as u64);
            }
        }
        Ok((pages, unreadable))
    }

    /// The system refuses something with the directory.
    pub fn cannot(&self, verb: &str, error: &std::io::Error) -> Failure {
        let text = format!("cannot {verb} {}: {error}", self.path().display());
        Failure::new(Exit::Failed, "system", text)
    }
}

fn names(path: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path)? {
        // A name that is no text is none of ours.
        names.extend(entry?.file_name().into_string().ok());
    }
    Ok(names)
}
