//! From file, environment and flags to one checked [`Config`]: the only place of defaults.
//!
//! Each source is a [`Settings`]: keys and their values as text, read by one grammar whoever said
//! them. Flags go before the environment (`FOREBAY_` and the key in capitals), that before the
//! file (TOML, flat, the same keys), that before the default. Nothing here asks the system; what a
//! default depends on comes in as [`Machine`].

use crate::base::units::{parse_bytes, parse_duration};
use crate::limits::{
    DISK_LIMIT_BYTES_MIN, FRAME_TIMEOUT_MS, HELLO_TIMEOUT_MS, MEMORY_LIMIT_BYTES_MIN,
    MESSAGE_BYTES_DEFAULT, MESSAGE_BYTES_MAX, MESSAGE_MEMORY_SHARE, MIB, SHARDS_MAX,
    STALL_TIMEOUT_MS, TOKEN_BYTES_MAX, WATERMARK_PERCENT_MAX,
};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Where a broker listens and a client looks for it, unless told otherwise.
pub const ADDRESS_DEFAULT: &str = "127.0.0.1:7440";
/// Where health and metrics are, unless told otherwise.
const ADMIN_DEFAULT: &str = "127.0.0.1:7441";
const DATA_DIR_DEFAULT: &str = "./forebay-data";
const CONNECTIONS_MAX_DEFAULT: u32 = 65_536;
const DISK_HEADROOM_DEFAULT: u64 = 256 * MIB as u64;
const SPILL_RESERVE_DEFAULT: u64 = 256 * MIB as u64;
const WATERMARK_HIGH_DEFAULT: u32 = 70;
const WATERMARK_LOW_DEFAULT: u32 = 60;
const DRAIN_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
/// Longest of any timeout here.
const TIMEOUT_MAX: Duration = Duration::from_secs(86_400);

/// What a configuration may say.
pub const KEYS: [&str; 22] = [
    "listen",
    "admin",
    "data_dir",
    "memory_limit",
    "disk_limit",
    "disk_headroom",
    "spill_reserve",
    "watermark_high",
    "watermark_low",
    "message_bytes_max",
    "shards",
    "pin",
    "token",
    "insecure",
    "connections_max",
    "drain_timeout",
    "hello_timeout",
    "frame_timeout",
    "stall_timeout",
    "disk_backend",
    "busy_poll",
    "log",
];

/// What the broker may use, as far as defaults depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Memory of the machine, or of the cgroup if that allows less.
    pub memory_bytes: u64,
    /// Cores by affinity and cgroup quota.
    pub cores: usize,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// What failed.
    Error,
    /// And what may fail.
    Warn,
    /// And what was done.
    Info,
    /// And how.
    Debug,
    /// And every step.
    Trace,
}

impl LogLevel {
    const ALL: [(&str, LogLevel); 5] = [
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
        ("trace", LogLevel::Trace),
    ];
}

/// How files are written and read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskBackend {
    /// By io_uring, or by threads where the system gives us no ring.
    Auto,
    /// By io_uring or not at all.
    IoUring,
    /// By threads.
    Threads,
}

impl DiskBackend {
    const ALL: [(&str, DiskBackend); 3] = [
        ("auto", DiskBackend::Auto),
        ("io_uring", DiskBackend::IoUring),
        ("threads", DiskBackend::Threads),
    ];
}

