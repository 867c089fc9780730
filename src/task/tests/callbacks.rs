//! Callbacks of a home in process: the courier carries what the home has to tell.

use std::collections::VecDeque;

use super::*;
use crate::domain::Reason;
use crate::pb::callback::Target as Asked;
use crate::runtime::clock::{self, set};
use crate::task::callback::{Delivery, Outcome, RETENTION, Url, letter};
use crate::task::courier::{Courier, Post};
use crate::task::descendants::DESCENDANTS_MAX;
use crate::task::doors::Parent;
use crate::task::home::{Below, ListQuery};

/// One try to tell a URL.
#[derive(Clone, Debug)]
struct Try {
    at: Instant,
    text: String,
    key: String,
}

/// A receiver that answers as it is told, and after that says that it is away.
#[derive(Clone, Debug, Default)]
struct Script {
    answers: Arc<Mutex<VecDeque<Outcome>>>,
    tries: Arc<Mutex<Vec<Try>>>,
}

#[tonic::async_trait]
impl Post for Script {
    async fn post(&self, url: &Url, delivery: &Delivery) -> Outcome {
        if url.host().starts_with("dead") {
            std::future::pending::<()>().await;
        }
        let letter = letter(&delivery.event);
        self.tries.lock().push(Try {
            at: Instant::now(),
            text: letter.text,
            key: letter.key,
        });
        self.answers.lock().pop_front().unwrap_or_else(away)
    }
}

fn away() -> Outcome {
    Outcome::Later {
        why: "away".into(),
        wait: None,
    }
}

fn told_by(target: Asked, states: &[pb::TaskState]) -> pb::TaskOptions {
    pb::TaskOptions {
        callback: Some(pb::Callback {
            target: Some(target),
            states: states.iter().map(|state| (*state).into()).collect(),
        }),
        ..Default::default()
    }
}

fn url() -> Asked {
    Asked::Url("https://hooks.example/secret".into())
}

/// `work.die` does what it is asked, once something else was handled before. It is not what is told
/// of: nobody gets work for what they do further up.
fn agent(skill: &str) -> Asked {
    Asked::Agent(pb::AgentSkill {
        agent: "worker".into(),
        skill: skill.into(),
    })
}

impl Bench {
    fn called_back(&self, script: &Script) -> Nursery {
        set::to(Some(clock::wall()));
        let nursery = Nursery::here();
        let courier = Courier::new(self.home.clone(), Arc::new(script.clone()));
        let carries = nursery.clone();
        nursery.start("courier", |stop| courier.run(carries, stop));
        nursery
    }

    async fn submitted(&self, options: pb::TaskOptions) -> TaskId {
        let mut asked = self.asked("work.do", "");
        asked.spec.options = Some(options);
        let taken = Box::pin(self.home.submit(asked, 0)).await.unwrap();
        taken.task.id.parse().unwrap()
    }

    /// Waits on the paused clock until the task's callback is as wanted.
    async fn until(
        &self,
        id: &TaskId,
        wanted: impl Fn(&pb::Task, &pb::CallbackProgress) -> bool,
    ) -> pb::Task {
        for _ in 0..100_000 {
            let (task, _) = self
                .home
                .get(id, &Arc::new(self.own.clone()), true)
                .await
                .unwrap();
            if wanted(&task, task.callback.as_ref().unwrap()) {
                return task;
            }
            sleep(Duration::from_secs(1)).await;
        }
        panic!("the callback of {id} does not come to it");
    }

    async fn all(&self) -> Vec<pb::Task> {
        let query = ListQuery {
            viewer: Arc::new(self.own.clone()),
            filter: pb::ListTasksRequest::default(),
            before: None,
            limit: 100,
        };
        self.home.list(query).await.unwrap().tasks
    }
}

fn is_told(task: &pb::Task, progress: &pb::CallbackProgress) -> bool {
    task.state() == pb::TaskState::Completed && progress.delivered_seq == task.last_seq
}

