//! URLs that lead where they should not: no connection is made.

use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use attache::{
    pb,
    task::{
        callback::{Allowed, Delivery, Outcome, Rule, Target, Url},
        courier::{
            Post,
            web::{Net, Trust, Web},
        },
    },
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::support::receiver::{Authority, Receiver};

/// Names as the test says; every connection goes to one place, and is written down.
#[derive(Default)]
struct Names {
    answers: Mutex<VecDeque<Vec<IpAddr>>>,
    dialed: Mutex<Vec<SocketAddr>>,
    leads_to: Option<SocketAddr>,
}

impl Names {
    fn says(&self, addresses: &str) {
        let addresses = addresses.split_whitespace().map(|one| one.parse().unwrap());
        self.answers.lock().unwrap().push_back(addresses.collect());
    }

    fn dialed(&self) -> Vec<String> {
        let dialed = self.dialed.lock().unwrap();
        dialed.iter().map(ToString::to_string).collect()
    }
}

#[tonic::async_trait]
impl Net for Names {
    async fn resolve(&self, _: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let answer = self.answers.lock().unwrap().pop_front();
        let answer = answer.ok_or(io::ErrorKind::NotFound)?;
        Ok(answer
            .into_iter()
            .map(|ip| SocketAddr::new(ip, port))
            .collect())
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        self.dialed.lock().unwrap().push(address);
        TcpStream::connect(self.leads_to.unwrap_or(address)).await
    }
}

fn web(names: &Arc<Names>, authority: &Authority) -> Web {
    let rule = |host: &str| Rule::new(host, &[], false, &[]).unwrap();
    let literals = [
        "127.0.0.1",
        "::1",
        "10.0.0.1",
        "::ffff:127.0.0.1",
        "169.254.169.254",
    ];
    let rules = ["hooks.example"]
        .iter()
        .chain(&literals)
        .map(|host| rule(host));
    let allowed = Allowed::new(rules.collect()).unwrap();
    let trust = Trust::with(authority.roots()).unwrap();
    Web::new(Arc::new(allowed), trust, names.clone())
}

async fn tell(web: &Web, url: &str) -> Outcome {
    let url = Url::parse(url).unwrap();
    let id = format!("i1.{}", uuid::Uuid::nil());
    let delivery = Delivery {
        event: Arc::new(pb::TaskEvent {
            task_id: id,
            seq: 1,
            ..Default::default()
        }),
        target: Target::Url(url.clone()),
        until: Instant::now(),
        above: None,
    };
    web.post(&url, &delivery).await
}

#[tokio::test]
async fn nothing_is_sent_to_addresses_that_are_not_public() {
    let authority = Authority::new();
    // Whatever is dialed comes out here, and is counted.
    let canary = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let names = Arc::new(Names {
        leads_to: Some(canary.local_addr().unwrap()),
        ..Names::default()
    });
    let seen = Arc::new(AtomicUsize::new(0));
    let mut counts = JoinSet::new();
    let counted = seen.clone();
    counts.spawn(async move {
        while canary.accept().await.is_ok() {
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    let web = web(&names, &authority);
    for addresses in [
        "127.0.0.1",
        "127.8.8.8",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:8.8.8.8",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2001:0:7f00:1::",
        "fe80::1",
        "fd00::1",
        "ff02::1",
        // Both at once: the public one is no better.
        "8.8.8.8 127.0.0.1",
        "::1 8.8.8.8",
    ] {
        names.says(addresses);
        let outcome = tell(&web, "https://hooks.example/x").await;
        let Outcome::Later { why, .. } = outcome else {
            panic!("{addresses}: {outcome:?}");
        };
        assert!(why.contains("not public"), "{addresses}: {why}");
    }
    for url in [
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://10.0.0.1/",
        "https://[::ffff:127.0.0.1]/",
        "https://169.254.169.254/latest/meta-data",
        "https://not-listed.example/",
        "https://hooks.example:8443/",
    ] {
        let outcome = tell(&web, url).await;
        assert!(
            matches!(outcome, Outcome::Later { .. }),
            "{url}: {outcome:?}"
        );
    }
    assert_eq!(names.dialed(), Vec::<String>::new());
    assert_eq!(seen.load(Ordering::SeqCst), 0, "connections at the canary");
    // The canary sings: a public address is dialed.
    names.says("8.8.8.8");
    let hung_up = tell(&web, "https://hooks.example/x").await;
    assert!(matches!(hung_up, Outcome::Later { .. }), "{hung_up:?}");
    assert_eq!(names.dialed(), ["8.8.8.8:443"]);
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_name_is_looked_up_once_and_a_redirect_leads_nowhere() {
    let authority = Authority::new();
    let receiver = Receiver::start(&authority, &["hooks.example"]).await;
    let names = Arc::new(Names {
        leads_to: Some(receiver.at),
        ..Names::default()
    });
    let web = web(&names, &authority);
    // A name that is somewhere else the next time that it is asked for.
    names.says("8.8.8.8");
    names.says("127.0.0.1");
    assert_eq!(
        tell(&web, "https://hooks.example/x").await,
        Outcome::Delivered
    );
    assert_eq!(names.dialed(), ["8.8.8.8:443"]);
    let turned = tell(&web, "https://hooks.example/x").await;
    assert!(matches!(turned, Outcome::Later { .. }), "{turned:?}");
    assert_eq!(names.dialed().len(), 1, "not at its new place");

    for (status, to) in [
        (301, "https://127.0.0.1/"),
        (302, "http://169.254.169.254/"),
        (307, "https://hooks.example/y"),
        (308, "/y"),
    ] {
        let (before, told) = (names.dialed().len(), receiver.got().len());
        names.says("8.8.8.8");
        receiver.answers([(status, Some(("location", to.to_owned())))]);
        let outcome = tell(&web, "https://hooks.example/x").await;
        let Outcome::Refused(why) = outcome else {
            panic!("{status}: {outcome:?}");
        };
        assert!(why.contains("redirects are not followed"), "{why}");
        assert_eq!(
            (names.dialed().len(), receiver.got().len()),
            (before + 1, told + 1)
        );
    }
}

#[tokio::test]
async fn only_whom_a_certificate_names_is_told_and_answers_are_bounded() {
    let authority = Authority::new();
    let other = Receiver::start(&authority, &["other.example"]).await;
    let stranger = Receiver::start(&Authority::new(), &["hooks.example"]).await;
    for receiver in [&other, &stranger] {
        let names = Arc::new(Names {
            leads_to: Some(receiver.at),
            ..Names::default()
        });
        names.says("8.8.8.8");
        let outcome = tell(&web(&names, &authority), "https://hooks.example/x").await;
        let Outcome::Later { why, .. } = outcome else {
            panic!("{outcome:?}");
        };
        assert!(why.contains("TLS"), "{why}");
        assert!(receiver.got().is_empty(), "nothing was told");
    }
    let receiver = Receiver::start(&authority, &["hooks.example"]).await;
    receiver.answers([(200, Some(("x-large", "x".repeat(200 << 10))))]);
    let names = Arc::new(Names {
        leads_to: Some(receiver.at),
        ..Names::default()
    });
    names.says("8.8.8.8");
    let outcome = tell(&web(&names, &authority), "https://hooks.example/x").await;
    assert!(matches!(outcome, Outcome::Later { .. }), "{outcome:?}");
}

#[tokio::test]
async fn answers_without_an_end_are_not_read_to_it() {
    let authority = Authority::new();
    let long = "x".repeat(64 << 10);
    let head = "HTTP/1.1 200 OK\r\n";
    for (first, then, expected) in [
        (
            &format!("{head}content-length: 99999999999\r\n\r\n")[..],
            &long[..],
            "told",
        ),
        (&format!("{head}x-long: "), &long, "failed"),
        (head, "x-more: 1\r\n", "failed"),
        // Whoever asks bounds these: a try has ten seconds.
        ("", "HTTP/1.1 103 Early Hints\r\n\r\n", "cut"),
        ("", "", "cut"),
    ] {
        let receiver = Receiver::endless(&authority, &["hooks.example"], first, then).await;
        let names = Arc::new(Names {
            leads_to: Some(receiver.at),
            ..Names::default()
        });
        names.says("8.8.8.8");
        let web = web(&names, &authority);
        let limit = Duration::from_secs(if expected == "cut" { 1 } else { 30 });
        let told = timeout(limit, tell(&web, "https://hooks.example/x")).await;
        let came = match told {
            Ok(Outcome::Delivered) => "told",
            Ok(Outcome::Later { .. }) => "failed",
            Ok(other) => panic!("{first}: {other:?}"),
            Err(_) => "cut",
        };
        assert_eq!(came, expected, "{first} and then {:.20}", then);
    }
}
