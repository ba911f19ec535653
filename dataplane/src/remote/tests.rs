//! Both ends over a simulated network that loses, repeats and reorders, in virtual time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use proptest::prelude::*;
use weir_identity::{EndpointId, Incarnation, Moment, UnitId};

use super::*;
use crate::flow::{Key, Key4, protocol};
use crate::plumbing::{Ask, DecodeError, Envelope, Event, MAX_BYTES, Message, Notice, Plumb, Question, Reply, Verdict};
use crate::route_table::Mode;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn nothing_is_lost_doubled_or_reordered(seed: u64, loss in 0u64..40, again in 0u64..30, delay in 1u64..40) {
        let mut farm = Simulation::new(seed, Weather { loss, again, delay });
        farm.run(600, true);
        farm.weather = CALM;
        farm.run(1500, false);
        farm.check_everything_arrived();
    }

    #[test]
    fn a_new_life_of_the_classifier_goes_on(seed: u64, loss in 0u64..30, again in 0u64..30, delay in 1u64..40) {
        let mut farm = Simulation::new(seed, Weather { loss, again, delay });
        farm.run(300, true);
        farm.restart_classifier();
        farm.run(300, true);
        farm.weather = CALM;
        farm.run(1500, false);
        farm.check_new_life();
    }

    #[test]
    fn any_envelope_is_safe(
        envelopes in prop::collection::vec((0u64..4, 0u64..4, 0u8..7, any::<u64>(), 0u64..600), 0..200),
    ) {
        let mut forwarder = ForwarderEnd::<u64>::new(&settings(1, 2));
        let mut classifier = ClassifierEnd::new(0, &settings(2, 2));
        for (n, (from, to, kind, number, sequence)) in (0..).zip(envelopes) {
            let now = Moment(n);
            let notice = Notice { key: key(1), event: Event::Closing };
            let message = match kind {
                0 => Message::Hello { unit: UnitId(3), incarnation: Incarnation(from) },
                1 => Message::Divert { cookie: number, ask: ask(1), head: vec![], after: sequence },
                2 => Message::Answer { cookie: number, key: key(1), verdict: verdict(1), after: sequence },
                3 => Message::Notice { sequence: number, notice },
                4 => Message::Plumb { sequence, plumb: Plumb::Delete(key(1)) },
                5 => Message::Acknowledge { sequence: number },
                _ => Message::Keepalive,
            };
            let envelope = Envelope { from: Incarnation(from), to: Incarnation(to), message };
            let _ = forwarder.ask(Question { ask: ask(1), held: n }, |_| &[], now);
            forwarder.receive(envelope.clone(), now);
            forwarder.take_plumb();
            classifier.receive(envelope, now);
            classifier.take_notice();
            while forwarder.poll_message(now).is_some() {}
            while classifier.poll_message(now).is_some() {}
            forwarder.take_unanswered(now);
        }
        forwarder.take_unanswered(Moment(100_000));
        prop_assert_eq!(forwarder.questions(), 0);
    }
}

#[test]
fn a_dead_classifier_gives_the_questions_back() {
    let mut farm = Simulation::new(7, CALM);
    farm.run(100, true);
    assert!(farm.forwarder.is_alive(farm.now));
    farm.weather.loss = 100;
    farm.run(30, true);
    assert!(farm.forwarder.questions() > 0, "still hoping");
    farm.run(400, true);
    assert!(!farm.forwarder.is_alive(farm.now) && !farm.classifier.is_alive(farm.now));
    assert_eq!(farm.forwarder.questions(), 0);
    assert!(farm.handed_back() > 0 && farm.forwarder.counters().refused > 0);
    assert!(farm.forwarder.untold().count() >= farm.told.len() - farm.heard.len());
    farm.weather = CALM;
    farm.run(1000, false);
    farm.check_everything_arrived();
}

