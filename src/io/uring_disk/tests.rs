//! What is particular to a ring; the rest is tested over every backend in `any_disk`, and what an
//! answer means in `requests`.

use super::*;
use crate::base::chunk_pool::{ChunkPool, HeapSlabs, PoolShape};
use crate::io::mio_net::MioNet;
use crate::io::{Net, NetEvent};
use crate::limits::{CHUNK_HEADER_BYTES, DISK_ALIGN_BYTES};
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;

const CHUNK: usize = 16384;
const DEPTH: usize = 8;

/// Runs `test` on a thread for which `call` of the system fails with `errno`, as a seccomp filter
/// has it. `None`, with a word why, where no filter can be set.
pub(crate) fn with_call_failing<T: Send>(
    call: libc::c_long,
    errno: i32,
    test: impl FnOnce() -> T + Send,
) -> Option<T> {
    let run = || match forbid(call, errno) {
        Ok(()) => Some(test()),
        Err(error) => {
            eprintln!("skipped: no seccomp filter can be set: {error}");
            None
        }
    };
    std::thread::scope(|scope| scope.spawn(run).join().unwrap())
}

/// For the calling thread, until it ends.
fn forbid(call: libc::c_long, errno: i32) -> std::io::Result<()> {
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut filter = [
        // The number of the call: is it this one?
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, call as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the calls take plain numbers, and a program that lives until they have returned.
    let outcome = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            | libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    };
    if outcome == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}

fn pool() -> ChunkPool {
    let shape = PoolShape {
        slab_bytes: 64 * CHUNK,
        class_bytes: vec![CHUNK],
        header_bytes: CHUNK_HEADER_BYTES,
    };
    let pool = ChunkPool::new(shape, Rc::new(HeapSlabs));
    assert!(pool.grow(0));
    pool
}

fn write(pool: &ChunkPool, file: FileId, tag: u64) -> DiskRequest {
    let mut writer = pool.take(0).unwrap();
    writer.append(&[&vec![tag as u8; writer.room_bytes()]]);
    let chunk = writer.seal(&[tag as u8; CHUNK_HEADER_BYTES], DISK_ALIGN_BYTES);
    DiskRequest::Write { tag, file, offset: tag * CHUNK as u64, chunks: vec![chunk] }
}

fn or_skip(disk: Result<UringDisk, Refusal>) -> Option<UringDisk> {
    disk.inspect_err(|refusal| eprintln!("skipped: {refusal}")).ok()
}

/// Writes and reads, sleeping in the net's poll until something is told.
fn go_round(disk: &mut UringDisk) {
    let mut net = MioNet::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    net.watch(disk.event()).unwrap();
    let mut wait = |disk: &mut UringDisk| {
        let mut events = Vec::new();
        loop {
            disk.flush();
            if let Some(completion) = disk.poll_completion() {
                return completion;
            }
            // Without a deadline: what is never told hangs, and the test runner says so.
            net.poll(None, &mut events).unwrap();
            assert!(events.iter().all(|event| *event == NetEvent::Woken));
        }
    };
    let pool = pool();
    let file = disk.open("slots").unwrap();
    for round in 0..50 {
        for tag in 0..DEPTH as u64 {
            assert!(disk.submit(write(&pool, file, tag)).is_ok());
        }
        for _ in 0..DEPTH {
            assert!(matches!(wait(disk), DiskCompletion::Written { result: Ok(()), .. }));
        }
        let (offset, into) = (round % DEPTH as u64 * CHUNK as u64, pool.take(0).unwrap());
        let read = DiskRequest::Read { tag: 1, file, offset, bytes: CHUNK, into };
        assert!(disk.submit(read).is_ok());
        match wait(disk) {
            DiskCompletion::Read { into, result: Ok(CHUNK), .. } => {
                let fill = (round % DEPTH as u64) as u8;
                assert!(into.loaded_image() == vec![fill; CHUNK]);
            }
            _ => panic!("only the read is under way"),
        }
    }
}

#[test]
fn a_poll_that_sleeps_is_woken_by_completions() {
    let place = tempfile::tempdir().unwrap();
    let Some(mut disk) = or_skip(UringDisk::new(place.path(), DEPTH)) else { return };
    go_round(&mut disk);
}

