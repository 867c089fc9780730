//! What a stream may say by tables, and the desk with an executor's eyes, without sockets.

use std::time::Duration;

use proptest::prelude::*;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, Status};

use super::session::{Given, Heard, Session};
use super::*;
use crate::pb;
use crate::pb::attach_request::Say as Said;
use crate::pb::attach_response::Say;
use crate::pb::handle_response::Update;
use crate::runtime::{Nursery, Stop};
use crate::task::executor::{HandleStream, HandlerError, HandlerLink};
use crate::wire::credit::{COST_LEAST, cost};
use crate::wire::status::reason_of;

fn update(bytes: usize) -> pb::HandleResponse {
    pb::HandleResponse {
        update: Some(Update::Progress(pb::Progress {
            message: "x".repeat(bytes),
            ..pb::Progress::default()
        })),
    }
}

fn request(task: &str, attempt: u32) -> pb::HandleRequest {
    pb::HandleRequest {
        task: Some(pb::Task {
            id: task.into(),
            ..pb::Task::default()
        }),
        attempt,
        ..pb::HandleRequest::default()
    }
}

fn given() -> Given {
    Given {
        request: Box::new(request("i.t", 1)),
        deadline: Instant::now() + Duration::from_secs(60),
        trace: Default::default(),
    }
}

fn say(say: Said) -> pb::AttachRequest {
    pb::AttachRequest { say: Some(say) }
}

fn hello(places: u32) -> pb::AttachRequest {
    say(Said::Hello(pb::AttachHello { places, card: None }))
}

fn says(work: u64, bytes: usize) -> pb::AttachRequest {
    let update = Some(update(bytes));
    say(Said::Update(pb::AttachUpdate { work, update }))
}

fn ends(work: u64, code: Code) -> pb::AttachRequest {
    say(Said::End(pb::AttachEnd {
        work,
        code: code.into(),
        message: "as it says".into(),
        ..pb::AttachEnd::default()
    }))
}

/// What is said to the agent, in few words.
fn told(response: Option<pb::AttachResponse>) -> String {
    match response.map(|response| response.say.unwrap()) {
        None => "-".into(),
        Some(Say::Attached(_)) => "attached".into(),
        Some(Say::Work(work)) => format!("work {}", work.work),
        Some(Say::Cancel(cancel)) => format!("cancel {}", cancel.work),
        Some(Say::Cut(cut)) => format!("cut {}", cut.work),
        Some(Say::Credit(more)) => format!("credit {} {}", more.work, more.bytes),
    }
}

/// Runs a script: what the agent says (`h2` hello, `p1` places, `u1` an update of work 1, `u1=500`
/// with so many bytes, `e1` its end, `?` nothing that is known) and what the sidecar does (`g` gives
/// work, `x1` cancels, `c1` cuts, `t1=500` has taken so much, `n` writes). Gives what came of each;
/// a broken rule begins with `!` and ends the script.
fn played(script: &str) -> String {
    let mut session = Session::default();
    let mut out = Vec::new();
    for step in script.split(' ') {
        let (what, rest) = step.split_at(1);
        let (number, size) = rest.split_once('=').unwrap_or((rest, "10"));
        let number: u64 = number.parse().unwrap_or(0);
        let size: usize = size.parse().unwrap();
        let places = u32::try_from(number).unwrap();
        let message = match what {
            "h" => hello(places),
            "p" => say(Said::Places(places)),
            "u" => says(number, size),
            "e" => ends(number, Code::Ok),
            "?" => pb::AttachRequest::default(),
            "g" => {
                let given = session.give(given());
                out.push(given.map_or_else(|_| "full".into(), |number| format!("given {number}")));
                continue;
            }
            "n" => {
                out.push(told(session.next(Instant::now())));
                continue;
            }
            sidecar => {
                match sidecar {
                    "x" => session.cancel(number, "enough".into()),
                    "c" => session.cut(number),
                    "t" => session.taken(number, size as u64),
                    other => panic!("{other}"),
                }
                continue;
            }
        };
        match session.hear(message) {
            Ok(Heard::Hello(_)) => session.welcome("i"),
            Ok(Heard::Places) => {}
            Ok(Heard::Late) => out.push("late".into()),
            Ok(Heard::Update(number, _)) => out.push(format!("update {number}")),
            Ok(Heard::End(number, _)) => out.push(format!("end {number}")),
            Err(broken) => {
                out.push(format!("!{broken}"));
                break;
            }
        }
    }
    out.join(", ")
}

