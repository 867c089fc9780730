//! What every store must do, run on each of them.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;

use tokio::time::Instant;

use super::Beat;
use super::MemoryStore;
use super::RedbStore;
use super::Store;
use super::StoreError;
use crate::domain::InstanceId;
use crate::identity::LedgerError;
use crate::identity::Revocation;
use crate::identity::ledger::Redemption;
use crate::identity::ledger::TokenEntry;
use crate::pb;
use crate::registry::fixture::entry;
use crate::registry::fixture::entry_of;
use crate::registry::fixture::member;
use crate::registry::fixture::rule;
use crate::registry::lease::LeaseId;
use crate::registry::live::Since;
use crate::registry::rules::Refused;
use crate::registry::rules::RuleName;
use crate::registry::rules::Stamp;

async fn on_each<F: Future<Output = ()>>(check: impl Fn(Arc<dyn Store>, Instant) -> F) {
    let now = Instant::now();
    check(Arc::new(MemoryStore::new(now)), now).await;
    let dir = tempfile::tempdir().unwrap();
    let embedded = RedbStore::open(&dir.path().join("registry.redb"), now).unwrap();
    check(Arc::new(embedded), now).await;
}

fn beat(health: pb::Health) -> Beat {
    Beat { health, load: None }
}

#[tokio::test(start_paused = true)]
async fn a_grant_is_in_the_catalog_until_its_end() {
    on_each(|store, now| async move {
        let granted = store
            .grant(entry("a", "default/x", &["s"]), now)
            .await
            .unwrap();
        let a = "a".parse().unwrap();
        assert_eq!(store.live().revision(), granted.revision);
        assert!(store.live().read(|all| all.entry(&a).is_some()));
        let stranger = "b".parse().unwrap();
        let refused = store.end(&granted.lease, &stranger).await;
        assert_eq!(refused, Err(StoreError::LeaseUnknown));
        store.end(&granted.lease, &a).await.unwrap();
        assert!(store.live().read(|all| all.is_empty()));
        let again = store.end(&granted.lease, &a).await;
        assert_eq!(again, Err(StoreError::LeaseUnknown));
        assert_eq!(store.live().revision().number, granted.revision.number + 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_second_registration_takes_the_lease_over() {
    on_each(|store, now| async move {
        let a = "a".parse().unwrap();
        let first = store
            .grant(entry("a", "default/x", &["s"]), now)
            .await
            .unwrap();
        let second = store
            .grant(entry("a", "default/x", &["t"]), now)
            .await
            .unwrap();
        let serving = beat(pb::Health::Serving);
        let old = store.renew(&first.lease, &a, serving, now).await;
        assert_eq!(old, Err(StoreError::LeaseUnknown));
        assert!(store.renew(&second.lease, &a, serving, now).await.is_ok());
        assert_eq!(store.live().read(|all| all.len()), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn health_makes_a_revision_and_load_does_not() {
    on_each(|store, now| async move {
        let a = "a".parse().unwrap();
        let granted = store
            .grant(entry("a", "default/x", &["s"]), now)
            .await
            .unwrap();
        let load = Some(pb::Load {
            running: 3,
            ..Default::default()
        });
        let busy = Beat {
            health: pb::Health::Serving,
            load,
        };
        store.renew(&granted.lease, &a, busy, now).await.unwrap();
        assert_eq!(store.live().revision(), granted.revision);
        assert_eq!(store.live().read(|all| all.entry(&a).unwrap().load()), load);
        let draining = beat(pb::Health::Draining);
        store
            .renew(&granted.lease, &a, draining, now)
            .await
            .unwrap();
        let Since::Changes(changes) = store.live().since(&granted.revision, 9) else {
            panic!("lost");
        };
        assert_eq!(changes.len(), 1);
        assert!(!changes[0].change.entry().serves());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_silent_expire_and_those_who_beat_stay() {
    on_each(|store, start| async move {
        let a = "a".parse().unwrap();
        let granted = store
            .grant(entry("a", "default/x", &["s"]), start)
            .await
            .unwrap();
        store
            .grant(entry("b", "default/x", &["s"]), start)
            .await
            .unwrap();
        for second in 0..60 {
            let now = start + Duration::from_secs(second);
            let serving = beat(pb::Health::Serving);
            store.renew(&granted.lease, &a, serving, now).await.unwrap();
            let gone = store.expire(now).await.unwrap();
            assert_eq!(gone.len(), usize::from(second == 20), "second {second}");
        }
        assert_eq!(store.live().read(|all| all.len()), 1);
        let never = LeaseId::from_text("never");
        let unknown = store
            .renew(&never, &a, beat(pb::Health::Serving), start)
            .await;
        assert_eq!(unknown, Err(StoreError::LeaseUnknown));
    })
    .await;
}

fn redemption(now: SystemTime, key: u8, instance: &str) -> Redemption {
    Redemption {
        now,
        key: [key; 32],
        nonce: vec![key],
        instance: Some(instance.parse().unwrap()),
        chain: vec![vec![key]],
    }
}

fn token(now: SystemTime) -> TokenEntry {
    TokenEntry {
        id: member("default/x"),
        instance: None,
        expires_at: now + Duration::from_secs(600),
    }
}

#[tokio::test]
async fn of_many_who_redeem_a_token_exactly_one_gets_it() {
    let now = SystemTime::UNIX_EPOCH;
    on_each(|store, _| async move {
        let hash = [1; 32];
        store.put_token(hash, token(now), now).await.unwrap();
        let tries = (0..100).map(|key| {
            let store = Arc::clone(&store);
            let ask = redemption(now, key, &format!("i{key}"));
            async move { store.redeem(&hash, ask).await }
        });
        let answers = join_all(tries).await;
        let got: Vec<_> = answers.iter().filter_map(|a| a.as_ref().ok()).collect();
        assert_eq!(got.len(), 1);
        let refused = answers.iter().filter_map(|a| a.as_ref().err());
        assert!(refused.into_iter().all(|e| *e == LedgerError::TokenUsed));
        let instance = got[0].instance.clone().unwrap();
        let known = store.instance(&instance).await.unwrap().unwrap();
        assert_eq!((known.generation, known.id), (1, member("default/x")));
        assert!(store.token(&hash).await.unwrap().unwrap().used.is_some());
        assert_eq!(store.token(&[2; 32]).await.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn a_retry_gets_the_same_answer_and_generations_only_grow() {
    let now = SystemTime::UNIX_EPOCH;
    on_each(|store, _| async move {
        let hash = [1; 32];
        let none = store.redeem(&hash, redemption(now, 1, "i1")).await;
        assert_eq!(none, Err(LedgerError::TokenUnknown));
        store.put_token(hash, token(now), now).await.unwrap();
        let first = store.redeem(&hash, redemption(now, 1, "i1")).await.unwrap();
        let again = store.redeem(&hash, redemption(now, 1, "i2")).await.unwrap();
        assert_eq!(first, again);
        let i1 = "i1".parse().unwrap();
        assert_eq!(store.advance_generation(&i1, 1, [2; 32]).await, Ok(2));
        let stale = store.advance_generation(&i1, 1, [3; 32]).await;
        let expected = LedgerError::GenerationStale {
            from: 1,
            current: 2,
        };
        assert_eq!(stale, Err(expected));
        let stranger = "i2".parse().unwrap();
        let unknown = store.advance_generation(&stranger, 1, [3; 32]).await;
        assert_eq!(unknown, Err(LedgerError::InstanceUnknown));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn whom_a_revocation_names_is_forgotten_and_its_unused_tokens_with_it() {
    on_each(|store, _| async move {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        for (number, instance) in [(1, "i1"), (2, "i2"), (3, "i3")] {
            store
                .put_token([number; 32], token(now), now)
                .await
                .unwrap();
            let redeemed = redemption(now, number, instance);
            store.redeem(&[number; 32], redeemed).await.unwrap();
        }
        store.put_token([4; 32], token(now), now).await.unwrap();
        let bound = TokenEntry {
            instance: Some("i1".parse().unwrap()),
            ..token(now)
        };
        store.put_token([5; 32], bound, now).await.unwrap();
        let known = async || {
            let mut all = Vec::new();
            for instance in ["i1", "i2", "i3"] {
                let entry = store.instance(&instance.parse().unwrap()).await.unwrap();
                all.push(entry.is_some());
            }
            for number in [4, 5] {
                all.push(store.token(&[number; 32]).await.unwrap().is_some());
            }
            all
        };
        assert_eq!(known().await, [true; 5]);
        let before = store.revocations().await.unwrap();
        assert_eq!((before.revision, before.all.len()), (1, 0));

        let one = Revocation::at(now, token(now).id, Some("i1".parse().unwrap()));
        let (list, forgotten) = store.revoke(one.clone(), now).await.unwrap();
        assert_eq!(forgotten, 1);
        assert_eq!((list.revision, &*list.all), (2, &[one.clone()][..]));
        assert_eq!(list.generation, before.generation);
        assert_eq!(known().await, [false, true, true, true, false]);

        let all = Revocation::at(now, token(now).id, None);
        let (list, forgotten) = store.revoke(all.clone(), now).await.unwrap();
        assert_eq!(forgotten, 2);
        assert_eq!((list.revision, &*list.all), (3, &[one, all][..]));
        assert_eq!(known().await, [false; 5]);
        assert_eq!(store.revocations().await.unwrap(), list);
    })
    .await;
}

fn stamp() -> Stamp {
    Stamp {
        by: "spiffe://a/operator/ops".parse().unwrap(),
        at: SystemTime::UNIX_EPOCH,
    }
}

#[tokio::test]
async fn a_rule_is_live_from_its_put_to_its_end() {
    on_each(|store, _| async move {
        let mut bell = store.live().changes();
        let put = store.put_rule(rule("default", "a"), Some(0), stamp());
        let placed = put.await.unwrap();
        assert!(bell.has_changed().unwrap());
        let name = RuleName::read("", "a").unwrap();
        assert_eq!(store.live().rules().get(&name), Some(&placed.rule));
        bell.mark_unchanged();
        let again = store.put_rule(rule("default", "a"), None, stamp());
        assert!(again.await.unwrap().is_unchanged());
        let stale = store.put_rule(rule("default", "a"), Some(0), stamp());
        let stale = stale.await.unwrap_err();
        assert!(matches!(stale, StoreError::Rule(Refused::Changed(_))));
        let stranger = RuleName::read("", "b").unwrap();
        let by = stamp().by;
        let unknown = store.delete_rule(&stranger, None, &by).await.unwrap_err();
        assert!(matches!(unknown, StoreError::Rule(Refused::Unknown(_))));
        assert_eq!(store.live().rules().revision(), 1);
        let deleted = store.delete_rule(&name, Some(1), &by).await.unwrap();
        assert_eq!(deleted, placed.rule);
        assert!(bell.has_changed().unwrap());
        assert!(store.live().rules().is_empty());
        let back = store.put_rule(rule("default", "a"), None, stamp());
        assert_eq!(back.await.unwrap().rule.revision(), 3);
    })
    .await;
}

#[tokio::test]
async fn of_many_who_expect_the_same_revision_exactly_one_changes_the_rule() {
    on_each(|store, _| async move {
        let tries = (1..=20).map(|attempts| {
            let store = Arc::clone(&store);
            let mut other = rule("default", "a");
            other.overrides.attempts = Some(attempts);
            async move { store.put_rule(other, Some(0), stamp()).await }
        });
        let answers = join_all(tries).await;
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
        assert_eq!(store.live().rules().revision(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn other_schemas_under_the_same_version_are_refused_also_when_nobody_is_there() {
    on_each(|store, now| async move {
        let card = |version: &str, schema: &str| pb::AgentCard {
            skills: vec![pb::Skill {
                name: "s".into(),
                version: version.into(),
                input_schema: schema.into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let grant = async |id: &str, agent: &str, card: pb::AgentCard| {
            let entry = entry_of(id, agent, card, pb::Instance::default());
            store.grant(entry, now).await
        };
        let (one, other) = (r#"{"type":"object"}"#, r#"{"type":"array"}"#);
        let first = grant("a", "default/x", card("1.0.0", one)).await.unwrap();
        let a: InstanceId = "a".parse().unwrap();
        store.end(&first.lease, &a).await.unwrap();
        for id in ["a", "b"] {
            let refused = grant(id, "default/x", card("1.0.0", other)).await;
            let Err(StoreError::Promise(broken)) = refused else {
                panic!("{refused:?}");
            };
            assert_eq!((&*broken.skill, &*broken.version), ("s", "1.0.0"));
        }
        assert!(store.live().read(|all| all.is_empty()));
        grant("b", "default/x", card("1.1.0", other)).await.unwrap();
        grant("c", "default/y", card("1.0.0", other)).await.unwrap();
    })
    .await;
}
