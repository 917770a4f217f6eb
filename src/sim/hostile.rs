//! Clients that do it wrong: each sends one thing that no client may, and must get the answer that
//! docs/PROTOCOL.md names, while nobody else notices.

use crate::limits::{BACKOFF_MS_MAX, CREDIT_MESSAGES_MAX, FRAME_HEADER_BYTES, LEASE_MS_MAX};
use crate::protocol::control::{Answer, Request};
use crate::protocol::error::ErrorCode;
use crate::protocol::frame::{FrameHeader, Opcode, preamble};
use crate::protocol::hot::{CreditEntry, NackKind};
use crate::protocol::wire;
use crate::sim::consumer::encode_settle;
use crate::sim::lease::Verb;
use crate::sim::link::Link;
use crate::sim::net::LineState;
use crate::sim::trace::Cover;
use crate::sim::{Checked, Stage};

/// What has to come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// This error, then the end of the connection.
    Fatal(ErrorCode, Cover),
    /// This error; the connection goes on.
    Refused(ErrorCode, Cover),
    /// The end of the connection without a word.
    Closed(Cover),
    /// The client goes by itself.
    Nothing(Cover),
}

/// See the module.
pub struct Hostile {
    link: Option<Link>,
    outcome: Outcome,
    retry_at_ns: u64,
    /// Bytes that go out one by one.
    trickle: Vec<u8>,
    trickle_at: usize,
    /// Reads nothing.
    deaf: bool,
    seen: bool,
    since_ns: u64,
    flood: Vec<Link>,
}

impl Default for Hostile {
    fn default() -> Self {
        Hostile {
            link: None,
            outcome: Outcome::Nothing(Cover::Truncated),
            retry_at_ns: 0,
            trickle: Vec::new(),
            trickle_at: 0,
            deaf: false,
            seen: false,
            since_ns: 0,
            flood: Vec::new(),
        }
    }
}

impl Hostile {
    /// Lets it do something.
    ///
    /// # Errors
    /// If the broker did not answer as it must.
    pub fn act(&mut self, stage: &mut Stage) -> Checked {
        self.act_flood(stage);
        if self.link.is_none() {
            if !stage.winding_down && self.retry_at_ns <= stage.universe.mono().0 {
                self.begin(stage);
            }
            return Ok(());
        }
        self.go_on(stage)
    }

    /// Whether it has no connection.
    pub fn is_settled(&self) -> bool {
        self.link.is_none() && self.flood.is_empty()
    }

    fn act_flood(&mut self, stage: &mut Stage) {
        if stage.whim(2) {
            stage.universe.cover(Cover::Flood);
            let count = stage.universe.range(5, 60);
            for _ in 0..count {
                let Some(mut link) = Link::connect(&stage.universe) else { break };
                if stage.universe.chance(300) {
                    link.greet();
                    link.flush();
                }
                self.flood.push(link);
            }
        }
        if stage.winding_down || stage.universe.chance(20) {
            for link in self.flood.drain(..) {
                link.close(stage.universe.chance(500));
            }
        }
    }

    fn begin(&mut self, stage: &mut Stage) {
        let Some(mut link) = Link::connect(&stage.universe) else { return };
        (self.trickle_at, self.deaf, self.seen) = (0, false, false);
        self.trickle.clear();
        self.since_ns = stage.universe.mono().0;
        self.outcome = match stage.universe.range(0, 9) {
            0..=2 => self.before_hello(stage, &mut link),
            3..=5 => after_hello(stage, &mut link),
            6..=8 => bad_request(stage, &mut link),
            _ => self.tarry(stage, &mut link),
        };
        stage.universe.note(|| format!("hostile {:?}: {:?}", link.line, self.outcome));
        link.flush();
        self.link = Some(link);
    }