#[test]
fn room_is_bounded() {
    let mut farm = Simulation::new(7, CALM);
    farm.run(100, false);
    let now = farm.now;
    for n in 0..LIMIT as u64 {
        assert!(farm.forwarder.ask(Question { ask: ask(1), held: n }, |_| &[0; 500], now).is_ok());
        assert!(farm.forwarder.tell(Notice { key: key(1), event: Event::Closing }));
        assert!(farm.classifier.plumb(Plumb::Delete(key(1))));
    }
    let refused = farm.forwarder.ask(Question { ask: ask(1), held: 99 }, |_| &[], now).unwrap_err();
    assert_eq!(refused.held, 99);
    assert!(!farm.forwarder.tell(Notice { key: key(1), event: Event::Closing }));
    assert!(!farm.classifier.plumb(Plumb::Delete(key(1))));
    assert_eq!(farm.classifier.counters().plumbs_refused, 1);
    let heads = std::iter::from_fn(|| farm.forwarder.poll_message(now)).filter_map(|envelope| match envelope.message {
        Message::Divert { head, .. } => Some(head.len()),
        _ => None,
    });
    assert_eq!(heads.collect::<Vec<_>>(), [HEAD; LIMIT]);
}

#[test]
fn envelopes_of_another_life_change_nothing() {
    let mut forwarder = ForwarderEnd::<u64>::new(&settings(1, 10));
    let say = |from, to, message| Envelope { from: Incarnation(from), to: Incarnation(to), message };
    let hello = |incarnation| Message::Hello { unit: UnitId(2), incarnation: Incarnation(incarnation) };
    let now = Moment(0);
    forwarder.receive(say(20, 10, hello(20)), now);
    assert!(forwarder.is_alive(now));
    assert!(forwarder.tell(Notice { key: key(1), event: Event::Closing }));
    while forwarder.poll_message(now).is_some() {}
    let acknowledge = Message::Acknowledge { sequence: 1 };
    let order = Message::Plumb { sequence: 1, plumb: Plumb::Delete(key(1)) };
    for stale in [
        say(19, 10, acknowledge.clone()),
        say(20, 9, acknowledge.clone()),
        say(21, 10, acknowledge.clone()),
        say(19, 10, hello(19)),
        say(30, 10, hello(29)),
        say(30, 10, Message::Hello { unit: UnitId(3), incarnation: Incarnation(30) }),
        say(20, 0, order.clone()),
    ] {
        forwarder.receive(stale, now);
    }
    assert_eq!((forwarder.counters().stale, forwarder.counters().lives, forwarder.untold().count()), (7, 1, 1));
    assert_eq!(forwarder.take_plumb(), None);
    forwarder.receive(say(20, 10, acknowledge), now);
    forwarder.receive(say(20, 10, order), now);
    assert_eq!(forwarder.take_plumb(), Some(Plumb::Delete(key(1))));
    assert_eq!(forwarder.untold().count(), 0);
}

#[test]
fn messages_fit_their_datagram() {
    let mut buffer = [0; MAX_BYTES];
    let message = Message::Divert { cookie: u64::MAX, ask: ask(1), head: vec![255; HEAD], after: u64::MAX };
    let longest = Envelope { from: Incarnation(u64::MAX), to: Incarnation(u64::MAX), message };
    let bytes = longest.encode(&mut buffer).unwrap().len();
    assert!(bytes < 300, "{bytes} bytes");
    let too_long = Message::Divert { cookie: 0, ask: ask(1), head: vec![0; MAX_BYTES], after: 0 };
    assert!(Envelope { message: too_long, ..longest }.encode(&mut buffer).is_err());
    assert_eq!(Envelope::decode(&[]), Err(DecodeError::Empty));
}

/// How bad the network is: losses and repetitions in per cent, the longest delay in milliseconds.
#[derive(Debug, Clone, Copy)]
struct Weather {
    loss: u64,
    again: u64,
    delay: u64,
}

/// Two ends with a made-up forwarder and classifier, and the network between them.
struct Simulation {
    forwarder: ForwarderEnd<u64>,
    classifier: ClassifierEnd,
    weather: Weather,
    now: Moment,
    random: u64,
    /// In flight: by arrival and a number of their own; true goes to the classifier.
    flying: BTreeMap<(u64, u64), (bool, Vec<u8>)>,
    sent: u64,
    /// Answers that the classifier takes its time for, with when and about what.
    thinking: Vec<(u64, Question<Cookie>)>,
    asked: u64,
    /// What became of each question.
    outcomes: HashMap<u64, Outcome>,
    told: Vec<Notice>,
    heard: Vec<Notice>,
    /// What former lives of the classifier heard.
    heard_before: Vec<Notice>,
    ordered: Vec<Plumb>,
    obeyed: Vec<Plumb>,
    /// How many notices about its flow were told before each question.
    told_before: HashMap<u64, usize>,
    /// Questions that this life of the classifier was asked.
    seen: HashSet<u64>,
    restarted: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Answered,
    HandedBack,
}

