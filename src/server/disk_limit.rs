//! How many bytes may be spilled to disk, where nobody has said it: guessed once, when a data
//! directory is used for the first time, then written down there and read from there ever after.
//! A guess that is made again at every start would shrink by what the last run left behind.
//!
//! The file is one line, such as `forebay disk limit 1: 4096 bytes, crc32c 89abcdef`. The checksum
//! is over what stands before it, up to and with the comma.

use crate::base::checksum::crc32c;
use crate::base::units::show_bytes;
use crate::io::volume;
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};

/// The file's name in the data directory.
pub const FILE_NAME: &str = "disk-limit";
/// Names of spill files begin and end so.
pub const SPILL_FILE_NAMES: (&str, &str) = ("spill-", ".dat");
/// Of what is free, in percent.
const SHARE_PERCENT: u64 = 80;
/// A longer file is none of ours.
const FILE_BYTES_MAX: usize = 128;
const FRONT: &str = "forebay disk limit 1: ";
const BEHIND: &str = " bytes,";
const CHECKSUM: &str = " crc32c ";

/// The limit and who says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskLimit {
    /// Bytes; 0: nothing is spilled.
    pub bytes: u64,
    /// Where the number is from.
    pub source: Source,
}

/// Where a [`DiskLimit`] is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The configuration; the file is neither read nor written.
    Configuration,
    /// The file of an earlier start.
    File,
    /// What is free now. The file was written.
    Guess,
}

/// Why there is no limit. Each is one line and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum DiskLimitError {
    /// It is not what was written.
    #[error(
        "{} is damaged: {reason}; say --disk-limit, or remove the file and the broker takes 80 % \
         of what is free then",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// It cannot be read or written.
    #[error("cannot {verb} {}: {error}; see to it, or say --disk-limit", path.display())]
    System {
        /// `read` or `write`.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// As the system says.
        error: Error,
    },
    /// The system does not say how much is free.
    #[error("cannot tell how much is free in {}: {error}; say --disk-limit", path.display())]
    Free {
        /// The data directory.
        path: PathBuf,
        /// As the system says.
        error: Error,
    },
}

/// The limit for the spill files of a data directory that is ours: what the configuration says, or
/// what was written down at the first start, or 80 % of what is free now, which is then written
/// down. What spill files of earlier runs use counts as free.
///
/// # Errors
/// If the file is damaged or cannot be used. It is never passed over: the next guess might be far
/// from the last.
pub fn resolve(data_dir: &Path, configured: Option<u64>) -> Result<DiskLimit, DiskLimitError> {
    if let Some(bytes) = configured {
        return Ok(DiskLimit { bytes, source: Source::Configuration });
    }
    match read(data_dir)? {
        Some(bytes) => Ok(DiskLimit { bytes, source: Source::File }),
        None => guess(data_dir, data_dir.join(FILE_NAME)),
    }
}

/// What an earlier start has written down; `None` if there is no such file.
///
/// # Errors
/// If the file is damaged or cannot be read.
pub fn read(data_dir: &Path) -> Result<Option<u64>, DiskLimitError> {
    let path = data_dir.join(FILE_NAME);
    match std::fs::read(&path) {
        Ok(text) => match decode(&text) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(reason) => Err(DiskLimitError::Damaged { path, reason }),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(DiskLimitError::System { verb: "read", path, error }),
    }
}

fn guess(data_dir: &Path, path: PathBuf) -> Result<DiskLimit, DiskLimitError> {
    let (prefix, suffix) = SPILL_FILE_NAMES;
    let free = volume::free_bytes(data_dir).and_then(|free_bytes| {
        Ok(free_bytes.saturating_add(volume::used_bytes(data_dir, prefix, suffix)?))
    });
    let free = free.map_err(|error| DiskLimitError::Free { path: data_dir.to_owned(), error })?;
    let bytes = free / 100 * SHARE_PERCENT;
    let written = volume::replace_file(data_dir, FILE_NAME, encode(bytes).as_bytes());
    written.map_err(|error| DiskLimitError::System { verb: "write", path, error })?;
    tracing::info!(
        disk_limit = %show_bytes(bytes),
        "first start in this data directory: 80 % of what is free, written to its file \
         {FILE_NAME}; --disk-limit says otherwise"
    );
    Ok(DiskLimit { bytes, source: Source::Guess })
}

