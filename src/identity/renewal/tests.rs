//! When a renewal is due, and that a loop with a failing registry keeps the old certificate.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::*;
use crate::identity::authority::{Authority, Overlap, Validity};
use crate::identity::fixture::{BILLING, Mesh};
use crate::runtime::Nursery;

#[test]
fn due_at_half_life_with_its_spread() {
    let mesh = Mesh::new();
    let svid = mesh.svid(BILLING, None);
    let start = svid.peer().not_before;
    let life = svid.peer().not_after.duration_since(start).unwrap();
    let share = |share: f64| start + life.mul_f64(share);
    let second = Duration::from_secs(1);
    for (now, chance, expected) in [
        (start - second, 0.5, "rejoin"),
        (start, 0.5, "in"),
        (share(0.49), 0.5, "in"),
        (share(0.5), 0.5, "renew"),
        (share(0.44), 0.0, "in"),
        (share(0.46), 0.0, "renew"),
        (share(0.54), 1.0, "in"),
        (share(0.56), 1.0, "renew"),
        (share(0.54), 7.0, "in"),
        (svid.peer().not_after, 0.5, "renew"),
        (svid.peer().not_after + second, 0.5, "rejoin"),
        (start + life * 1000, 0.5, "rejoin"),
    ] {
        let due = renewal_due(svid.peer(), now, chance);
        let found = match due {
            Due::In(_) => "in",
            Due::Renew => "renew",
            Due::Rejoin => "rejoin",
        };
        assert_eq!(found, expected, "{due:?} {chance}");
    }
    let Due::In(left) = renewal_due(svid.peer(), start, 0.5) else {
        panic!("due at the start");
    };
    assert_eq!(left.as_secs(), life.as_secs() / 2);
}

#[test]
fn retries_double_to_a_minute_or_a_small_part_of_the_life() {
    let most = retry_most(Duration::from_hours(1));
    let waits: Vec<_> = (0..12)
        .map(|n| retry_wait(n, most, 1.0).as_millis())
        .collect();
    assert_eq!(waits[..4], [0, 500, 1000, 2000]);
    assert_eq!(waits[8..], [60_000; 4]);
    assert_eq!(retry_wait(u32::MAX, most, 1.0), RETRY_MOST);
    assert_eq!(retry_wait(u32::MAX, most, 0.0), RETRY_MOST / 2);
}

/// A backdate that is longer than the life would make a certificate due as it is made.
#[test]
fn a_certificate_of_any_life_is_used_for_about_half_of_it() {
    let mesh = Mesh::new();
    for seconds in [10, 20, 60, 600, 3600] {
        let life = Duration::from_secs(seconds);
        let svid = mesh.authority.svid(&mesh.id(BILLING), None, life).unwrap();
        let now = clock::wall();
        let Due::In(left) = renewal_due(svid.peer(), now, 0.5) else {
            panic!("{life:?} is due at once");
        };
        // Dates are whole seconds.
        let second = Duration::from_secs(1);
        assert!(
            left + second > life * 4 / 10 && left < life * 6 / 10,
            "{left:?} of {life:?}"
        );
    }
}

/// From half of a life to its end there is time for several whole attempts, however short it is.
#[test]
fn a_short_life_leaves_time_for_several_attempts() {
    for seconds in [10, 20, 60, 3600, 7 * 86_400] {
        let life = Duration::from_secs(seconds);
        let one = attempt_limit(life) + retry_most(life);
        // Counted from the latest moment of a renewal, and all of them timed out.
        let left = life.mul_f64(1.0 - RENEW_AT * (1.0 + SPREAD));
        assert!(one * 2 <= left, "{life:?}: two of {one:?} in {left:?}");
    }
}

/// A registry that fails some times, then signs.
struct Flaky {
    authority: Arc<Authority>,
    failures: usize,
    calls: AtomicUsize,
    seen: Mutex<Vec<(Instant, Due, [u8; 32])>>,
}

impl Flaky {
    fn answer(&self, due: Due, present: &Svid, draft: &Draft) -> Result<Svid, JoinError> {
        let key = draft.public_key().unwrap();
        self.seen.lock().push((Instant::now(), due, key.hash()));
        if self.calls.fetch_add(1, Ordering::SeqCst) < self.failures {
            return Err(JoinError::Refused(tonic::Status::unavailable("away")));
        }
        let peer = present.peer();
        let life = Duration::from_hours(1);
        let chain = self
            .authority
            .issue(&key, &peer.id, peer.instance.as_ref(), life);
        let generation = present.generation() + 1;
        Ok(draft.certified(chain.unwrap(), self.authority.bundle(), generation)?)
    }
}