/// A checked configuration: nothing in it contradicts anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where health and metrics are served, if at all.
    pub admin: Option<SocketAddr>,
    /// For everything that is written.
    pub data_dir: PathBuf,
    /// Budget of all that grows.
    pub memory_limit_bytes: u64,
    /// What spill files may take, 0 for none; `None`: what the data directory says, or 80 % of what
    /// is free when it says nothing yet.
    pub disk_limit_bytes: Option<u64>,
    /// What spill files leave free of the file system.
    pub disk_headroom_bytes: u64,
    /// Space that spill files keep in calm.
    pub spill_reserve_bytes: u64,
    /// Over so many percent of the memory for messages they are written to disk,
    pub watermark_high: u32,
    /// and until it is under so many.
    pub watermark_low: u32,
    /// Largest body.
    pub message_bytes_max: u64,
    /// Threads that serve.
    pub shards: u32,
    /// Core of each shard; empty: wherever the system puts them.
    pub pin: Vec<usize>,
    /// What a client must present.
    pub token: Option<String>,
    /// Listening beyond loopback without a token was asked for.
    pub insecure: bool,
    /// Connections at once.
    pub connections_max: u32,
    /// For clients to finish after the first signal.
    pub drain_timeout: Duration,
    /// For a connection to say hello.
    pub hello_timeout: Duration,
    /// For a frame to be complete.
    pub frame_timeout: Duration,
    /// For a consumer to take something.
    pub stall_timeout: Duration,
    /// How files are written and read.
    pub disk_backend: DiskBackend,
    /// Spin instead of sleeping.
    pub busy_poll: bool,
    /// How much is logged.
    pub log: LogLevel,
}

/// Why there is no configuration. Each is one line and names what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {reason}")]
    File {
        /// Which.
        path: String,
        /// As the system says.
        reason: String,
    },
    /// The file is not TOML.
    #[error("{path}, line {line}: {reason}")]
    Syntax {
        /// Which file.
        path: String,
        /// Where, from 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// A key that there is not.
    #[error("{source_name}: there is no setting `{key}`")]
    UnknownKey {
        /// Who said it.
        source_name: String,
        /// What it said.
        key: String,
    },
    /// A value that cannot be read as what the key needs.
    #[error("{name}: {reason}")]
    Value {
        /// The setting, as its source calls it.
        name: String,
        /// What is wrong and what would be right.
        reason: String,
    },
}

/// What one source says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Per key the value, and what its source calls it: `--memory-limit`, `FOREBAY_MEMORY_LIMIT`.
    values: BTreeMap<&'static str, (String, String)>,
}

impl Settings {
    /// From flags: pairs of a key (as in [`KEYS`]) and the text behind it. What the user did not
    /// give is simply not among them.
    ///
    /// # Panics
    /// On a key that is not in [`KEYS`]: the flags are ours.
    pub fn from_flags<'a>(flags: impl IntoIterator<Item = (&'a str, String)>) -> Settings {
        let mut settings = Settings::default();
        for (key, text) in flags {
            let key = known(key).expect("every flag has its key");
            settings.values.insert(key, (flag_name(key), text));
        }
        settings
    }

    /// From the environment. Other programs' variables, and those that only clients read, are not
    /// looked at; neither are empty ones.
    pub fn from_environment(variables: impl IntoIterator<Item = (String, String)>) -> Settings {
        let mut settings = Settings::default();
        for (name, text) in variables {
            let Some(key) = name.strip_prefix("FOREBAY_") else { continue };
            if let Some(key) = known(&key.to_ascii_lowercase())
                && !text.is_empty()
            {
                settings.values.insert(key, (name, text));
            }
        }
        settings
    }

    /// From the text of a TOML file; `path` is for errors.
    ///
    /// # Errors
    /// If it is not TOML, or has a key that there is not.
    pub fn from_toml(text: &str, path: &str) -> Result<Settings, ConfigError> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let end = error.span().map_or(0, |span| span.start).min(text.len());
            let line = text.as_bytes()[..end].iter().filter(|byte| **byte == b'\n').count() + 1;
            let reason = error.message().replace('\n', ", ");
            ConfigError::Syntax { path: path.to_owned(), line, reason }
        })?;
        let mut settings = Settings::default();
        for (key, value) in table {
            let name = format!("{path}: {key}");
            let Some(key) = known(&key) else {
                return Err(ConfigError::UnknownKey { source_name: path.to_owned(), key });
            };
            let text = text_of(&value).ok_or_else(|| ConfigError::Value {
                name: name.clone(),
                reason: format!("a {} cannot stand here", value.type_str()),
            })?;
            settings.values.insert(key, (name, text));
        }
        Ok(settings)
    }

    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// What `self` says, and what `lower` says where `self` is silent.
    #[must_use]
    pub fn over(mut self, lower: Settings) -> Settings {
        // Only one of the two can be meant: the nearer source takes the other's word back.
        if self.values.contains_key("token") && !self.values.contains_key("insecure") {
            self.values.insert("insecure", ("insecure".to_owned(), "false".to_owned()));
        }
        for (key, value) in lower.values {
            self.values.entry(key).or_insert(value);
        }
        self
    }

    fn read<T>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        let Some((_, text)) = self.values.get(key) else { return Ok(None) };
        parse(text.trim()).map(Some).map_err(|reason| self.wrong(key, reason))
    }

    /// An error about `key`, by the name that its source gives it.
    fn wrong(&self, key: &'static str, reason: String) -> ConfigError {
        let name = self.values.get(key).map_or_else(|| flag_name(key), |(name, _)| name.clone());
        ConfigError::Value { name, reason }
    }
}

