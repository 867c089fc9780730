//! What ends by time: certificates and connections, under load, without a call or a stream that
//! notices.

use std::{
    fs,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use attache::{
    identity::{Credentials, Svid},
    pb::{self, WatchRequest, watch_response::Change},
    runtime::{Nursery, clock::wall},
    transport::Pool,
    wire::status::reason_of,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tokio::{
    task::JoinHandle,
    time::{Duration, Instant, sleep},
};

use crate::support::{
    client::{self, Seen},
    hand::{ByHand, REGISTRY, page},
    load::Load,
    mesh::{Site, Up, agent},
    passing::{ECHO, Passing, TALK, Talk, echo, reached, serving},
    skip::skip,
    wait::{eventually, within},
};

/// New certificates of each sidecar that a test lives through: 30 s at a life of 10 s, of which a
/// certificate is used for less than half. `tests/soak/certificates` says more.
const RENEWALS: u64 = 7;
/// Connections that end by age in one test.
const AGED: usize = 300;
/// How long one condition may take here: the longest lives are of a soak.
const PATIENCE: Duration = Duration::from_secs(60);

/// A home for tasks, two workers, and an agent that calls pass to.
fn home_and_workers(head: &str) -> String {
    format!(
        "{head}\n{}{}{}",
        agent("home", &["test.home"], ""),
        agent(
            "worker",
            &["test.hold", "test.echo"],
            "instances = 2\nmax_concurrent_tasks = 16"
        ),
        echo(1) + &serving("quiet", 1)
    )
}

/// Streams that are opened at the start and must not be cut before their end.
struct Held {
    gate: PathBuf,
    id: String,
    operator: Credentials,
    pool: Pool,
    watches: Vec<JoinHandle<Seen>>,
    talk: Talk,
    passing: Passing,
    catalog: JoinHandle<String>,
}

impl Held {
    /// A task that runs on another sidecar until the gate opens, watched by its own agent and by an
    /// operator over mutual TLS, a stream that passes to another agent and calls that do, and the
    /// catalog, watched at the registry.
    #[allow(
        clippy::disallowed_methods,
        reason = "readers of the test's own; they end with it"
    )]
    async fn open(site: &Site, up: &Up) -> Self {
        let gate = site.path("gate");
        let place = up.instance("default/home", 0);
        let mut home = client::local(&place.local);
        let held = gate.display().to_string();
        let submitted = client::submit(&mut home, client::spec("test.hold", &held));
        let id = submitted.await.unwrap().id;
        let operator = Credentials::new(Svid::load(&site.operator("")).unwrap());
        let pool = Pool::new(operator.clone(), Nursery::here());
        let mut member = client::member(&pool, &place.mtls, "ns/default/agent/home");
        let streams = [
            client::watch(&mut home, &id, 0).await.unwrap(),
            client::watch_as_member(&mut member, &id, 0).await.unwrap(),
        ];
        let watches = streams.map(|mut stream| {
            tokio::spawn(async move {
                let mut seen = Seen::default();
                while let Some(response) = stream.message().await.expect("a watch was cut") {
                    seen.take(response.update.unwrap());
                }
                seen.whole()
            })
        });
        let mut registry = client::registry(&pool, &up.endpoints.registry.mtls);
        let words = registry.watch(WatchRequest::default()).await.unwrap();
        let mut words = words.into_inner();
        let catalog = tokio::spawn(async move {
            loop {
                match words.message().await {
                    Ok(Some(word)) => {
                        if let Some(Change::Gone(gone)) = word.change {
                            return format!("{} left the catalog", gone.id);
                        }
                    }
                    other => return format!("the watch of the catalog ended: {other:?}"),
                }
            }
        });
        for agent in [ECHO, "default/quiet"] {
            reached(&place.local, agent).await;
        }
        // No call but this one goes there: nothing else renews what it stands on.
        let quiet = "quiet.default.agent.attache";
        let talk = Talk::open_to(quiet, &place.local, TALK, 65_535).await;
        Self {
            talk,
            passing: Passing::start(&place.local, 4),
            gate,
            id,
            operator,
            pool,
            watches: watches.into(),
            catalog,
        }
    }

    /// Lets the task end, and checks that every stream was open to its end and saw the same.
    async fn close(self, site: &Site) {
        assert!(!self.catalog.is_finished(), "{:?}", self.catalog.await);
        self.catalog.abort();
        let mut talk = self.talk;
        talk.answered().await;
        talk.ask();
        talk.answered().await;
        assert_eq!(talk.close().await.as_deref(), Some("0"));
        let (passed, failed) = self.passing.stop().await;
        assert_eq!(failed, Vec::<String>::new(), "{passed} passed");
        assert!(passed > 100, "{passed} passed");
        fs::write(&self.gate, "").unwrap();
        let mut all = Vec::new();
        for watch in self.watches {
            let seen = within("a watch ends", watch).await.unwrap();
            assert_eq!(seen.result().as_deref(), Some("let go"));
            all.push(seen.events);
        }
        assert_eq!(all[0], all[1]);
        let runs: Vec<_> = site
            .runs()
            .into_iter()
            .filter(|run| run.1 == self.id)
            .collect();
        assert_eq!(runs.len(), 1, "{runs:?}");
        assert!(self.pool.len() >= 2, "{:?}", self.pool);
    }
}