#[tonic::async_trait]
impl Renewer for Flaky {
    async fn renew(&self, present: &Svid, draft: &Draft) -> Result<Svid, JoinError> {
        self.answer(Due::Renew, present, draft)
    }

    async fn rejoin(&self, present: &Svid, draft: &Draft) -> Result<Svid, JoinError> {
        self.answer(Due::Rejoin, present, draft)
    }
}

/// A certificate that began a minute ago and ends then.
fn ending(mesh: &Mesh, not_after: SystemTime) -> Svid {
    let draft = Draft::new().unwrap();
    let life = Validity {
        not_before: clock::wall() - Duration::from_secs(60),
        not_after,
    };
    let key = draft.public_key().unwrap();
    let id = mesh.id(BILLING);
    let instance = "i1".parse().unwrap();
    let chain = mesh
        .authority
        .issue_within(&key, &id, Some(&instance), life);
    draft
        .certified(chain.unwrap(), mesh.authority.bundle(), 1)
        .unwrap()
}

async fn run_until_renewed(mesh: &Mesh, failures: usize) -> (Credentials, Arc<Flaky>) {
    let credentials = Credentials::new(ending(mesh, clock::wall() + Duration::from_secs(30)));
    let serial = credentials.current().peer().serial.clone();
    let flaky = Arc::new(Flaky {
        authority: Arc::clone(&mesh.authority),
        failures,
        calls: AtomicUsize::new(0),
        seen: Mutex::default(),
    });
    let dir = mesh.dir.path().join("svid");
    let nursery = Nursery::here();
    let (own, renewer) = (credentials.clone(), Arc::clone(&flaky));
    nursery.start("renewal", |stop| async move {
        keep_renewed(own, Some(&dir), &*renewer, stop).await;
    });
    let mut changes = credentials.changes();
    assert_eq!(credentials.current().peer().serial, serial);
    changes.changed().await.unwrap();
    nursery.close(Duration::from_secs(1)).await;
    assert!(nursery.is_empty());
    (credentials, flaky)
}

#[tokio::test(start_paused = true)]
async fn a_failed_renewal_is_tried_again_with_the_same_key() {
    let mesh = Mesh::new();
    // A process before this one crashed while it waited for the answer to this key.
    let under_way = Draft::kept_in(&mesh.dir.path().join("svid")).unwrap();
    let under_way = under_way.public_key().unwrap().hash();
    let began = Instant::now();
    let (credentials, flaky) = run_until_renewed(&mesh, 3).await;
    let seen = flaky.seen.lock();
    assert_eq!(seen.len(), 4);
    let waits: Vec<_> = seen
        .iter()
        .map(|(at, ..)| (*at - began).as_millis())
        .collect();
    // Each wait is shortened by up to a half; the timer's grain is 1 ms.
    for (wait, most) in waits.iter().zip([0, 500, 1_500, 3_500]) {
        assert!((most / 2..most + 10).contains(wait), "{waits:?}");
    }
    assert!(
        seen.iter()
            .all(|(_, due, key)| *due == Due::Renew && *key == under_way)
    );
    let current = credentials.current();
    assert_eq!(current.generation(), 2);
    assert_eq!(current.peer().key, seen[0].2);
    let dir = mesh.dir.path().join("svid");
    assert_eq!(Svid::load(&dir).unwrap().peer(), current.peer());
    assert!(!dir.join("next-key.pem").exists());
}

#[tokio::test(start_paused = true)]
async fn an_expired_certificate_is_rejoined_with() {
    let mesh = Mesh::new();
    let credentials = Credentials::new(ending(&mesh, clock::wall() - Duration::from_secs(2)));
    let flaky = Flaky {
        authority: Arc::clone(&mesh.authority),
        failures: 0,
        calls: AtomicUsize::new(0),
        seen: Mutex::default(),
    };
    let mut changes = credentials.changes();
    let stop = Stop::new();
    tokio::select! {
        () = keep_renewed(credentials.clone(), None, &flaky, stop) => panic!("it ended"),
        changed = changes.changed() => changed.unwrap(),
    }
    let due = flaky.seen.lock()[0].1;
    assert_eq!(due, Due::Rejoin);
}

