//! Homes that wait for slots, over their streams: what is granted is used, or somebody else's.

use super::*;
use crate::task::doors::Grants;

const ORIGIN: &str = "spiffe://a/ns/default/agent/asker";

/// A home's end of its stream.
struct Line {
    claims: mpsc::Sender<pb::SlotsRequest>,
    grants: Grants,
}

impl Bench {
    /// A home at which so many tasks of one origin wait.
    async fn waits(&self, instance: &str, count: u32) -> Line {
        let (claims, heard) = mpsc::channel(8);
        let home = peer(instance);
        let heard = Box::pin(ReceiverStream::new(heard));
        let grants = self.executor.slots(&home, heard).unwrap();
        let line = Line { claims, grants };
        line.says(count).await;
        line
    }

    /// An attempt of another home's task.
    async fn open_at(&self, instance: &str, start: pb::Start) -> Home {
        let (steps, asked) = mpsc::channel(8);
        let steps_in = Box::pin(ReceiverStream::new(asked));
        let updates = self.executor.execute(peer(instance), steps_in, None);
        let mut home = Home { steps, updates };
        home.ask(Ask::Start(Box::new(start))).await;
        home
    }
}

impl Line {
    async fn says(&self, count: u32) {
        let waiting = vec![pb::Waiting {
            origin: ORIGIN.into(),
            priority: 5,
            count,
            skill: SKILL.into(),
        }];
        let said = pb::SlotsRequest {
            waiting,
            ..Default::default()
        };
        self.claims.send(said).await.unwrap();
    }

    async fn granted(&mut self) -> String {
        self.grants.next().await.unwrap().unwrap().grant_id
    }
}

fn peer(instance: &str) -> HomePeer {
    HomePeer {
        id: ORIGIN.parse().unwrap(),
        instance: instance.parse().unwrap(),
    }
}

/// A Start of a home's task.
fn of(instance: &str, task: u128, grant: &str) -> pb::Start {
    let mut start = *start(task, 1);
    let made = start.handle.as_mut().unwrap().task.as_mut().unwrap();
    made.id = made.id.replace("i1", instance);
    made.origin = ORIGIN.into();
    start.home = instance.into();
    start.grant_id = grant.into();
    start
}

