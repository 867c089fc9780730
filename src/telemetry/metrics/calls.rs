//! Counts of the gRPC calls that a listener serves, and of its connections.
//!
//! A method's name becomes a label only if it is one of ours: what a caller writes never does.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tonic::Code;

use super::{Histogram, Outcomes, Sheet, Source, family};

/// What stands for every method that is not ours.
const OTHER: &str = "other";

/// All methods that any listener of ours serves, by service; the test below holds it to the
/// contract.
const METHODS: &[(&str, &[&str])] = &[
    (
        "attache.v1.Agent",
        &[
            "SubmitTask",
            "RunTask",
            "GetTask",
            "ListTasks",
            "WatchTask",
            "ReadArtifact",
            "CancelTask",
            "RespondTask",
            "GetCard",
            "Attach",
        ],
    ),
    ("attache.v1.Executor", &["Execute", "Slots"]),
    (
        "attache.v1.Registry",
        &[
            "Register",
            "Heartbeat",
            "Deregister",
            "GetAgent",
            "ListAgents",
            "Discover",
            "Watch",
            "PutRule",
            "ListRules",
            "DeleteRule",
        ],
    ),
    (
        "attache.v1.Identity",
        &[
            "Renew",
            "WatchBundle",
            "CreateJoinToken",
            "Revoke",
            "IssueToken",
        ],
    ),
    ("attache.v1.Enrollment", &["Enroll", "Rejoin"]),
    ("grpc.health.v1.Health", &["Check", "Watch", "List"]),
    (
        "grpc.reflection.v1.ServerReflection",
        &["ServerReflectionInfo"],
    ),
    (
        "grpc.reflection.v1alpha.ServerReflection",
        &["ServerReflectionInfo"],
    ),
];

/// Names of gRPC's codes, by their numbers.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// All of them in a row: a method's place there is its place in the counts. One more is [`OTHER`].
static FLAT: LazyLock<Vec<(&str, &str)>> = LazyLock::new(|| {
    let all = METHODS.iter();
    all.flat_map(|(service, methods)| methods.iter().map(move |method| (*service, *method)))
        .collect()
});

static PLACES: LazyLock<HashMap<(&str, &str), usize>> = LazyLock::new(|| {
    let all = FLAT.iter().copied().enumerate();
    all.map(|(place, name)| (name, place)).collect()
});

/// gRPC's name of a code.
pub fn code_name(code: Code) -> &'static str {
    CODES
        .get(usize::try_from(i32::from(code)).unwrap_or(2))
        .copied()
        .unwrap_or(CODES[2])
}

/// Counts by code.
#[derive(Debug, Default)]
pub struct Codes([AtomicU64; CODES.len()]);

impl Codes {
    /// One more that ended so.
    pub fn count(&self, code: Code) {
        let place = usize::try_from(i32::from(code)).unwrap_or(2);
        self.0[place.min(CODES.len() - 1)].fetch_add(1, Relaxed);
    }

    /// Takes in what others have.
    pub(super) fn absorb(&self, others: &Self) {
        for (sum, part) in self.0.iter().zip(&others.0) {
            sum.fetch_add(part.load(Relaxed), Relaxed);
        }
    }

    /// Whether there was none.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|count| count.load(Relaxed) == 0)
    }

    /// Names and counts. OK from the start, so that the first one is seen as a step.
    pub fn rows(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let all = CODES.iter().zip(&self.0);
        let all = all.map(|(code, count)| (*code, count.load(Relaxed)));
        all.filter(|(code, count)| *count > 0 || *code == CODES[0])
            .map(|(code, count)| (code, count as f64))
    }
}

/// A method of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// With its package.
    pub service: &'static str,
    /// Without the service.
    pub name: &'static str,
    place: usize,
}

impl Method {
    /// The method that a path names, such as `/attache.v1.Agent/GetTask`.
    pub fn of(path: &str) -> Self {
        let places: &HashMap<(&str, &str), usize> = &PLACES;
        let name = path.strip_prefix('/').and_then(|path| path.split_once('/'));
        let place = name.and_then(|name| places.get(&name).copied());
        Self::at(place.unwrap_or(FLAT.len()))
    }