/// Names of the processes of [`home_and_workers`].
const SIDECARS: [&str; 5] = ["home-1", "worker-1", "worker-2", "echo-1", "quiet-1"];

fn generation(site: &Site, sidecar: &str) -> u64 {
    let dir = site.state().join("sidecars").join(sidecar);
    // Its files are replaced one by one: the next look finds them whole.
    Svid::load(&dir).map_or(0, |svid| svid.generation())
}

/// Lines of all logs that hold these words.
fn said(site: &Site, words: &str) -> Vec<String> {
    let logs = SIDECARS.iter().chain(&[REGISTRY]);
    let lines = logs.flat_map(|name| {
        let log = site.log(name);
        let lines: Vec<String> = log.lines().map(|line| format!("{name}: {line}")).collect();
        lines
    });
    lines.filter(|line| line.contains(words)).collect()
}

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap())
}

#[tokio::test]
async fn certificates_of_ten_seconds_are_not_noticed() {
    let renewals = number("ATTACHE_RENEWALS", RENEWALS);
    let site = Site::new(&home_and_workers("[registry]\ncertificate_life = \"10s\""));
    let up = site.up(&[]).await;
    let held = Held::open(&site, &up).await;
    let load = Load::start(client::local(&up.instance("default/home", 0).local), 6);
    for step in 1..=renewals {
        for sidecar in SIDECARS {
            eventually(&format!("{sidecar} has renewed {step} times"), || async {
                match generation(&site, sidecar) {
                    now if now > step => Ok(()),
                    now => Err(format!("{now}\n{}", site.logs())),
                }
            })
            .await;
        }
    }
    finished(&site, load, held).await;
}

/// The PEM text of a file of the CA.
fn of_ca(site: &Site, file: &str) -> String {
    fs::read_to_string(site.state().join("ca").join(file)).unwrap()
}

/// Runs `attache ca` on the mesh's CA, and says what it printed.
async fn ca(site: &Site, verb: &[&str]) -> String {
    let dir = site.state().join("ca");
    let said = site.attache(&[&["ca"], verb, &["--dir"]].concat());
    let said = { said }.arg(&dir).output().await.unwrap();
    assert!(said.status.success(), "{said:?}{}", site.logs());
    String::from_utf8(said.stdout).unwrap()
}

/// Waits until every sidecar has saved a certificate and roots for which `fits` holds.
async fn all_have(site: &Site, what: &str, fits: impl Fn(&Svid) -> bool) {
    for sidecar in SIDECARS {
        let dir = site.state().join("sidecars").join(sidecar);
        eventually(&format!("{sidecar} has {what}"), || async {
            // Its files are replaced one by one: the next look finds them whole.
            let svid = Svid::load(&dir).map_err(|error| error.to_string())?;
            let found = || format!("{:?}\n{}", svid.peer(), site.logs());
            fits(&svid).then_some(()).ok_or_else(found)
        })
        .await;
    }
}