impl Simulation {
    fn new(seed: u64, weather: Weather) -> Self {
        Self {
            forwarder: ForwarderEnd::new(&settings(1, 1_000)),
            classifier: ClassifierEnd::new(5, &settings(2, 500)),
            weather,
            now: Moment(0),
            random: seed | 1,
            flying: BTreeMap::new(),
            sent: 0,
            thinking: Vec::new(),
            asked: 0,
            outcomes: HashMap::new(),
            told: Vec::new(),
            heard: Vec::new(),
            heard_before: Vec::new(),
            ordered: Vec::new(),
            obeyed: Vec::new(),
            told_before: HashMap::new(),
            seen: HashSet::new(),
            restarted: false,
        }
    }

    /// Runs for so many milliseconds, with new work or without.
    fn run(&mut self, millis: u64, busy: bool) {
        for _ in 0..millis {
            self.now.0 += 1;
            if busy {
                self.make_work();
            }
            self.deliver();
            self.think();
            for question in self.forwarder.take_unanswered(self.now) {
                self.settle(question.held, Outcome::HandedBack);
            }
            while let Some(envelope) = self.forwarder.poll_message(self.now) {
                self.send(true, &envelope);
            }
            while let Some(envelope) = self.classifier.poll_message(self.now) {
                self.send(false, &envelope);
            }
        }
    }

    fn make_work(&mut self) {
        if self.dice(2) == 0 {
            // The low bits of the key tell the notices apart.
            let flow = self.dice(FLOWS);
            let event = [Event::Confirmed, Event::Closing, Event::Expired][self.told.len() % 3];
            let notice = Notice { key: key(flow), event };
            if self.forwarder.tell(notice) {
                self.told.push(notice);
            }
        }
        if self.dice(2) == 0 {
            let plumb = Plumb::Delete(key(self.dice(FLOWS)));
            if self.classifier.plumb(plumb) {
                self.ordered.push(plumb);
            }
        }
        if self.dice(2) == 0 {
            let flow = self.dice(FLOWS);
            let held = self.asked * FLOWS + flow;
            let question = Question { ask: Ask { client: held, ..ask(flow) }, held };
            let before = self.told.iter().filter(|notice| notice.key == key(flow)).count();
            self.told_before.insert(held, before);
            self.asked += 1;
            if let Err(question) = self.forwarder.ask(question, |_| &[1, 2, 3], self.now) {
                self.settle(question.held, Outcome::HandedBack);
            }
        }
    }

    fn deliver(&mut self) {
        while let Some(entry) = self.flying.first_entry().filter(|entry| entry.key().0 <= self.now.0) {
            let (to_classifier, bytes) = entry.remove();
            let envelope = Envelope::decode(&bytes).expect("the network does not change bytes");
            if to_classifier {
                let diverted = self.classifier.receive(envelope, self.now);
                while let Some(notice) = self.classifier.take_notice() {
                    self.heard.push(notice);
                }
                if let Some(Diverted { question, head }) = diverted {
                    assert_eq!((head.as_slice(), question.held.link), (&[1, 2, 3][..], 5));
                    let heard = self.heard.iter().filter(|notice| notice.key == question.ask.key).count();
                    let before = self.told_before[&question.ask.client];
                    assert!(heard >= before || self.restarted, "a question has overtaken a notice about its flow");
                    assert!(self.seen.insert(question.ask.client), "a question is asked twice");
                    let pause = self.dice(15);
                    self.thinking.push((self.now.0 + pause, question));
                }
            } else {
                let reply = self.forwarder.receive(envelope, self.now);
                while let Some(plumb) = self.forwarder.take_plumb() {
                    self.obeyed.push(plumb);
                }
                if let Some(reply) = reply {
                    let Verdict::Once { endpoint, .. } = reply.verdict else {
                        panic!("another verdict");
                    };
                    assert_eq!(reply.key, key(reply.held % FLOWS), "its own answer");
                    let obeyed = self.obeyed.iter().filter(|plumb| **plumb == Plumb::Delete(reply.key)).count();
                    assert!(
                        obeyed >= endpoint.index() || self.restarted,
                        "an answer has overtaken a plumb about its flow"
                    );
                    self.settle(reply.held, Outcome::Answered);
                }
            }
        }
    }