    /// All that there are, in the order of their places; the last one is for all others.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..=FLAT.len()).map(Self::at)
    }

    /// Its place in counts by method.
    pub(super) fn place(self) -> usize {
        self.place
    }

    fn at(place: usize) -> Self {
        let (service, name) = FLAT.get(place).copied().unwrap_or((OTHER, OTHER));
        Self {
            service,
            name,
            place,
        }
    }

    /// Whether it is not one of ours.
    pub fn is_other(&self) -> bool {
        self.place == FLAT.len()
    }

    /// Whether it is called all the time by itself, by probes, tools and heartbeats: its line is for who looks closely.
    pub fn is_background(&self) -> bool {
        self.service.starts_with("grpc.") || self.name == "Heartbeat"
    }
}

/// What became of a connection that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// It is served.
    Done,
    /// The peer could not prove itself, or did not like us.
    Failed,
    /// It took too long.
    Late,
    /// Its certificate names no member.
    Nameless,
    /// There are too many of this member, this address, or in all.
    TooMany,
}

impl Handshake {
    const ALL: [Self; 5] = [
        Self::Done,
        Self::Failed,
        Self::Late,
        Self::Nameless,
        Self::TooMany,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Done => "ok",
            Self::Failed => "failed",
            Self::Late => "late",
            Self::Nameless => "nameless",
            Self::TooMany => "too_many",
        }
    }
}

/// Counts of one listener. Moving them takes no lock and allocates nothing.
#[derive(Debug)]
pub struct Listener {
    name: &'static str,
    methods: Box<[Counts]>,
    handshakes: Outcomes<1>,
}

#[derive(Debug)]
struct Counts {
    codes: Codes,
    duration: Histogram,
    in_flight: AtomicI64,
    received: AtomicU64,
    sent: AtomicU64,
}

impl Listener {
    /// Nothing has happened yet. `name` is its label.
    pub fn new(name: &'static str) -> Arc<Self> {
        let counts = || Counts {
            codes: Codes::default(),
            duration: Histogram::calls(),
            in_flight: AtomicI64::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
        };
        Arc::new(Self {
            name,
            methods: (0..=FLAT.len()).map(|_| counts()).collect(),
            handshakes: Outcomes::of(Handshake::ALL.map(|outcome| [outcome.label()])),
        })
    }

    /// Its label.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// A connection came in.
    pub fn shaken(&self, outcome: Handshake) {
        self.handshakes.count([outcome.label()]);
    }

    /// A call has begun.
    pub fn began(&self, method: Method) {
        self.methods[method.place].in_flight.fetch_add(1, Relaxed);
    }

    /// A call that had begun is over; `bytes` that came in and went out.
    pub fn ended(&self, method: Method, code: Code, took: Duration, bytes: (u64, u64)) {
        let counts = &self.methods[method.place];
        counts.in_flight.fetch_sub(1, Relaxed);
        counts.codes.count(code);
        counts.duration.took(took);
        counts.received.fetch_add(bytes.0, Relaxed);
        counts.sent.fetch_add(bytes.1, Relaxed);
    }

    /// Methods that were ever called: the others would only make the page long.
    fn called(&self) -> impl Iterator<Item = ([&'static str; 3], &Counts)> {
        let names = FLAT.iter().copied().chain([(OTHER, OTHER)]);
        let all = names.zip(&self.methods);
        all.filter(|(_, counts)| counts.in_flight.load(Relaxed) != 0 || !counts.duration.is_empty())
            .map(|((service, method), counts)| ([self.name, service, method], counts))
    }
}

/// A listener at work.
pub struct Served {
    /// What it counts.
    pub counts: Arc<Listener>,
    /// How many connections it has now.
    pub open: Box<dyn Fn() -> usize + Send + Sync>,
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Served").field(&self.counts.name).finish()
    }
}

