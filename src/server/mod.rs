//! L3: from a configuration to a running broker, and back to nothing.
//!
//! [`run`] takes what must be had alone (data directory, address), starts the shards on threads of
//! their own, says on standard output that it is ready, and returns when the broker has drained.

pub mod admin;
pub mod disk_limit;
pub mod signals;
pub mod stores;
mod threads;

use crate::config::{Config, ConfigError, LogLevel, Machine, Settings};
use crate::io::affinity::{self, PinError};
use crate::io::mio_net::MioNet;
use crate::io::process::{self, DataDir, DataDirError};
use crate::io::uring_disk::Refusal;
use crate::server::admin::{Health, Phase, ShardLine, Watched};
use crate::server::disk_limit::DiskLimitError;
use crate::server::stores::StoresError;
use crate::shard::ShardConfig;
use crate::shard::mailbox::{self, Commands};
use crate::shard::recover::RecoverError;
use std::io::{ErrorKind, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tracing::level_filters::LevelFilter;

/// Files that are open beside connections: listener, poller, standard streams, data, and all of
/// the admin address. Beside them a few that were just closed may linger.
const FILES_BESIDE_CONNECTIONS: u64 = 64 + JOURNAL_FILES;
/// Of each shard but the first: listener, poller, waker, spare, ring and its event, data directory
/// and spill file; and a journal.
const FILES_PER_SHARD: u64 = 12 + JOURNAL_FILES;
/// Segments of a journal that is not large.
const JOURNAL_FILES: u64 = 32;

/// Why the broker did not start, or ended. Each is one line.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory is another's, or cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// Somebody listens there.
    #[error("address in use: {0}")]
    AddressInUse(SocketAddr),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// As the system says.
        error: std::io::Error,
    },
    /// Somebody listens where health and metrics would be.
    #[error("--admin: address in use: {0}; give another one, or --admin off")]
    AdminInUse(SocketAddr),
    /// That address cannot be listened on.
    #[error("--admin: cannot listen on {address}: {error}")]
    Admin {
        /// Which.
        address: SocketAddr,
        /// As the system says.
        error: std::io::Error,
    },
    /// Nobody knows how much may be spilled.
    #[error(transparent)]
    DiskLimit(#[from] DiskLimitError),
    /// Nobody knows which stores there are.
    #[error(transparent)]
    Stores(#[from] StoresError),
    /// A store does not come back.
    #[error("cannot recover store {store}: {error}")]
    Recover {
        /// Its number.
        store: u32,
        /// Why.
        error: RecoverError,
    },
    /// A core is not there, or not for us.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// What memory has no room for would have nowhere to go.
    #[error("cannot open a spill file in the data directory: {0}; --disk-limit 0 does without")]
    SpillFile(std::io::Error),
    /// The configuration insists on io_uring, and the system gives us none.
    #[error("cannot start with disk_backend = io_uring: {0}")]
    Disk(#[from] Refusal),
    /// The system refused a thread or the signals.
    #[error("cannot start: {0}")]
    Start(std::io::Error),
    /// The system's poller failed while the broker ran.
    #[error("the broker ended: {0}")]
    Ended(std::io::Error),
    /// A shard panicked; the panic said where.
    #[error("the broker ended by a fault of its own: shard {0} panicked")]
    Fault(usize),
}

impl ServeError {
    /// What the process should exit with: 2 when it did not start, 1 when it failed running.
    pub fn exit_code(&self) -> u8 {
        match self {
            ServeError::Ended(_) | ServeError::Fault(_) => 1,
            _ => 2,
        }
    }
}

/// Reads the configuration: flags, then the environment, then the file, then defaults.
///
/// # Errors
/// If the file cannot be read, or something in it, in the environment or in the flags is wrong.
pub fn configuration(flags: Settings, file: Option<&Path>) -> Result<Config, ServeError> {
    let from_file = match file {
        None => Settings::default(),
        Some(path) => {
            let path = path.display().to_string();
            let text = std::fs::read_to_string(&path).map_err(|error| ConfigError::File {
                path: path.clone(),
                reason: error.to_string(),
            });
            Settings::from_toml(&text?, &path)?
        }
    };
    // Variables that are not text are not ours.
    let variables = std::env::vars_os()
        .filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?)));
    let settings = flags.over(Settings::from_environment(variables)).over(from_file);
    let machine =
        Machine { memory_bytes: process::memory_bytes(), cores: affinity::cores_usable() };
    let mut config = Config::new(&settings, machine)?;
    // As many shards as cores, all of them for us: one each.
    let cores = affinity::cores();
    if config.pin.is_empty() && config.shards > 1 && cores.len() == config.shards as usize {
        config.pin = cores;
    }
    Ok(config)
}

