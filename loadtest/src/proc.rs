//! Processes: starts the target bound to its core, and reads what it and the machine used from
//! `/proc`. What was started here ends with its [`Spawned`], or with this process at the latest.

use crate::clock::now;
use crate::sys;
use std::io::{self, BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use tempfile::TempDir;

/// A target has so long to say that it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(120);

/// Between two looks whether it listens.
const READY_PAUSE: Duration = Duration::from_millis(20);

/// A target that this process started.
pub struct Spawned {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
    /// Held until the child is gone.
    _directory: Option<TempDir>,
}

impl Spawned {
    /// Starts `command` on `core` and waits for the line `... ready on ADDR` on its standard
    /// output. `directory` is removed when it has ended.
    ///
    /// # Errors
    /// If it cannot be started or does not say that it is ready in time.
    pub fn start(
        mut command: Command,
        core: Option<usize>,
        directory: Option<TempDir>,
    ) -> io::Result<Spawned> {
        sys::bind_child(&mut command, core);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take();
        // Bound to a guard at once: an early return below ends the child too.
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut spawned = Spawned { child, address: nowhere, _directory: directory };
        let stdout = stdout.ok_or_else(|| io::Error::other("the target has no output"))?;
        let (sender, lines) = mpsc::sync_channel(1);
        // Reads to the end of the output, so that the target never waits for us.
        std::thread::spawn(move || {
            let mut lines = BufReader::new(stdout).lines();
            let ready = lines.find_map(|line| ready_address(&line.ok()?));
            // Nobody listens any more if the wait below has ended; then the child is gone.
            let _ = sender.send(ready);
            lines.for_each(drop);
        });
        match lines.recv_timeout(READY_TIMEOUT) {
            Ok(Some(address)) => {
                spawned.address = address;
                Ok(spawned)
            }
            Ok(None) => Err(io::Error::other("the target ended before it was ready")),
            Err(_) => Err(io::Error::other("the target was not ready within 120 s")),
        }
    }

    /// Starts a program that does not say when it is ready, and waits until `address` answers.
    ///
    /// # Errors
    /// If it cannot be started, ends, or does not listen in time.
    pub fn start_listening(
        mut command: Command,
        core: Option<usize>,
        address: SocketAddr,
        directory: TempDir,
    ) -> io::Result<Spawned> {
        sys::bind_child(&mut command, core);
        let name = command.get_program().to_string_lossy().into_owned();
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().map_err(|error| {
                io::Error::new(error.kind(), format!("cannot start {name}: {error}"))
            })?;
        let mut spawned = Spawned { child, address, _directory: Some(directory) };
        let begin = now();
        while begin.elapsed() < READY_TIMEOUT {
            if TcpStream::connect(address).is_ok() {
                return Ok(spawned);
            }
            if let Some(status) = spawned.child.try_wait()? {
                return Err(io::Error::other(format!("{name} ended: {status}")));
            }
            std::thread::park_timeout(READY_PAUSE);
        }
        Err(io::Error::other(format!("{name} did not listen within 20 s")))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        // Both fail only if the child is gone, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ready_address(line: &str) -> Option<SocketAddr> {
    line.split_once(" ready on ")?.1.trim().parse().ok()
}

/// Makes this thread, and those it starts, run on `core` alone.
///
/// # Errors
/// If there is no such core for this process.
pub fn pin_here(core: usize) -> io::Result<()> {
    if core_affinity::set_for_current(core_affinity::CoreId { id: core }) {
        Ok(())
    } else {
        Err(io::Error::other(format!("this process cannot run on core {core}")))
    }
}

/// What a process has used so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessUse {
    /// Of user and system time together, all threads.
    pub cpu_s: f64,
    /// Resident memory now.
    pub rss_bytes: u64,
    /// Most resident memory so far.
    pub peak_rss_bytes: u64,
}

impl ProcessUse {
    /// Of process `pid`.
    ///
    /// # Errors
    /// If there is none such.
    pub fn of(pid: u32) -> io::Result<ProcessUse> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let bad = || io::Error::other(format!("/proc/{pid} cannot be read"));
        Ok(ProcessUse {
            cpu_s: cpu_ticks(&stat).ok_or_else(bad)? as f64 / sys::ticks_per_second() as f64,
            rss_bytes: status_bytes(&status, "VmRSS:").ok_or_else(bad)?,
            peak_rss_bytes: status_bytes(&status, "VmHWM:").ok_or_else(bad)?,
        })
    }
}

