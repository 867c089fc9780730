//! Who gets a task: of those who fit, one that may be called, by what the balancer knows of them.

use std::{sync::Arc, time::Duration};

use rand::Rng;
use tokio::{sync::watch, time::Instant};

use super::{
    balancer::{Balancer, Choice, Reach, named},
    promises::Promises,
};
use crate::{
    contract::Contract,
    domain::Label,
    pb,
    resilience::{self, Ask, BalanceSettings, Set},
    runtime::{Nursery, Stop},
    task::{Call, Pick, Promise, Route, Want},
};

/// When a second try that has no budget asks again: the floor of the budget lets three go in a second.
const BUDGET_AGAIN: Duration = Duration::from_millis(333);
/// When to look again at instances whose bound of calls is reached. A call that ends rings if
/// somebody found no room before, and others may be quicker to take it: whoever waits looks by himself
/// too.
const ROOM_AGAIN: Duration = Duration::from_millis(20);

/// Routes by the mirror of the catalog.
#[derive(Debug)]
pub(super) struct CatalogRoute {
    balancer: Arc<Balancer>,
    promises: Arc<Promises>,
    changed: watch::Sender<u64>,
}

impl CatalogRoute {
    /// Routes by a balancer, which it keeps in line with the catalog until `nursery` closes.
    pub(super) fn start(
        balancer: Arc<Balancer>,
        promises: Arc<Promises>,
        nursery: &Nursery,
    ) -> Self {
        let changed = watch::Sender::new(0);
        let (kept, tell) = (balancer.clone(), changed.clone());
        nursery.start("balancer", |stop| keep(kept, tell, stop));
        Self {
            balancer,
            promises,
            changed,
        }
    }
}

impl Route for CatalogRoute {
    fn pick(&self, want: &Want<'_>, now: Instant) -> Pick {
        let reach = self.balancer.reach(want.namespace, want.selector, now);
        let pick = reach.map_or(Pick::Nobody, |reach| {
            Asked { reach, want, now }.pick(&mut rand::rng())
        });
        self.balancer.picks().count(&pick);
        pick
    }

    fn promises(&self, namespace: &Label, selector: &pb::Selector) -> Vec<Promise> {
        self.promises.of(namespace, selector)
    }

    fn wants_descendants(&self, namespace: &Label, selector: &pb::Selector) -> bool {
        let reach = self.balancer.reach(namespace, selector, Instant::now());
        let wants = |choice: &Arc<Choice>| choice.candidate.wants_descendants;
        reach.is_none_or(|reach| reach.set.members().iter().all(|one| wants(&one.value)))
    }