impl Config {
    /// Reads the values, fills in the defaults and checks that they go together.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn new(settings: &Settings, machine: Machine) -> Result<Config, ConfigError> {
        let memory_limit_bytes = memory_limit(settings, machine)?;
        let pin = settings.read("pin", cores)?.unwrap_or_default();
        let shards = match shards(settings, memory_limit_bytes)? {
            Some(shards) => shards,
            None => shards_default(machine, pin.len(), memory_limit_bytes),
        };
        if !pin.is_empty() && pin.len() < shards as usize {
            let reason = format!("{} cores for {shards} shards: name one for each", pin.len());
            return Err(settings.wrong("pin", reason));
        }
        let listen = settings.read("listen", address)?;
        let disk_limit_bytes = disk_limit(settings, shards)?;
        let (watermark_high, watermark_low) = watermarks(settings)?;
        let config = Config {
            listen: match listen {
                Some(listen) => listen,
                None => ADDRESS_DEFAULT.parse().expect("the default address is one"),
            },
            admin: match settings.read("admin", admin)? {
                Some(admin) => admin,
                None => Some(ADMIN_DEFAULT.parse().expect("the default address is one")),
            },
            data_dir: settings
                .read("data_dir", data_dir)?
                .unwrap_or_else(|| PathBuf::from(DATA_DIR_DEFAULT)),
            memory_limit_bytes,
            disk_limit_bytes,
            disk_headroom_bytes: settings
                .read("disk_headroom", bytes)?
                .unwrap_or(DISK_HEADROOM_DEFAULT),
            spill_reserve_bytes: spill_reserve(settings, disk_limit_bytes)?,
            watermark_high,
            watermark_low,
            message_bytes_max: message_bytes_max(settings, memory_limit_bytes, shards)?,
            shards,
            pin,
            token: settings.read("token", token)?,
            insecure: settings.read("insecure", switch)?.unwrap_or(false),
            connections_max: settings
                .read("connections_max", connections)?
                .unwrap_or(CONNECTIONS_MAX_DEFAULT),
            drain_timeout: settings
                .read("drain_timeout", timeout)?
                .unwrap_or(DRAIN_TIMEOUT_DEFAULT),
            hello_timeout: timeout_or(settings, "hello_timeout", HELLO_TIMEOUT_MS)?,
            frame_timeout: timeout_or(settings, "frame_timeout", FRAME_TIMEOUT_MS)?,
            stall_timeout: timeout_or(settings, "stall_timeout", STALL_TIMEOUT_MS)?,
            disk_backend: settings.read("disk_backend", disk_backend)?.unwrap_or(DiskBackend::Auto),
            busy_poll: settings.read("busy_poll", switch)?.unwrap_or(false),
            log: settings.read("log", log_level)?.unwrap_or(LogLevel::Info),
        };
        config.check_access(settings)?;
        Ok(config)
    }

    /// Who may come in must be said aloud.
    fn check_access(&self, settings: &Settings) -> Result<(), ConfigError> {
        if self.token.is_some() && self.insecure {
            let reason = "a token and insecure contradict each other: give one of them".to_owned();
            return Err(settings.wrong("insecure", reason));
        }
        for (key, address) in [("listen", Some(self.listen)), ("admin", self.admin)] {
            let open = address.filter(|address| !address.ip().is_loopback());
            if let Some(address) = open.filter(|_| self.token.is_none() && !self.insecure) {
                let reason = format!(
                    "{address} is open to other machines: give a token, or --insecure if anybody \
                     may come in"
                );
                return Err(settings.wrong(key, reason));
            }
        }
        Ok(())
    }

    /// The configuration as a file that gives it again, except for the token, which is not shown.
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        let mut line = |key: &str, value: toml::Value| {
            writeln!(out, "{key} = {value}").expect("writing to a string does not fail");
        };
        let text = |text: String| toml::Value::String(text);
        line("listen", text(self.listen.to_string()));
        line("admin", text(self.admin.map_or("off".to_owned(), |admin| admin.to_string())));
        line("data_dir", text(self.data_dir.display().to_string()));
        line("memory_limit", text(exact_bytes(self.memory_limit_bytes)));
        if let Some(bytes) = self.disk_limit_bytes {
            line("disk_limit", text(exact_bytes(bytes)));
        }
        line("disk_headroom", text(exact_bytes(self.disk_headroom_bytes)));
        line("spill_reserve", text(exact_bytes(self.spill_reserve_bytes)));
        line("watermark_high", text(format!("{}%", self.watermark_high)));
        line("watermark_low", text(format!("{}%", self.watermark_low)));
        line("message_bytes_max", text(exact_bytes(self.message_bytes_max)));
        line("shards", toml::Value::Integer(i64::from(self.shards)));
        let pin = self.pin.iter().map(|core| toml::Value::Integer(*core as i64));
        line("pin", toml::Value::Array(pin.collect()));
        line("insecure", toml::Value::Boolean(self.insecure));
        line("connections_max", toml::Value::Integer(i64::from(self.connections_max)));
        line("drain_timeout", text(exact_duration(self.drain_timeout)));
        line("hello_timeout", text(exact_duration(self.hello_timeout)));
        line("frame_timeout", text(exact_duration(self.frame_timeout)));
        line("stall_timeout", text(exact_duration(self.stall_timeout)));
        let disk = DiskBackend::ALL.iter().find(|(_, backend)| *backend == self.disk_backend);
        line("disk_backend", text(disk.expect("every backend has its name").0.to_owned()));
        line("busy_poll", toml::Value::Boolean(self.busy_poll));
        let log = LogLevel::ALL.iter().find(|(_, level)| *level == self.log);
        line("log", text(log.expect("every level has its name").0.to_owned()));
        if self.disk_limit_bytes.is_none() {
            out.push_str("# disk_limit is what the data directory says\n");
        }
        if self.token.is_some() {
            out.push_str("# token is set; it is not shown\n");
        }
        out
    }
}