/// Leaf, issuing CA and root, each by another one while calls and streams go on.
#[tokio::test]
async fn all_that_a_certificate_stands_on_is_rotated_and_not_noticed() {
    let site = Site::new(&home_and_workers("[registry]\ncertificate_life = \"10s\""));
    let up = site.up(&[]).await;
    let held = Held::open(&site, &up).await;
    let load = Load::start(client::local(&up.instance("default/home", 0).local), 6);
    all_have(&site, "another leaf", |svid| svid.generation() > 1).await;

    let issuing = |text: &str| {
        let end = text.find("-----END CERTIFICATE-----").unwrap();
        CertificateDer::from_pem_slice(
            format!("{}-----END CERTIFICATE-----\n", &text[..end]).as_bytes(),
        )
        .unwrap()
    };
    let first = issuing(&of_ca(&site, "issuing.pem"));
    ca(&site, &["rotate", "issuing"]).await;
    let second = issuing(&of_ca(&site, "issuing.pem"));
    assert_ne!(first, second);
    let by = |svid: &Svid| svid.chain()[1] == second;
    all_have(&site, "a leaf of the new issuing CA", by).await;

    let root = |file: &str| CertificateDer::from_pem_slice(of_ca(&site, file).as_bytes()).unwrap();
    let said = ca(
        &site,
        &["rotate", "root", "--prepare", "4s", "--keep", "8s"],
    )
    .await;
    assert!(said.contains("root-2.pem"), "{said}");
    let (old, new) = (root("root.pem"), root("root-2.pem"));
    let both = [old.clone(), new.clone()];
    all_have(&site, "both roots", |svid| svid.bundle() == both).await;
    // Renewed for it, long before half of its life.
    let both = [new.clone(), old];
    let signs = |svid: &Svid| svid.bundle() == both && svid.is_under_signing_root();
    all_have(&site, "a leaf of the new root", signs).await;
    // `up` signs its operator another one, which who acts for it takes in.
    eventually("the operator has one too", || async {
        let svid = Svid::load(&site.operator("")).map_err(|error| error.to_string())?;
        let stands = signs(&svid);
        held.operator.replace(svid);
        stands
            .then_some(())
            .ok_or_else(|| "of the old root".to_owned())
    })
    .await;
    all_have(&site, "the new root alone", |svid| {
        svid.bundle() == [new.clone()]
    })
    .await;
    // From here on all that is valid stands on it, and the operator's stands on it too.
    let again = generation(&site, "quiet-1") + 2;
    eventually("renewed on it", || async {
        let now = generation(&site, "quiet-1");
        (now >= again).then_some(()).ok_or_else(|| now.to_string())
    })
    .await;
    let state = site.state();
    let said = site
        .attache(&["agents", "list", "--mesh"])
        .arg(&state)
        .output()
        .await;
    let said = said.unwrap();
    assert!(said.status.success(), "{said:?}");
    let status = ca(&site, &["status"]).await;
    assert!(
        status.contains("former") && status.contains("signs"),
        "{status}"
    );
    finished(&site, load, held).await;
}

#[tokio::test]
async fn connections_that_end_by_age_lose_no_call() {
    let ages = "[registry]\nconnection_age = \"300ms\"\n[sidecars]\nconnection_age = \"300ms\"";
    let mut site = Site::new(&home_and_workers(ages));
    let told = "info,attache::transport=debug".to_owned();
    site.env.push(("ATTACHE_LOG", told));
    let up = site.up(&[]).await;
    let held = Held::open(&site, &up).await;
    let load = Load::start(client::local(&up.instance("default/home", 0).local), 6);
    // The operator's connections are not replaced in time: they are told to go under its calls.
    let place = up.instance("default/home", 0);
    let mut member = client::member(&held.pool, &place.mtls, "ns/default/agent/home");
    let mut registry = client::registry(&held.pool, &up.endpoints.registry.mtls);
    let until = Instant::now() + PATIENCE;
    let mut aged = 0;
    while aged < AGED {
        assert!(Instant::now() < until, "{aged} of {AGED}\n{}", site.logs());
        member
            .get_card(pb::GetCardRequest::default())
            .await
            .unwrap();
        registry
            .list_agents(pb::ListAgentsRequest::default())
            .await
            .unwrap();
        let words = "connection told to go";
        let lines = said(&site, words);
        aged = lines.iter().filter(|line| line.contains("age")).count();
        sleep(Duration::from_millis(2)).await;
    }
    for process in SIDECARS.iter().chain(&[REGISTRY]) {
        let log = site.log(process);
        assert!(log.contains("connection told to go"), "{process} ends none");
    }
    finished(&site, load, held).await;
}

/// Ends the load and the streams, and checks that nobody has noticed anything.
#[allow(clippy::print_stdout, reason = "how much it was, for whoever looks")]
async fn finished(site: &Site, load: Load, held: Held) {
    let outcome = load.stop().await;
    outcome.clean();
    let count = &outcome.count;
    println!("{count:?}");
    assert_eq!(
        (
            count.unknown,
            count.refused + count.unsent,
            count.breaks,
            count.sent_away,
            count.failed
        ),
        (0, 0, 0, 0, 0),
        "{}",
        site.logs()
    );
    held.close(site).await;
    for words in [
        "connection cut",
        "dial failed",
        "handshake failed",
        "taken out",
        "WARN",
    ] {
        let lines = said(site, words);
        assert!(lines.is_empty(), "{lines:#?}");
    }
    // Work that may run twice ran once: no attempt was lost with its connection.
    let again: Vec<_> = site.runs().into_iter().filter(|run| run.2 > 1).collect();
    assert!(again.is_empty(), "{again:?}");
}

