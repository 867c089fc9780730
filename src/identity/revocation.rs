//! Who is shut out: members and instances whose certificates of before some moment are refused.
//!
//! Pure. A registry keeps the list (`ledger`) and tells it (`shutting`); whoever verifies
//! certificates holds it (`credentials`), and connections end by it (`transport::lifetime`).

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::domain::InstanceId;
use crate::domain::SpiffeId;
use crate::identity::authority::{BACKDATE, BACKDATED_PART, ISSUING_LIFE};
use crate::identity::enrollment::REJOIN_WINDOW;
use crate::identity::ledger::{LedgerError, maybe_text, text};
use crate::identity::peer::Peer;
use crate::pb;
use crate::runtime::clock;

/// Most revocations in force: each is held by every member, at some 200 bytes.
pub const REVOCATIONS_MAX: usize = 10_000;

/// A member, or one instance of it, that is shut out until it is enrolled anew.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Revocation {
    /// The member.
    #[serde(with = "text")]
    pub id: SpiffeId,
    /// The instance; `None`: all of the member.
    #[serde(with = "maybe_text")]
    pub instance: Option<InstanceId>,
    /// Certificates issued before this are refused.
    pub before: SystemTime,
}

impl Revocation {
    /// Refuses all that was issued up to `now`. Certificates tell whole seconds only, so that those
    /// of the rest of this second are refused with them.
    pub fn at(now: SystemTime, id: SpiffeId, instance: Option<InstanceId>) -> Self {
        let second = Duration::from_secs(clock::unix_seconds(now) + 1);
        Self {
            id,
            instance,
            before: SystemTime::UNIX_EPOCH + second,
        }
    }

    /// As the bundle watch tells it; `None`: it names nobody.
    pub fn read(told: &pb::Revocation) -> Option<Self> {
        let instance = match told.instance_id.as_str() {
            "" => None,
            text => Some(text.parse().ok()?),
        };
        Some(Self {
            id: told.spiffe_id.parse().ok()?,
            instance,
            before: SystemTime::try_from(told.before?).ok()?,
        })
    }

    /// What the bundle watch tells.
    pub fn message(&self) -> pb::Revocation {
        let instance = self.instance.as_ref();
        pb::Revocation {
            spiffe_id: self.id.to_string(),
            instance_id: instance.map_or_else(String::new, ToString::to_string),
            before: Some(self.before.into()),
        }
    }

    /// Whether it names this instance of this member.
    pub fn names(&self, id: &SpiffeId, instance: Option<&InstanceId>) -> bool {
        self.id == *id && (self.instance.is_none() || self.instance.as_ref() == instance)
    }

    /// Whether this certificate is refused.
    pub fn refuses(&self, peer: &Peer) -> bool {
        self.names(&peer.id, peer.instance.as_ref()) && issued(peer) < self.before
    }

    /// Whether nothing that it refuses is valid any more, or may be rejoined with: a certificate
    /// that an operator issued by hand may live as long as the CA that signed it.
    pub fn is_over(&self, now: SystemTime) -> bool {
        now >= self.before + ISSUING_LIFE + REJOIN_WINDOW
    }
}

/// When a certificate was issued: its life begins earlier by the backdate (`Authority::issue`).
fn issued(peer: &Peer) -> SystemTime {
    let life = peer.not_after.duration_since(peer.not_before);
    // The life has the backdate in it.
    let part = life.unwrap_or_default() / (BACKDATED_PART + 1);
    peer.not_before + BACKDATE.min(part)
}

/// All revocations of a registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocations {
    /// New when the registry began with an empty store.
    pub generation: String,
    /// Grows with every change.
    pub revision: u64,
    /// In force.
    pub all: Vec<Revocation>,
}

impl Revocations {
    /// None yet, of a store that is new.
    pub fn none() -> Self {
        Self {
            generation: format!("{:016x}", rand::random::<u64>()),
            revision: 1,
            all: Vec::new(),
        }
    }

    /// Takes one more, in place of an earlier one of the same name, and lets go of those that are
    /// over.
    ///
    /// # Errors
    /// `Full` with [`REVOCATIONS_MAX`] in force; nothing has changed then.
    pub fn add(&mut self, revocation: Revocation, now: SystemTime) -> Result<(), LedgerError> {
        let same =
            |one: &Revocation| (&one.id, &one.instance) == (&revocation.id, &revocation.instance);
        let mut all: Vec<_> = self.all.iter().filter(|one| !same(one)).collect();
        all.retain(|one| !one.is_over(now));
        if all.len() >= REVOCATIONS_MAX {
            return Err(LedgerError::Full("revocations"));
        }
        self.all = all.into_iter().cloned().collect();
        self.all.push(revocation);
        self.revision += 1;
        Ok(())
    }
}

