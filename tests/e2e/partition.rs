//! Two hosts and a network between them that loses what is sent: registry and executor on the one,
//! home and callers on the other. What was acknowledged ends once, and all is well soon after the
//! network is.

use std::{collections::HashSet, fmt::Write, time::Duration};

use tokio::time::{Instant, sleep_until};

use crate::support::{
    client::{self, Local},
    hosts::Hosts,
    load::{Load, Shape},
    skip::skip,
    wait::eventually,
};
use attache::pb::TaskState;

/// Host of the registry and the executor.
const FAR: u8 = 1;
/// Host of the home and its callers.
const NEAR: u8 = 2;
/// How long each fault lasts; a soak says more by ATTACHE_FAULT_SECONDS.
const BRIEFLY: u64 = 4;
/// Tasks that are handed over while the fault lasts, beside those of the callers.
const HANDED_OVER: usize = 10;
/// After a fault, new work is done within this time.
const RECOVERS: Duration = Duration::from_secs(60);
/// Faults that the work outlives: an executor is believed for 45 s.
const BELIEVED: Duration = Duration::from_secs(30);

/// What the network does.
struct Phase {
    name: &'static str,
    /// Of 100 packets, how many the executor's and the home's host do not get.
    far: u8,
    near: u8,
}

const PHASES: [Phase; 4] = [
    Phase {
        name: "partition",
        far: 100,
        near: 100,
    },
    Phase {
        name: "deaf executor",
        far: 100,
        near: 0,
    },
    Phase {
        name: "deaf home",
        far: 0,
        near: 100,
    },
    Phase {
        name: "30% lost",
        far: 30,
        near: 30,
    },
];

/// How a phase went.
struct Row {
    name: &'static str,
    packets: u64,
    /// Acknowledged while it lasted, and done while it lasted.
    taken: usize,
    done: usize,
    /// After its end: until a new task was done, and until all that was taken meanwhile was.
    new: Duration,
    all: Duration,
}

/// The two hosts under load.
struct Split {
    // Fields are dropped in this order: the callers before those that they call.
    again: Load,
    once: Load,
    home: Local,
    hosts: Hosts,
    fault: Duration,
}

impl Split {
    async fn begin(mut hosts: Hosts, fault: Duration) -> Self {
        hosts.net.lose(FAR, 0).unwrap();
        let home = hosts.join(NEAR, "home", &["test.home"], "").await;
        let skills = ["test.echo", "test.echo.slow", "test.slow"];
        let room = "max_concurrent_tasks = 32";
        hosts.join(FAR, "worker", &skills, room).await;
        let first = client::local(&home);
        eventually("a first task is done", || {
            let mut home = first.clone();
            async move {
                let spec = client::bounded("test.echo", "first", 20);
                let ran = client::run(&mut home, spec).await;
                let seen = ran.map_err(|status| status.to_string())?;
                seen.result().map(drop).ok_or_else(|| format!("{seen:?}"))
            }
        })
        .await;
        let shape = |skill, may_fail_by| Shape {
            skill,
            work: Duration::from_millis(100),
            may_fail_by,
            ..Shape::default()
        };
        let load = |shape| Load::shaped(vec![client::local(&home)], 8, shape);
        Self {
            again: load(shape("test.echo.slow", &[])),
            once: load(shape("test.slow", &["AGENT_LOST"])),
            home: first,
            hosts,
            fault,
        }
    }

    async fn goes_on(&self) {
        tokio::join!(self.again.goes_on(20), self.once.goes_on(20));
    }

    fn completed(&self) -> usize {
        self.again.count().completed + self.once.count().completed
    }

    /// A task that may not run twice, and is at work for twice as long as the fault lasts.
    async fn long(&mut self) -> String {
        let text = format!("{} long", 2 * self.fault.as_millis());
        let spec = client::bounded("test.slow", &text, 300);
        let id = client::submit(&mut self.home, spec).await.unwrap().id;
        eventually("it is at work", || {
            let (mut home, id) = (self.home.clone(), id.clone());
            async move {
                let task = client::full(&mut home, &id).await;
                let task = task.map_err(|status| status.to_string())?;
                let begun = task.state() == TaskState::Working;
                begun.then_some(()).ok_or_else(|| format!("{task:?}"))
            }
        })
        .await;
        id
    }

