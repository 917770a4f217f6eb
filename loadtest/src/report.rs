//! What a run found, as JSON for programs and a table for people.

use crate::integrity::IntegrityCounts;
use crate::proc::{MachineUse, ProcessUse};
use crate::schedule::PhaseFigures;
use crate::watch::Sample;
use forebay::base::units::show_bytes;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::fmt::Write;
use std::io;
use std::path::Path;

/// Latencies are kept up to so long; longer ones count as this.
const LATENCY_NS_MAX: u64 = 600_000_000_000;

/// A histogram of nanoseconds, exact to three digits.
pub struct Latencies {
    histogram: Histogram<u64>,
}

impl Default for Latencies {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3);
        Latencies { histogram: histogram.expect("constant bounds that the crate accepts") }
    }
}

impl Latencies {
    /// Adds one.
    #[inline]
    pub fn record(&mut self, ns: u64) {
        self.histogram.saturating_record(ns.max(1));
    }

    /// Adds those of another.
    pub fn add(&mut self, other: &Latencies) {
        self.histogram.add(&other.histogram).expect("both have the same bounds");
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The figures of a report; all `None` if nothing was recorded.
    pub fn figures(&self) -> LatencyFigures {
        let us = |ns: u64| (!self.histogram.is_empty()).then_some(ns as f64 / 1e3);
        let quantile = |quantile| us(self.histogram.value_at_quantile(quantile));
        LatencyFigures {
            p50_us: quantile(0.5),
            p90_us: quantile(0.9),
            p99_us: quantile(0.99),
            p999_us: quantile(0.999),
            p9999_us: quantile(0.9999),
            max_us: us(self.histogram.max()),
        }
    }
}

/// Quantiles in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct LatencyFigures {
    /// Half are at most this.
    pub p50_us: Option<f64>,
    /// 90 %.
    pub p90_us: Option<f64>,
    /// 99 %.
    pub p99_us: Option<f64>,
    /// 99.9 %.
    pub p999_us: Option<f64>,
    /// 99.99 %.
    pub p9999_us: Option<f64>,
    /// The longest.
    pub max_us: Option<f64>,
}

impl LatencyFigures {
    /// For people; `None` if nothing was recorded.
    fn line(&self) -> Option<String> {
        let named = [
            ("p50", self.p50_us),
            ("p90", self.p90_us),
            ("p99", self.p99_us),
            ("p99.9", self.p999_us),
            ("p99.99", self.p9999_us),
            ("max", self.max_us),
        ];
        let parts = named.map(|(name, us)| us.map(|us| format!("{name} {us:.1}")));
        parts.into_iter().collect::<Option<Vec<_>>>().map(|parts| parts.join("  "))
    }
}

/// What the processors did while a run was measured.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct ProcessorFigures {
    /// Processor time of the target per million messages.
    pub broker_cpu_s_per_million: Option<f64>,
    /// Processor time of the target, of one core.
    pub broker_cpu_percent: Option<f64>,
    /// Processor time of the clients, of one core.
    pub client_cpu_percent: f64,
    /// Taken by the host for other machines, of all cores. Over 2: repeat the run.
    pub steal_percent: f64,
    /// Used by other programs, of all cores.
    pub foreign_percent: f64,
}

/// One reading of all that a run consumes.
#[derive(Clone, Copy)]
pub struct UseSample {
    ns: u64,
    target: Option<ProcessUse>,
    client: ProcessUse,
    machine: MachineUse,
}

impl UseSample {
    /// Takes it at `ns` of the run; `pid` is the target's.
    ///
    /// # Errors
    /// If the target has ended.
    pub fn take(ns: u64, pid: Option<u32>) -> io::Result<UseSample> {
        Ok(UseSample {
            ns,
            target: pid.map(ProcessUse::of).transpose()?,
            client: ProcessUse::of(std::process::id())?,
            machine: MachineUse::now()?,
        })
    }

    /// When it was taken.
    pub fn ns(&self) -> u64 {
        self.ns
    }

