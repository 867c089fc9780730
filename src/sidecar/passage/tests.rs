//! What is decided about calls, without a connection.

use std::{collections::VecDeque, time::Duration};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{targets::OWN_AGENT, *};
use crate::{
    identity::Peer,
    runtime::clock::wall,
    task::{Candidate, Contract, Pick, Want},
    telemetry::metrics::{Format, Metrics},
};

/// Answers in turn; notes what was excluded, and which tries were second ones.
#[derive(Default)]
struct Fake {
    picks: Mutex<VecDeque<Pick>>,
    asked: Mutex<Vec<(String, usize, bool)>>,
}

impl Route for Fake {
    fn pick(&self, want: &Want<'_>, _: Instant) -> Pick {
        let agent = want.selector.agent.clone();
        assert!(want.selector.skill.is_empty());
        let asked = (agent, want.exclude.len(), want.again);
        self.asked.lock().push(asked);
        self.picks.lock().pop_front().unwrap_or(Pick::Nobody)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        watch::Sender::new(0).subscribe()
    }
}

fn go(instance: &str) -> Pick {
    let candidate = Candidate {
        instance: instance.parse().unwrap(),
        agent: "default/b".parse().unwrap(),
        idempotent: false,
        boot_id: String::new(),
        contract: Contract::default(),
        wants_descendants: true,
    };
    Pick::Go(Arc::new(candidate), Box::default())
}

struct Bench {
    route: Arc<Fake>,
    desk: Desk,
    fields: Fields,
}

impl Bench {
    fn new(picks: Vec<Pick>) -> Self {
        let route = Arc::new(Fake::default());
        route.picks.lock().extend(picks);
        let passage = Passage {
            own: "spiffe://a/ns/default/agent/a".parse().unwrap(),
            namespace: "default".parse().unwrap(),
            instance: "own".parse().unwrap(),
            agent: Some(("default/a".parse().unwrap(), "unix:/a".to_owned())),
            route: route.clone(),
            targets: Targets::default(),
            calls: PassingCalls::default(),
        };
        Self {
            route,
            desk: Desk {
                passage: Arc::new(passage),
                aims: Aims::default(),
                numbers: RandomState::new(),
            },
            fields: Fields::new(),
        }
    }

    fn without_agent(mut self) -> Self {
        Arc::get_mut(&mut self.desk.passage).unwrap().agent = None;
        self
    }

    /// What becomes of a call of `path` for an agent, if one is named.
    fn ask(&mut self, caller: Caller, path: &str, agent: Option<&str>) -> (Verdict, Passing) {
        self.fields.clear();
        self.fields.push(b":path", path.as_bytes());
        self.fields.push(b":authority", b"localhost");
        if let Some(agent) = agent {
            self.fields.push(b"attache-agent", agent.as_bytes());
        }
        let connection = Connection {
            caller,
            remote: None,
            local: None,
            exporter: None,
        };
        let mut request = Request {
            fields: &mut self.fields,
            timeout: None,
            now: Instant::now(),
            attempts: 0,
        };
        let Desk { passage, aims, .. } = &mut self.desk;
        passage.take(&Arc::new(connection), &mut request, aims)
    }

    fn again(&mut self, call: &mut Passing, why: GivenBack) -> Verdict {
        let mut request = Request {
            fields: &mut self.fields,
            timeout: None,
            now: Instant::now(),
            attempts: 1,
        };
        self.desk.on_again(call, &mut request, why)
    }

    fn value(&self, name: &str) -> String {
        let mut fields = self.fields.iter();
        let field = fields.find(|field| field.name == name.as_bytes());
        let value = field.map(|field| field.value.to_vec()).unwrap_or_default();
        String::from_utf8(value).unwrap()
    }
}

fn member(name: &str) -> Caller {
    Caller::Member(Arc::new(Peer {
        id: name.parse().unwrap(),
        instance: None,
        not_before: std::time::SystemTime::UNIX_EPOCH,
        not_after: wall() + Duration::from_hours(1),
        serial: "1".into(),
        key: [0; 32],
    }))
}

fn code(verdict: &Verdict) -> Option<u8> {
    match verdict {
        Verdict::Reply(code, _) => Some(code.0),
        Verdict::Forward(_) | Verdict::Local | Verdict::Later(_) => None,
    }
}

