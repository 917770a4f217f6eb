//! What a Forebay says of its journals, before and after a run.

use forebay::client::{ConnectOptions, Connection, ReconnectPolicy};
use serde_json::{Map, Value};
use std::net::SocketAddr;

/// Since the broker was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalUse {
    /// Groups.
    groups: u64,
    /// Bytes of them, padding apart.
    written_bytes: u64,
    /// What they were filled up with.
    padding_bytes: u64,
}

impl JournalUse {
    /// Now; `None` if the broker does not say.
    pub fn of(server: SocketAddr) -> Option<JournalUse> {
        let options = ConnectOptions {
            token: std::env::var("FOREBAY_TOKEN").ok(),
            reconnect: ReconnectPolicy::never(),
            ..ConnectOptions::new(server.to_string())
        };
        let stats = Connection::open(&options).and_then(|mut link| link.stats()).ok()?;
        Some(JournalUse {
            groups: stats.journal_groups,
            written_bytes: stats.journal_written_bytes,
            padding_bytes: stats.journal_padding_bytes,
        })
    }

    /// Adds what was written between the two, for so many bytes of bodies.
    pub fn until(&self, later: &JournalUse, bytes: u64, more: &mut Map<String, Value>) {
        let written_bytes = later.written_bytes - self.written_bytes;
        let groups = later.groups - self.groups;
        let mean = written_bytes.checked_div(groups).unwrap_or(0);
        more.insert("journal_groups".into(), groups.into());
        more.insert("journal_group_bytes".into(), mean.into());
        let padding_bytes = later.padding_bytes - self.padding_bytes;
        more.insert("journal_padding_bytes".into(), padding_bytes.into());
        let amplification = written_bytes as f64 / bytes.max(1) as f64;
        more.insert("write_amplification".into(), amplification.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_between_is_counted() {
        let before = JournalUse { groups: 5, written_bytes: 1000, padding_bytes: 7 };
        let after = JournalUse { groups: 9, written_bytes: 7000, padding_bytes: 57 };
        let mut more = Map::new();
        before.until(&after, 4000, &mut more);
        assert_eq!(more["journal_groups"], 4);
        assert_eq!(more["journal_group_bytes"], 1500);
        assert_eq!(more["journal_padding_bytes"], 50);
        assert_eq!(more["write_amplification"], 1.5);
    }
}