#[test]
fn a_kernel_that_defers_nothing_does_the_same() {
    let place = tempfile::tempdir().unwrap();
    let plain = IoUring::builder().build(DEPTH as u32);
    let disk = plain
        .map_err(refused("io_uring_setup"))
        .and_then(|ring| UringDisk::over(ring, false, place.path(), DEPTH));
    let Some(mut disk) = or_skip(disk) else { return };
    go_round(&mut disk);
}

#[test]
fn a_poll_without_completions_is_not_woken() {
    let place = tempfile::tempdir().unwrap();
    let Some(mut disk) = or_skip(UringDisk::new(place.path(), DEPTH)) else { return };
    let mut net = MioNet::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    net.watch(disk.event()).unwrap();
    let mut events = Vec::new();
    disk.flush();
    net.poll(Some(Duration::ZERO), &mut events).unwrap();
    assert!(events.is_empty());
    disk.come_back();
    net.poll(None, &mut events).unwrap();
    assert_eq!(events, [NetEvent::Woken]);
}

#[test]
fn nothing_begins_before_it_is_flushed() {
    let place = tempfile::tempdir().unwrap();
    let Some(mut disk) = or_skip(UringDisk::new(place.path(), DEPTH)) else { return };
    let pool = pool();
    let file = disk.open("slots").unwrap();
    assert!(disk.submit(write(&pool, file, 1)).is_ok());
    assert!(disk.poll_completion().is_none());
    assert_eq!(disk.requests.started(), 0);
    drop(disk);
    assert_eq!(std::fs::metadata(place.path().join("slots")).unwrap().len(), 0);
}

#[test]
fn a_disk_has_so_many_files_and_no_more() {
    let place = tempfile::tempdir().unwrap();
    let Some(mut disk) = or_skip(UringDisk::new(place.path(), DEPTH)) else { return };
    for nth in 0..DISK_FILES_MAX {
        assert_eq!(disk.open(&nth.to_string()).unwrap(), FileId(nth as u32));
    }
    assert_eq!(disk.open("more").unwrap_err().kind(), ErrorKind::QuotaExceeded);
}

#[test]
fn a_system_that_refuses_a_ring_is_named() {
    let place = tempfile::tempdir().unwrap();
    for (call, errno, expected) in [
        (libc::SYS_io_uring_setup, libc::EPERM, "io_uring_setup: Operation not permitted"),
        (libc::SYS_io_uring_setup, libc::ENOSYS, "Linux 5.6 or newer is needed"),
        (libc::SYS_io_uring_setup, libc::ENOMEM, "raise `ulimit -l`"),
        (libc::SYS_io_uring_register, libc::EPERM, "io_uring_register(probe): "),
        (libc::SYS_eventfd2, libc::EMFILE, "eventfd: "),
    ] {
        let refusal = || UringDisk::new(place.path(), DEPTH).err().map(|error| error.to_string());
        let Some(refusal) = with_call_failing(call, errno, refusal) else { return };
        let refusal = refusal.expect("it is refused");
        // Where the system has no ring at all, that comes first.
        assert!(refusal.contains(expected) || refusal.starts_with("io_uring_setup"), "{refusal}");
    }
}

#[test]
fn a_system_that_takes_nothing_is_asked_again_and_never_freed_under() {
    let place = tempfile::tempdir().unwrap();
    let test = || {
        // The filter lets a ring be made, and takes nothing from it.
        let mut disk = or_skip(UringDisk::new(place.path(), DEPTH))?;
        let pool = pool();
        let file = disk.open("slots").unwrap();
        let mut net = MioNet::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        net.watch(disk.event()).unwrap();
        assert!(disk.submit(write(&pool, file, 1)).is_ok());
        for _ in 0..3 {
            disk.flush();
            assert!(disk.poll_completion().is_none());
            assert_eq!(disk.requests.started(), 1);
            let mut events = Vec::new();
            net.poll(None, &mut events).unwrap();
            assert_eq!(events, [NetEvent::Woken]);
        }
        drop(disk);
        // The chunk cannot be known to be out of use.
        pool.shrink(0);
        Some(pool.mapped_bytes())
    };
    let outcome = with_call_failing(libc::SYS_io_uring_enter, libc::EAGAIN, test);
    if let Some(Some(mapped_bytes)) = outcome {
        assert_eq!(mapped_bytes, 64 * CHUNK);
    }
}