    fn think(&mut self) {
        let now = self.now.0;
        let ready: Vec<_> = self.thinking.extract_if(.., |(due, _)| *due <= now).collect();
        for (_, question) in ready {
            let key = question.ask.key;
            let before = self.ordered.iter().filter(|plumb| **plumb == Plumb::Delete(key)).count();
            self.classifier.answer(&Reply { key, verdict: verdict(before), held: question.held });
        }
    }

    fn settle(&mut self, question: u64, outcome: Outcome) {
        let before = self.outcomes.insert(question, outcome);
        assert_eq!(before, None, "question {question} has two outcomes");
    }

    fn send(&mut self, to_classifier: bool, envelope: &Envelope) {
        let mut buffer = [0; MAX_BYTES];
        let bytes = envelope.encode(&mut buffer).unwrap().to_vec();
        let copies = 1 + u64::from(self.dice(100) < self.weather.again);
        for _ in 0..copies {
            if self.dice(100) >= self.weather.loss {
                let arrival = self.now.0 + 1 + self.dice(self.weather.delay);
                self.sent += 1;
                self.flying.insert((arrival, self.sent), (to_classifier, bytes.clone()));
            }
        }
    }

    fn restart_classifier(&mut self) {
        self.classifier = ClassifierEnd::new(5, &settings(2, 501));
        self.thinking.clear();
        self.seen.clear();
        self.heard_before = std::mem::take(&mut self.heard);
        self.ordered.clear();
        self.obeyed.clear();
        self.restarted = true;
    }

    fn handed_back(&self) -> usize {
        self.outcomes.values().filter(|outcome| **outcome == Outcome::HandedBack).count()
    }

    fn check_everything_arrived(&self) {
        assert!(self.heard == self.told && !self.told.is_empty(), "notices");
        assert!(self.obeyed == self.ordered && !self.ordered.is_empty(), "plumbs");
        self.check_nothing_is_left();
    }

    fn check_new_life(&self) {
        // The new life hears all that the old one had not acknowledged, and it may hear again what the old one heard last.
        assert!(self.told.starts_with(&self.heard_before) && self.told.ends_with(&self.heard), "in order");
        assert!(self.heard_before.len() + self.heard.len() >= self.told.len(), "without a gap");
        // The old life's last orders may have been under way.
        assert!(self.obeyed.ends_with(&self.ordered), "plumbs of the new life");
        // A short first life may have lost every greeting.
        assert!(self.forwarder.counters().lives == 2 || self.heard_before.is_empty(), "both lives were seen");
        self.check_nothing_is_left();
    }

    fn check_nothing_is_left(&self) {
        assert_eq!(self.outcomes.len() as u64, self.asked, "each question has an outcome");
        let counters = self.forwarder.counters();
        assert_eq!(counters.asked, counters.answered + counters.handed_back);
        assert_eq!((self.forwarder.questions(), self.forwarder.untold().count()), (0, 0));
        assert_eq!(self.classifier.unacknowledged(), 0);
        assert!(self.forwarder.is_alive(self.now) && self.classifier.is_alive(self.now));
        assert!(!self.restarted || self.classifier.counters().lives == 1);
    }

    /// Below `sides`.
    fn dice(&mut self, sides: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % sides
    }
}

fn settings(unit: u32, incarnation: u64) -> Settings {
    Settings {
        questions: LIMIT,
        sequenced: LIMIT,
        repeat: Duration::from_millis(30),
        ..Settings::new(UnitId(unit), Incarnation(incarnation))
    }
}

fn key(flow: u64) -> Key {
    let ports = [0x40, u8::try_from(flow).unwrap(), 0, 80];
    Key::V4(Key4 { source: [10, 0, 0, 1], destination: [10, 9, 0, 1], ports, protocol: protocol::TCP })
}

fn ask(flow: u64) -> Ask {
    Ask { key: key(flow), client: flow, opens: true, closes: false, zombie: false }
}

/// A verdict with the number of plumbs about its flow that were given before it.
fn verdict(before: usize) -> Verdict {
    Verdict::Once { endpoint: EndpointId(u32::try_from(before).unwrap()), mode: Mode::Dsr }
}

const CALM: Weather = Weather { loss: 0, again: 0, delay: 1 };
const FLOWS: u64 = 7;
const LIMIT: usize = 200;
