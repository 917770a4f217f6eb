//! What the process may use and what it owns: memory of the machine or cgroup, open files, the
//! data directory.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

/// Memory that this process may use: the machine's, or less if a cgroup says so.
pub fn memory_bytes() -> u64 {
    let limits = cgroup_limits(Path::new("/proc/self/cgroup"), Path::new("/sys/fs/cgroup"));
    limits.into_iter().fold(machine_memory_bytes(), u64::min)
}

/// Raises the number of files that the process may open to what the system lets it; gives it back.
pub fn raise_open_files() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the answer, alone ours.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return 0;
    }
    let before = limit.rlim_cur;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` holds what the system said, with its own maximum.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        return before;
    }
    limit.rlim_cur
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another broker has it.
    #[error("data dir in use: {} is held by {holder}; stop it, or give another one", path.display())]
    InUse {
        /// Which.
        path: PathBuf,
        /// The process that has it, as far as it is known.
        holder: String,
    },
    /// It cannot be made, read or written.
    #[error("cannot use the data dir {}: {error}", path.display())]
    System {
        /// Which.
        path: PathBuf,
        /// As the system says.
        error: std::io::Error,
    },
}

/// The data directory, ours alone until this is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the directory if it is missing and locks it.
    ///
    /// # Errors
    /// If another process has it, or the system refuses.
    pub fn lock(path: &Path) -> Result<DataDir, DataDirError> {
        let system = |error| DataDirError::System { path: path.to_owned(), error };
        std::fs::create_dir_all(path).map_err(system)?;
        let mut options = File::options();
        // Not truncated: the file names its holder, who may not be us.
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(path.join("forebay.lock")).map_err(system)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // Only for the message; the lock has already decided.
                let read = file.read_to_string(&mut text);
                let holder = match text.trim() {
                    pid if read.is_ok() && pid.parse::<u32>().is_ok() => format!("process {pid}"),
                    _ => "another process".to_owned(),
                };
                return Err(DataDirError::InUse { path: path.to_owned(), holder });
            }
            Err(TryLockError::Error(error)) => return Err(system(error)),
        }
        file.set_len(0).map_err(system)?;
        file.rewind().map_err(system)?;
        writeln!(file, "{}", std::process::id()).map_err(system)?;
        Ok(DataDir { path: path.to_owned(), _lock: file })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn machine_memory_bytes() -> u64 {
    // SAFETY: both calls only ask.
    let (pages, page_bytes) =
        unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    match (u64::try_from(pages), u64::try_from(page_bytes)) {
        (Ok(pages), Ok(page_bytes)) => pages.saturating_mul(page_bytes),
        _ => u64::MAX,
    }
}

/// The limits of our cgroup and of those above it, in either version; none without cgroups.
/// Files that are missing or say `max` limit nothing.
fn cgroup_limits(membership: &Path, root: &Path) -> Vec<u64> {
    let Ok(membership) = std::fs::read_to_string(membership) else { return Vec::new() };
    let mut limits = Vec::new();
    for line in membership.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else { continue };
        let (mount, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        // Inside a container the path may not be visible; its root then shows the own group.
        let group = Path::new(group.trim_start_matches('/'));
        for above in group.ancestors() {
            let text = std::fs::read_to_string(mount.join(above).join(file)).unwrap_or_default();
            limits.extend(text.trim().parse::<u64>());
        }
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_dir_has_one_holder_at_a_time() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("deep/data");
        let held = DataDir::lock(&path).unwrap();
        assert_eq!(held.path(), path);
        let text = DataDir::lock(&path).unwrap_err().to_string();
        let expected = format!(
            "data dir in use: {} is held by process {}; stop it, or give another one",
            path.display(),
            std::process::id()
        );
        assert_eq!(text, expected);
        drop(held);
        DataDir::lock(&path).unwrap();
    }

    #[test]
    fn a_data_dir_that_cannot_be_is_an_error_of_one_line() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("file");
        std::fs::write(&file, "").unwrap();
        let text = DataDir::lock(&file.join("dir")).unwrap_err().to_string();
        assert!(text.starts_with("cannot use the data dir ") && !text.contains('\n'), "{text}");
    }

    #[test]
    fn there_is_memory_and_there_are_files() {
        assert!(memory_bytes() > 64 << 20);
        assert!(raise_open_files() >= 64);
    }

    #[test]
    fn limits_of_both_versions_and_of_groups_above() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path();
        let write = |name: &str, text: &str| {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("membership", "5:cpu:/a\n4:memory,x:/v1/job\n0::/slice/unit\n");
        write("memory/v1/job/memory.limit_in_bytes", "300\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        write("slice/unit/memory.max", "max\n");
        write("slice/memory.max", "200\n");
        let mut limits = cgroup_limits(&root.join("membership"), root);
        limits.sort_unstable();
        assert_eq!(limits, [200, 300, 9_223_372_036_854_771_712]);
        assert!(cgroup_limits(&root.join("missing"), root).is_empty());
    }
}