#[test]
fn an_attached_agent_gets_what_it_has_places_for_and_says_what_becomes_of_it() {
    for (script, came) in [
        ("h1 n n", "attached, -"),
        (
            "h1 n g n u1 u1 e1 n",
            "attached, given 1, work 1, update 1, update 1, end 1, -",
        ),
        // Places: an end frees one, and nothing else does.
        ("h1 g g", "given 1, full"),
        ("h2 g g g", "given 1, given 2, full"),
        ("h1 n g n e1 g", "attached, given 1, work 1, end 1, given 2"),
        ("h1 n g n c1 n g", "attached, given 1, work 1, cut 1, full"),
        ("h1 n g n c1 e1 g", "attached, given 1, work 1, given 2"),
        ("h2 p0 g", "full"),
        ("h1 p2 g g g", "given 1, given 2, full"),
        ("h2 g g p1 g", "given 1, given 2, full"),
        // Work comes first, then what became of it.
        ("h1 n g x1 n n n", "attached, given 1, work 1, cancel 1, -"),
        (
            "h1 n g n x1 n u1 e1",
            "attached, given 1, work 1, cancel 1, update 1, end 1",
        ),
        ("h1 n g n x1 c1 n n", "attached, given 1, work 1, cut 1, -"),
        // What was cut before it was written never was.
        ("h1 n g c1 n g n", "attached, given 1, -, given 2, work 2"),
        // What crosses a cut is nobody's fault, and counts for nothing.
        (
            "h1 n g n c1 u1 u1=300000 e1 n",
            "attached, given 1, work 1, late, late, -",
        ),
        (
            "h1 n g n e1 x1 c1 t1=99999 n",
            "attached, given 1, work 1, end 1, -",
        ),
    ] {
        assert_eq!(played(script), came, "{script}");
    }
}

#[test]
fn an_attached_agent_that_breaks_a_rule_is_told_which() {
    for (script, rule) in [
        ("?", "without content"),
        ("p1", "first message is hello"),
        ("u1", "first message is hello"),
        ("e1", "first message is hello"),
        ("h0", "from 1 to 1024"),
        ("h1025", "from 1 to 1024"),
        ("h1 h1", "first message only"),
        ("h1 p1025", "from 0 to 1024"),
        // Of what was never given, not written yet, or over.
        ("h1 u1", "an update of work 1"),
        ("h1 u0", "an update of work 0"),
        ("h1 e7", "an end of work 7"),
        ("h1 n g u1", "an update of work 1"),
        ("h1 n g e1", "an end of work 1"),
        ("h1 n g n e1 u1", "an update of work 1"),
        ("h1 n g n e1 e1", "an end of work 1"),
        ("h1 n g n c1 e1 e1", "an end of work 1"),
        // Beyond the credit, once that is used up by a single one too.
        ("h1 n g n u1=300000 u1", "without credit"),
        ("h1 n g n c1 u1=300000 u1", "without credit"),
    ] {
        let came = played(script);
        let broken = came.rsplit_once('!').map(|(_, broken)| broken);
        assert!(
            broken.is_some_and(|broken| broken.contains(rule)),
            "{script}: {came}"
        );
    }
}

#[test]
fn credit_comes_back_in_pieces_as_updates_are_taken() {
    let quarter = CREDIT / 4;
    for (script, came) in [
        (format!("h1 n g n t1={} n", quarter - 1), "-".to_owned()),
        (
            format!("h1 n g n t1={quarter} n n"),
            format!("credit 1 {quarter}, -"),
        ),
        (
            format!("h1 n g n t1={} t1=9 n n", quarter - 1),
            format!("credit 1 {}, -", quarter + 8),
        ),
        // Nothing for what was cut.
        (
            format!("h1 n g n t1={quarter} c1 n n"),
            "cut 1, -".to_owned(),
        ),
    ] {
        let all = played(&script);
        let rest = all.strip_prefix("attached, given 1, work 1, ").unwrap();
        assert_eq!(rest, came, "{script}");
    }
    // The least that an update costs bounds how many are on their way.
    let mut session = Session::default();
    session.hear(hello(1)).unwrap();
    session.give(given()).unwrap();
    session.next(Instant::now());
    let sent = (0..10_000)
        .take_while(|_| session.hear(says(1, 1)).is_ok())
        .count();
    assert_eq!(sent as u64, CREDIT / COST_LEAST);
}