    fn before_hello(&mut self, stage: &Stage, link: &mut Link) -> Outcome {
        let universe = &stage.universe;
        match universe.range(0, 4) {
            0 => {
                let mut garbage: Vec<u8> = (0..200).map(|_| universe.bits() as u8).collect();
                garbage[0] = b'G';
                garbage.truncate(8 + universe.index(190));
                link.send_bytes(&garbage);
                Outcome::Fatal(ErrorCode::BadPreamble, Cover::BadPreamble)
            }
            1 => {
                link.send_bytes(&preamble(2 + universe.skewed(1000) as u16));
                Outcome::Fatal(ErrorCode::UnsupportedVersion, Cover::BadVersion)
            }
            2 if stage.plan.config.token.is_some() => {
                let token = universe.chance(500).then(|| "open barley".to_owned());
                let hello = wire::HelloT { token, ..wire::HelloT::default() };
                link.greet();
                link.request(0, 1, &Request::Hello(hello));
                Outcome::Fatal(ErrorCode::BadToken, Cover::BadToken)
            }
            3 => {
                link.greet();
                link.send(Opcode::Ping, 0, 7, &[]);
                Outcome::Fatal(ErrorCode::HelloExpected, Cover::HelloExpected)
            }
            _ => {
                let bytes = preamble(1);
                link.send_bytes(&bytes[..universe.index(8)]);
                Outcome::Fatal(ErrorCode::Timeout, Cover::Timeout)
            }
        }
    }

    /// Slow in one way or another.
    fn tarry(&mut self, stage: &Stage, link: &mut Link) -> Outcome {
        let universe = &stage.universe;
        hello(stage, link);
        match universe.range(0, 2) {
            0 => {
                // A frame that never ends.
                let header = FrameHeader::new(Opcode::QueueDelete, 0, 1000).encode();
                self.trickle = header.to_vec();
                self.trickle.resize(FRAME_HEADER_BYTES + 900, 0);
                Outcome::Fatal(ErrorCode::Timeout, Cover::Timeout)
            }
            1 => {
                let header = FrameHeader::new(Opcode::Publish, 1, 5000).encode();
                link.send_bytes(&header[..1 + universe.index(16)]);
                Outcome::Nothing(Cover::Truncated)
            }
            _ => {
                // Asks for more than the pipe holds and takes none of it.
                for nth in 0..20_000 {
                    link.send(Opcode::Ping, 0, 100 + nth, &[]);
                }
                self.deaf = true;
                Outcome::Closed(Cover::SlowReader)
            }
        }
    }

    fn go_on(&mut self, stage: &mut Stage) -> Checked {
        let link = self.link.as_mut().expect("it was looked at");
        if self.trickle_at < self.trickle.len() && stage.universe.chance(300) {
            link.send_bytes(&self.trickle[self.trickle_at..=self.trickle_at]);
            self.trickle_at += 1;
        }
        link.flush();
        let waited_ns = stage.universe.mono().0 - self.since_ns;
        let Outcome::Fatal(code, cover) = self.outcome else {
            return self.go_on_unharmed(stage, waited_ns);
        };
        link.receive(usize::MAX);
        while let Some(frame) = link.next_frame()? {
            if frame.opcode != Opcode::Error {
                continue;
            }
            let got = error_code(&frame.payload)?;
            match got {
                _ if got == Some(code) => self.seen = true,
                // A hello that the stalled network held up, or the broker at its end.
                Some(ErrorCode::Timeout) if !stage.plan.calm => self.seen = true,
                Some(ErrorCode::Draining) => self.seen = true,
                // There was no room for the connection in the first place.
                Some(ErrorCode::ConnectionsMax | ErrorCode::MemoryLimit) => self.seen = true,
                _ => return Err(format!("{code} was due, {got:?} came")),
            }
        }
        if link.state != LineState::Open {
            let turned_away = stage.memory_full_ns.is_some_and(|at| at >= link.opened_ns);
            // A broker that goes ends a connection before its time has run out.
            let excused = turned_away || !stage.plan.calm || stage.draining;
            let broken = link.state == LineState::Reset || excused;
            if !self.seen && !broken {
                return Err(format!("{code} was due, the connection ended without it"));
            }
            if self.seen {
                stage.universe.cover(cover);
            }
            self.leave(stage);
        } else if stage.winding_down {
            self.leave(stage);
        } else if self.seen && waited_ns > 60_000_000_000 && stage.plan.calm {
            return Err(format!("after {code} the connection stayed open"));
        }
        Ok(())
    }