#[tokio::test]
async fn a_key_that_is_in_use_already_is_not_taken_for_the_next_one() {
    let mesh = Mesh::new();
    let dir = mesh.dir.path().join("svid");
    let under_way = Draft::kept_in(&dir).unwrap();
    let present = mesh.svid(BILLING, None);
    let hash = |draft: &Draft| draft.public_key().unwrap().hash();
    assert_eq!(hash(&kept_draft(&dir, &present).unwrap()), hash(&under_way));
    let id = mesh.id(BILLING);
    let key = under_way.public_key().unwrap();
    let chain = mesh
        .authority
        .issue(&key, &id, None, Duration::from_hours(1));
    let crashed = under_way.certified(chain.unwrap(), mesh.authority.bundle(), 2);
    let next = kept_draft(&dir, &crashed.unwrap()).unwrap();
    assert_ne!(hash(&next), hash(&under_way));
}

#[test]
fn what_another_root_signed_is_renewed_within_a_tenth_of_its_life() {
    let life = Duration::from_secs(1_000);
    for (noticed, chance, expected) in [
        (0, 0.0, Due::Renew),
        (0, 0.5, Due::In(Duration::from_secs(50))),
        (49, 0.5, Due::In(Duration::from_secs(1))),
        (50, 0.5, Due::Renew),
        (0, 7.0, Due::In(Duration::from_secs(100))),
        (100, 1.0, Due::Renew),
    ] {
        let due = rotation_due(life, Duration::from_secs(noticed), chance);
        assert_eq!(due, expected, "{noticed} {chance}");
    }
    let soon = Due::In(Duration::from_secs(1));
    for (one, two, expected) in [
        (Due::In(Duration::from_secs(2)), soon, soon),
        (soon, Due::Renew, Due::Renew),
        (Due::Renew, soon, Due::Renew),
        (Due::Rejoin, Due::Renew, Due::Rejoin),
    ] {
        assert_eq!(one.or_sooner(two), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn told_roots_are_kept_and_the_certificate_follows_the_one_that_signs() {
    let mesh = Mesh::new();
    let credentials = Credentials::new(ending(&mesh, clock::wall() + Duration::from_hours(1)));
    let first = mesh.authority.bundle();
    let flaky = Arc::new(Flaky {
        authority: Arc::clone(&mesh.authority),
        failures: 0,
        calls: AtomicUsize::new(0),
        seen: Mutex::default(),
    });
    let dir = mesh.dir.path().join("svid");
    let nursery = Nursery::here();
    let (own, renewer, place) = (credentials.clone(), Arc::clone(&flaky), dir.clone());
    nursery.start("renewal", |stop| async move {
        keep_renewed(own, Some(&place), &*renewer, stop).await;
    });
    let overlap = Duration::from_secs(10);
    let overlap = Overlap {
        prepare: overlap,
        keep: overlap,
    };
    let now = clock::wall();
    mesh.authority.rotate_root(overlap, now).unwrap();
    let both = mesh.authority.bundle();
    credentials.trust(both.clone(), Vec::new()).unwrap();
    // It is prepared only: kept, and nothing else.
    sleep(Duration::from_secs(60)).await;
    assert_eq!(Svid::load(&dir).unwrap().bundle(), both);
    assert_eq!(flaky.calls.load(Ordering::SeqCst), 0);
    mesh.authority.refresh(now + overlap.prepare * 2).unwrap();
    let began = Instant::now();
    credentials
        .trust(mesh.authority.bundle(), Vec::new())
        .unwrap();
    let mut changes = credentials.changes();
    while !credentials.current().is_under_signing_root() {
        changes.changed().await.unwrap();
    }
    let took = began.elapsed();
    assert!(took <= Duration::from_secs(361 + 5), "{took:?}");
    sleep(Duration::from_secs(60)).await;
    assert_eq!(flaky.calls.load(Ordering::SeqCst), 1, "once is enough");
    nursery.close(Duration::from_secs(1)).await;
    let kept = Svid::load(&dir).unwrap();
    assert!(kept.is_under_signing_root());
    assert_eq!(kept.bundle(), [both[1].clone(), first[0].clone()]);
    // An answer from before the last word does not take its roots away.
    let late = mesh.svid(BILLING, Some("i1")).trusting(first, Vec::new());
    credentials.replace(late.unwrap());
    assert_eq!(credentials.current().bundle(), kept.bundle());
    assert!(credentials.trust(Vec::new(), Vec::new()).is_err());
    assert_eq!(credentials.current().bundle(), kept.bundle());
}