#[tokio::test(start_paused = true)]
async fn a_start_that_is_turned_down_leaves_its_slot_to_the_next() {
    let unfit = |start: &mut pb::Start| {
        let handle = start.handle.as_mut().unwrap();
        handle.inputs = vec![pb::Message {
            parts: vec![json("{}")],
            ..pb::Message::default()
        }];
    };
    let unknown = |start: &mut pb::Start| {
        let handle = start.handle.as_mut().unwrap();
        handle.task.as_mut().unwrap().skill = "none.such".into();
    };
    let late = |start: &mut pb::Start| start.remaining = Some(prost_types::Duration::default());
    let circle = |start: &mut pb::Start| {
        start.chain = vec![pb::ChainLink {
            spiffe_id: "spiffe://a/ns/default/agent/worker".into(),
            skill: SKILL.into(),
            ..pb::ChainLink::default()
        }];
    };
    let wrong: [&dyn Fn(&mut pb::Start); 4] = [&unfit, &unknown, &late, &circle];
    for wrong in wrong {
        let bench = Bench::offering(doubling(), 1, OnCancel::Ends);
        let mut first = bench.waits("i1", 5).await;
        let mut second = bench.waits("i2", 5).await;
        let began = Instant::now();
        let mut start = of("i1", 1, &first.granted().await);
        wrong(&mut start);
        let mut home = bench.open_at("i1", start).await;
        let answer = home.updates.next().await.unwrap();
        assert!(answer.is_err() || bench.executor.load().running == 0);
        second.granted().await;
        let waited = began.elapsed();
        assert!(waited < Duration::from_millis(50), "{waited:?}");
        assert!(bench.agent.handled.lock().is_empty());
        // And whoever made it is not put off for long.
        drop(second);
        first.granted().await;
        let waited = began.elapsed();
        assert!(waited < Duration::from_millis(200), "{waited:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_takes_back_what_is_granted_and_waits_for_what_runs() {
    let bench = Bench::new(2, OnCancel::Ends);
    let mut running = bench.open_at("i1", of("i1", 1, "")).await;
    assert_eq!(running.next().await, "accepted");
    let mut line = bench.waits("i1", 5).await;
    let grant = line.granted().await;
    let draining = bench.executor.drain(Duration::from_secs(60));
    let homes = async {
        let end = line.grants.next().await.unwrap().unwrap_err();
        assert_eq!(reason_of(&end).as_deref(), Some("DRAINING"));
        let mut late = bench.open_at("i1", of("i1", 2, &grant)).await;
        assert_eq!(late.next().await, "refused DRAINING");
        bench.say(result()).await;
        bench.hang_up();
        assert_eq!(running.next().await, "1: result");
        running.ack(1).await;
    };
    let began = Instant::now();
    tokio::join!(draining, homes);
    assert!(began.elapsed() < Duration::from_secs(1));
    assert_eq!(bench.executor.shared.book.lock().granted().1, 0);
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_has_its_turn_and_only_from_the_second_time_on() {
    let bench = Bench::new(1, OnCancel::Ends);
    let mut running = bench.open_at("i1", of("i1", 1, "")).await;
    assert_eq!(running.next().await, "accepted");
    let mut line = bench.waits("i1", 100).await;
    let mut guest = bench.open_at("old", of("old", 1, "")).await;
    assert_eq!(guest.next().await, "refused SLOTS_FULL");
    tokio::time::sleep(Duration::from_millis(250)).await;
    let mut guest = bench.open_at("old", of("old", 2, "")).await;
    // Nothing is free yet.
    let answer = timeout(Duration::from_millis(100), guest.next()).await;
    assert!(answer.is_err(), "{answer:?}");
    bench.say(result()).await;
    bench.hang_up();
    assert_eq!(running.next().await, "1: result");
    running.ack(1).await;
    let began = Instant::now();
    loop {
        tokio::select! {
            biased;
            answer = guest.next() => {
                assert_eq!(answer, "accepted");
                break;
            }
            grant = line.granted() => {
                let mut home = bench.open_at("i1", of("i1", 3, &grant)).await;
                assert_eq!(home.next().await, "accepted");
                bench.say(result()).await;
                bench.hang_up();
                assert_eq!(home.next().await, "1: result");
                home.ack(1).await;
            }
        }
    }
    assert!(began.elapsed() < Duration::from_millis(500));
    // One whose turn does not come is answered all the same.
    let mut late = bench.open_at("old", of("old", 4, "")).await;
    assert_eq!(late.next().await, "refused SLOTS_FULL");
    // One that waits while the executor drains is told so.
    let mut third = bench.open_at("old", of("old", 5, "")).await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    bench.executor.shared.book.lock().drain();
    assert_eq!(third.next().await, "refused DRAINING");
}

/// Work of one slot that takes a millisecond, granted five before.
async fn short_work(bench: &Bench, line: &mut Line) {
    for task in 100..120 {
        let grant = line.granted().await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        let mut home = bench.open_at("i1", of("i1", task, &grant)).await;
        assert_eq!(home.next().await, "accepted");
        tokio::time::sleep(Duration::from_millis(1)).await;
        bench.say(result()).await;
        bench.hang_up();
        assert_eq!(home.next().await, "1: result");
        home.ack(1).await;
        line.says(100).await;
        if bench.executor.shared.book.lock().granted().1 > 1 {
            return;
        }
    }
    panic!("nothing is granted ahead");
}

#[tokio::test(start_paused = true)]
async fn short_work_is_granted_slots_before_they_are_free_and_runs_in_them_only() {
    let bench = Bench::new(1, OnCancel::Ends);
    let mut line = bench.waits("i1", 100).await;
    short_work(&bench, &mut line).await;
    let (first, second, third) = (
        line.granted().await,
        line.granted().await,
        line.granted().await,
    );
    let mut running = bench.open_at("i1", of("i1", 1, &first)).await;
    assert_eq!(running.next().await, "accepted");
    let mut next = bench.open_at("i1", of("i1", 2, &second)).await;
    let early = timeout(Duration::from_millis(20), next.next()).await;
    assert!(early.is_err(), "{early:?}: there is one slot");
    // Nobody passes it by, and it has the slot as soon as that is free.
    let mut other = bench.open_at("i2", of("i2", 1, "")).await;
    assert_eq!(other.next().await, "refused SLOTS_FULL");
    bench.say(result()).await;
    bench.hang_up();
    assert_eq!(running.next().await, "1: result");
    running.ack(1).await;
    let began = Instant::now();
    assert_eq!(next.next().await, "accepted");
    assert!(began.elapsed() < Duration::from_millis(1));
    assert_eq!(bench.executor.load().running, 1);
    // Where what runs takes long after all, who waits goes back.
    let mut late = bench.open_at("i1", of("i1", 3, &third)).await;
    assert_eq!(late.next().await, "refused SLOTS_FULL");
    let book = bench.executor.shared.book.lock();
    assert_eq!((book.running(), bench.handlers()), (1, 1));
}