    /// As [`Hostile::go_on`], where the connection may live.
    fn go_on_unharmed(&mut self, stage: &mut Stage, waited_ns: u64) -> Checked {
        let link = self.link.as_mut().expect("it was looked at");
        if !self.deaf {
            link.receive(usize::MAX);
        } else if !link.intact() || stage.winding_down {
            if waited_ns > stage.plan.config.stall_timeout_ms * 1_000_000 {
                stage.universe.cover(Cover::SlowReader);
            }
            self.leave(stage);
            return Ok(());
        } else if waited_ns > 30_000_000_000 && stage.plan.calm {
            return Err("a reader of nothing is still connected".into());
        }
        let mut done = stage.winding_down;
        while !done && let Some(frame) = link.next_frame()? {
            if frame.opcode != Opcode::Error || self.deaf {
                continue;
            }
            let got = error_code(&frame.payload)?;
            match self.outcome {
                Outcome::Refused(code, cover) if got == Some(code) => {
                    stage.universe.cover(cover);
                    done = true;
                }
                Outcome::Refused(..) if got == Some(ErrorCode::QueueNotFound) => done = true,
                // Subscriptions come and go as well.
                Outcome::Refused(..) if got == Some(ErrorCode::SubscriptionNotFound) => {
                    done = true;
                }
                _ if got == Some(ErrorCode::MemoryLimit) => done = true,
                _ if got == Some(ErrorCode::ConnectionsMax) => done = true,
                _ if got == Some(ErrorCode::Draining) => done = true,
                _ if !stage.plan.calm => done = true,
                other => return Err(format!("{other:?} was due, {got:?} came")),
            }
        }
        if let Outcome::Nothing(cover) = self.outcome
            && stage.universe.chance(50)
        {
            stage.universe.cover(cover);
            done = true;
        }
        let ended = link.state != LineState::Open;
        let turned_away = stage.memory_full_ns.is_some_and(|at| at >= link.opened_ns);
        if ended
            && stage.plan.calm
            && !turned_away
            && matches!(self.outcome, Outcome::Refused(..))
            && !done
        {
            return Err(format!("{:?} was due, the connection ended", self.outcome));
        }
        if done || (ended && !self.deaf) {
            self.leave(stage);
        }
        Ok(())
    }

    fn leave(&mut self, stage: &Stage) {
        if let Some(link) = self.link.take() {
            link.close(stage.universe.chance(300));
        }
        self.retry_at_ns = stage.universe.mono().0 + stage.universe.skewed(20_000_000);
    }
}

fn hello(stage: &Stage, link: &mut Link) {
    let token = stage.plan.config.token.clone();
    let hello = wire::HelloT { token, ..wire::HelloT::default() };
    link.greet();
    link.request(0, 1, &Request::Hello(hello));
}

/// Breaks the rules of frames.
fn after_hello(stage: &Stage, link: &mut Link) -> Outcome {
    let universe = &stage.universe;
    hello(stage, link);
    match universe.range(0, 5) {
        0 => {
            hello(stage, link);
            // The second preamble is no frame; where it happens to look like one, it is too large.
            Outcome::Fatal(ErrorCode::FrameTooLarge, Cover::FrameTooLarge)
        }
        1 => {
            let body =
                wire::HelloT { token: stage.plan.config.token.clone(), ..Default::default() };
            link.request(0, 2, &Request::Hello(body));
            Outcome::Fatal(ErrorCode::HelloExpected, Cover::HelloExpected)
        }
        2 => {
            let payload_bytes = [u32::MAX, 1 << 20, 70_000][universe.index(3)];
            let header = FrameHeader { payload_bytes, ..FrameHeader::new(Opcode::Ack, 0, 0) };
            link.send_bytes(&header.encode());
            link.send_bytes(&[0; 300]);
            Outcome::Fatal(ErrorCode::FrameTooLarge, Cover::FrameTooLarge)
        }
        3 => {
            let mut header = FrameHeader::new(Opcode::Ping, 0, 0).encode();
            header[6 + universe.index(2)] = 1 + universe.skewed(200) as u8;
            link.send_bytes(&header);
            Outcome::Fatal(ErrorCode::BadFrame, Cover::BadFrame)
        }
        4 => {
            let mut garbage: Vec<u8> = (0..100).map(|_| universe.bits() as u8).collect();
            garbage[..4].copy_from_slice(&u32::MAX.to_le_bytes());
            link.send(Opcode::QueueCreate, 0, 5, &garbage);
            Outcome::Fatal(ErrorCode::BadFrame, Cover::BadFrame)
        }
        _ => {
            let opcodes = [Opcode::Ack, Opcode::Credit, Opcode::Pull, Opcode::Nack, Opcode::Extend];
            link.send(opcodes[universe.index(5)], 1, 5, &[1; 13]);
            Outcome::Fatal(ErrorCode::BadFrame, Cover::BadFrame)
        }
    }
}