/// All listeners of a process as one source.
impl Source for Vec<Served> {
    fn write(&self, sheet: &mut Sheet<'_>) {
        let called: Vec<_> = self.iter().flat_map(|one| one.counts.called()).collect();
        let codes = called
            .iter()
            .flat_map(|([listener, service, method], counts)| {
                let rows = counts.codes.rows();
                rows.map(move |(code, count)| ([*listener, service, method, code], count))
            });
        sheet.counter(&family::CALLS, codes);
        let durations = called
            .iter()
            .map(|(labels, counts)| (*labels, &counts.duration));
        sheet.histogram(&family::CALL_DURATION, durations);
        let running = called.iter().map(|(labels, counts)| {
            let count = counts.in_flight.load(Relaxed);
            (*labels, count as f64)
        });
        sheet.gauge(&family::CALLS_IN_FLIGHT, running);
        let bytes = |of: fn(&Counts) -> &AtomicU64| {
            let all = called.iter();
            all.map(move |(labels, counts)| (*labels, of(counts).load(Relaxed) as f64))
        };
        sheet.counter(&family::CALL_RECEIVED, bytes(|counts| &counts.received));
        sheet.counter(&family::CALL_SENT, bytes(|counts| &counts.sent));

        let open = self
            .iter()
            .map(|one| ([one.counts.name], (one.open)() as f64));
        sheet.gauge(&family::CONNECTIONS, open);
        let shaken = self.iter().flat_map(|one| {
            let rows = one.counts.handshakes.rows().into_iter();
            rows.map(|([outcome], count)| ([one.counts.name, outcome], count))
        });
        sheet.counter(&family::HANDSHAKES, shaken);
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::pb;

    #[test]
    fn every_method_of_the_contract_has_a_name() {
        let set = prost_types::FileDescriptorSet::decode(pb::DESCRIPTORS).unwrap();
        let mut seen = 0;
        for file in set.file {
            for service in &file.service {
                // The agent serves this one.
                if service.name() == "Handler" {
                    continue;
                }
                for method in &service.method {
                    let name = format!("{}.{}", file.package(), service.name());
                    let known = Method::of(&format!("/{name}/{}", method.name()));
                    assert_eq!((known.service, known.name), (name.as_str(), method.name()));
                    seen += 1;
                }
            }
        }
        let own = FLAT
            .iter()
            .filter(|(service, _)| service.starts_with("attache."));
        assert_eq!(seen, own.count());
    }

    #[test]
    fn what_is_not_ours_is_other() {
        for path in [
            "",
            "/",
            "/attache.v1.Agent",
            "/attache.v1.Agent/",
            "/attache.v1.Agent/GetTask/",
            "/attache.v1.agent/GetTask",
            "/x/y",
            "attache.v1.Agent/GetTask",
        ] {
            assert!(Method::of(path).is_other(), "{path}");
        }
        let health = Method::of("/grpc.health.v1.Health/Check");
        assert!(health.is_background() && !health.is_other());
    }

    #[test]
    fn codes_have_the_names_of_grpc() {
        for (number, name) in CODES.iter().enumerate() {
            let code = Code::from_i32(i32::try_from(number).unwrap());
            assert_eq!(code_name(code), *name);
            let spelt = format!("{code:?}").to_uppercase();
            assert_eq!(spelt, name.replace('_', ""), "{code:?}");
        }
    }

    #[test]
    fn only_what_was_called_is_shown() {
        let listener = Listener::new("mtls");
        let method = Method::of("/attache.v1.Agent/GetTask");
        listener.began(method);
        listener.ended(method, Code::NotFound, Duration::from_millis(2), (5, 7));
        listener.began(method);
        let shown: Vec<_> = listener.called().collect();
        assert_eq!(shown.len(), 1);
        let (labels, counts) = &shown[0];
        assert_eq!(*labels, ["mtls", "attache.v1.Agent", "GetTask"]);
        assert_eq!(counts.in_flight.load(Relaxed), 1);
        assert!(counts.codes.rows().any(|row| row == ("NOT_FOUND", 1.0)));
        assert_eq!(counts.duration.len(), 1);
    }
}