    fn promised(&self, promise: &Promise) -> Option<Arc<Contract>> {
        self.promises.at_hand(promise)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

/// Follows the catalog, and tells of every change of it and of every breaker.
async fn keep(balancer: Arc<Balancer>, tell: watch::Sender<u64>, stop: Stop) {
    let mut catalog = balancer.mirror().changes();
    let mut complete = balancer.mirror().fresh();
    let mut breakers = balancer.endpoints().changes();
    loop {
        balancer.follow(Instant::now());
        tell.send_modify(|number| *number += 1);
        let changed = tokio::select! {
            () = stop.cancelled() => return,
            changed = catalog.changed() => changed,
            changed = complete.changed() => changed,
            changed = breakers.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// One question, and whom it may be answered with.
struct Asked<'a> {
    reach: Reach,
    want: &'a Want<'a>,
    now: Instant,
}

impl Asked<'_> {
    fn pick(&self, random: &mut impl Rng) -> Pick {
        let (want, now) = (self.want, self.now);
        let fits = |choice: &Arc<Choice>| self.fits(choice);
        let fresh = |choice: &Arc<Choice>| fits(choice) && !self.is_excluded(choice);
        let members = || self.set().members().iter().map(|member| &member.value);
        if !members().any(fits) {
            return Pick::Nobody;
        }
        if want.again && self.left() < 1.0 {
            return Pick::OverBudget(now + BUDGET_AGAIN);
        }
        if let Some(before) = want.prefer {
            let same = |choice: &Arc<Choice>| fresh(choice) && choice.candidate.instance == *before;
            let picked = self.pick_of(&same, random);
            if matches!(picked, Pick::Go(..)) {
                return picked;
            }
        }
        if want.exclude.is_empty() {
            return self.pick_of(&fits, random);
        }
        if members().any(fresh) {
            let picked = self.pick_of(&fresh, random);
            if matches!(picked, Pick::Go(..)) || self.set().flows(&fresh, now) {
                return picked;
            }
        }
        // Where it failed is the last choice, but better than none: an agent that is alone comes back.
        self.pick_of(&fits, random)
    }

    /// One of those, if they have room.
    fn pick_of(&self, among: &dyn Fn(&Arc<Choice>) -> bool, random: &mut impl Rng) -> Pick {
        let (want, now) = (self.want, self.now);
        let checked = &self.set().settings().balance;
        let allows = |to: &Arc<Choice>| {
            among(to) && to.has_room(checked) && (want.allows)(&to.candidate.instance)
        };
        let ask = Ask {
            sticky: (!want.context.is_empty()).then(|| named(want.context)),
            allows: &allows,
        };
        match self.set().pick(&ask, now, random) {
            resilience::Pick::Taken(to, permit) => {
                let mut call = Box::new(Call {
                    permit,
                    injected: to.treatment.inject(want.caller, random),
                    patience: to.treatment.patience,
                });
                let retry = &self.set().settings().retry;
                let mut budget = self.reach.budget.lock();
                if !want.again {
                    budget.first(now);
                } else if !budget.again(retry, now) {
                    return Pick::OverBudget(now + BUDGET_AGAIN);
                }
                drop(budget);
                call.permit.report_to(self.reach.budget.clone());
                call.permit.treat(to.treatment.settings.clone());
                Pick::Go(to.candidate.clone(), call)
            }
            resilience::Pick::Busy if self.set().flows(among, now) => Pick::Busy(self.opens()),
            resilience::Pick::Busy => Pick::Ejected(self.opens()),
            resilience::Pick::Ejected(until) => {
                // A probe may have to wait for more than its breaker: for a pause, or for room.
                Pick::Ejected(until.into_iter().chain(self.opens()).min())
            }
            resilience::Pick::Empty => Pick::Nobody,
        }
    }

    fn set(&self) -> &Set<Arc<Choice>> {
        &self.reach.set
    }

    fn fits(&self, choice: &Choice) -> bool {
        let (contract, candidate) = (self.want.contract, &choice.candidate);
        contract.is_none_or(|contract| candidate.contract.fits(contract))
            && (self.want.admits)(&candidate.agent)
    }

    fn is_excluded(&self, choice: &Choice) -> bool {
        self.want.exclude.contains(&choice.candidate.instance)
    }

    /// Second tries that the budget has left.
    fn left(&self) -> f64 {
        let retry = &self.set().settings().retry;
        self.reach.budget.lock().left(retry, self.now)
    }

    fn opens(&self) -> Option<Instant> {
        let mut members = self.set().members().iter();
        let bounded = members.any(|member| member.value.bound() > 0);
        let room = bounded.then(|| self.now + ROOM_AGAIN);
        self.set().opens(self.now).into_iter().chain(room).min()
    }
}

impl Choice {
    /// Calls that it may have from here at a time; 0: no bound.
    fn bound(&self) -> u32 {
        self.treatment.settings.balance.max_in_flight
    }

    /// Whether its bounds leave room for one more, where they are not `checked` as those of the set.
    fn has_room(&self, checked: &BalanceSettings) -> bool {
        let own = &self.treatment.settings.balance;
        let bounds = |of: &BalanceSettings| (of.max_in_flight, of.max_pending);
        bounds(own) == bounds(checked) || self.endpoint.is_within(own)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::{
        domain::{AgentName, InstanceId, Label},
        pb,
        resilience::{BalanceSettings, Endpoint, Epoch, Member, Outcome, Permit, Settings},
        sidecar::treatment::Treatment,
        task::{Candidate, Contract},
    };

    /// Instances by name, and who among them may get a call.
    struct Bench {
        reach: Reach,
        epoch: Epoch,
        random: StdRng,
        now: Instant,
        closed: HashSet<&'static str>,
    }

    impl Bench {
        /// Of each: its name and the version of its skill.
        fn new(all: &[(&str, &str)]) -> Self {
            let (epoch, now) = (Epoch::default(), Instant::now());
            let member = |(name, version): &(&str, &str)| {
                let endpoint = Arc::new(Endpoint::new(epoch.clone(), None, now));
                let candidate = Candidate {
                    wants_descendants: true,
                    instance: name.parse().unwrap(),
                    agent: name.parse().unwrap(),
                    idempotent: false,
                    boot_id: String::new(),
                    contract: Contract {
                        version: version.parse().ok(),
                        schemas: vec![],
                    },
                };
                Member {
                    endpoint: endpoint.clone(),
                    value: Arc::new(Choice {
                        candidate: Arc::new(candidate),
                        endpoint,
                        treatment: Arc::default(),
                    }),
                    key: named(name),
                    local: false,
                    group: 0,
                }
            };
            let members = all.iter().map(member).collect();
            let set = Set::new(members, &[], Arc::default(), epoch.clone());
            let reach = Reach {
                set: Arc::new(set),
                budget: Arc::default(),
            };
            Self {
                reach,
                epoch,
                random: StdRng::seed_from_u64(3),
                now,
                closed: HashSet::new(),
            }
        }

        fn ask(&mut self, question: &Question) -> Pick {
            let namespace: Label = "default".parse().unwrap();
            let caller = "spiffe://a/ns/default/agent/c".parse().unwrap();
            let selector = pb::Selector::default();
            let allows = |instance: &InstanceId| !self.closed.contains(instance.as_str());
            let want = &Want {
                namespace: &namespace,
                selector: &selector,
                caller: &caller,
                context: question.context,
                prefer: question.prefer.as_ref(),
                exclude: &question.exclude,
                contract: question.contract.as_ref(),
                again: question.again,
                admits: &|agent| Some(agent) != question.barred.as_ref(),
                allows: &allows,
            };
            let (reach, now) = (self.reach.clone(), self.now);
            Asked { reach, want, now }.pick(&mut self.random)
        }

        /// Where a call goes that may not go there while another takes it.
        fn but(&mut self, tried: &[&str]) -> Pick {
            let exclude = tried.iter().map(|name| name.parse().unwrap()).collect();
            self.ask(&Question {
                exclude,
                ..Question::default()
            })
        }

        fn first(&mut self) -> Pick {
            self.ask(&Question::default())
        }

        fn again(&mut self) -> Pick {
            self.ask(&Question {
                again: true,
                ..Question::default()
            })
        }

        fn promised(&mut self, version: &str) -> Pick {
            let contract = Some(Contract {
                version: version.parse().ok(),
                schemas: vec![],
            });
            self.ask(&Question {
                contract,
                ..Question::default()
            })
        }

        fn fail(&mut self, name: &str, times: u32) {
            let members = self.reach.set.members().iter();
            let names = members.map(|member| member.value.candidate.instance.to_string());
            let others: Vec<String> = names.filter(|other| other != name).collect();
            let others: Vec<&str> = others.iter().map(String::as_str).collect();
            for _ in 0..times {
                let Pick::Go(to, call) = self.but(&others) else {
                    panic!("{name} can be called")
                };
                assert_eq!(to.instance.as_str(), name);
                call.permit.finish(Outcome::Failure, self.now, 0.0);
            }
        }
    }

    impl Bench {
        /// The first one's breaker is open, by calls that nobody chose.
        fn broken(self) -> Self {
            let first = &self.reach.set.members()[0].endpoint;
            for _ in 0..5 {
                let permit = Permit::outside(first.clone(), Arc::default(), self.now);
                permit.finish(Outcome::Failure, self.now, 0.0);
            }
            self
        }

        /// With these settings.
        fn treated(mut self, settings: Settings) -> Self {
            let (settings, set) = (Arc::new(settings), &self.reach.set);
            let member = |member: &Member<Arc<Choice>>| {
                let mut treatment = Treatment::default();
                treatment.settings = settings.clone();
                let choice = Choice {
                    candidate: member.value.candidate.clone(),
                    endpoint: member.endpoint.clone(),
                    treatment: Arc::new(treatment),
                };
                Member {
                    endpoint: member.endpoint.clone(),
                    value: Arc::new(choice),
                    ..*member
                }
            };
            let members = set.members().iter().map(member).collect();
            let set = Set::new(members, &[], settings.clone(), self.epoch.clone());
            self.reach.set = Arc::new(set);
            self
        }
    }

    #[derive(Default)]
    struct Question {
        context: &'static str,
        prefer: Option<InstanceId>,
        exclude: Vec<InstanceId>,
        contract: Option<Contract>,
        again: bool,
        barred: Option<AgentName>,
    }

    fn went(pick: &Pick) -> &str {
        match pick {
            Pick::Go(to, _) => to.instance.as_str(),
            Pick::Busy(_) | Pick::Ejected(_) | Pick::OverBudget(_) | Pick::Nobody => {
                panic!("{pick:?}")
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn where_it_failed_is_the_last_choice() {
        let mut bench = Bench::new(&[("a", ""), ("b", "")]);
        for _ in 0..20 {
            assert_eq!(went(&bench.but(&["a"])), "b");
        }
        // The other has no room: it is worth waiting for.
        bench.closed.insert("b");
        let picked = bench.but(&["a"]);
        assert!(matches!(picked, Pick::Busy(None)), "{picked:?}");
        bench.closed.clear();
        bench.fail("b", 5);
        assert_eq!(went(&bench.but(&["a"])), "a", "the other one is broken");
        assert_eq!(went(&bench.but(&["a", "b"])), "a", "rather than nobody");
        bench.closed.insert("a");
        let picked = bench.but(&["a"]);
        assert!(
            matches!(picked, Pick::Busy(Some(_))),
            "it is told when the other is tried: {picked:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn who_broke_is_left_alone_and_it_is_said_until_when() {
        let mut bench = Bench::new(&[("a", "")]);
        bench.fail("a", 5);
        let picked = bench.first();
        let Pick::Ejected(Some(until)) = picked else {
            panic!("{picked:?}")
        };
        assert_eq!(until, bench.now + Duration::from_secs(1));
        bench.now = until;
        let picked = bench.first();
        let Pick::Go(_, call) = &picked else {
            panic!("{picked:?}")
        };
        assert!(call.permit.is_probe());
        assert!(matches!(bench.first(), Pick::Ejected(_)), "one probe");
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_has_to_wait_says_when_to_look_again() {
        // It asked to be left alone for longer than its breaker is open.
        let mut bench = Bench::new(&[("a", "")]);
        let Pick::Go(_, mut call) = bench.first() else {
            panic!("it can be called")
        };
        call.permit.pause(Duration::from_secs(4), bench.now);
        call.permit.finish(Outcome::Neutral, bench.now, 0.0);
        let paused = bench.now + Duration::from_secs(4);
        let mut bench = bench.broken();
        bench.now += Duration::from_secs(2);
        let picked = bench.first();
        assert!(
            matches!(picked, Pick::Ejected(Some(until)) if until == paused),
            "{picked:?}"
        );
        // It has as many calls as it may have, of before it broke.
        let settings = Settings {
            balance: BalanceSettings {
                max_in_flight: 1,
                ..Default::default()
            },
            ..Default::default()
        };
        // Alone, and beside one that is well and does not fit.
        let all = [("a", "1.0.0"), ("b", "2.0.0")];
        for all in [&all[..1], &all[..]] {
            let mut bench = Bench::new(all).treated(settings.clone());
            let held = bench.promised("1.0.0");
            let mut bench = bench.broken();
            bench.now += Duration::from_secs(2);
            let picked = bench.promised("1.0.0");
            assert!(
                matches!(picked, Pick::Ejected(Some(until)) if until <= bench.now + ROOM_AGAIN),
                "{picked:?}"
            );
            drop(held);
            assert_eq!(went(&bench.promised("1.0.0")), "a");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_who_promises_the_same_fits() {
        let mut bench = Bench::new(&[("a", "1.4.0"), ("b", "2.0.0")]);
        for _ in 0..20 {
            let picked = bench.promised("1.0.0");
            assert_eq!(went(&picked), "a");
        }
        bench.fail("a", 5);
        let picked = bench.promised("1.0.0");
        assert!(matches!(picked, Pick::Ejected(Some(_))), "{picked:?}");
        let picked = bench.promised("3.0.0");
        assert!(matches!(picked, Pick::Nobody), "{picked:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_may_not_have_it_is_nobody() {
        let mut bench = Bench::new(&[("a", ""), ("b", "")]);
        let barred = |name: &str| Question {
            barred: name.parse().ok(),
            ..Question::default()
        };
        for _ in 0..20 {
            assert_eq!(went(&bench.ask(&barred("a"))), "b");
        }
        bench.closed.insert("b");
        let picked = bench.ask(&barred("a"));
        assert!(
            matches!(picked, Pick::Busy(_)),
            "it waits for the other: {picked:?}"
        );
        let mut alone = Bench::new(&[("a", "")]);
        let picked = alone.ask(&barred("a"));
        assert!(matches!(picked, Pick::Nobody), "{picked:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn second_tries_end_with_their_budget_and_first_ones_do_not() {
        let mut bench = Bench::new(&[("a", ""), ("b", "")]);
        let mut second = 0;
        let until = loop {
            let picked = bench.again();
            if let Pick::OverBudget(until) = picked {
                break until;
            }
            assert!(matches!(picked, Pick::Go(..)), "{picked:?}");
            second += 1;
            assert!(second < 100);
        };
        assert_eq!(second, 30, "the floor: three in a second for ten");
        assert!(until > bench.now && until < bench.now + Duration::from_secs(1));
        for _ in 0..50 {
            assert!(matches!(bench.first(), Pick::Go(..)));
        }
        for _ in 0..10 {
            assert!(matches!(bench.again(), Pick::Go(..)), "their share");
        }
        assert!(matches!(bench.again(), Pick::OverBudget(_)));
        // Failures take the share away.
        bench.fail("a", 4);
        bench.fail("b", 4);
        assert!(
            bench
                .reach
                .budget
                .lock()
                .left(&Default::default(), bench.now)
                < 0.0
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_context_stays() {
        let mut bench = Bench::new(&[("a", ""), ("b", ""), ("c", "")]);
        let talk = Question {
            context: "talk",
            ..Question::default()
        };
        let homes: HashSet<String> = (0..20)
            .map(|_| went(&bench.ask(&talk)).to_owned())
            .collect();
        assert_eq!(homes.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_asked_gets_the_answer_while_it_can_take_it() {
        let mut bench = Bench::new(&[("a", ""), ("b", ""), ("c", "")]);
        let answered = Question {
            prefer: "b".parse().ok(),
            ..Question::default()
        };
        for _ in 0..20 {
            assert_eq!(went(&bench.ask(&answered)), "b");
        }
        bench.closed.insert("b");
        assert_ne!(went(&bench.ask(&answered)), "b", "it has no room");
        bench.closed.clear();
        bench.fail("b", 5);
        assert_ne!(went(&bench.ask(&answered)), "b", "it is broken");
        let gone = Question {
            prefer: "z".parse().ok(),
            ..Question::default()
        };
        went(&bench.ask(&gone));
    }
}