/// Asks for what cannot be.
fn bad_request(stage: &mut Stage, link: &mut Link) -> Outcome {
    hello(stage, link);
    let nth = stage.universe.index(stage.plan.queues.len());
    let queue = stage.plan.queues[nth].name.clone();
    let universe = &stage.universe;
    let consumer = |handle: u32, link: &mut Link| {
        let body = wire::ConsumerOpenT { queue: queue.clone(), ..Default::default() };
        link.request(handle, 2, &Request::ConsumerOpen(body));
    };
    match universe.range(0, 7) {
        0 => {
            link.send(Opcode::Publish, 3, 0, &[0; 100]);
            Outcome::Refused(ErrorCode::UnknownHandle, Cover::UnknownHandle)
        }
        1 => {
            consumer([0, 4097, u32::MAX][universe.index(3)], link);
            Outcome::Refused(ErrorCode::BadHandle, Cover::BadHandle)
        }
        2 => {
            consumer(1, link);
            consumer(1, link);
            Outcome::Refused(ErrorCode::BadHandle, Cover::BadHandle)
        }
        3 => {
            consumer(1, link);
            let messages = CREDIT_MESSAGES_MAX + 1 + universe.skewed(100) as u32;
            let entry = CreditEntry { handle: 1, messages, bytes: 1 };
            link.send(Opcode::Credit, 0, 0, &entry.encode());
            Outcome::Refused(ErrorCode::CreditOverflow, Cover::CreditOverflow)
        }
        4 => {
            consumer(1, link);
            let (first, last) = [(1, 1), (0, 0), (5, 2), (1, u64::MAX)][universe.index(4)];
            let verb = [
                Verb::Ack,
                Verb::Nack(NackKind::Rejected, None),
                Verb::Nack(NackKind::Failed, Some(5)),
                Verb::Extend(0),
            ][universe.index(4)];
            let payload = encode_settle(verb, None, &[(1, first, last)]);
            link.send(verb.opcode(), 0, universe.range(0, 1) as u32 * 8, &payload);
            Outcome::Refused(ErrorCode::NeverDelivered, Cover::NeverDelivered)
        }
        5 => {
            consumer(1, link);
            let verb = match universe.chance(500) {
                true => Verb::Nack(NackKind::Failed, Some(BACKOFF_MS_MAX + 1)),
                false => Verb::Extend([1, LEASE_MS_MAX + 1][universe.index(2)]),
            };
            link.send(verb.opcode(), 0, 8, &encode_settle(verb, None, &[(1, 1, 1)]));
            Outcome::Refused(ErrorCode::BadOption, Cover::BadOption)
        }
        6 => {
            consumer(1, link);
            link.send(Opcode::ProducerClose, 1, 8, &[]);
            Outcome::Refused(ErrorCode::UnknownHandle, Cover::UnknownHandle)
        }
        _ => {
            let mut header = FrameHeader::new(Opcode::Ping, 0, 6);
            (header.opcode, header.correlation) = ([0, 99, 200, 255][universe.index(4)], 9);
            link.send_bytes(&header.encode());
            link.send_bytes(b"what's");
            Outcome::Refused(ErrorCode::UnknownOpcode, Cover::UnknownOpcode)
        }
    }
}

fn error_code(payload: &[u8]) -> Checked<Option<ErrorCode>> {
    match Answer::decode(Opcode::Error, payload) {
        Ok(Answer::Error(error)) => Ok(ErrorCode::from_u16(error.code)),
        other => Err(format!("an error frame that is none: {other:?}")),
    }
}