/// An agent that counts as it should is never told off and never stuck, whatever the order in
/// which its updates are taken and its credit is written; and what is on its way is bounded.
#[test]
fn who_counts_its_credit_is_never_told_off_and_never_stuck() {
    let sizes = proptest::collection::vec(1_usize..200_000, 1..60);
    let turns = proptest::collection::vec(0_u8..3, 1..400);
    proptest!(|(sizes in sizes, turns in turns)| {
        let mut session = Session::default();
        session.hear(hello(1)).unwrap();
        let work = session.give(given()).unwrap();
        session.next(Instant::now());
        let mut unsent = sizes.into_iter();
        let (mut credit, mut on_way) = (CREDIT.cast_signed(), std::collections::VecDeque::new());
        let mut sends = |session: &mut Session, credit: &mut i64, on_way: &mut std::collections::VecDeque<u64>| {
            if *credit <= 0 { return true }
            let Some(size) = unsent.next() else { return false };
            let message = says(work, size);
            let price = cost(&update(size));
            *credit -= price.cast_signed();
            on_way.push_back(price);
            session.hear(message).unwrap();
            true
        };
        let hears = |session: &mut Session, credit: &mut i64| {
            while let Some(response) = session.next(Instant::now()) {
                if let Some(Say::Credit(more)) = response.say { *credit += more.bytes.cast_signed(); }
            }
        };
        for turn in turns {
            match turn {
                0 => { sends(&mut session, &mut credit, &mut on_way); }
                1 => if let Some(price) = on_way.pop_front() { session.taken(work, price); },
                _ => hears(&mut session, &mut credit),
            }
            prop_assert!(on_way.iter().sum::<u64>() < CREDIT + 201_000);
        }
        // Once everything is taken, it always may go on.
        for _ in 0..200 {
            for price in on_way.drain(..) { session.taken(work, price); }
            hears(&mut session, &mut credit);
            prop_assert!(credit > 0);
            if !sends(&mut session, &mut credit, &mut on_way) { return Ok(()) }
        }
        prop_assert!(false, "stuck");
    });
}

/// An agent's end of a stream.
struct Agent {
    says: mpsc::Sender<Result<pb::AttachRequest, Status>>,
    hears: std::pin::Pin<
        Box<dyn tokio_stream::Stream<Item = Result<pb::AttachResponse, Status>> + Send>,
    >,
}

fn desk() -> Desk {
    Desk::new("i1".parse().unwrap(), vec![Nursery::here()])
}

async fn attach(desk: &Desk, places: u32) -> Agent {
    let mut agent = silent(desk, Stop::new());
    agent.say(hello(places)).await;
    assert_eq!(agent.hear().await, "attached");
    agent
}

fn silent(desk: &Desk, leaves: Stop) -> Agent {
    let (says, asked) = mpsc::channel(8);
    let hears = Box::pin(desk.serve(ReceiverStream::new(asked), leaves).unwrap());
    Agent { says, hears }
}

impl Agent {
    async fn say(&self, message: pb::AttachRequest) {
        self.says.send(Ok(message)).await.unwrap();
    }

    async fn hear(&mut self) -> String {
        match timeout(Duration::from_secs(30), self.hears.next()).await {
            Err(_) => "nothing".into(),
            Ok(None) => "end".into(),
            Ok(Some(Ok(response))) => told(Some(response)),
            Ok(Some(Err(status))) => reason_of(&status).unwrap_or_default(),
        }
    }
}

async fn give(desk: &Desk, task: &str) -> Result<HandleStream, HandlerError> {
    let minute = Duration::from_secs(60);
    desk.handle(request(task, 1), minute, None).await
}

/// The next word of an attempt.
async fn word(stream: &mut HandleStream) -> String {
    match timeout(Duration::from_secs(30), stream.next()).await {
        Err(_) => "nothing".into(),
        Ok(None) => "end".into(),
        Ok(Some(Ok(_))) => "update".into(),
        Ok(Some(Err(HandlerError::Lost(_)))) => "lost".into(),
        Ok(Some(Err(HandlerError::Unreachable(_)))) => "unreachable".into(),
        Ok(Some(Err(HandlerError::Status(status)))) => {
            let marked = status.metadata().get("attache-not-processed").is_some();
            format!(
                "{:?}{}",
                status.code(),
                if marked { " not begun" } else { "" }
            )
        }
    }
}

fn refusal(given: Result<HandleStream, HandlerError>) -> String {
    match given {
        Ok(_) => "given".into(),
        Err(HandlerError::Unreachable(_)) => "unreachable".into(),
        Err(HandlerError::Lost(_)) => "lost".into(),
        Err(HandlerError::Status(status)) => format!("{:?}", status.code()),
    }
}

