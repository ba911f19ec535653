//! Hosts that take time and have places for so many requests, clients at a constant rate, and classifiers between them.

#![expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a farm of a few hosts for a few minutes")]

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use weir_health_load::{
    Allotments, Directive, Health, LocalAllotments, Policy, Request, Select, ServiceStanding, SharedHandler, Smoothed,
    Standing,
};
use weir_identity::{EndpointId, Moment, ServiceId, Ticket};

use crate::Trouble;

/// What is tried.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    pub(crate) select: Select,
    pub(crate) classifiers: usize,
    pub(crate) trouble: Trouble,
    pub(crate) hosts: u32,
    /// Requests that a host serves at a time; others wait.
    pub(crate) places: u32,
    /// Mean time of a request in µs.
    pub(crate) service: u64,
    pub(crate) spread: Spread,
    /// Part of the capacity that there is without trouble.
    pub(crate) load: f64,
    /// µs between two reports of an application to its agent.
    pub(crate) report_every: u64,
}

/// How the times of requests differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spread {
    /// From half to one and a half of the mean, each as likely.
    Even,
    /// As if each ended by chance at any moment.
    Exponential,
}

impl Default for Setting {
    fn default() -> Setting {
        Setting {
            select: Select::Tokens,
            classifiers: 1,
            trouble: Trouble::None,
            hosts: 4,
            places: 8,
            service: 50_000,
            spread: Spread::Even,
            load: 0.7,
            report_every: 50_000,
        }
    }
}

/// All of it, at one moment of virtual time.
pub(crate) struct Farm {
    setting: Setting,
    now: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    sequence: u64,
    hosts: Vec<Host>,
    handler: SharedHandler,
    classifiers: Vec<LocalAllotments>,
    chance: u64,
    latencies: Vec<(u64, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A client begins its next request.
    Begin(u64),
    /// It is at its host.
    There { begun: u64, host: usize, classifier: usize },
    /// A host has served it.
    Served { begun: u64, host: usize, classifier: usize },
    /// The client has its answer, and the classifier knows that the connection is over.
    Over { begun: u64, host: usize, classifier: usize },
    /// An application reports to its agent.
    Report(usize),
    /// A unit hears of a load.
    Heard(usize, u32),
    /// The neighbour comes or goes.
    Neighbour(bool),
    /// A classifier's turn without a packet.
    Turn,
}

#[derive(Debug)]
struct Host {
    busy: u32,
    /// Places that a neighbour has.
    taken: u32,
    /// Times as slow as the others.
    slow: u64,
    queue: VecDeque<(u64, usize)>,
    smoothed: Smoothed,
    told: u32,
}

impl Farm {
    pub(crate) fn new(setting: Setting) -> Farm {
        let standing = |i: u32| Standing {
            endpoint: EndpointId(i),
            stable: u64::from(i),
            capacity: CAPACITY,
            load: Some(0),
            directive: Directive::Active,
            health: Health::Healthy,
            backup: false,
        };
        let policy = Policy { select: setting.select, ..Policy::default() };
        let known = ServiceStanding { service: SERVICE, policy, standings: (0..setting.hosts).map(standing).collect() };
        let handler = SharedHandler::default();
        handler.lock().update(&known);
        let mut classifiers: Vec<LocalAllotments> =
            (0..).map(|i| LocalAllotments::sharing(i, Arc::clone(&handler))).take(setting.classifiers).collect();
        classifiers.iter_mut().for_each(|classifier| classifier.update(std::slice::from_ref(&known)));
        let host = |i| Host {
            busy: 0,
            taken: 0,
            slow: if i == 0 && setting.trouble == Trouble::Slow { 2 } else { 1 },
            queue: VecDeque::new(),
            smoothed: Smoothed::new(0.0, Moment(0)),
            told: 0,
        };
        let hosts = (0..setting.hosts).map(host).collect();
        let (events, latencies) = (BinaryHeap::new(), Vec::new());
        Farm { setting, now: 0, events, sequence: 0, hosts, handler, classifiers, chance: 1, latencies }
    }

