//! A broker of its own for each test, and the commands that talk to it. Nothing waits for ever: a
//! command that does not end within [`LONG`] is killed and fails its test.

use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// More than anything here takes on a machine that is busy with other tests.
pub const LONG: Duration = Duration::from_secs(60);

/// The program with these arguments and none of the caller's settings.
pub fn forebay(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FOREBAY_") {
            command.env_remove(name);
        }
    }
    // Several brokers run at once; a flag goes before this.
    command.env("FOREBAY_ADMIN", "off");
    command.args(arguments);
    command
}

/// A running broker; dropped, it is killed.
pub struct Broker {
    child: Child,
    /// Where it listens.
    pub address: String,
    data_dir: TempDir,
    /// Held open, for the broker writes to it.
    _stdout: BufReader<ChildStdout>,
}

impl Broker {
    pub fn start() -> Broker {
        Broker::start_with(&[])
    }

    pub fn start_with(arguments: &[&str]) -> Broker {
        Broker::serve("127.0.0.1:0", arguments, tempfile::tempdir().unwrap())
    }

    pub fn start_at(address: &str) -> Broker {
        Broker::serve(address, &[], tempfile::tempdir().unwrap())
    }

    fn serve(address: &str, arguments: &[&str], data_dir: TempDir) -> Broker {
        let mut serve = forebay(&["serve", "--listen", address, "--memory-limit", "128MiB"]);
        serve.args(["--log", "warn", "--data-dir"]).arg(data_dir.path()).args(arguments);
        let mut child = serve.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut ready = String::new();
        stdout.read_line(&mut ready).unwrap();
        let address = ready.strip_prefix("forebay ready on ").unwrap_or_else(|| panic!("{ready}"));
        let address = address.trim_end().to_owned();
        Broker { child, address, data_dir, _stdout: stdout }
    }

    /// Kills it and starts it again at the same address.
    pub fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let data_dir = std::mem::replace(&mut self.data_dir, tempfile::tempdir().unwrap());
        *self = Broker::serve(&self.address, &[], data_dir);
    }

    /// Asks it to end; gives its exit code and how long it took.
    pub fn terminate(mut self) -> (Option<i32>, Duration) {
        let begun = now();
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        while self.child.try_wait().unwrap().is_none() && begun.elapsed() < LONG {
            pause();
        }
        (self.child.try_wait().unwrap().and_then(|status| status.code()), begun.elapsed())
    }

    pub fn data_dir(&self) -> &str {
        self.data_dir.path().to_str().unwrap()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = forebay(arguments);
        command.args(["--server", &self.address]);
        command
    }

    pub fn run(&self, arguments: &[&str], input: &[u8]) -> Finished {
        Finished::of(self.command(arguments), input)
    }

    pub fn ok(&self, arguments: &[&str]) -> Finished {
        self.run(arguments, b"").expect(0)
    }

    pub fn spawn(&self, arguments: &[&str]) -> Running {
        Running::of(&mut self.command(arguments))
    }

    pub fn show(&self, queue: &str) -> Value {
        serde_json::from_slice(&self.ok(&["queue", "show", queue, "--json"]).stdout).unwrap()
    }

    pub fn wait_until(&self, queue: &str, so: impl Fn(&Value) -> bool) {
        let begun = now();
        while !so(&self.show(queue)) {
            assert!(begun.elapsed() < LONG, "{}", self.show(queue));
            pause();
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command that runs; dropped, it is killed.
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    stderr: Option<BufReader<ChildStderr>>,
}

impl Running {
    pub fn of(command: &mut Command) -> Running {
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().unwrap();
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let stderr = Some(BufReader::new(child.stderr.take().unwrap()));
        Running { child, stdin, stdout, stderr }
    }

    pub fn input(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(bytes).and_then(|()| stdin.flush()).unwrap();
    }

    /// The next line of standard output.
    pub fn output_line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The next line of standard error.
    pub fn error_line(&mut self) -> String {
        let mut line = String::new();
        self.stderr.as_mut().unwrap().read_line(&mut line).unwrap();
        line
    }

    /// Ends its input and waits for it; what it wrote that was not read before.
    pub fn finish(mut self) -> Finished {
        drop(self.stdin.take());
        self.ended()
    }

    /// Waits for it while its input goes on.
    pub fn ended(mut self) -> Finished {
        let (sender, ended) = sync_channel(1);
        let id = self.child.id().to_string();
        let worker = std::thread::spawn(move || {
            let mut stdout = Vec::new();
            let mut errors = self.stderr.take().unwrap();
            let reader = std::thread::spawn(move || {
                let mut stderr = Vec::new();
                errors.read_to_end(&mut stderr).unwrap();
                stderr
            });
            self.stdout.read_to_end(&mut stdout).unwrap();
            let code = self.child.wait().unwrap().code();
            sender.send(()).unwrap();
            Finished { code, stdout, stderr: reader.join().unwrap() }
        });
        if ended.recv_timeout(LONG).is_err() {
            let _ = Command::new("kill").args(["-KILL", &id]).status();
        }
        worker.join().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command that has ended.
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Finished {
    /// Runs a command to its end.
    pub fn of(mut command: Command, input: &[u8]) -> Finished {
        let mut running = Running::of(&mut command);
        let (mut stdin, input) = (running.stdin.take().unwrap(), input.to_vec());
        // A command that fails early does not read all.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let finished = running.finish();
        writer.join().unwrap();
        finished
    }

    #[track_caller]
    pub fn expect(self, code: i32) -> Finished {
        assert_eq!(self.code, Some(code), "{}{}", self.text(), self.errors());
        self
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    pub fn lines(&self) -> usize {
        self.stdout.iter().filter(|&&byte| byte == b'\n').count()
    }
}

#[expect(clippy::disallowed_methods, reason = "the one clock function of this program")]
fn now() -> Instant {
    Instant::now()
}

fn pause() {
    std::thread::park_timeout(Duration::from_millis(10));
}