#[tokio::test(start_paused = true)]
async fn an_agent_is_told_by_a_task_below_the_one_that_it_is_told_of() {
    let bench = Bench::new(4);
    let courier = bench.called_back(&Script::default());
    let id = bench.submitted(told_by(agent("work.die"), &[])).await;
    let task = bench.until(&id, is_told).await;
    let options = task.options.unwrap();
    assert_eq!(
        options.callback.unwrap().target,
        Some(Asked::Agent(pb::AgentSkill {
            agent: "default/worker".into(),
            skill: "work.die".into(),
        }))
    );

    let all = bench.all().await;
    assert_eq!(all.len(), 2, "one task tells, and nobody is told of that");
    let tells = all.iter().find(|one| one.id != task.id).unwrap();
    assert_eq!(
        (
            &tells.parent_task_id,
            &tells.root_task_id,
            &tells.correlation_id
        ),
        (&task.id, &task.id, &task.correlation_id)
    );
    assert_eq!(tells.caller, bench.own.to_string());
    let options = tells.options.as_ref().unwrap();
    assert!(options.detached && options.callback.is_none() && tells.callback.is_none());
    let tells = tells.id.parse().unwrap();
    let (whole, _) = bench
        .home
        .get(&tells, &Arc::new(bench.own.clone()), true)
        .await
        .unwrap();
    let Some(pb::part::Content::Data(said)) = &whole.messages[0].parts[0].content else {
        panic!("{whole:?}");
    };
    let said = crate::wire::json::from_value(said);
    assert_eq!(
        (&said["task_id"], &said["seq"]),
        (&task.id.into(), &task.last_seq.into())
    );
    assert_eq!(said["event"]["state"], "TASK_STATE_COMPLETED");
    courier.close(Duration::ZERO).await;
    set::to(None);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_works_on_it_for_long_gets_one_task_and_no_other_waits_for_it() {
    let bench = Bench::new(4);
    let courier = bench.called_back(&Script::default());
    let id = bench.submitted(told_by(agent("work.wait"), &[])).await;
    let given = |_: &pb::Task, told: &pb::CallbackProgress| told.trouble.contains("not ended yet");
    let task = bench.until(&id, given).await;
    // Looked after again and again, and still the same.
    sleep(Duration::from_secs(4000)).await;
    let progress = bench.until(&id, given).await.callback.unwrap();
    assert_eq!((progress.waiting, progress.delivered_seq), (1, 0));
    assert_eq!(progress.tries, 0, "{progress:?}");
    let all = bench.all().await;
    assert_eq!(all.len(), 2, "however often it is looked after");
    let tells = all.iter().find(|one| one.id != task.id).unwrap();
    assert!(progress.trouble.ends_with(&tells.id), "{progress:?}");
    let tells: TaskId = tells.id.parse().unwrap();
    let viewer = Arc::new(bench.own.clone());
    bench
        .home
        .cancel(&tells, &viewer, "enough".into())
        .await
        .unwrap();
    let task = bench.until(&id, |_, told| told.given_up_seq > 0).await;
    let progress = task.callback.unwrap();
    assert!(progress.given_up.contains("CANCELED"), "{progress:?}");
    courier.close(Duration::ZERO).await;
    set::to(None);
}

#[tokio::test(start_paused = true)]
async fn agents_that_call_each_other_back_come_to_an_end() {
    let bench = Bench::new(4);
    let courier = bench.called_back(&Script::default());
    let link = |number: usize| pb::ChainLink {
        task_id: format!("home.{number}"),
        ..Default::default()
    };
    for (above, told) in [(7, true), (8, false)] {
        // A task so far down asks to be called back, as a handler does with its token.
        let parent = Parent {
            task: pb::Task {
                id: format!("home.{}", above - 1),
                origin: bench.own.to_string(),
                ..Default::default()
            },
            attempt: 0,
            deadline: Instant::now() + Duration::from_secs(60),
            chain: (0..above).map(link).collect(),
            trace: None,
        };
        let mut asked = bench.asked("work.do", "");
        asked.spec.options = Some(pb::TaskOptions {
            detached: true,
            ..told_by(agent("work.die"), &[])
        });
        let below = Below {
            parent: Box::new(parent),
            tells: None,
        };
        let taken = Box::pin(bench.home.submit_below(asked, below, 0)).await;
        if !told {
            let refused = taken.unwrap_err();
            assert_eq!(refused.field.as_deref(), Some("spec.options.callback"));
            assert!(refused.text.contains("8 hops deep"), "{refused}");
            continue;
        }
        let id = taken.unwrap().task.id.parse().unwrap();
        let settled =
            |_: &pb::Task, told: &pb::CallbackProgress| told.delivered_seq + told.given_up_seq > 0;
        let progress = bench.until(&id, settled).await.callback.unwrap();
        assert_eq!(progress.given_up_seq, 0, "{above}: {progress:?}");
    }
    courier.close(Duration::ZERO).await;
    set::to(None);
}

#[tokio::test(start_paused = true)]
async fn whoever_is_told_makes_no_more_than_the_tree_may_have() {
    let bench = Bench::new(1100);
    let courier = bench.called_back(&Script::default());
    let id = bench.submitted(told_by(agent("bomb.1"), &[])).await;
    let mut tokens = bench.tokens.clone();
    // The task's own handler, and that of the one that tells of it.
    let token = tokens.wait_for(|tokens| tokens.len() > 1).await.unwrap()[1].clone();
    let mut made = 0;
    let refused = loop {
        match bench.home.submit(bench.asked("bomb.2", &token), 0).await {
            Ok(taken) => {
                assert_eq!(taken.task.root_task_id, id.to_string());
                made += 1;
            }
            Err(fault) => break fault,
        }
    };
    assert_eq!(refused.reason, Reason::DescendantsExhausted);
    // Its own handler had some beforehand, and has ended without.
    assert_eq!(made, DESCENDANTS_MAX);
    courier.close(Duration::ZERO).await;
    set::to(None);
}

#[tokio::test(start_paused = true)]
async fn changes_are_told_in_order_and_in_the_same_words_until_they_are_taken() {
    let bench = Bench::new(4);
    let script = Script::default();
    script.answers.lock().extend([
        away(),
        Outcome::Later {
            why: "busy".into(),
            wait: Some(Duration::from_secs(90)),
        },
        away(),
        Outcome::Delivered,
        Outcome::Refused("it answered 404".into()),
    ]);
    let courier = bench.called_back(&script);
    let states = [pb::TaskState::Working, pb::TaskState::Completed];
    let id = bench.submitted(told_by(url(), &states)).await;
    let task = bench.until(&id, |_, told| told.given_up_seq > 0).await;
    let progress = task.callback.as_ref().unwrap();
    assert_eq!(
        (progress.delivered_seq, progress.given_up_seq),
        (1, task.last_seq)
    );
    assert_eq!(
        (progress.waiting, progress.given_up.as_str()),
        (0, "it answered 404")
    );
    let tries = script.tries.lock().clone();
    assert_eq!(tries.len(), 5);
    for one in &tries[..4] {
        assert_eq!((&one.text, &one.key), (&tries[0].text, &format!("{id}/1")));
    }
    assert_eq!(tries[4].key, format!("{id}/{}", task.last_seq));
    let gaps: Vec<_> = tries.windows(2).map(|two| two[1].at - two[0].at).collect();
    assert!(gaps[0] >= Duration::from_millis(500) && gaps[0] < Duration::from_secs(2));
    assert!(gaps[1] >= Duration::from_secs(90) && gaps[1] < Duration::from_secs(92));
    let shown = format!("{task:?}");
    assert!(!shown.contains("secret"), "{shown}");
    courier.close(Duration::ZERO).await;
    set::to(None);
}

#[tokio::test(start_paused = true)]
async fn receivers_that_hang_are_cut_and_keep_nobody_else_waiting() {
    let bench = Bench::new(4);
    let script = Script::default();
    let courier = bench.called_back(&script);
    let told = async || {
        let began = Instant::now();
        script.answers.lock().push_back(Outcome::Delivered);
        let id = bench.submitted(told_by(url(), &[])).await;
        bench.until(&id, is_told).await;
        began.elapsed()
    };
    told().await;
    let mut dead = Vec::new();
    for number in 0..800 {
        let url = Asked::Url(format!("https://dead{}.example/x", number % 100));
        dead.push(bench.submitted(told_by(url, &[])).await);
    }
    sleep(Duration::from_secs(1)).await;
    for _ in 0..5 {
        let took = told().await;
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
    let progress = bench.until(&dead[0], |_, told| told.tries > 2).await;
    let trouble = progress.callback.unwrap().trouble;
    assert_eq!(trouble, "no answer within 10 s");
    courier.close(Duration::ZERO).await;
    set::to(None);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_fails_for_now_gets_another_task_and_that_is_told_once() {
    let bench = Bench::new(4);
    let courier = bench.called_back(&Script::default());
    let id = bench.submitted(told_by(agent("work.moody"), &[])).await;
    let task = bench.until(&id, is_told).await;
    let progress = task.callback.unwrap();
    assert_eq!((progress.given_up_seq, progress.tries), (0, 0));
    let mut states: Vec<_> = bench.all().await.iter().map(pb::Task::state).collect();
    states.sort_unstable();
    let expected = [
        pb::TaskState::Completed,
        pb::TaskState::Completed,
        pb::TaskState::Failed,
    ];
    assert_eq!(states, expected);
    courier.close(Duration::ZERO).await;
    set::to(None);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_takes_for_a_day_is_given_up() {
    let bench = Bench::new(4);
    let script = Script::default();
    let courier = bench.called_back(&script);
    let began = Instant::now();
    let id = bench.submitted(told_by(url(), &[])).await;
    let task = bench.until(&id, |_, told| told.given_up_seq > 0).await;
    let progress = task.callback.unwrap();
    assert_eq!(
        (progress.given_up_seq, progress.waiting),
        (task.last_seq, 0)
    );
    assert!(progress.given_up.contains("24 h"), "{progress:?}");
    let took = began.elapsed();
    assert!(
        took >= RETENTION && took < RETENTION + Duration::from_secs(5),
        "{took:?}"
    );
    let tries = script.tries.lock().clone();
    // One every five minutes or so, after the first few.
    assert!((200..=600).contains(&tries.len()), "{}", tries.len());
    assert!(tries.last().unwrap().at - began < RETENTION);
    sleep(RETENTION / 2).await;
    assert_eq!(script.tries.lock().len(), tries.len(), "and never again");
    courier.close(Duration::ZERO).await;
    set::to(None);
}

#[tokio::test(start_paused = true)]
async fn a_task_in_memory_only_has_no_callback() {
    let bench = Bench::new(4);
    let mut asked = bench.asked("work.do", "");
    asked.spec.options = Some(pb::TaskOptions {
        durability: pb::Durability::Ephemeral.into(),
        ..told_by(url(), &[])
    });
    let refused = Box::pin(bench.home.submit(asked, 0)).await.unwrap_err();
    assert_eq!(refused.field.as_deref(), Some("spec.options.callback"));
    assert!(refused.text.contains("EPHEMERAL"), "{refused}");
}