    /// The latencies in µs of all requests that were to begin in this time.
    pub(crate) fn run(mut self, from: Duration, until: Duration) -> Vec<u64> {
        let micros = |time: Duration| time.as_micros() as u64;
        self.at(0, Event::Begin(0));
        self.at(0, Event::Turn);
        (0..self.hosts.len()).for_each(|host| self.at(1_000 * host as u64, Event::Report(host)));
        if self.setting.trouble == Trouble::Neighbour {
            self.at(1_000_000, Event::Neighbour(true));
        }
        while let Some(Reverse((at, _, event))) = self.events.pop()
            && at < micros(until + DRAIN)
        {
            self.now = at;
            self.happen(event, micros(until));
        }
        let range = micros(from)..micros(until);
        self.latencies.into_iter().filter(|(begun, _)| range.contains(begun)).map(|(_, latency)| latency).collect()
    }

    fn happen(&mut self, event: Event, until: u64) {
        let moment = Moment(self.now / 1_000);
        match event {
            Event::Begin(number) => {
                let every = self.setting.service as f64
                    / (f64::from(self.setting.hosts * self.setting.places) * self.setting.load);
                let next = ((number + 1) as f64 * every) as u64;
                if next < until {
                    self.at(next - self.now, Event::Begin(number + 1));
                }
                let client = self.random();
                let classifier = (client % self.setting.classifiers as u64) as usize;
                let request = Request { ticket: Ticket(0), service: SERVICE, client, avoid: None };
                let Poll::Ready(Some(endpoint)) = self.classifiers[classifier].take(request, moment) else {
                    panic!("somebody always fits")
                };
                self.classifiers[classifier].began(SERVICE, endpoint);
                self.at(WIRE, Event::There { begun: self.now, host: endpoint.index(), classifier });
            }
            Event::There { begun, host, classifier } => {
                self.hosts[host].queue.push_back((begun, classifier));
                self.serve(host);
            }
            Event::Served { begun, host, classifier } => {
                self.hosts[host].busy -= 1;
                self.serve(host);
                self.at(WIRE, Event::Over { begun, host, classifier });
            }
            Event::Over { begun, host, classifier } => {
                self.latencies.push((begun, self.now - begun));
                self.classifiers[classifier].ended(SERVICE, EndpointId(host as u32));
            }
            Event::Report(number) => {
                self.at(self.setting.report_every, Event::Report(number));
                let host = &mut self.hosts[number];
                let used = f64::from(host.busy + host.taken) / f64::from(self.setting.places);
                let load = (host.smoothed.follow(used.min(1.0), moment) * f64::from(CAPACITY)).round() as u32;
                let is_end = load == 0 || load == CAPACITY;
                if load.abs_diff(host.told) > CAPACITY / 20 || (is_end && load != host.told) {
                    host.told = load;
                    self.at(WIRE, Event::Heard(number, load));
                }
            }
            Event::Heard(number, load) => {
                self.handler.lock().report(SERVICE, EndpointId(number as u32), CAPACITY, load);
            }
            Event::Neighbour(comes) => {
                self.at(if comes { 2_000_000 } else { 4_000_000 }, Event::Neighbour(!comes));
                self.hosts[0].taken = if comes { self.setting.places / 2 } else { 0 };
                self.serve(0);
            }
            Event::Turn => {
                self.at(1_000, Event::Turn);
                self.classifiers.iter_mut().for_each(|classifier| assert!(classifier.poll_answer(moment).is_none()));
            }
        }
    }

    /// Those who wait get the places that are free.
    fn serve(&mut self, number: usize) {
        while self.hosts[number].busy + self.hosts[number].taken < self.setting.places
            && let Some((begun, classifier)) = self.hosts[number].queue.pop_front()
        {
            self.hosts[number].busy += 1;
            let takes = match self.setting.spread {
                Spread::Even => self.setting.service / 2 + self.random() % self.setting.service,
                Spread::Exponential => {
                    let chance = (self.random() >> 11) as f64 / (1u64 << 53) as f64;
                    (-(1.0 - chance).ln() * self.setting.service as f64) as u64
                }
            };
            self.at(takes * self.hosts[number].slow, Event::Served { begun, host: number, classifier });
        }
    }

    fn at(&mut self, delay: u64, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((self.now + delay, self.sequence, event)));
    }

    /// The next of a fixed sequence.
    fn random(&mut self) -> u64 {
        self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.chance ^ (self.chance >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

const SERVICE: ServiceId = ServiceId(1);
const CAPACITY: u32 = 80;
/// µs one way.
const WIRE: u64 = 200;
/// What began in time may end so much later.
const DRAIN: Duration = Duration::from_secs(60);