#[tokio::test(start_paused = true)]
async fn attempts_end_as_an_attached_agent_says_and_are_lost_with_its_stream() {
    let desk = desk();
    assert_eq!(refusal(give(&desk, "t").await), "unreachable");
    let mut agent = attach(&desk, 2).await;
    let mut first = give(&desk, "a").await.unwrap();
    assert_eq!(agent.hear().await, "work 1");
    agent.say(says(1, 10)).await;
    assert_eq!(word(&mut first).await, "update");
    agent.say(ends(1, Code::Ok)).await;
    assert_eq!(word(&mut first).await, "end");

    let mut second = give(&desk, "b").await.unwrap();
    assert_eq!(agent.hear().await, "work 2");
    agent.say(ends(2, Code::DataLoss)).await;
    assert_eq!(word(&mut second).await, "DataLoss");

    let mut third = give(&desk, "c").await.unwrap();
    assert_eq!(agent.hear().await, "work 3");
    let not_begun = pb::AttachEnd {
        work: 3,
        code: Code::Unavailable.into(),
        not_processed: true,
        ..pb::AttachEnd::default()
    };
    agent.say(say(Said::End(not_begun))).await;
    assert_eq!(word(&mut third).await, "Unavailable not begun");

    // One that it has, and one that was never written to it, since nobody reads.
    let mut written = give(&desk, "d").await.unwrap();
    assert_eq!(agent.hear().await, "work 4");
    let waits = give(&desk, "e").await.unwrap();
    let mut unwritten = waits;
    // The stream holds one message for a reader that does not come; the next stays with its attempt.
    agent.say(say(Said::Places(3))).await;
    tokio::task::yield_now().await;
    let mut last = give_when_free(&desk, "f").await;
    assert_eq!(refusal(give(&desk, "g").await), "ResourceExhausted");
    drop(agent);
    assert_eq!(word(&mut written).await, "lost");
    assert_eq!(word(&mut unwritten).await, "lost");
    assert_eq!(word(&mut last).await, "unreachable");
    assert_eq!(refusal(give(&desk, "h").await), "unreachable");
    assert_eq!(desk.attendance().borrow().streams, 0);
}

