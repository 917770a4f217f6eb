//! A broker of the real binary, for the tests of whole processes.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::field_reassign_with_default, reason = "bodies of the wire may grow fields")]

pub mod peer;
pub mod proxy;

use forebay::client::{ConnectOptions, Connection, QueueOptions};
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// What a healthy broker never needs; a test that waits longer has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The binary, with nothing in its environment that concerns it.
pub fn forebay() -> Command {
    clean(Command::new(env!("CARGO_BIN_EXE_forebay")))
}

/// The binary in a shell that allows it only so many open files, hard and soft.
pub fn forebay_with_files(files: u64) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n \"$0\" && exec \"$@\""]).arg(files.to_string());
    command.arg(env!("CARGO_BIN_EXE_forebay"));
    clean(command)
}

/// The binary in a mount namespace of its own, where `at` is an empty file system of this size,
/// such as `96m`. It ends with the process; [`Broker::see`] leads there. `None`, and a word, where
/// neither users nor root may do so.
pub fn forebay_on_small_disk(at: &Path, size: &str) -> Option<Command> {
    let mount = "mount -t tmpfs -o size=\"$0\" tmpfs \"$1\" && shift && exec \"$@\"";
    let shell = |flags: &str| {
        let mut command = Command::new("unshare");
        command.args([flags, "sh", "-c", mount, size]).arg(at);
        command
    };
    let works = |flags: &&str| {
        let done = shell(flags).arg("true").stderr(Stdio::null()).status();
        done.is_ok_and(|status| status.success())
    };
    let Some(flags) = ["-rm", "-m"].into_iter().find(works) else {
        eprintln!("SKIPPED: no file system can be mounted here, by a user namespace or as root");
        return None;
    };
    let mut command = shell(flags);
    command.arg(env!("CARGO_BIN_EXE_forebay"));
    Some(clean(command))
}

fn clean(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FOREBAY_") {
            command.env_remove(name);
        }
    }
    // Several brokers run at once, and most tests have no use for it; a flag goes before this.
    command.env("FOREBAY_ADMIN", "off");
    command.stdin(Stdio::null());
    command
}

/// To serve at this address, in this directory, with these flags beside.
pub fn serving(mut command: Command, listen: &str, data_dir: &Path, flags: &[&str]) -> Command {
    command.args(["serve", "--listen", listen]);
    if !flags.contains(&"--memory-limit") {
        command.args(["--memory-limit", "64MiB"]);
    }
    command.arg("--data-dir").arg(data_dir).args(flags);
    command
}

/// Runs it to its end: exit code, standard output, standard error.
pub fn outcome(command: &mut Command) -> (Option<i32>, String, String) {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// A broker that is ready. Killed when dropped.
pub struct Broker {
    child: Child,
    pub address: SocketAddr,
    /// Lines of standard output, the ready line apart; of standard error.
    stdout: mpsc::Receiver<String>,
    stderr: mpsc::Receiver<String>,
    data_dir: PathBuf,
    /// Removed at the end, if it was made for this broker.
    _place: Option<tempfile::TempDir>,
}

impl Broker {
    /// On a free port, in a fresh directory, with these flags beside.
    pub fn start(flags: &[&str]) -> Broker {
        let place = tempfile::tempdir().unwrap();
        let mut broker = Broker::start_in(forebay(), &place.path().join("data"), flags);
        broker._place = Some(place);
        broker
    }

    /// On a free port, in this directory.
    pub fn start_in(command: Command, data_dir: &Path, flags: &[&str]) -> Broker {
        Broker::launch(command, "127.0.0.1:0", data_dir, flags)
    }

    /// At this address, in this directory.
    pub fn launch(command: Command, listen: &str, data_dir: &Path, flags: &[&str]) -> Broker {
        let mut command = serving(command, listen, data_dir, flags);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = lines(child.stdout.take().unwrap());
        let stderr = lines(child.stderr.take().unwrap());
        let Ok(line) = stdout.recv_timeout(PATIENCE) else {
            drop(child.kill());
            panic!("the broker did not get ready: {}", stderr.iter().collect::<String>());
        };
        let address = line.strip_prefix("forebay ready on ").expect(&line).parse().unwrap();
        let data_dir = data_dir.to_owned();
        Broker { child, address, stdout, stderr, data_dir, _place: None }
    }

    /// SIGKILL, and another one on the same address.
    pub fn restart(mut self, flags: &[&str]) -> Broker {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let mut next = Broker::launch(forebay(), &self.address.to_string(), &self.data_dir, flags);
        next._place = self._place.take();
        next
    }

    /// For a client of it.
    pub fn options(&self) -> ConnectOptions {
        ConnectOptions::new(self.address.to_string())
    }

    pub fn create(&self, queue: &str, options: &QueueOptions) {
        Connection::open(&self.options()).unwrap().queue_create(queue, options).unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The path by which we see what it has at this one, if it has file systems of its own.
    pub fn see(&self, path: &Path) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.pid())).join(path.strip_prefix("/").unwrap())
    }

    /// By its name, as `kill` knows it.
    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Waits until its log says this.
    pub fn wait_for_log(&self, text: &str) -> String {
        loop {
            let line = self.stderr.recv_timeout(PATIENCE).expect("the log must say it");
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Waits for its end: how, what else it said on standard output, and the rest of its log.
    pub fn wait(mut self) -> (ExitStatus, String, String) {
        let rest = |lines: &mpsc::Receiver<String>| {
            let mut text = String::new();
            loop {
                match lines.recv_timeout(PATIENCE) {
                    Ok(line) => text = text + &line + "\n",
                    // A stream ends when its process does.
                    Err(mpsc::RecvTimeoutError::Disconnected) => return text,
                    Err(mpsc::RecvTimeoutError::Timeout) => panic!("no end after: {text}"),
                }
            }
        };
        let (out, log) = (rest(&self.stdout), rest(&self.stderr));
        (self.child.wait().unwrap(), out, log)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Read by a thread, so that the process never waits for us. Tests log far less than fits.
fn lines(stream: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::sync_channel(4096);
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}
