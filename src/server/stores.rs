//! Which stores a data directory has. Their number is fixed when the directory is used for the
//! first time, as many as there are shards then; each gets a random id, by which its files are told
//! from those of other directories. Written down in a file of a line for each, and one before them:
//!
//! ```text
//! forebay stores 1: 2, crc32c 89abcdef
//! 0f1e2d3c4b5a69788796a5b4c3d2e1f0
//! 00112233445566778899aabbccddeeff
//! ```
//!
//! The checksum is over the ids.

use crate::base::checksum::crc32c;
use crate::format::journal::StoreId;
use crate::io::volume;
use crate::limits::SHARDS_MAX;
use std::io::{Error, ErrorKind, Read};
use std::path::{Path, PathBuf};

/// The file's name in the data directory.
pub const FILE_NAME: &str = "stores";
const FRONT: &str = "forebay stores 1: ";
/// A longer file is none of ours.
const FILE_BYTES_MAX: usize = 64 + 33 * SHARDS_MAX as usize;

/// Why nobody knows which stores there are. Each is one line and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoresError {
    /// It is not what was written.
    #[error(
        "{} is damaged: {reason}; put back a copy of it, or have it made again: forebay store \
         repair {}",
        path.display(),
        parent(path)
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A journal is there, and the file is not.
    #[error(
        "{} is missing, though there is a journal ({journal}); put back a copy of it, or have it \
         made again: forebay store repair {}",
        path.display(),
        parent(path)
    )]
    Missing {
        /// The file.
        path: PathBuf,
        /// A file that belongs to a store.
        journal: String,
    },
    /// It cannot be read or written.
    #[error("cannot {verb} {}: {error}", path.display())]
    System {
        /// `read` or `write`.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// As the system says.
        error: Error,
    },
}

/// The stores of a data directory that is ours; as many as `count` if it has none yet.
///
/// # Errors
/// See [`StoresError`].
pub fn resolve(data_dir: &Path, count: u32) -> Result<Vec<StoreId>, StoresError> {
    match read(data_dir)? {
        Some(ids) => Ok(ids),
        None => make(data_dir, data_dir.join(FILE_NAME), count),
    }
}

/// The stores of a data directory; `None` if it has no such file.
///
/// # Errors
/// If the file is damaged or cannot be read.
pub fn read(data_dir: &Path) -> Result<Option<Vec<StoreId>>, StoresError> {
    let path = data_dir.join(FILE_NAME);
    match std::fs::read(&path) {
        Ok(text) => match decode(&text) {
            Ok(ids) => Ok(Some(ids)),
            Err(reason) => Err(StoresError::Damaged { path, reason }),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoresError::System { verb: "read", path, error }),
    }
}

/// Writes the file, whole or not at all.
///
/// # Errors
/// As the system says.
pub fn write(data_dir: &Path, ids: &[StoreId]) -> Result<(), StoresError> {
    let written = volume::replace_file(data_dir, FILE_NAME, encode(ids).as_bytes());
    let path = data_dir.join(FILE_NAME);
    written.map_err(|error| StoresError::System { verb: "write", path, error })
}

/// Ids that no other store has.
///
/// # Errors
/// If the system gives no random numbers.
pub fn new_ids(count: usize) -> Result<Vec<StoreId>, Error> {
    let mut ids = vec![StoreId::default(); count];
    let mut source = std::fs::File::open("/dev/urandom")?;
    for id in &mut ids {
        source.read_exact(&mut id.0)?;
    }
    Ok(ids)
}

fn make(data_dir: &Path, path: PathBuf, count: u32) -> Result<Vec<StoreId>, StoresError> {
    let system = |verb| {
        let path = path.clone();
        move |error| StoresError::System { verb, path, error }
    };
    for entry in std::fs::read_dir(data_dir).map_err(system("read"))? {
        let name = entry.map_err(system("read"))?.file_name().to_string_lossy().into_owned();
        if name.starts_with("journal-") {
            return Err(StoresError::Missing { path, journal: name });
        }
    }
    let ids = new_ids(count as usize).map_err(system("write"))?;
    write(data_dir, &ids)?;
    Ok(ids)
}

fn parent(path: &Path) -> std::path::Display<'_> {
    path.parent().unwrap_or(path).display()
}

fn encode(ids: &[StoreId]) -> String {
    let mut lines = String::new();
    for id in ids {
        id.0.iter().for_each(|byte| lines.push_str(&format!("{byte:02x}")));
        lines.push('\n');
    }
    format!("{FRONT}{}, crc32c {:08x}\n{lines}", ids.len(), crc32c(lines.as_bytes()))
}

fn decode(text: &[u8]) -> Result<Vec<StoreId>, &'static str> {
    if text.len() > FILE_BYTES_MAX {
        return Err("it is too long");
    }
    let text = std::str::from_utf8(text).map_err(|_| "it is no text")?;
    let (front, lines) = text.split_once('\n').ok_or("it is empty or cut off")?;
    let front = front.strip_prefix(FRONT).ok_or("it is of another kind or version")?;
    let (count, crc) = front.split_once(", crc32c ").ok_or("its first line is not whole")?;
    let crc = u32::from_str_radix(crc, 16).map_err(|_| "its checksum is no number")?;
    if crc != crc32c(lines.as_bytes()) {
        return Err("its checksum is another");
    }
    let ids: Option<Vec<StoreId>> = lines.lines().map(id).collect();
    let ids = ids.ok_or("a line is no id")?;
    match count.parse() {
        Ok(count) if ids.len() == count && (1..=SHARDS_MAX as usize).contains(&count) => Ok(ids),
        _ => Err("it has another number of stores than it says"),
    }
}

fn id(line: &str) -> Option<StoreId> {
    let mut id = StoreId::default();
    if line.len() != 2 * id.0.len() {
        return None;
    }
    for (nth, byte) in id.0.iter_mut().enumerate() {
        *byte = u8::from_str_radix(line.get(2 * nth..2 * nth + 2)?, 16).ok()?;
    }
    Some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_stores_stays_as_it_was_made() {
        let place = tempfile::tempdir().unwrap();
        let made = resolve(place.path(), 3).unwrap();
        assert_eq!(resolve(place.path(), 8).unwrap(), made);
        assert!(made.len() == 3 && made[0] != made[1] && made[1] != made[2]);
    }

    #[test]
    fn any_damage_is_an_error() {
        let place = tempfile::tempdir().unwrap();
        resolve(place.path(), 2).unwrap();
        let path = place.path().join(FILE_NAME);
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x04;
            std::fs::write(&path, &bad).unwrap();
            let text = resolve(place.path(), 2).unwrap_err().to_string();
            assert!(text.contains("is damaged: "), "byte {at}: {text}");
            std::fs::write(&path, &good[..at]).unwrap();
            assert!(resolve(place.path(), 2).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_journal_without_its_stores_is_not_begun_anew() {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("journal-0-000001.log"), "").unwrap();
        let text = resolve(place.path(), 1).unwrap_err().to_string();
        assert!(text.contains("is missing, though there is a journal (journal-0"), "{text}");
    }
}
