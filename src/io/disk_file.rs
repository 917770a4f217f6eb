//! One file of a data directory: how it is opened, how large it is, and the system calls on it
//! that block.

use crate::io::disk_table::{Extent, Step, Transfer};
use crate::limits::DISK_ALIGN_BYTES;
use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The directory of a disk.
pub(super) struct Directory {
    path: PathBuf,
    /// Once a file was opened.
    opened: Option<File>,
}

/// An open file.
pub(super) struct DiskFile {
    pub(super) file: File,
    /// Opened with O_DIRECT: offsets and lengths must stay aligned.
    pub(super) direct: bool,
}

impl Directory {
    pub(super) fn new(path: &Path) -> Directory {
        Directory { path: path.to_owned(), opened: None }
    }

    /// Opens a file, made if it is missing.
    pub(super) fn open(&mut self, name: &str) -> std::io::Result<DiskFile> {
        if name.is_empty() || name.contains('/') || name == "." || name == ".." {
            return Err(Error::new(ErrorKind::InvalidInput, "not the name of a file"));
        }
        let file = DiskFile::open(&self.path.join(name))?;
        if self.opened.is_none() {
            self.opened = Some(File::open(&self.path)?);
        }
        // So that a file that was just made is still there after a crash.
        self.opened.iter().try_for_each(File::sync_all)?;
        Ok(file)
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

impl DiskFile {
    /// With O_DIRECT if the file system takes it.
    fn open(path: &Path) -> std::io::Result<DiskFile> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut direct_options = options.clone();
        direct_options.custom_flags(libc::O_DIRECT);
        if let Ok(file) = direct_options.open(path)
            && takes_aligned_reads(&file)
        {
            return Ok(DiskFile { file, direct: true });
        }
        Ok(DiskFile { file: options.open(path)?, direct: false })
    }

    /// Bytes from the start that have blocks, as far as the file system says; else those before
    /// the first hole, where blocks that were never written may count as one.
    pub(super) fn block_bytes(&self) -> std::io::Result<u64> {
        let metadata = self.file.metadata()?;
        if metadata.len() == 0 {
            return Ok(0);
        }
        if let Some(bytes) = self.mapped_bytes() {
            return Ok(bytes.min(metadata.len()));
        }
        // SAFETY: the call takes no memory; the file is open, and its position is of no use to us.
        let hole = unsafe { libc::lseek(self.file.as_raw_fd(), 0, libc::SEEK_HOLE) };
        match u64::try_from(hole) {
            Ok(hole) => Ok(hole.min(metadata.len())),
            Err(_) => Err(Error::last_os_error()),
        }
    }

    /// Where the extents that begin at the start end; `None` if the file system does not say.
    fn mapped_bytes(&self) -> Option<u64> {
        let mut end = 0;
        loop {
            let mut map = ExtentMap::from(end);
            // SAFETY: `map` is laid out as the system has it, with as many extents as it says, and
            // is alone ours.
            let outcome =
                unsafe { libc::ioctl(self.file.as_raw_fd(), ExtentMap::REQUEST, &raw mut map) };
            if outcome != 0 {
                return None;
            }
            let begin = end;
            let extents = &map.extents[..ExtentMap::EXTENTS.min(map.mapped as usize)];
            for extent in extents {
                if extent.offset > end {
                    return Some(end);
                }
                end = end.max(extent.offset.saturating_add(extent.bytes));
                if extent.flags & MappedExtent::LAST != 0 {
                    return Some(end);
                }
            }
            if end == begin {
                return Some(end);
            }
        }
    }

    pub(super) fn write(&self, transfer: &mut Transfer) -> Result<usize, ErrorKind> {
        loop {
            let parts = transfer.parts();
            // SAFETY: the transfer's parts are alive and unchanging (see `DiskTable`), and no more
            // of them than the system takes (`limits`).
            let outcome = unsafe {
                let (count, offset) = (parts.len() as libc::c_int, transfer.offset() as i64);
                libc::pwritev(self.file.as_raw_fd(), parts.as_ptr(), count, offset)
            };
            let Some(bytes) = bytes_of(outcome)? else { continue };
            if let Step::Ended(result) = transfer.handle_written(bytes, self.direct) {
                return result;
            }
        }
    }

    /// Fewer bytes than asked for only at the end of the file.
    pub(super) fn read(&self, transfer: &mut Transfer) -> Result<usize, ErrorKind> {
        loop {
            let parts = transfer.parts();
            // SAFETY: the transfer's parts are alive and nobody else's (see `DiskTable`), and no
            // more of them than the system takes (`limits`).
            let outcome = unsafe {
                let (count, offset) = (parts.len() as libc::c_int, transfer.offset() as i64);
                libc::preadv(self.file.as_raw_fd(), parts.as_ptr(), count, offset)
            };
            let Some(bytes) = bytes_of(outcome)? else { continue };
            if let Step::Ended(result) = transfer.handle_read(bytes, self.direct) {
                return result;
            }
        }
    }

    /// Not tried again after an error: the system may have dropped what it could not write.
    pub(super) fn sync(&self) -> Result<usize, ErrorKind> {
        self.file.sync_data().map(|()| 0).map_err(|error| error.kind())
    }

    pub(super) fn allocate(&self, extent: Extent) -> Result<usize, ErrorKind> {
        self.fallocate(0, extent).or_else(allocated_as_written)
    }

    pub(super) fn release(&self, extent: Extent) -> Result<usize, ErrorKind> {
        self.fallocate(RELEASE_MODE, extent)
    }

    fn fallocate(&self, mode: libc::c_int, extent: Extent) -> Result<usize, ErrorKind> {
        loop {
            let (offset, bytes) = (extent.offset as i64, extent.bytes as i64);
            // SAFETY: the call takes no memory; the file is open.
            let outcome = unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, bytes) };
            if bytes_of(outcome as isize)?.is_some() {
                return Ok(0);
            }
        }
    }
}

