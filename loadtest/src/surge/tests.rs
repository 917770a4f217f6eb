//! The stages over a broker in memory that does wrong on purpose: what it does must be counted.

use super::*;
use crate::scenario_backlog::outcome;
use crate::schedule::split;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

const MS: u64 = 1_000_000;

/// What goes wrong, once, with message number so much of all that are delivered.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Nothing,
    Lost(u64),
    Doubled(u64),
    Swapped(u64),
    Flipped(u64),
    /// Nothing is confirmed or delivered for so long of real time.
    Stalled(u64, Duration),
    /// Confirms end here; what comes later is taken and forgotten.
    Mute(u64),
}

struct Broker {
    fault: Fault,
    queue: VecDeque<Vec<u8>>,
    delivered: u64,
    published: u64,
    connections: Vec<(usize, usize)>,
}

struct Link {
    broker: Rc<RefCell<Broker>>,
    sent: u64,
    confirmed: u64,
    body_bytes: usize,
    consumes: bool,
}

impl Link {
    fn connect(broker: &Rc<RefCell<Broker>>, shape: Shape) -> Link {
        broker.borrow_mut().connections.push((shape.producers, shape.consumers));
        let (broker, body_bytes) = (Rc::clone(broker), shape.body_bytes);
        Link { broker, sent: 0, confirmed: 0, body_bytes, consumes: shape.consumers > 0 }
    }
}

impl Wire for Link {
    fn room(&self, _producer: usize) -> usize {
        (10_000 - (self.sent - self.confirmed)) as usize
    }

    fn publish(
        &mut self,
        _producer: usize,
        count: usize,
        mut fill: impl FnMut(&mut [u8]),
    ) -> io::Result<()> {
        for _ in 0..count {
            let mut body = vec![0; self.body_bytes];
            fill(&mut body);
            self.broker.borrow_mut().queue.push_back(body);
            self.sent += 1;
        }
        self.broker.borrow_mut().published += count as u64;
        Ok(())
    }

    fn turn(&mut self, _wait: Duration, mut take: impl FnMut(usize, &[u8])) -> io::Result<()> {
        let mut broker = self.broker.borrow_mut();
        if let Fault::Stalled(at, time) = broker.fault
            && broker.published > at
        {
            broker.fault = Fault::Nothing;
            std::thread::park_timeout(time);
        }
        self.confirmed = match broker.fault {
            Fault::Mute(at) => self.sent.min(at),
            _ => self.sent,
        };
        while self.consumes && !broker.queue.is_empty() {
            let nth = broker.delivered;
            broker.delivered += 1;
            let mut body = broker.queue.pop_front().unwrap();
            match broker.fault {
                Fault::Lost(at) if at == nth => continue,
                Fault::Doubled(at) if at == nth => take(0, &body),
                Fault::Flipped(at) if at == nth => body[20] ^= 1,
                Fault::Swapped(at) if at == nth => {
                    if let Some(next) = broker.queue.pop_front() {
                        take(0, &next);
                    }
                }
                _ => {}
            }
            take(0, &body);
        }
        Ok(())
    }

    fn confirmed(&self) -> u64 {
        self.confirmed
    }
}

fn stage(name: &'static str, rate: u64, flood: u64, drain: Drain, until: Until) -> Stage {
    Stage { name, rate, flood, drain, until }
}

fn plan(stages: Vec<Stage>) -> Plan {
    let shape = Shape {
        producers: 3,
        consumers: 1,
        window: 1000,
        body_bytes: 64,
        queues: 1,
        subscriptions: 1,
        credit: 256,
        held: 0,
        durable: false,
    };
    Plan { shape, batch: 16, unconfirmed_max: 3000, window: 1000, stages }
}

fn backlog() -> Plan {
    plan(vec![
        stage("before", 2000, 0, Drain::Off, Until::Time(50 * MS)),
        stage("filling", 2000, 5000, Drain::Off, Until::Flooded),
        stage("draining", 2000, 0, Drain::Free, Until::Drained(356)),
        stage("end", 0, 0, Drain::Free, Until::Drained(0)),
    ])
}

fn played(plan: &Plan, fault: Fault) -> (Found, Vec<(usize, usize)>) {
    let broker = Broker {
        fault,
        queue: VecDeque::new(),
        delivered: 0,
        published: 0,
        connections: Vec::new(),
    };
    let broker = Rc::new(RefCell::new(broker));
    let connect = |shape| Ok(Link::connect(&broker, shape));
    let found = run(plan, connect, RunClock::start(), None, &Interrupt::default()).unwrap();
    let connections = broker.borrow().connections.clone();
    (found, connections)
}

#[test]
fn all_that_is_published_in_any_stage_comes_back() {
    let (found, connections) = played(&backlog(), Fault::Nothing);
    assert!(found.integrity.is_clean() && found.cut_short.is_empty());
    assert_eq!(found.sent_digest, found.received_digest);
    assert_eq!((found.sent, found.integrity.received), (found.confirmed, found.confirmed));
    assert_eq!(found.log.sent() + 5000, found.sent);
    // Flood, fixed rate, and consumers only when they were wanted.
    assert_eq!(connections, [(3, 0), (1, 0), (0, 1)]);
    let (start, end) = found.stage("filling").unwrap();
    assert!(end.confirmed - start.confirmed >= 5000 && end.arrived == 0);
    let (start, end) = found.stage("draining").unwrap();
    assert!(start.arrived == 0 && end.arrived >= 5000);
}