#[tokio::test]
async fn a_member_is_one_caller_on_all_its_connections() {
    let desk = Bench::new(Vec::new()).desk;
    let of = |name: &str| desk.number(&member(name));
    let (one, other) = (
        "spiffe://a/ns/default/agent/b",
        "spiffe://a/ns/default/agent/c",
    );
    assert!(of(one).is_some() && of(one) == of(one));
    assert_ne!(of(one), of(other));
    assert_eq!(
        desk.number(&Caller::Local),
        None,
        "programs are told apart by connection"
    );
}

#[tokio::test]
async fn the_own_agents_calls_go_to_whom_they_name() {
    let mut bench = Bench::new(vec![go("i1"), go("own"), go("i1")]);
    let (verdict, _) = bench.ask(Caller::Local, "/x.Y/Z", Some("b"));
    let Verdict::Forward(to) = verdict else {
        panic!("{verdict:?}")
    };
    assert_eq!(bench.desk.passage.targets.instance(to), "i1".parse().ok());
    assert_eq!(bench.value("attache-agent"), "default/b");
    assert_eq!(
        bench.value("attache-caller"),
        "",
        "its sidecar knows better"
    );
    // Another instance of one's own name is oneself.
    let (verdict, _) = bench.ask(Caller::Local, "/x.Y/Z", Some("a"));
    assert_eq!(verdict, Verdict::Forward(OWN_AGENT));
    assert_eq!(
        bench.value("attache-caller"),
        bench.desk.passage.own.to_string()
    );
    let (verdict, _) = bench.ask(Caller::Local, "/x.Y/Z", Some("b"));
    assert_eq!(verdict, Verdict::Forward(to), "the same one as before");
    let (verdict, _) = bench.ask(Caller::Local, "/x.Y/Z", Some("b"));
    assert_eq!(code(&verdict), Some(14), "nobody: {verdict:?}");
    let (verdict, _) = bench.ask(Caller::Local, "/x.Y/Z", None);
    assert_eq!(code(&verdict), Some(12), "{verdict:?}");
    let (verdict, _) = bench.ask(Caller::Local, "/x.Y/Z", Some("no agent"));
    assert_eq!(code(&verdict), Some(3), "{verdict:?}");
    let (verdict, _) = bench.ask(Caller::Local, "/attache.v1.Agent/GetTask", Some("b"));
    assert_eq!(verdict, Verdict::Local);
}

#[tokio::test]
async fn members_reach_the_own_agent_and_nobody_else() {
    let neighbour = || member("spiffe://a/ns/default/agent/b");
    let mut bench = Bench::new(Vec::new());
    for named in [None, Some("a"), Some("default/a")] {
        let (verdict, _) = bench.ask(neighbour(), "/x.Y/Z", named);
        assert_eq!(verdict, Verdict::Forward(OWN_AGENT), "{named:?}");
        assert_eq!(
            bench.value("attache-caller"),
            "spiffe://a/ns/default/agent/b"
        );
        assert_eq!(bench.value("attache-agent"), "");
    }
    let (verdict, _) = bench.ask(neighbour(), "/x.Y/Z", Some("c"));
    assert_eq!(code(&verdict), Some(14), "no way through: {verdict:?}");
    assert!(bench.route.asked.lock().is_empty());
    // Of another namespace: the same answer, whoever is asked for.
    let stranger = || member("spiffe://a/ns/other/agent/b");
    for named in [None, Some("a"), Some("c")] {
        let (verdict, _) = bench.ask(stranger(), "/x.Y/Z", named);
        assert_eq!(code(&verdict), Some(7), "{verdict:?}");
    }
    let (verdict, _) = bench.ask(stranger(), "/attache.v1.Agent/GetTask", None);
    assert_eq!(verdict, Verdict::Local, "its own door");
    let (verdict, _) = bench.ask(Caller::Anonymous, "/x.Y/Z", Some("a"));
    assert_eq!(verdict, Verdict::Local);
    let (verdict, _) = Bench::new(Vec::new())
        .without_agent()
        .ask(neighbour(), "/x.Y/Z", None);
    assert_eq!(code(&verdict), Some(12), "{verdict:?}");
}