fn known(key: &str) -> Option<&'static str> {
    KEYS.into_iter().find(|known| *known == key)
}

fn flag_name(key: &str) -> String {
    format!("--{}", key.replace('_', "-"))
}

fn text_of(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(switch) => Some(switch.to_string()),
        toml::Value::Array(items) => {
            let items: Option<Vec<String>> = items.iter().map(text_of).collect();
            Some(items?.join(","))
        }
        _ => None,
    }
}

/// As many as asked, if memory is enough for them.
fn shards(settings: &Settings, memory_limit_bytes: u64) -> Result<Option<u32>, ConfigError> {
    let shard_bytes = MEMORY_LIMIT_BYTES_MIN as u64;
    settings.read("shards", |text| match text.parse::<u32>() {
        Ok(shards) if (1..=SHARDS_MAX).contains(&shards) => {
            if u64::from(shards) * shard_bytes <= memory_limit_bytes {
                return Ok(shards);
            }
            Err(format!(
                "memory_limit {} is too little for {shards} shards, which need {} each: raise \
                 memory_limit or lower shards",
                exact_bytes(memory_limit_bytes),
                exact_bytes(shard_bytes)
            ))
        }
        _ => Err(format!("`{text}` is not a number of shards from 1 to {SHARDS_MAX}")),
    })
}

/// One for each core that was named, or may be used, as far as memory is enough for them.
fn shards_default(machine: Machine, pinned: usize, memory_limit_bytes: u64) -> u32 {
    let cores = if pinned > 0 { pinned } else { machine.cores };
    let cores = u32::try_from(cores).unwrap_or(SHARDS_MAX).clamp(1, SHARDS_MAX);
    let enough_for = memory_limit_bytes / MEMORY_LIMIT_BYTES_MIN as u64;
    u32::try_from(enough_for).unwrap_or(SHARDS_MAX).clamp(1, cores)
}