/// Fields 14 and 15 of `/proc/PID/stat`. The name before them may hold spaces and parentheses.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn status_bytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// What all processors together have done so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct MachineUse {
    /// All time.
    pub total_s: f64,
    /// In programs and in the kernel on their behalf, interrupts apart.
    pub busy_s: f64,
    /// Wanted, but given to other machines by the host.
    pub steal_s: f64,
}

impl MachineUse {
    /// Now.
    ///
    /// # Errors
    /// If `/proc/stat` cannot be read.
    pub fn now() -> io::Result<MachineUse> {
        let stat = std::fs::read_to_string("/proc/stat")?;
        machine_use(&stat).ok_or_else(|| io::Error::other("/proc/stat cannot be read"))
    }
}

fn machine_use(stat: &str) -> Option<MachineUse> {
    let fields = stat.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace();
    let ticks: Vec<u64> = fields.map_while(|field| field.parse().ok()).take(8).collect();
    let [user, nice, system, _idle, _iowait, _irq, _softirq, steal] = ticks[..] else {
        return None;
    };
    let seconds = |ticks: u64| ticks as f64 / sys::ticks_per_second() as f64;
    Some(MachineUse {
        total_s: seconds(ticks.iter().sum()),
        busy_s: seconds(user + nice + system),
        steal_s: seconds(steal),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_lines_are_read_right() {
        let stat = "77 (a b) c) S 1 2 3 4 5 6 7 8 9 10 120 30 1 1";
        assert_eq!(cpu_ticks(stat), Some(150));
        assert_eq!(status_bytes("Name: x\nVmHWM:\t  12 kB\nVmRSS:\t8 kB\n", "VmRSS:"), Some(8192));
        let usage = machine_use("cpu  200 100 300 4000 5 6 7 382 0 0\ncpu0 1\n").unwrap();
        let ticks = sys::ticks_per_second() as f64;
        assert_eq!((usage.total_s * ticks).round(), 5000.0);
        assert_eq!((usage.busy_s * ticks).round(), 600.0);
        assert_eq!((usage.steal_s * ticks).round(), 382.0);
        assert!(machine_use("intr 5").is_none());
    }

    #[test]
    fn this_process_has_used_something() {
        let usage = ProcessUse::of(std::process::id()).unwrap();
        assert!(usage.rss_bytes > 0 && usage.peak_rss_bytes >= usage.rss_bytes);
        assert!(MachineUse::now().unwrap().total_s > 0.0);
    }

    #[test]
    fn only_a_ready_line_names_an_address() {
        let expected: SocketAddr = "127.0.0.1:7440".parse().unwrap();
        assert_eq!(ready_address("forebay ready on 127.0.0.1:7440"), Some(expected));
        assert_eq!(ready_address("forebay is ready on time"), None);
        assert_eq!(ready_address("listening on 127.0.0.1:7440"), None);
    }

    #[test]
    fn a_program_that_never_gets_ready_is_an_error_and_leaves_nothing() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().to_owned();
        let failed = Spawned::start(Command::new("true"), None, Some(directory));
        assert!(failed.err().unwrap().to_string().contains("before it was ready"));
        assert!(!path.exists());
    }

    #[test]
    fn a_target_ends_with_its_guard() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo it is ready on 127.0.0.1:9; exec sleep 60"]);
        let spawned = Spawned::start(command, None, None).unwrap();
        assert_eq!(spawned.address, "127.0.0.1:9".parse().unwrap());
        let proc = format!("/proc/{}", spawned.pid());
        assert!(std::path::Path::new(&proc).exists());
        drop(spawned);
        assert!(!std::path::Path::new(&proc).exists());
    }
}