/// What an admin listener says of a process's readiness: its reasons, none where it is ready.
async fn reasons(mesh: &ByHand, name: &str) -> Result<String, String> {
    let answer = page(&mesh.admin(name), "/readyz").await?;
    let ready = answer.starts_with("HTTP/1.1 200");
    Ok(if ready { String::new() } else { answer })
}

#[tokio::test]
async fn members_whose_certificates_end_are_shut_out_until_the_registry_is_back() {
    let life = "[registry]\ncertificate_life = \"10s\"";
    let mut mesh = ByHand::started(&home_and_workers(life)).await;
    let mut home = mesh.local("home-1");
    let before = client::run(&mut home, client::bounded("test.echo", "before", 50)).await;
    assert_eq!(before.unwrap().result().as_deref(), Some("before"));

    let pool = client::pool(&mesh.site.operator(""));
    let place = mesh.endpoints.instances[0].clone();
    let mut member = client::member(&pool, &place.mtls, "ns/default/agent/home");
    let mut never = client::bounded("test.echo", "never", 300);
    never.selector.as_mut().unwrap().version = "^9".into();
    let never = client::submit(&mut home, never).await.unwrap().id;
    let stream = client::watch_as_member(&mut member, &never, 0).await;
    let mut stream = stream.unwrap();

    mesh.kill(REGISTRY).await;
    // Half of a life and more is left: nobody needs the registry for what is known.
    let away = client::run(&mut home, client::bounded("test.echo", "away", 50)).await;
    assert_eq!(away.unwrap().result().as_deref(), Some("away"));
    for sidecar in SIDECARS {
        eventually(
            &format!("{sidecar} says that its certificate has ended"),
            || async {
                let reasons = reasons(&mesh, sidecar).await?;
                if reasons.contains("its certificate ended") {
                    Ok(())
                } else {
                    Err(reasons)
                }
            },
        )
        .await;
    }
    // The old connections are closed, new ones are refused: by those who call, and among members.
    let cut = within("the stream is cut", async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                other => break other,
            }
        }
    })
    .await;
    assert!(cut.is_err(), "{cut:?}");
    eventually("the refusal says why", || {
        let mut member = member.clone();
        async move {
            let refused = member.get_card(pb::GetCardRequest::default()).await;
            let refused = refused.unwrap_err();
            assert_eq!(reason_of(&refused).as_deref(), Some("PEER_UNREACHABLE"));
            if refused.message().contains("expired") {
                Ok(())
            } else {
                Err(format!("{refused:?}"))
            }
        }
    })
    .await;
    let waiting = client::submit(&mut home, client::bounded("test.echo", "later", 50)).await;
    let waiting = waiting.unwrap().id;
    eventually("the refusal is told", || async {
        let told = mesh.site.log("home-1");
        if told.contains("certificate") && told.contains("dial failed") {
            Ok(())
        } else {
            Err(told)
        }
    })
    .await;
    let ran: Vec<_> = mesh.site.runs();
    assert!(ran.iter().all(|run| run.1 != waiting), "{ran:?}");

    mesh.start(REGISTRY);
    mesh.ready(REGISTRY).await;
    for sidecar in SIDECARS {
        mesh.ready(sidecar).await;
    }
    let late = client::watch_whole(&mut home, &waiting).await;
    assert_eq!(
        late.result().as_deref(),
        Some("later"),
        "{:?}",
        late.failure()
    );
}

/// Bound of the tasks that must end by it and no earlier; longer than both jumps take.
const BOUND: Duration = Duration::from_secs(25);
/// How far the clocks are set.
const AHEAD: Duration = Duration::from_secs(2 * 3600);

/// The wall clocks of all processes of a mesh, in the test's hand. Monotonic time is nobody's to
/// change.
struct Clocks {
    file: PathBuf,
}