/// Half of what there is, unless said.
fn memory_limit(settings: &Settings, machine: Machine) -> Result<u64, ConfigError> {
    let smallest = MEMORY_LIMIT_BYTES_MIN as u64;
    let said = settings.read("memory_limit", |text| match bytes(text)? {
        bytes if bytes < smallest => Err(format!(
            "{} is too little: the smallest limit is {}",
            exact_bytes(bytes),
            exact_bytes(smallest)
        )),
        bytes => Ok(bytes),
    })?;
    // Whole MiB, so that it reads well wherever it is shown.
    let half = machine.memory_bytes / 2 / MIB as u64 * MIB as u64;
    Ok(said.unwrap_or(half.max(smallest)))
}

/// What spill files may take, if it is said: nothing at all, or enough for each shard.
fn disk_limit(settings: &Settings, shards: u32) -> Result<Option<u64>, ConfigError> {
    let smallest = DISK_LIMIT_BYTES_MIN as u64 * u64::from(shards);
    settings.read("disk_limit", |text| match bytes(text)? {
        bytes if bytes > 0 && bytes < smallest => Err(format!(
            "{} is too little for {shards} shard(s), which need {} each: give {} or more, or 0 to \
             spill nothing",
            exact_bytes(bytes),
            exact_bytes(DISK_LIMIT_BYTES_MIN as u64),
            exact_bytes(smallest)
        )),
        bytes => Ok(bytes),
    })
}

/// What spill files keep in calm: not more than they may have.
fn spill_reserve(settings: &Settings, disk_limit: Option<u64>) -> Result<u64, ConfigError> {
    let limit = disk_limit.unwrap_or(u64::MAX);
    let said = settings.read("spill_reserve", |text| match bytes(text)? {
        bytes if bytes > limit && limit > 0 => Err(format!(
            "spill_reserve {} is over disk_limit {}: raise disk_limit or lower spill_reserve",
            exact_bytes(bytes),
            exact_bytes(limit)
        )),
        bytes => Ok(bytes),
    })?;
    Ok(said.unwrap_or(SPILL_RESERVE_DEFAULT).min(limit))
}

/// The high one and the low one, in percent.
fn watermarks(settings: &Settings) -> Result<(u32, u32), ConfigError> {
    let said_high = settings.read("watermark_high", percent)?;
    let said_low = settings.read("watermark_low", percent)?;
    // One alone brings the other along.
    let gap = WATERMARK_HIGH_DEFAULT - WATERMARK_LOW_DEFAULT;
    let high = said_high.or(said_low
        .filter(|low| *low >= WATERMARK_HIGH_DEFAULT)
        .map(|low| (low + gap).min(WATERMARK_PERCENT_MAX)));
    let high = high.unwrap_or(WATERMARK_HIGH_DEFAULT);
    let low = said_low.unwrap_or(WATERMARK_LOW_DEFAULT.min(high.saturating_sub(gap).max(1)));
    if low >= high {
        let key = if said_low.is_some() { "watermark_low" } else { "watermark_high" };
        let reason = format!(
            "watermark_low {low}% is not below watermark_high {high}%: what is spilled over the \
             high one is spilled until memory is under the low one"
        );
        return Err(settings.wrong(key, reason));
    }
    Ok((high, low))
}

fn percent(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim_end();
    match number.parse::<u32>() {
        Ok(percent) if (1..=WATERMARK_PERCENT_MAX).contains(&percent) => Ok(percent),
        _ => Err(format!("`{text}` is not a percentage from 1% to {WATERMARK_PERCENT_MAX}%")),
    }
}