    /// Memory of the target.
    pub fn target(&self) -> Option<ProcessUse> {
        self.target
    }

    /// What was used between `self` and `later`, in which so many messages passed.
    pub fn until(&self, later: &UseSample, messages: u64) -> ProcessorFigures {
        let seconds = (later.ns - self.ns).max(1) as f64 / 1e9;
        let both = self.target.zip(later.target);
        let target_s = both.map(|(old, new)| new.cpu_s - old.cpu_s);
        let client_s = later.client.cpu_s - self.client.cpu_s;
        let machine_s = (later.machine.total_s - self.machine.total_s).max(0.01);
        let busy_s = later.machine.busy_s - self.machine.busy_s;
        let foreign_s = (busy_s - client_s - target_s.unwrap_or(0.0)).max(0.0);
        let million = messages as f64 / 1e6;
        ProcessorFigures {
            broker_cpu_s_per_million: target_s
                .filter(|_| messages > 0)
                .map(|cpu_s| cpu_s / million),
            broker_cpu_percent: target_s.map(|cpu_s| 100.0 * cpu_s / seconds),
            client_cpu_percent: 100.0 * client_s / seconds,
            steal_percent: 100.0 * (later.machine.steal_s - self.machine.steal_s) / machine_s,
            foreign_percent: 100.0 * foreign_s / machine_s,
        }
    }
}

/// The machine that a run was made on.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    processor: String,
    cores: usize,
    memory_bytes: u64,
    kernel: String,
}

