//! What every store must do, run on each of them.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::Beat;
use super::MemoryStore;
use super::Store;
use super::StoreError;
use crate::pb;
use crate::registry::fixture::entry;
use crate::registry::lease::LeaseId;
use crate::registry::live::Since;

async fn on_each<F: Future<Output = ()>>(check: impl Fn(Arc<dyn Store>, Instant) -> F) {
    let now = Instant::now();
    check(Arc::new(MemoryStore::new(now)), now).await;
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