#[tokio::test]
async fn what_was_given_back_goes_elsewhere_and_what_came_in_does_not() {
    let mut bench = Bench::new(vec![go("i1"), go("i2")]);
    let (_, mut call) = bench.ask(Caller::Local, "/x.Y/Z", Some("b"));
    let verdict = bench.again(&mut call, GivenBack::Unreachable);
    let Verdict::Forward(to) = verdict else {
        panic!("{verdict:?}")
    };
    assert_eq!(bench.desk.passage.targets.instance(to), "i2".parse().ok());
    assert_eq!(bench.value("attache-agent"), "default/b");
    let asked = std::mem::take(&mut *bench.route.asked.lock());
    let name = || "default/b".to_owned();
    assert_eq!(asked, [(name(), 0, false), (name(), 1, true)]);

    let (_, mut call) = bench.ask(member("spiffe://a/ns/default/agent/b"), "/x.Y/Z", None);
    let verdict = bench.again(&mut call, GivenBack::Unreachable);
    assert_eq!(code(&verdict), Some(14));
    assert!(bench.route.asked.lock().is_empty());
}

#[tokio::test]
async fn an_answer_that_says_nothing_was_done_is_asked_for_again() {
    let answer = |names: &[&str]| {
        let mut fields = Fields::new();
        for name in names {
            fields.push(name.as_bytes(), b"1");
        }
        fields
    };
    let mut bench = Bench::new(vec![go("i1")]);
    let (_, mut call) = bench.ask(Caller::Local, "/x.Y/Z", Some("b"));
    let mut said = answer(&["attache-not-processed", "x-own"]);
    let passage = &mut bench.desk;
    assert_eq!(
        passage.on_response(&mut call, &mut said, true),
        Onward::Again
    );
    // Not one that has begun.
    assert_eq!(
        passage.on_response(&mut call, &mut said, false),
        Onward::Pass
    );
    let left: Vec<_> = said.iter().map(|field| field.name.to_vec()).collect();
    assert_eq!(left, [b"x-own".to_vec()]);
}

#[tokio::test]
async fn each_call_is_counted_once_for_whom_it_is() {
    let mut bench = Bench::new(vec![go("i1"), go("i1"), go("i2")]);
    let ended = |end: End, code: u8, attempts: u8| Ended {
        end,
        code: Some(grpc::Code(code)),
        attempts,
        sent: 3,
        received: 4,
        elapsed: Duration::from_millis(1),
    };
    let neighbour = || member("spiffe://a/ns/default/agent/b");
    let (_, call) = bench.ask(Caller::Local, "/x.Y/Z", Some("b"));
    bench.desk.on_end(call, &ended(End::Answered, 0, 1));
    let (_, mut call) = bench.ask(Caller::Local, "/x.Y/Z", Some("b"));
    bench.again(&mut call, GivenBack::Unprocessed);
    bench.desk.on_end(call, &ended(End::Answered, 0, 2));
    // Nobody has such an agent, or none is named, or it is no name.
    for named in [Some("nobody"), None, Some("X!")] {
        let (_, call) = bench.ask(Caller::Local, "/x.Y/Z", named);
        bench.desk.on_end(call, &ended(End::Replied, 14, 0));
    }
    let (_, call) = bench.ask(neighbour(), "/x.Y/Z", None);
    bench.desk.on_end(call, &ended(End::GivenUp, 1, 1));
    // The sidecar's own services count by themselves.
    let (_, call) = bench.ask(neighbour(), "/attache.v1.Agent/GetTask", None);
    bench.desk.on_end(call, &ended(End::Answered, 0, 1));

    let metrics = Metrics::new("sidecar");
    metrics.add(bench.desk.passage.calls.clone());
    let page = metrics.page(Format::Text);
    let rows = page.lines().filter_map(|line| {
        let row = line.strip_prefix("attache_passing_calls_total{direction=")?;
        (!row.ends_with(" 0")).then_some(row)
    });
    let rows: Vec<_> = rows.collect();
    let expected = [
        "\"outward\",agent=\"default/b\",service=\"x.Y\",method=\"Z\",code=\"OK\"} 2",
        "\"inward\",agent=\"default/a\",service=\"other\",method=\"other\",code=\"CANCELLED\"} 1",
        "\"outward\",agent=\"other\",service=\"other\",method=\"other\",code=\"UNAVAILABLE\"} 3",
    ];
    assert_eq!(rows, expected, "{page}");
    let again = "attache_passing_second_tries_total{direction=\"outward\",agent=\"default/b\",\
                 service=\"x.Y\",method=\"Z\"} 1";
    assert!(page.contains(again), "{page}");
}