#[test]
fn each_fault_is_counted_as_itself() {
    for (fault, expected) in [
        (Fault::Lost(100), (1, 0, 0, 0)),
        (Fault::Doubled(3000), (0, 1, 0, 0)),
        (Fault::Swapped(50), (0, 0, 1, 0)),
        (Fault::Flipped(4000), (1, 0, 0, 1)),
    ] {
        // A loss is only known after a while in which nothing comes.
        let (found, _) = played(&backlog(), fault);
        let counts = found.integrity;
        let found_faults = (counts.lost, counts.duplicated, counts.reordered, counts.corrupt);
        assert_eq!(found_faults, expected, "{fault:?}");
        let same = found.sent_digest == found.received_digest;
        assert_eq!(same, matches!(fault, Fault::Swapped(_)), "{fault:?}");
        let outcome = outcome(&found, &[], "before", "filling", 64);
        assert!(!outcome.integrity.is_clean());
        let cut_short = outcome.more.contains_key("cut_short");
        assert_eq!(cut_short, matches!(fault, Fault::Lost(_)), "{fault:?}");
    }
}

#[test]
fn a_stall_shows_in_every_message_that_was_due_in_it() {
    let stages = vec![
        stage("stalled", 10_000, 0, Drain::Free, Until::Time(400 * MS)),
        stage("end", 0, 0, Drain::Free, Until::Drained(0)),
    ];
    let fault = Fault::Stalled(500, Duration::from_millis(200));
    let (found, _) = played(&plan(stages), fault);
    assert!(found.integrity.is_clean(), "{:?}", found.integrity);
    let end_ns = found.marks.last().unwrap().used.ns();
    let (figures, all) = split(&found.schedule, &found.log, &found.phases(), end_ns);
    let stalled = &figures[0];
    // 2000 of them were due in the stall. A closed loop would have seen one late batch.
    assert!(stalled.phase == "stalled" && stalled.messages >= 3990, "{stalled:?}");
    assert!(stalled.latency.p90_us.unwrap() > 50_000.0, "{stalled:?}");
    assert!(stalled.latency.max_us.unwrap() > 190_000.0, "{stalled:?}");
    assert!(stalled.send_lag_p99_us.unwrap() > 100_000.0, "{stalled:?}");
    assert!(all.p99_us.unwrap() > 100_000.0);
}

#[test]
fn a_target_that_stops_confirming_ends_the_stage_and_what_waits_counts() {
    let stages = vec![
        stage("before", 1000, 0, Drain::Off, Until::Time(50 * MS)),
        stage("muted", 1000, 0, Drain::Off, Until::Time(100 * MS)),
        stage("end", 0, 0, Drain::Free, Until::Drained(0)),
    ];
    let (found, _) = played(&plan(stages), Fault::Mute(50));
    assert_eq!((found.confirmed, found.cut_short.as_slice()), (50, &["end"][..]));
    let end_ns = found.marks.last().unwrap().used.ns();
    let (figures, _) = split(&found.schedule, &found.log, &found.phases(), end_ns);
    let muted = figures.iter().find(|figures| figures.phase == "muted").unwrap();
    // They waited for the 5 s that a stage goes on in silence, and are in the figures.
    assert!(muted.messages >= 90 && muted.latency.p50_us.unwrap() > 5e6, "{muted:?}");
}

#[test]
fn a_fixed_drain_takes_so_much_and_no_more() {
    let mut pace = Pace::new(Drain::Limited(1000), 0);
    assert!(pace.wait_ns(0) > 0);
    // 10 ms later there is room for ten: a read that brings thirty is paid back.
    assert_eq!(pace.wait_ns(10 * MS), 0);
    pace.took(30);
    assert_eq!(pace.wait_ns(10 * MS), 20 * MS + 1);
    assert_eq!(pace.wait_ns(31 * MS), 0);
    // A long silence is not made up for.
    assert_eq!(pace.wait_ns(10_000 * MS), 0);
    pace.took(20);
    assert!(pace.wait_ns(10_000 * MS) > 0);
    let mut free = Pace::new(Drain::Free, 0);
    free.took(1_000_000);
    assert_eq!(free.wait_ns(1), 0);
}

#[test]
fn room_is_made_for_what_is_due() {
    let timed = stage("a", 1000, 0, Drain::Off, Until::Time(2_000 * MS));
    let open = stage("b", 10, 0, Drain::Off, Until::Drained(0));
    assert_eq!(due_at_most(&[timed, open]), 2600);
    let long = stage("c", 5_000_000, 0, Drain::Off, Until::Time(600_000 * MS));
    assert_eq!(due_at_most(&[long, long]), LOG_MESSAGES_MAX);
}