impl Machine {
    /// This one. What cannot be found out is empty.
    pub fn here() -> Machine {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let memory_kib = memory.split(' ').next().and_then(|kib| kib.parse::<u64>().ok());
        Machine {
            processor: field(&read("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: memory_kib.unwrap_or(0) * 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was measured.
    pub target: String,
    /// How.
    pub scenario: &'static str,
    /// Messages in the measured part: received, or confirmed where nobody consumes.
    pub messages: u64,
    /// Length of the measured part.
    pub seconds: f64,
    /// The one divided by the other.
    pub messages_per_s: f64,
    /// Of bodies.
    pub bytes_per_s: f64,
    /// In the whole run, warm-up included.
    pub sent: u64,
    /// In the whole run.
    pub confirmed: u64,
    /// In the whole run.
    #[serde(flatten)]
    pub integrity: IntegrityCounts,
    /// Publish to receive, in the measured part.
    #[serde(flatten)]
    pub latency: LatencyFigures,
    /// How late messages left, p99: what of the latency is the clients' own.
    pub send_lag_p99_us: Option<f64>,
    /// Of the measured part.
    #[serde(flatten)]
    pub processors: ProcessorFigures,
    /// Most resident memory of the target.
    pub peak_rss_bytes: Option<u64>,
    /// Publish to confirm of messages that were due in each part of the run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<PhaseFigures>,
    /// The target's memory over time.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<Sample>,
    /// Figures that only some scenarios have.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    pub more: serde_json::Map<String, serde_json::Value>,
    /// As the run was asked for.
    pub parameters: serde_json::Value,
    /// Where.
    pub machine: Machine,
    /// Of this program.
    pub version: &'static str,
}

impl Report {
    /// Whether every message that was confirmed arrived once, whole and in order.
    pub fn is_sound(&self) -> bool {
        self.integrity.is_clean()
    }

    /// A table for people.
    pub fn table(&self) -> String {
        let mut rows = self.rows();
        rows.extend(self.more.iter().map(|(name, value)| (name.as_str(), value.to_string())));
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let mut table = format!("{} {}\n", self.target, self.scenario);
        for (name, value) in rows {
            writeln!(table, "  {name:width$}  {value}").expect("a String takes all");
        }
        for phase in &self.phases {
            let PhaseFigures { phase: name, seconds, messages, .. } = phase;
            let line = phase.latency.line().unwrap_or_default();
            let lag = phase.send_lag_p99_us.unwrap_or_default();
            writeln!(
                table,
                "  {name:12}  {seconds:6.1} s  {messages:9}  us {line}  (send lag p99 {lag:.1})"
            )
            .expect("a String takes all");
        }
        table
    }

    fn rows(&self) -> Vec<(&str, String)> {
        let mut rows = Vec::new();
        if self.messages > 0 {
            rows.push(("messages/s", format!("{:.0}", self.messages_per_s)));
            rows.push(("bodies", format!("{}/s", show_bytes(self.bytes_per_s as u64))));
            let text = format!("{} messages in {:.2} s", self.messages, self.seconds);
            rows.push(("measured", text));
        }
        if self.sent > 0 {
            rows.push(("integrity", self.integrity.line(self.confirmed)));
        }
        rows.extend(self.latency.line().map(|line| ("latency us", line)));
        rows.extend(self.send_lag_p99_us.map(|lag| ("send lag us", format!("p99 {lag:.1}"))));
        let used = &self.processors;
        if let Some(percent) = used.broker_cpu_percent {
            let each = used.broker_cpu_s_per_million;
            let each = each.map(|cpu_s| format!("{cpu_s:.3} s per million messages, "));
            rows.push((
                "broker CPU",
                format!("{}{percent:.1} % of a core", each.unwrap_or_default()),
            ));
        }
        rows.extend(self.peak_rss_bytes.map(|bytes| ("peak RSS", show_bytes(bytes))));
        let machine = format!(
            "clients {:.0} % of a core; of the machine: steal {:.1} %, others {:.1} %",
            used.client_cpu_percent, used.steal_percent, used.foreign_percent
        );
        rows.push(("machine", machine));
        rows
    }
}

/// Writes `value` as JSON to `path`.
///
/// # Errors
/// If the file cannot be written.
pub fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
    text.push('\n');
    std::fs::write(path, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_what_was_recorded() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.figures(), LatencyFigures::default());
        (1..=100_000).for_each(|us| latencies.record(us * 1000));
        let figures = latencies.figures();
        let near = |value: Option<f64>, expected: f64| {
            let value = value.unwrap();
            assert!((value / expected - 1.0).abs() < 0.002, "{value} is not {expected}");
        };
        near(figures.p50_us, 50_000.0);
        near(figures.p90_us, 90_000.0);
        near(figures.p99_us, 99_000.0);
        near(figures.p999_us, 99_900.0);
        near(figures.p9999_us, 99_990.0);
        near(figures.max_us, 100_000.0);
    }

    #[test]
    fn extremes_are_kept() {
        let mut latencies = Latencies::default();
        latencies.record(0);
        latencies.record(u64::MAX);
        let figures = latencies.figures();
        assert!(figures.p50_us.unwrap() < 0.01 && figures.max_us.unwrap() >= 599e6);
    }

    #[test]
    fn use_between_two_samples_is_attributed() {
        let sample = |ns, cpu_s, busy_s, steal_s, total_s| UseSample {
            ns,
            target: Some(ProcessUse { cpu_s, ..Default::default() }),
            client: ProcessUse { cpu_s: cpu_s * 2.0, ..Default::default() },
            machine: MachineUse { total_s, busy_s, steal_s },
        };
        let first = sample(1_000_000_000, 1.0, 10.0, 1.0, 100.0);
        let last = sample(3_000_000_000, 1.5, 12.0, 1.4, 104.0);
        let figures = first.until(&last, 5_000_000);
        let near = |value: f64, expected: f64| assert!((value - expected).abs() < 1e-9, "{value}");
        near(figures.broker_cpu_s_per_million.unwrap(), 0.1);
        near(figures.broker_cpu_percent.unwrap(), 25.0);
        near(figures.client_cpu_percent, 50.0);
        near(figures.steal_percent, 10.0);
        near(figures.foreign_percent, 12.5);
        assert_eq!(first.until(&last, 0).broker_cpu_s_per_million, None);
    }
}