fn encode(bytes: u64) -> String {
    let front = format!("{FRONT}{bytes}{BEHIND}");
    format!("{front}{CHECKSUM}{:08x}\n", crc32c(front.as_bytes()))
}

fn decode(text: &[u8]) -> Result<u64, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > FILE_BYTES_MAX {
        return Err("it is too long");
    }
    let text = std::str::from_utf8(text).map_err(|_| "it is not text")?;
    let number = text.strip_prefix(FRONT).and_then(|rest| rest.split_once(BEHIND));
    let (number, _) = number.ok_or("it does not begin as it should")?;
    let bytes = number.parse().map_err(|_| "its number is none")?;
    // One value has one text: whatever else is changed does not pass.
    if encode(bytes) == text { Ok(bytes) } else { Err("its checksum does not fit") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_start_decides_and_later_ones_abide_by_it() {
        let place = tempfile::tempdir().unwrap();
        let first = resolve(place.path(), None).unwrap();
        assert_eq!(first.source, Source::Guess);
        let free = volume::free_bytes(place.path()).unwrap();
        // Others may use the disk meanwhile; the share is still about the share.
        assert!(first.bytes > free / 2 && first.bytes < free, "{first:?} of {free}");
        let again = resolve(place.path(), None).unwrap();
        assert_eq!(again, DiskLimit { source: Source::File, ..first });
        let said = resolve(place.path(), Some(7)).unwrap();
        assert_eq!(said, DiskLimit { bytes: 7, source: Source::Configuration });
        assert_eq!(resolve(place.path(), None).unwrap(), again);
    }

    #[test]
    fn who_says_a_limit_writes_none_down() {
        let place = tempfile::tempdir().unwrap();
        assert_eq!(resolve(place.path(), Some(0)).unwrap().bytes, 0);
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_spill_files_use_counts_as_free() {
        let place = tempfile::tempdir().unwrap();
        let own = 64 << 20;
        volume::replace_file(place.path(), "spill-0.dat", &vec![1; own as usize]).unwrap();
        let free = volume::free_bytes(place.path()).unwrap();
        let guessed = guess(place.path(), place.path().join(FILE_NAME)).unwrap().bytes;
        let without = free / 100 * SHARE_PERCENT;
        // Others may use the disk meanwhile, but hardly so much.
        assert!(guessed > without + own / 2 && guessed < without + own, "{guessed} {without}");
    }

    #[test]
    fn every_damage_is_an_error_that_names_the_file_and_says_what_to_do() {
        let good = encode(171_798_691_840);
        assert_eq!(decode(good.as_bytes()), Ok(171_798_691_840));
        assert_eq!(decode(encode(0).as_bytes()), Ok(0));
        assert_eq!(decode(encode(u64::MAX).as_bytes()), Ok(u64::MAX));
        for at in 0..good.len() {
            assert!(decode(&good.as_bytes()[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut bad = good.clone().into_bytes();
                bad[at] ^= 1 << bit;
                assert!(decode(&bad).is_err(), "bit {bit} of byte {at}");
            }
        }
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join(FILE_NAME);
        for bad in [&b""[..], b"\0\0\0", &[b'7'; 4096], format!("{good}{good}").as_bytes()] {
            std::fs::write(&path, bad).unwrap();
            let text = resolve(place.path(), None).unwrap_err().to_string();
            assert!(text.contains(path.to_str().unwrap()) && text.contains("remove"), "{text}");
            assert_eq!(text.lines().count(), 1);
            assert_eq!(std::fs::read(&path).unwrap(), bad, "it is left as it is");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_not_a_first_start() {
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir(place.path().join(FILE_NAME)).unwrap();
        let error = resolve(place.path(), None).unwrap_err();
        assert!(matches!(error, DiskLimitError::System { verb: "read", .. }), "{error}");
        let error = resolve(&place.path().join("missing"), None).unwrap_err();
        assert!(matches!(error, DiskLimitError::Free { .. }), "{error}");
    }
}
