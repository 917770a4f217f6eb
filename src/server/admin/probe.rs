//! Whether the data directory can be written, found out by writing: a thread that belongs to no
//! shard writes a small file there and has the device keep it, again and again. It shares nothing
//! with what the shards write but the disk, so it sees a disk that is full, read-only or gone also
//! while nothing is spilled, and that it is well again without anybody having to spill.

use crate::io::Clock;
use crate::io::clock::SystemClock;
use crate::io::volume;
use crate::limits::{PROBE_BYTES, PROBE_INTERVAL_MS};
use crate::server::admin::Health;
use crate::shard::mailbox::{Commands, SpillHealth};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

/// The file's name in the data directory.
const FILE_NAME: &str = "probe";

/// Starts the thread. It ends when the sender is dropped, unless the system holds it.
///
/// # Errors
/// If the system refuses the thread.
pub fn start(
    data_dir: PathBuf,
    health: Arc<Health>,
    mailboxes: Vec<Commands>,
    mut clock: SystemClock,
) -> std::io::Result<SyncSender<()>> {
    let (stop, stopped) = sync_channel::<()>(1);
    let interval = Duration::from_millis(PROBE_INTERVAL_MS);
    let run = move || {
        loop {
            health.disk().begin(clock.now().mono);
            let outcome = probe(&data_dir, &mailboxes);
            let said = outcome.clone().err();
            if health.disk().end(clock.now().mono, outcome) {
                match said {
                    Some(reason) => tracing::error!("not ready: the data directory: {reason}"),
                    None => tracing::info!("ready again: the data directory can be written"),
                }
            }
            let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(interval) else { return };
        }
    };
    std::thread::Builder::new().name("probe".to_owned()).spawn(run)?;
    Ok(stop)
}

/// Writes once, and looks how the shards' writing and reading goes.
fn probe(data_dir: &Path, mailboxes: &[Commands]) -> Result<(), String> {
    // New bytes beside the old ones: on a full file system that fails.
    volume::replace_file(data_dir, FILE_NAME, &[b'.'; PROBE_BYTES])
        .map_err(|error| format!("{error} (probe in {})", data_dir.display()))?;
    let failing = mailboxes.iter().position(|mailbox| mailbox.spill() == SpillHealth::Failing);
    failing.map_or(Ok(()), |shard| {
        Err(format!("shard {shard} cannot write what it spills, or not read it back"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::mailbox::commands;

    #[test]
    fn it_fails_where_nothing_can_be_written_and_where_a_shard_fails() {
        let place = tempfile::tempdir().unwrap();
        let mailboxes = [commands(), commands()];
        assert_eq!(probe(place.path(), &mailboxes), Ok(()));
        let reason = probe(&place.path().join("missing"), &mailboxes).unwrap_err();
        assert!(reason.contains("missing") && !reason.contains('\n'), "{reason}");
        // There being no room is said to those who publish; others are served as ever.
        mailboxes[0].note_spill(SpillHealth::Full);
        assert_eq!(probe(place.path(), &mailboxes), Ok(()));
        mailboxes[1].note_spill(SpillHealth::Failing);
        assert!(probe(place.path(), &mailboxes).unwrap_err().starts_with("shard 1 "));
        mailboxes[1].note_spill(SpillHealth::Ready);
        assert_eq!(probe(place.path(), &mailboxes), Ok(()));
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
    }
}
