//! One file of a data directory: how it is opened, how large it is, and the system calls on it
//! that block.

use crate::io::disk_table::{Extent, Keep, Step, Transfer};
use crate::limits::DISK_ALIGN_BYTES;
use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// An open file.
pub(super) struct DiskFile {
    pub(super) file: File,
    /// Opened with O_DIRECT: offsets and lengths must stay aligned.
    pub(super) direct: bool,
    /// It refused a write that is to keep itself: a sync follows each of them instead.
    refuses_dsync: AtomicBool,
}

impl DiskFile {
    /// With O_DIRECT if the file system takes it.
    pub(super) fn open(path: &Path) -> std::io::Result<DiskFile> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut direct_options = options.clone();
        direct_options.custom_flags(libc::O_DIRECT);
        if let Ok(file) = direct_options.open(path)
            && takes_aligned_reads(&file)
        {
            return Ok(DiskFile::new(file, true));
        }
        Ok(DiskFile::new(options.open(path)?, false))
    }

    fn new(file: File, direct: bool) -> DiskFile {
        DiskFile { file, direct, refuses_dsync: AtomicBool::new(false) }
    }

    /// Length, holes included.
    pub(super) fn file_len(&self) -> std::io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Reads until `into` is full or the file ends.
    pub(super) fn read_now(&self, offset: u64, into: &mut [u8]) -> std::io::Result<usize> {
        let numbers = [offset, into.as_ptr().addr() as u64, into.len() as u64];
        assert!(numbers.iter().all(|number| number.is_multiple_of(DISK_ALIGN_BYTES as u64)));
        let mut done = 0;
        while done < into.len() {
            match self.file.read_at(&mut into[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(bytes) => done += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            // A direct read stops inside a block only where the file does.
            if self.direct && !done.is_multiple_of(DISK_ALIGN_BYTES) {
                break;
            }
        }
        Ok(done)
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

    pub(super) fn write(&self, transfer: &mut Transfer, keep: Keep) -> Result<usize, ErrorKind> {
        let mut dsync = keep != Keep::Later && !self.refuses_dsync.load(Ordering::Relaxed);
        let bytes = loop {
            match self.write_some(transfer, dsync) {
                Ok(bytes) => {
                    if let Step::Ended(result) = transfer.handle_written(bytes, self.direct) {
                        break result?;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if dsync && refuses_dsync(&error) => {
                    self.refuses_dsync.store(true, Ordering::Relaxed);
                    dsync = false;
                }
                Err(error) => return Err(error.kind()),
            }
        };
        if keep != Keep::Later && !dsync {
            self.sync()?;
        }
        Ok(bytes)
    }

    /// One call; the device keeps what it wrote if `dsync`.
    fn write_some(&self, transfer: &Transfer, dsync: bool) -> std::io::Result<usize> {
        let parts = transfer.parts();
        let (file, count) = (self.file.as_raw_fd(), parts.len() as libc::c_int);
        let offset = transfer.offset() as libc::off_t;
        // SAFETY: the transfer's parts are alive and unchanging (see `DiskTable`), and no more of
        // them than the system takes (`limits`).
        let outcome = unsafe {
            if dsync {
                libc::pwritev2(file, parts.as_ptr(), count, offset, libc::RWF_DSYNC)
            } else {
                libc::pwritev(file, parts.as_ptr(), count, offset)
            }
        };
        usize::try_from(outcome).map_err(|_| Error::last_os_error())
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

/// A write with RWF_DSYNC failed so because of that flag: the kernel does not know it, or the file
/// system does not take it.
pub(super) fn refuses_dsync(error: &Error) -> bool {
    let errnos = [libc::EOPNOTSUPP, libc::EINVAL, libc::ENOSYS];
    error.raw_os_error().is_some_and(|errno| errnos.contains(&errno))
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