impl Clocks {
    /// Puts libfaketime in front of all that is started at a site.
    ///
    /// # Errors
    /// When it is not installed.
    fn of(site: &mut Site) -> Result<Self, String> {
        let library = ["x86_64", "aarch64"]
            .map(|machine| format!("/usr/lib/{machine}-linux-gnu/faketime/libfaketime.so.1"))
            .into_iter()
            .find(|path| fs::exists(path).unwrap_or(false));
        let library = library.ok_or("no libfaketime here (Debian: apt-get install libfaketime)")?;
        let clocks = Self {
            file: site.path("clocks"),
        };
        clocks.set(Duration::ZERO);
        site.env.extend([
            ("LD_PRELOAD", library),
            ("FAKETIME_TIMESTAMP_FILE", clocks.file.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]);
        Ok(clocks)
    }

    /// Sets all clocks so far ahead of this machine's.
    fn set(&self, ahead: Duration) {
        // Replaced whole: it is read at every look at a clock.
        let fresh = self.file.with_extension("new");
        fs::write(&fresh, format!("+{}s\n", ahead.as_secs())).unwrap();
        fs::rename(&fresh, &self.file).unwrap();
    }
}

/// When a sidecar's certificate ends.
fn end(site: &Site, sidecar: &str) -> SystemTime {
    let dir = site.state().join("sidecars").join(sidecar);
    Svid::load(&dir).map_or(UNIX_EPOCH, |svid| svid.peer().not_after)
}

/// Waits until every sidecar has a certificate for this clock and is ready, and a new task runs.
async fn at_home(site: &Site, up: &Up, ahead: Duration, name: &str) {
    for (place, sidecar) in SIDECARS.iter().enumerate() {
        eventually(&format!("{sidecar} has a certificate {name}"), || async {
            // Of an hour, made by the clock that holds now.
            let made = end(site, sidecar) - Duration::from_secs(3600);
            let off = wall() + ahead;
            let off = off
                .duration_since(made)
                .unwrap_or_else(|error| error.duration());
            let ready = page(&up.endpoints.instances[place].admin, "/readyz").await?;
            if off < Duration::from_secs(1800) && ready.starts_with("HTTP/1.1 200") {
                Ok(())
            } else {
                Err(format!("{off:?} {ready}\n{}", site.logs()))
            }
        })
        .await;
    }
    let mut home = client::local(&up.instance("default/home", 0).local);
    let ran = client::run(&mut home, client::bounded("test.echo", name, 50)).await;
    assert_eq!(ran.unwrap().result().as_deref(), Some(name));
}

#[tokio::test]
async fn clocks_that_are_set_ahead_and_back_end_nothing() {
    let mut site = Site::new(&home_and_workers(""));
    let clocks = match Clocks::of(&mut site) {
        Ok(clocks) => clocks,
        Err(why) => {
            return skip(
                "lifetimes::clocks_that_are_set_ahead_and_back_end_nothing",
                &why,
            );
        }
    };
    let up = site.up(&[]).await;
    let mut home = client::local(&up.instance("default/home", 0).local);
    let held = site.path("gate").display().to_string();
    let across = client::submit(&mut home, client::bounded("test.hold", &held, 900)).await;
    let across = across.unwrap().id;
    // By timeout, and by the wall time that it is on the clock that holds now.
    let never = site.path("never").display().to_string();
    let began = Instant::now();
    let bounded = client::submit(&mut home, client::bounded("test.hold", &never, 25));
    let bounded = bounded.await.unwrap().id;
    let mut dated = client::spec("test.hold", &never);
    dated.options = Some(pb::TaskOptions {
        deadline: Some((wall() + BOUND).into()),
        ..Default::default()
    });
    let dated = client::submit(&mut home, dated).await.unwrap().id;
    let load = Load::start(home.clone(), 4);
    at_home(&site, &up, Duration::ZERO, "before").await;

    clocks.set(AHEAD);
    at_home(&site, &up, AHEAD, "ahead").await;
    clocks.set(Duration::ZERO);
    at_home(&site, &up, Duration::ZERO, "back").await;

    let outcome = load.stop().await;
    outcome.clean();
    assert_eq!(
        outcome.count.breaks, 0,
        "the own agent shows no certificate"
    );
    for id in [&bounded, &dated] {
        let task = client::full(&mut home, id).await.unwrap();
        let early = began.elapsed() < BOUND;
        assert!(
            !early || !client::is_end(task.state()),
            "ended by a clock: {task:?}"
        );
        let seen = client::watch_whole(&mut home, id).await;
        assert!(
            began.elapsed() >= BOUND - Duration::from_secs(1),
            "{seen:?}"
        );
        assert_eq!(seen.failure().reason, "DEADLINE_EXCEEDED");
    }
    fs::write(site.path("gate"), "").unwrap();
    let seen = client::watch_whole(&mut home, &across).await;
    assert_eq!(seen.result().as_deref(), Some("let go"));
    let runs: Vec<_> = site
        .runs()
        .into_iter()
        .filter(|run| run.1 == across)
        .collect();
    assert_eq!(runs.len(), 1, "{runs:?}");
    // Leases are of the steady clock: nobody was thought silent.
    assert!(
        !site.log(REGISTRY).contains("taken out"),
        "{}",
        site.log(REGISTRY)
    );
}