/// Serves until SIGTERM or SIGINT and the drain that follows.
///
/// # Errors
/// See [`ServeError`].
pub fn run(config: &Config) -> Result<(), ServeError> {
    start_log(config.log);
    let data_dir = DataDir::lock(&config.data_dir)?;
    let files = process::raise_open_files();
    let shards = config.shards as usize;
    let nets = MioNet::bind_many(config.listen, shards).map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => ServeError::AddressInUse(config.listen),
        _ => ServeError::Listen { address: config.listen, error },
    })?;
    let address = nets[0].address().map_err(ServeError::Start)?;
    let admin = config.admin.map(admin::bind).transpose()?;
    let disk_limit = disk_limit::resolve(data_dir.path(), config.disk_limit_bytes)?;
    let stores = stores::resolve(data_dir.path(), config.shards)?;
    let commands: Vec<_> = nets.iter().map(|_| mailbox::commands()).collect();
    let line = |(mailbox, net): (&Commands, &MioNet)| ShardLine {
        mailbox: Arc::clone(mailbox),
        waker: net.waker(),
    };
    let lines: Vec<_> = commands.iter().zip(&nets).map(line).collect();
    let health = Arc::new(Health::default());
    let signals = signals::watch(lines.clone(), Arc::clone(&health)).map_err(ServeError::Start)?;
    let mut config = config.clone();
    config.disk_limit_bytes = Some(disk_limit.bytes);
    config.spill_reserve_bytes = config.spill_reserve_bytes.min(disk_limit.bytes);
    config.connections_max = config.connections_max.min(connections_by_files(files, config.shards));
    log_start(&config, files);
    let watched = Watched {
        health: Arc::clone(&health),
        shards: lines,
        data_dir: data_dir.path().to_owned(),
        token: config.token.clone(),
        memory_limit_bytes: config.memory_limit_bytes,
        disk_limit_bytes: disk_limit.bytes,
    };
    // Before the shards: it says that they are starting.
    let admin = admin.map(|listener| admin::start(listener, watched));
    let admin = admin.transpose().map_err(ServeError::Start)?;
    let threads = threads::start(&config, data_dir.path(), &stores, nets, &commands)?;
    health.enter(Phase::Serving);
    say_ready(address);
    let outcome = threads.join();
    signals.end();
    drop(admin);
    outcome
}

fn shard_config(config: &Config, stores: u32, nth: usize) -> ShardConfig {
    let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    ShardConfig {
        shard: nth as u32,
        shards: config.shards,
        stores,
        message_bytes_max: config.message_bytes_max,
        connections_max: config.connections_max,
        token: config.token.clone(),
        drain_timeout_ms: ms(config.drain_timeout),
        hello_timeout_ms: ms(config.hello_timeout),
        frame_timeout_ms: ms(config.frame_timeout),
        stall_timeout_ms: ms(config.stall_timeout),
        watermark_high: config.watermark_high,
        watermark_low: config.watermark_low,
        busy_poll: config.busy_poll,
        ..ShardConfig::new(config.memory_limit_bytes)
    }
}

/// A connection that is refused by its limit is told so; one that finds no file is not.
fn connections_by_files(files: u64, shards: u32) -> u32 {
    let beside = FILES_BESIDE_CONNECTIONS + FILES_PER_SHARD * u64::from(shards - 1);
    let left = files.saturating_sub(beside).max(files / 2);
    u32::try_from(left).unwrap_or(u32::MAX)
}

/// Other programs wait for exactly this line.
fn say_ready(address: SocketAddr) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = writeln!(out, "forebay ready on {address}").and_then(|()| out.flush()) {
        tracing::warn!(%error, "nobody reads standard output");
    }
}

fn start_log(level: LogLevel) {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let log = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .with_max_level(level);
    // A program that embeds the broker may have its own log already; then that one serves.
    drop(log.try_init());
}

fn log_start(config: &Config, files: u64) {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        sockets = "mio",
        memory_limit_bytes = config.memory_limit_bytes,
        disk_limit_bytes = config.disk_limit_bytes.unwrap_or(0),
        cores = affinity::cores_usable(),
        shards = config.shards,
        pin = ?config.pin,
        connections_max = config.connections_max,
        open_files = files,
        admin = %config.admin.map_or("off".to_owned(), |admin| admin.to_string()),
        data_dir = %config.data_dir.display(),
        "starting"
    );
    if config.memory_limit_bytes > process::memory_bytes() {
        tracing::warn!("memory_limit is over the memory that this process may use");
    }
    if config.insecure && !config.listen.ip().is_loopback() {
        tracing::warn!(listen = %config.listen, "anybody who reaches this address may come in");
    }
    if let Some(admin) = config.admin.filter(|admin| config.insecure && !admin.ip().is_loopback()) {
        tracing::warn!(%admin, "anybody who reaches this address may read the metrics");
    }
}
