//! `store repair`: what a start refuses is put aside, and what is put aside stays there. Nothing is
//! deleted.
//!
//! ```text
//! a file that cannot be used             moved to DIR/quarantine-TIME/
//! a group that this program does not     its file is copied there; then zeros stand where its
//! understand                             header was, so that a start passes over it
//! `stores` damaged or missing            moved there; made again of the journals' headers
//! ```
//!
//! The copy is on the device before anything is changed, so a crash in between costs nothing: the
//! next repair does the rest.

use crate::cli::wall::rfc3339;
use crate::cli::{Failure, Outcome, Output};
use crate::io::Clock;
use crate::io::clock::SystemClock;
use crate::limits::DISK_ALIGN_BYTES;
use crate::server::stores;
use crate::store_tool::directory::Directory;
use crate::store_tool::examine::{Examined, Problem, Remedy};
use crate::store_tool::verify::{Fault, Lost, damaged, faults, lines, lost};
use serde::Serialize;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Something that was done.
#[derive(Serialize)]
struct Done {
    file: String,
    offset: Option<u64>,
    /// Why.
    what: String,
    /// `moved`, `group_blanked`, `made_again`, or `nothing` where nobody knows what to do.
    done: &'static str,
    /// Where the file is now, or its copy.
    kept_as: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report<'a> {
    dry_run: bool,
    done: &'a [Done],
    /// What a start finds then, and lives with.
    left: &'a [Fault],
    lost: &'a [Lost<'a>],
}

/// Runs `store repair`.
pub fn run(directory: &Directory, dry_run: bool, mut out: Output) -> Outcome {
    let examined = Examined::of(directory)?;
    let quarantine = Quarantine::new(directory.path());
    let mut done = Vec::new();
    for problem in &examined.problems {
        done.push(quarantine.told(problem));
        if !dry_run {
            let repaired = quarantine.repair(problem);
            repaired.map_err(|error| directory.cannot("repair", &error))?;
        }
    }
    let mut after = if dry_run { examined } else { Examined::of(directory)? };
    if dry_run {
        after.problems.retain(|problem| problem.remedy == Remedy::None);
    }
    let (left, lost) = (faults(&after), lost(&after));
    if out.json {
        out.json_line(&Report { dry_run, done: &done, left: &left, lost: &lost })?;
    } else {
        out.text(shown(dry_run, &done))?;
        out.text(lines(&left, &lost, &[]))?;
    }
    out.flush()?;
    if after.problems.iter().any(|problem| problem.is_refused) {
        let failure = Failure { hint: String::new(), ..damaged(directory, &after) };
        return Err(failure.hint("nobody knows a repair for that; see above").into());
    }
    Ok(())
}

fn shown(dry_run: bool, done: &[Done]) -> String {
    if done.is_empty() {
        return "nothing to repair: a broker starts on it\n".to_owned();
    }
    let mut text = String::new();
    for done in done {
        let at = done.offset.map_or(String::new(), |at| format!(" at byte {at}"));
        let kept = done.kept_as.as_ref().map(|path| path.display().to_string());
        let kept = kept.unwrap_or_default();
        let did = match done.done {
            "moved" => format!("moved to {kept}"),
            "group_blanked" => format!("this group is blanked; the file as it was is {kept}"),
            "made_again" if kept.is_empty() => "made again of the journals' headers".to_owned(),
            "made_again" => format!("made again of the journals' headers; the old one is {kept}"),
            _ => "left as it is".to_owned(),
        };
        let mood = if dry_run { "would be " } else { "" };
        text.push_str(&format!("{}{at}: {}\n  {mood}{did}\n", done.file, done.what));
    }
    text
}

/// The folder for what is put aside; made when it is needed.
struct Quarantine {
    data_dir: PathBuf,
    path: PathBuf,
}

impl Quarantine {
    fn new(data_dir: &Path) -> Quarantine {
        let now = rfc3339(SystemClock::default().now().wall.0);
        let name = format!("quarantine-{}", now.replace(':', "-"));
        Quarantine { data_dir: data_dir.to_owned(), path: data_dir.join(name) }
    }

    fn told(&self, problem: &Problem) -> Done {
        let done = match problem.remedy {
            Remedy::None => "nothing",
            Remedy::Quarantine => "moved",
            Remedy::Blank { .. } => "group_blanked",
            Remedy::MakeStores(_) => "made_again",
        };
        // What is missing leaves nothing to keep.
        let is_kept = done != "nothing" && self.data_dir.join(&problem.file).exists();
        let kept_as = is_kept.then(|| self.path.join(&problem.file));
        let (file, what) = (problem.file.clone(), problem.what.clone());
        Done { file, offset: problem.offset, what, done, kept_as }
    }

    fn repair(&self, problem: &Problem) -> std::io::Result<()> {
        let name = &problem.file;
        match &problem.remedy {
            Remedy::None => Ok(()),
            Remedy::Quarantine => {
                self.make()?;
                std::fs::rename(self.data_dir.join(name), self.path.join(name))?;
                self.sync()
            }
            Remedy::Blank { offset, .. } => {
                self.keep(name)?;
                let file = File::options().write(true).open(self.data_dir.join(name))?;
                file.write_all_at(&[0; DISK_ALIGN_BYTES], *offset)?;
                file.sync_all()
            }
            Remedy::MakeStores(ids) => {
                self.keep(name)?;
                stores::write(&self.data_dir, ids).map_err(std::io::Error::other)
            }
        }
    }

    /// Copies a file as it is, if it is there and was not copied before.
    fn keep(&self, name: &str) -> std::io::Result<()> {
        let (from, to) = (self.data_dir.join(name), self.path.join(name));
        if to.exists() || !from.exists() {
            return Ok(());
        }
        self.make()?;
        std::fs::copy(from, &to)?;
        File::open(to)?.sync_all()?;
        self.sync()
    }

    fn make(&self) -> std::io::Result<()> {
        match std::fs::create_dir(&self.path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    fn sync(&self) -> std::io::Result<()> {
        File::open(&self.path)?.sync_all()?;
        File::open(&self.data_dir)?.sync_all()
    }
}
