//! The arguments of `serve`, as the user wrote them: the program hands them to the broker, whose
//! configuration reads them by the same rules as environment and file, and knows the defaults.

use clap::Args;

/// What the command line says about a broker to start.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
#[command(after_help = EXAMPLES)]
pub struct ServeArgs {
    /// Address to listen on; port 0 picks a free one [default: 127.0.0.1:7440]
    ///
    /// Beyond loopback the broker wants --token, or --insecure. Once it is ready it prints one
    /// line on standard output with its address: `forebay ready on ADDR`.
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,

    /// Address of /healthz, /readyz and /metrics (HTTP), or `off` [default: 127.0.0.1:7441]
    ///
    /// Beyond loopback the broker wants --token, which /metrics then asks for, or --insecure.
    #[arg(long, value_name = "ADDR")]
    admin: Option<String>,

    /// Directory for everything that is written [default: ./forebay-data]
    ///
    /// Made if it is missing. Two brokers cannot share one.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,

    /// Memory for messages and all that belongs to them, such as 256MiB [default: half of what
    /// there is]
    ///
    /// Where it gets short, messages go to disk, those that are needed last first. When the disk
    /// has no room either, new messages are refused, or their publishers wait, as each queue's
    /// --on-full says. Consumers go on.
    #[arg(long, value_name = "SIZE")]
    memory_limit: Option<String>,

    /// Disk for messages that memory has no room for, such as 10GiB; 0 for none [default: 80 % of
    /// what was free at the first start]
    ///
    /// The default is written down in the data directory, in the file disk-limit.
    #[arg(long, value_name = "SIZE")]
    disk_limit: Option<String>,

    /// What is left free of the file system [default: 256MiB]
    #[arg(long, value_name = "SIZE")]
    disk_headroom: Option<String>,

    /// Space on disk that is kept for the next spike [default: 256MiB]
    ///
    /// What is over it goes back to the file system, slowly, while the disk is calm; all of it at
    /// once by `forebay trim`.
    #[arg(long, value_name = "SIZE")]
    spill_reserve: Option<String>,

    /// Over so much of the memory for messages they are written to disk [default: 70%]
    #[arg(long, value_name = "PERCENT")]
    watermark_high: Option<String>,

    /// And until it is under so much [default: 60%]
    #[arg(long, value_name = "PERCENT")]
    watermark_low: Option<String>,

    /// Largest body of a message, such as 1MiB [default: 16MiB, or an eighth of a shard's memory]
    #[arg(long, value_name = "SIZE")]
    message_bytes_max: Option<String>,

    /// Threads that serve, each with connections and queues of its own [default: the
    /// cores that it may use, at most 16]
    #[arg(long, value_name = "N")]
    shards: Option<String>,

    /// Core of each shard, such as 0 or 0,1 [default: one each if there are as many, else where the
    /// system puts them]
    #[arg(long, value_name = "CORES")]
    pin: Option<String>,

    /// What a client must present; better given as FOREBAY_TOKEN, which `ps` does not show
    #[arg(long, value_name = "TOKEN", conflicts_with = "insecure")]
    token: Option<String>,

    /// Listen beyond loopback without a token
    ///
    /// Anybody who reaches the address can then read, take and delete every message.
    #[arg(long)]
    insecure: bool,

    /// Configuration file: TOML with the names of these flags, `-` written as `_`
    #[arg(long, value_name = "FILE", env = "FOREBAY_CONFIG", hide_env_values = true)]
    pub config: Option<std::path::PathBuf>,

    /// Print the configuration that these flags, the environment and the file make, and exit
    #[arg(long)]
    pub print_config: bool,

    /// Connections served at once [default: 65536]
    #[arg(long, value_name = "N")]
    connections_max: Option<String>,

    /// Time for clients to finish after SIGTERM [default: 5s]
    #[arg(long, value_name = "TIME")]
    drain_timeout: Option<String>,

    /// Time for a new connection to say hello [default: 10s]
    #[arg(long, value_name = "TIME")]
    hello_timeout: Option<String>,

    /// Time for a frame that was begun to be complete [default: 30s]
    #[arg(long, value_name = "TIME")]
    frame_timeout: Option<String>,

    /// Time after which a consumer that takes nothing of what it is sent is closed [default: 60s]
    #[arg(long, value_name = "TIME")]
    stall_timeout: Option<String>,

    /// How files are written and read: auto, io_uring or threads [default: auto]
    ///
    /// auto takes io_uring where the system allows it, and says in the log if it does not.
    #[arg(long, value_name = "BACKEND")]
    disk_backend: Option<String>,

    /// Spin instead of sleeping: lower latency, for a whole core per shard
    #[arg(long)]
    busy_poll: bool,

    /// How much to log on standard error: error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
}

impl ServeArgs {
    /// The settings that were given: name as in the configuration file, and text.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let switch = |on: bool| on.then(|| "true".to_owned());
        let all = [
            ("listen", self.listen.clone()),
            ("admin", self.admin.clone()),
            ("data_dir", self.data_dir.clone()),
            ("memory_limit", self.memory_limit.clone()),
            ("disk_limit", self.disk_limit.clone()),
            ("disk_headroom", self.disk_headroom.clone()),
            ("spill_reserve", self.spill_reserve.clone()),
            ("watermark_high", self.watermark_high.clone()),
            ("watermark_low", self.watermark_low.clone()),
            ("message_bytes_max", self.message_bytes_max.clone()),
            ("shards", self.shards.clone()),
            ("pin", self.pin.clone()),
            ("token", self.token.clone()),
            ("insecure", switch(self.insecure)),
            ("connections_max", self.connections_max.clone()),
            ("drain_timeout", self.drain_timeout.clone()),
            ("hello_timeout", self.hello_timeout.clone()),
            ("frame_timeout", self.frame_timeout.clone()),
            ("stall_timeout", self.stall_timeout.clone()),
            ("disk_backend", self.disk_backend.clone()),
            ("busy_poll", switch(self.busy_poll)),
            ("log", self.log.clone()),
        ];
        all.into_iter().filter_map(|(key, text)| Some((key, text?))).collect()
    }
}

const EXAMPLES: &str = "\
Each setting can also be given as an environment variable (FOREBAY_MEMORY_LIMIT for
--memory-limit) or in the configuration file; flags go before the environment, that before
the file.

Examples:
  forebay serve
      Everything by default: 127.0.0.1:7440, ./forebay-data.

  forebay serve --listen 127.0.0.1:0 --memory-limit 256MiB --pin 0
      A free port, a small memory, on core 0.

  FOREBAY_TOKEN=$(cat token) forebay serve --listen 0.0.0.0:7440
      Open to the network, for those who know the token.

  forebay serve --print-config > forebay.toml
      A configuration file to begin with.

SIGTERM or Ctrl-C lets the clients finish, then it ends; a second one ends it at once.

Exit codes: 0 stopped as asked, 1 failed while running, 2 could not start (an address or a
data directory in use, a bad option).";