fn message_bytes_max(
    settings: &Settings,
    memory_limit_bytes: u64,
    shards: u32,
) -> Result<u64, ConfigError> {
    let share = memory_limit_bytes / (MESSAGE_MEMORY_SHARE as u64 * u64::from(shards));
    let said = settings.read("message_bytes_max", |text| match bytes(text)? {
        0 => Err("a message must be able to have at least 1 byte".to_owned()),
        bytes if bytes > MESSAGE_BYTES_MAX as u64 => Err(format!(
            "{} is over {}, the largest of any configuration",
            exact_bytes(bytes),
            exact_bytes(MESSAGE_BYTES_MAX as u64)
        )),
        bytes if bytes > share => Err(format!(
            "message_bytes_max {} is over memory_limit {} / ({MESSAGE_MEMORY_SHARE} x {shards} \
             shards) = {}: raise memory_limit or lower message_bytes_max",
            exact_bytes(bytes),
            exact_bytes(memory_limit_bytes),
            exact_bytes(share)
        )),
        bytes => Ok(bytes),
    })?;
    Ok(said.unwrap_or(share.min(MESSAGE_BYTES_DEFAULT as u64)))
}

fn bytes(text: &str) -> Result<u64, String> {
    parse_bytes(text).map_err(|error| error.to_string())
}

/// An address with a port. Names are not looked up, but for `localhost`.
fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    if let Some(port) = text.strip_prefix("localhost:")
        && let Ok(port) = port.parse()
    {
        return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    Err(format!("`{text}` is not an address with a port, such as {ADDRESS_DEFAULT} or [::1]:7440"))
}

fn admin(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == "off" {
        return Ok(None);
    }
    address(text).map(Some).map_err(|reason| format!("{reason}, nor `off`"))
}

fn data_dir(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("no directory is named".to_owned()) } else { Ok(text.into()) }
}

fn cores(text: &str) -> Result<Vec<usize>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let cores: Result<Vec<usize>, _> = text.split(',').map(|core| core.trim().parse()).collect();
    cores.map_err(|_| format!("`{text}` is not a list of cores, such as 0 or 0,1"))
}

fn token(text: &str) -> Result<String, String> {
    match text.len() {
        0 => Err("an empty token keeps nobody out".to_owned()),
        bytes if bytes > TOKEN_BYTES_MAX => {
            Err(format!("a token of {bytes} bytes is too long: at most {TOKEN_BYTES_MAX}"))
        }
        _ => Ok(text.to_owned()),
    }
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err(format!("`{text}` is neither true nor false")),
    }
}

fn connections(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("`{text}` is not a number of connections from 1 on")),
        Ok(connections) => Ok(connections),
    }
}

fn timeout(text: &str) -> Result<Duration, String> {
    match parse_duration(text).map_err(|error| error.to_string())? {
        time if time > TIMEOUT_MAX => Err(format!("`{text}` is longer than a day")),
        time => Ok(time),
    }
}

fn timeout_or(
    settings: &Settings,
    key: &'static str,
    default_ms: u64,
) -> Result<Duration, ConfigError> {
    let positive = |text: &str| match timeout(text)? {
        Duration::ZERO => Err("no time at all would close everybody".to_owned()),
        time => Ok(time),
    };
    Ok(settings.read(key, positive)?.unwrap_or(Duration::from_millis(default_ms)))
}

fn disk_backend(text: &str) -> Result<DiskBackend, String> {
    let backend = DiskBackend::ALL.iter().find(|(name, _)| *name == text);
    let unknown = || format!("`{text}` is not a way to the disk: auto, io_uring or threads");
    backend.map(|(_, backend)| *backend).ok_or_else(unknown)
}

fn log_level(text: &str) -> Result<LogLevel, String> {
    let level = LogLevel::ALL.iter().find(|(name, _)| *name == text);
    let unknown = || format!("`{text}` is not a level: error, warn, info, debug or trace");
    level.map(|(_, level)| *level).ok_or_else(unknown)
}

/// In the largest unit that needs no fraction, so that it reads back as the same.
fn exact_bytes(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes >= 1 << shift && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes}B")
}

fn exact_duration(time: Duration) -> String {
    match time.as_micros() {
        micros if micros.is_multiple_of(1_000_000) => format!("{}s", micros / 1_000_000),
        micros if micros.is_multiple_of(1_000) => format!("{}ms", micros / 1_000),
        micros => format!("{micros}us"),
    }
}

#[cfg(test)]
mod tests;