/// Gives as soon as the desk has heard of the place.
async fn give_when_free(desk: &Desk, task: &str) -> HandleStream {
    let mut attendance = desk.attendance();
    attendance.wait_for(|now| now.places == 3).await.unwrap();
    give(desk, task).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_attached_agent_is_asked_to_stop_and_then_cut() {
    let desk = desk();
    let mut agent = attach(&desk, 1).await;
    let stream = give(&desk, "a").await.unwrap();
    assert_eq!(agent.hear().await, "work 1");
    let asks = pb::CancelRequest {
        task_id: "a".into(),
        attempt: 1,
        reason: "enough".into(),
    };
    desk.cancel(asks).await.unwrap();
    assert_eq!(agent.hear().await, "cancel 1");
    drop(stream);
    assert_eq!(agent.hear().await, "cut 1");
    let held = |count| {
        let mut attendance = desk.attendance();
        async move { attendance.wait_for(|now| now.held == count).await.map(drop) }
    };
    // Until its end is said its place is taken, and the executor knows of one less.
    held(1).await.unwrap();
    assert_eq!(refusal(give(&desk, "b").await), "ResourceExhausted");
    agent.say(says(1, 10)).await;
    agent.say(ends(1, Code::Ok)).await;
    held(0).await.unwrap();
    let _next = give(&desk, "b").await.unwrap();
    assert_eq!(agent.hear().await, "work 2");
}

#[tokio::test(start_paused = true)]
async fn streams_share_the_work_by_their_free_places() {
    let desk = desk();
    let mut wide = attach(&desk, 3).await;
    let mut narrow = attach(&desk, 1).await;
    let mut kept = Vec::new();
    // The widest first; by turns among equals.
    for (task, to_wide) in [("a", true), ("b", true), ("c", false), ("d", true)] {
        kept.push(give(&desk, task).await.unwrap());
        let agent = if to_wide { &mut wide } else { &mut narrow };
        assert!(agent.hear().await.starts_with("work "), "{task}");
    }
    assert_eq!(refusal(give(&desk, "e").await), "ResourceExhausted");
    // What one of them loses, the other has not.
    drop(narrow);
    assert_eq!(word(&mut kept[2]).await, "lost");
    wide.say(ends(1, Code::Ok)).await;
    assert_eq!(word(&mut kept[0]).await, "end");
}

#[tokio::test(start_paused = true)]
async fn a_broken_rule_closes_the_stream_with_its_reason_and_loses_its_attempts() {
    let desk = desk();
    let mut agent = attach(&desk, 1).await;
    let mut stream = give(&desk, "a").await.unwrap();
    assert_eq!(agent.hear().await, "work 1");
    agent.say(ends(7, Code::Ok)).await;
    assert_eq!(agent.hear().await, "PROTOCOL_VIOLATION");
    assert_eq!(agent.hear().await, "end");
    assert_eq!(word(&mut stream).await, "lost");

    let mut mute = silent(&desk, Stop::new());
    assert_eq!(mute.hear().await, "PROTOCOL_VIOLATION");

    let leaves = Stop::new();
    let mut agent = silent(&desk, leaves.clone());
    agent.say(hello(1)).await;
    assert_eq!(agent.hear().await, "attached");
    leaves.cancel();
    assert_eq!(agent.hear().await, "DRAINING");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_takes_no_more_is_let_go_when_nothing_is_left() {
    let desk = desk();
    let mut agent = attach(&desk, 2).await;
    let (mut ended, mut crossed) = (
        give(&desk, "a").await.unwrap(),
        give(&desk, "b").await.unwrap(),
    );
    agent.say(say(Said::Places(0))).await;
    // Both were written before that was heard.
    assert_eq!(agent.hear().await, "work 1");
    assert_eq!(agent.hear().await, "work 2");
    let mut attendance = desk.attendance();
    attendance.wait_for(|now| now.places == 0).await.unwrap();
    assert_eq!(refusal(give(&desk, "c").await), "unreachable");
    let not_begun = pb::AttachEnd {
        work: 2,
        code: Code::Unavailable.into(),
        not_processed: true,
        ..pb::AttachEnd::default()
    };
    agent.say(say(Said::End(not_begun))).await;
    assert_eq!(word(&mut crossed).await, "Unavailable not begun");
    assert_eq!(agent.hear().await, "nothing");
    agent.say(says(1, 10)).await;
    agent.say(ends(1, Code::Ok)).await;
    assert_eq!(agent.hear().await, "end");
    assert_eq!(word(&mut ended).await, "update");
    assert_eq!(word(&mut ended).await, "end");

    // One with nothing under way goes at once.
    let mut idle = attach(&desk, 1).await;
    idle.say(say(Said::Places(0))).await;
    assert_eq!(idle.hear().await, "end");
}

#[tokio::test(start_paused = true)]
async fn a_card_goes_with_the_stream_that_gave_it() {
    let desk = desk();
    let mut agent = silent(&desk, Stop::new());
    let card = Some(pb::AgentCard::default());
    let hello = pb::AttachHello { places: 1, card };
    agent.say(say(Said::Hello(hello))).await;
    assert_eq!(agent.hear().await, "attached");
    assert!(desk.describe().await.unwrap().is_some());
    let mut attendance = desk.attendance();
    let before = attendance.borrow_and_update().cards;
    drop(agent);
    attendance.wait_for(|now| now.cards > before).await.unwrap();
    assert!(desk.describe().await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn no_more_streams_than_there_are_seats() {
    let desk = desk();
    let mut all = Vec::new();
    for _ in 0..STREAMS_MAX {
        all.push(attach(&desk, 1).await);
    }
    let (_says, asked) = mpsc::channel(1);
    let more = desk.serve(ReceiverStream::new(asked), Stop::new());
    let refused = more.err().map(|fault| fault.reason.label());
    assert_eq!(refused, Some("SLOTS_FULL"));
    all.pop();
    let mut attendance = desk.attendance();
    attendance
        .wait_for(|now| now.streams == STREAMS_MAX - 1)
        .await
        .unwrap();
    attach(&desk, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_stops_stops_an_attached_agent() {
    let desk = desk();
    let mut agent = attach(&desk, 1).await;
    let mut stream = give(&desk, "a").await.unwrap();
    assert_eq!(agent.hear().await, "work 1");
    let sent = CREDIT / COST_LEAST;
    for _ in 0..sent {
        agent.say(says(1, 1)).await;
    }
    // Nothing comes back for what nobody takes: an agent that counts waits here.
    assert_eq!(agent.hear().await, "nothing");
    for _ in 0..sent / 4 {
        assert_eq!(word(&mut stream).await, "update");
    }
    assert_eq!(agent.hear().await, format!("credit 1 {}", CREDIT / 4));
    // One that does not is put out, and what it sent first is not lost by that.
    for _ in 0..=sent / 4 {
        agent.say(says(1, 1)).await;
    }
    assert_eq!(agent.hear().await, "PROTOCOL_VIOLATION");
    for _ in 0..sent {
        assert_eq!(word(&mut stream).await, "update");
    }
    assert_eq!(word(&mut stream).await, "lost");
}