    fn lose(&self, far: u8, near: u8) {
        self.hosts.net.lose(FAR, far).unwrap();
        self.hosts.net.lose(NEAR, near).unwrap();
    }

    async fn through(&mut self, phase: &Phase) -> Row {
        self.goes_on().await;
        let long = self.long().await;
        self.lose(phase.far, phase.near);
        let ends = Instant::now() + self.fault;
        let mut taken = Vec::new();
        for place in 0..HANDED_OVER {
            let text = format!("{} {place}", phase.name);
            let spec = client::bounded("test.echo", &text, 300);
            let task = client::submit(&mut self.home, spec).await.unwrap();
            taken.push((task.id, text));
        }
        let before = self.completed();
        sleep_until(ends).await;
        let done = self.completed() - before;
        let packets = self.hosts.net.lost(FAR) + self.hosts.net.lost(NEAR);
        if phase.far.max(phase.near) == 100 {
            for (id, _) in &taken {
                let task = client::full(&mut self.home, id).await.unwrap();
                assert!(!client::is_end(task.state()), "{}: {task:?}", phase.name);
            }
        }

        self.lose(0, 0);
        let healed = Instant::now();
        let spec = client::bounded("test.echo", "healed", 300);
        let new = client::run(&mut self.home, spec).await.unwrap();
        assert_eq!(
            new.result().as_deref(),
            Some("healed"),
            "{:?}",
            new.failure()
        );
        let new = healed.elapsed();
        for (id, text) in &taken {
            let seen = client::watch_whole(&mut self.home, id).await;
            assert_eq!(seen.result().as_ref(), Some(text), "{:?}", seen.failure());
        }
        let all = healed.elapsed();
        // Whoever is away for longer is given up.
        if self.fault <= BELIEVED {
            let seen = client::watch_whole(&mut self.home, &long).await;
            assert_eq!(seen.state(), TaskState::Completed, "{:?}", seen.failure());
        }
        self.goes_on().await;
        Row {
            name: phase.name,
            packets,
            taken: taken.len(),
            done,
            new,
            all,
        }
    }
}

#[tokio::test]
#[allow(clippy::print_stdout, reason = "the table is what a soak is for")]
async fn what_was_acknowledged_outlives_a_network_that_loses_everything_or_much() {
    let test = "partition::what_was_acknowledged_outlives_a_network_that_loses_everything_or_much";
    let hosts = match Hosts::new(2, FAR).await {
        Ok(hosts) => hosts,
        Err(why) => return skip(test, &format!("no network namespaces here: {why}")),
    };
    if let Err(why) = hosts.net.lose(FAR, 30) {
        return skip(test, &format!("packets cannot be lost here: {why}"));
    }
    let seconds =
        std::env::var("ATTACHE_FAULT_SECONDS").map_or(BRIEFLY, |text| text.parse().unwrap());
    let mut split = Split::begin(hosts, Duration::from_secs(seconds)).await;
    let mut table = format!("each fault for {seconds} s\n");
    writeln!(
        table,
        "{:14} {:>13} {:>6} {:>12} {:>18} {:>18}",
        "fault", "packets lost", "taken", "done in it", "new work after, s", "all taken after, s"
    )
    .unwrap();
    for phase in &PHASES {
        let row = split.through(phase).await;
        writeln!(
            table,
            "{:14} {:13} {:6} {:12} {:18.2} {:18.2}",
            row.name,
            row.packets,
            row.taken,
            row.done,
            row.new.as_secs_f64(),
            row.all.as_secs_f64()
        )
        .unwrap();
        assert!(row.packets > 0, "nothing was lost:\n{table}");
        assert!(row.new < RECOVERS, "{table}");
    }
    println!("{table}");
    for load in [split.again, split.once] {
        let outcome = load.stop().await;
        outcome.clean();
        // Its home was never away.
        let count = outcome.count;
        assert_eq!(
            (count.unknown, count.refused, count.breaks),
            (0, 0, 0),
            "{count:?}"
        );
        println!("{count:?}");
    }
    let mut once = HashSet::new();
    let runs = split.hosts.site.runs().into_iter();
    for (_, id, attempt) in runs.filter(|(skill, ..)| skill == "test.slow") {
        assert!(once.insert(id.clone()), "{id} ran again, attempt {attempt}");
    }
}