/// Who is refused, for a quick look at each handshake.
#[derive(Clone, Debug, Default)]
pub struct Revoked {
    by_member: HashMap<SpiffeId, Vec<Revocation>>,
}

impl Revoked {
    /// Those of a list.
    pub fn of(list: impl IntoIterator<Item = Revocation>) -> Self {
        let mut by_member: HashMap<_, Vec<_>> = HashMap::new();
        for one in list {
            by_member.entry(one.id.clone()).or_default().push(one);
        }
        Self { by_member }
    }

    /// Whether this certificate is refused.
    pub fn refuses(&self, peer: &Peer) -> bool {
        let of_member = self.by_member.get(&peer.id);
        of_member.is_some_and(|all| all.iter().any(|one| one.refuses(peer)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BILLING: &str = "spiffe://attache.local/ns/default/agent/billing";

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// A certificate as the CA makes it at `now`, in whole seconds as certificates are.
    fn peer(instance: &str, now: SystemTime, ttl: Duration) -> Peer {
        let whole =
            |at: SystemTime| SystemTime::UNIX_EPOCH + Duration::from_secs(clock::unix_seconds(at));
        Peer {
            id: BILLING.parse().unwrap(),
            instance: Some(instance.parse().unwrap()),
            not_before: whole(now - BACKDATE.min(ttl / BACKDATED_PART)),
            not_after: whole(now + ttl),
            serial: "1".into(),
            key: [0; 32],
        }
    }

    fn of(instance: Option<&str>, now: SystemTime) -> Revocation {
        let instance = instance.map(|text| text.parse().unwrap());
        Revocation::at(now, BILLING.parse().unwrap(), instance)
    }

    #[test]
    fn what_was_issued_up_to_now_is_refused_and_nothing_of_two_seconds_later() {
        for ttl in [5, 10, 59, 600, 3600, 86_400].map(Duration::from_secs) {
            for millis in (0..3000).step_by(125) {
                let now = at(10_000_000) + Duration::from_millis(millis);
                let revocation = of(None, now);
                let before = peer("i1", now, ttl);
                assert!(revocation.refuses(&before), "{ttl:?} {millis}");
                let after = peer("i1", now + Duration::from_secs(2), ttl);
                assert!(!revocation.refuses(&after), "{ttl:?} {millis}");
            }
        }
    }

    #[test]
    fn an_instance_is_shut_out_alone_or_with_all_of_its_member() {
        let now = at(1_000_000);
        let (one, two) = (
            peer("i1", now, Duration::from_secs(3600)),
            peer("i2", now, Duration::from_secs(3600)),
        );
        let other = Peer {
            id: BILLING.replace("billing", "other").parse().unwrap(),
            ..one.clone()
        };
        for (instance, expected) in [
            (None, [true, true, false]),
            (Some("i1"), [true, false, false]),
        ] {
            let revoked = Revoked::of([of(instance, now)]);
            let refused = [&one, &two, &other].map(|peer| revoked.refuses(peer));
            assert_eq!(refused, expected, "{instance:?}");
        }
        assert!(!Revoked::default().refuses(&one));
    }

    #[test]
    fn the_list_has_each_name_once_and_a_bound() {
        let mut list = Revocations::none();
        let now = at(1_000_000);
        list.add(of(None, now), now).unwrap();
        list.add(of(Some("i1"), now), now).unwrap();
        let later = now + Duration::from_secs(60);
        list.add(of(None, later), later).unwrap();
        assert_eq!(list.revision, 4);
        assert_eq!(list.all, [of(Some("i1"), now), of(None, later)]);
        for number in 2..REVOCATIONS_MAX {
            list.all.push(of(Some(&format!("j{number}")), now));
        }
        let full = list.clone();
        let refused = list.add(of(Some("more"), later), later);
        assert_eq!(refused, Err(LedgerError::Full("revocations")));
        assert_eq!(list, full);
        // The same name needs no room, and what is over gives its own.
        list.add(of(None, later), later).unwrap();
        let over = now + ISSUING_LIFE + REJOIN_WINDOW + Duration::from_secs(1);
        assert!(list.all[0].is_over(over) && !list.all[0].is_over(later));
        list.add(of(Some("more"), over), over).unwrap();
        assert_eq!(list.all, [of(None, later), of(Some("more"), over)]);
    }

    #[test]
    fn it_is_told_as_it_is() {
        for instance in [None, Some("i1")] {
            let one = of(instance, at(1_000_000));
            assert_eq!(Revocation::read(&one.message()), Some(one));
        }
        for wrong in [
            pb::Revocation::default(),
            pb::Revocation {
                spiffe_id: BILLING.into(),
                ..Default::default()
            },
            pb::Revocation {
                instance_id: "I 1".into(),
                ..of(None, at(1)).message()
            },
        ] {
            assert_eq!(Revocation::read(&wrong), None, "{wrong:?}");
        }
    }
}
