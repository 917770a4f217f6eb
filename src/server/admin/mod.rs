//! The admin address: whether the broker is well, whether it is ready, and its figures, over HTTP
//! on threads of their own. Nothing here can hold up a shard: it leaves orders in mailboxes, reads
//! a few atomics, and waits for answers with a limit.
//!
//! ```text
//! admin   the HTTP server, and once a second a look whether each shard ticks
//! probe   writes and syncs a small file in the data directory, every 5 s
//! ```

mod gather;
mod health;
mod http;
mod metrics;
mod probe;
mod pulse;

pub use health::{Health, Phase};

use crate::io::clock::SystemClock;
use crate::io::mio_net::NetWaker;
use crate::server::ServeError;
use crate::shard::mailbox::Commands;
use http::Desk;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;

/// A shard, as other threads reach it.
#[derive(Clone)]
pub struct ShardLine {
    /// Orders, and whether it ticks.
    pub mailbox: Commands,
    /// Makes it look.
    pub waker: NetWaker,
}

/// What the admin threads are told of the broker.
pub struct Watched {
    /// Ready or not, shared with those who know.
    pub health: Arc<Health>,
    /// One line per shard, in their order.
    pub shards: Vec<ShardLine>,
    /// Where the probe writes.
    pub data_dir: PathBuf,
    /// Asked for before figures are told, if the broker has one.
    pub token: Option<String>,
    /// Budget of all shards.
    pub memory_limit_bytes: u64,
    /// What may be spilled.
    pub disk_limit_bytes: u64,
}

/// Takes the address.
///
/// # Errors
/// If somebody has it, or it cannot be listened on. The error names the flag.
pub fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let bound = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    bound.map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => ServeError::AdminInUse(address),
        _ => ServeError::Admin { address, error },
    })
}

/// The admin threads. They end when this is dropped, but for a probe that hangs in the system.
pub struct Admin {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    http: Option<JoinHandle<()>>,
    /// Dropped, it ends the probe.
    _probe: SyncSender<()>,
}

/// Starts them.
///
/// # Errors
/// If the system refuses a thread or what it needs.
pub fn start(listener: TcpListener, watched: Watched) -> std::io::Result<Admin> {
    let clock = SystemClock::default();
    let mailboxes = watched.shards.iter().map(|line| Arc::clone(&line.mailbox)).collect();
    let (data_dir, health) = (watched.data_dir.clone(), Arc::clone(&watched.health));
    let probe = probe::start(data_dir, health, mailboxes, clock)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(1)
        .thread_name("admin-report")
        .build()?;
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let address = listener.local_addr()?;
    let thread = std::thread::Builder::new().name("admin".to_owned());
    let http = thread.spawn(move || {
        runtime.block_on(async move {
            let desk = Arc::new(Desk::new(watched, clock));
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => drop(tokio::spawn(http::serve(listener, desk))),
                Err(error) => tracing::error!(%error, "the admin address is not served"),
            }
            // Told to, or its sender is gone.
            let _ = stopped.await;
        });
        runtime.shutdown_background();
    })?;
    tracing::info!(%address, "admin: /healthz, /readyz and /metrics");
    Ok(Admin { stop: Some(stop), http: Some(http), _probe: probe })
}

impl Drop for Admin {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // It has ended already if nobody hears it.
            let _ = stop.send(());
        }
        if let Some(http) = self.http.take() {
            drop(http.join());
        }
    }
}