/// What FS_IOC_FIEMAP takes and gives (linux/fiemap.h).
#[repr(C)]
struct ExtentMap {
    offset: u64,
    bytes: u64,
    flags: u32,
    /// How many of `extents` the system has filled.
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [MappedExtent; ExtentMap::EXTENTS],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct MappedExtent {
    offset: u64,
    place: u64,
    bytes: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_words: [u32; 3],
}

impl MappedExtent {
    /// The file's last one.
    const LAST: u32 = 1;
}

impl ExtentMap {
    const EXTENTS: usize = 64;
    /// `_IOWR('f', 11, struct fiemap)`.
    const REQUEST: libc::Ioctl = 0xC020_660B_u32 as libc::Ioctl;
    /// First writes out what has no place yet.
    const SYNC: u32 = 1;

    /// Asks for the extents from `offset` on.
    fn from(offset: u64) -> ExtentMap {
        ExtentMap {
            offset,
            bytes: u64::MAX - offset,
            flags: ExtentMap::SYNC,
            mapped: 0,
            count: ExtentMap::EXTENTS as u32,
            reserved: 0,
            extents: [MappedExtent::default(); ExtentMap::EXTENTS],
        }
    }
}

const _: () = assert!(size_of::<MappedExtent>() == 56 && size_of::<ExtentMap>() == 32 + 64 * 56);

/// Gives back blocks and leaves the length.
pub(super) const RELEASE_MODE: libc::c_int = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

/// A file system that cannot be asked for blocks gives them to each write.
pub(super) fn allocated_as_written(error: ErrorKind) -> Result<usize, ErrorKind> {
    if error == ErrorKind::Unsupported { Ok(0) } else { Err(error) }
}

/// What a call has brought; `None` if it was interrupted.
fn bytes_of(outcome: isize) -> Result<Option<usize>, ErrorKind> {
    match usize::try_from(outcome) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(_) => match Error::last_os_error().kind() {
            ErrorKind::Interrupted => Ok(None),
            kind => Err(kind),
        },
    }
}

/// Some file systems take O_DIRECT and then refuse every read or want larger blocks than ours.
fn takes_aligned_reads(file: &File) -> bool {
    #[repr(align(4096))]
    struct Block([u8; DISK_ALIGN_BYTES]);
    let mut block = Box::new(Block([0; DISK_ALIGN_BYTES]));
    file.read_at(&mut block.0, 0).is_ok()
}
