//! What a registry remembers of join tokens and instances, and the door to its store.
//!
//! The decisions are pure functions of one record, so that every store takes the same ones: it
//! reads the record, lets it decide, and writes it back, all in one transaction.

use std::{
    collections::HashMap,
    fmt,
    str::FromStr,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::domain::InstanceId;
use crate::domain::SpiffeId;
use crate::identity::revocation::{Revocation, Revocations};

/// How long the same nonce, token and key get the same certificate again.
pub const REPLAY_WINDOW: Duration = Duration::from_mins(1);
/// Most tokens that a store holds; used and expired ones are dropped to make room.
pub const TOKENS_MAX: usize = 10_000;
/// Most instances that a store knows: bounds what a flood of enrolments can take.
pub const INSTANCES_MAX: usize = 1_000_000;

/// SHA-256 of a token: what is stored instead of it.
pub type TokenHash = [u8; 32];

/// Why the ledger refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// No such token: it was never made, or was dropped after its end.
    #[error("the token is not known")]
    TokenUnknown,
    /// Somebody redeemed it before.
    #[error("the token was used")]
    TokenUsed,
    /// Its time is over.
    #[error("the token has expired")]
    TokenExpired,
    /// No such instance of this member.
    #[error("the instance is not known")]
    InstanceUnknown,
    /// Another certificate of this instance was issued since.
    #[error("generation {from} is not the current one, {current}")]
    GenerationStale {
        /// What was stated.
        from: u64,
        /// What is true.
        current: u64,
    },
    /// A table is full.
    #[error("no room for more {0}")]
    Full(&'static str),
    /// The store failed.
    #[error("the store failed: {0}")]
    Store(String),
}

/// A join token as it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenEntry {
    /// The one member that it makes.
    #[serde(with = "text")]
    pub id: SpiffeId,
    /// The existing instance that it makes again; none: a new one.
    #[serde(with = "maybe_text")]
    pub instance: Option<InstanceId>,
    /// End of its life.
    pub expires_at: SystemTime,
}

/// A token that is being redeemed: the certificate is made already and is handed out only if the
/// ledger accepts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redemption {
    /// The registry's wall clock.
    pub now: SystemTime,
    /// SHA-256 of the public key (SPKI) of the certificate request.
    pub key: [u8; 32],
    /// Chosen by the caller, kept across its retries; at most 64 bytes.
    pub nonce: Vec<u8>,
    /// The instance that the certificate signs; none for members that have no instances.
    #[serde(with = "maybe_text")]
    pub instance: Option<InstanceId>,
    /// The certificate and its issuing CA, DER, leaf first.
    pub chain: Vec<Vec<u8>>,
}

/// What a redeemed token gives: for a retry the first answer, not the one just made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redeemed {
    /// The instance, if the member has instances.
    #[serde(with = "maybe_text")]
    pub instance: Option<InstanceId>,
    /// Its generation; 0 without an instance.
    pub generation: u64,
    /// DER, leaf first.
    pub chain: Vec<Vec<u8>>,
}

/// What is stored of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// The token as it was made.
    pub entry: TokenEntry,
    /// Set once.
    pub used: Option<TokenUse>,
}

/// Who redeemed a token, and what it got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenUse {
    at: SystemTime,
    key: [u8; 32],
    nonce: Vec<u8>,
    answer: Redeemed,
}

impl TokenRecord {
    /// A token nobody has used.
    pub fn new(entry: TokenEntry) -> Self {
        Self { entry, used: None }
    }

    /// Redeems the token. `instances` is the record of `redemption.instance`, if there is one.
    /// Returns the answer, and the instance's record to write; none for a retry or where the
    /// member has no instances. Nothing has changed on an error.
    ///
    /// # Errors
    /// When it was used by somebody else or longer ago, or has expired.
    pub fn redeem(
        &mut self,
        redemption: Redemption,
        instance: Option<&InstanceEntry>,
    ) -> Result<(Redeemed, Option<InstanceEntry>), LedgerError> {
        if let Some(used) = &self.used {
            return if used.is_repeated_by(&redemption) {
                Ok((used.answer.clone(), None))
            } else {
                Err(LedgerError::TokenUsed)
            };
        }
        if redemption.now >= self.entry.expires_at {
            return Err(LedgerError::TokenExpired);
        }
        if self.entry.instance.is_some() && self.entry.instance != redemption.instance {
            return Err(LedgerError::InstanceUnknown);
        }
        let written = match (&redemption.instance, instance) {
            (None, _) => None,
            (Some(_), None) if self.entry.instance.is_some() => {
                return Err(LedgerError::InstanceUnknown);
            }
            (Some(_), None) => Some(InstanceEntry::first(self.entry.id.clone(), redemption.key)),
            // A random instance id that exists already is not ours to take.
            (Some(_), Some(_)) if self.entry.instance.is_none() => {
                return Err(LedgerError::InstanceUnknown);
            }
            (Some(_), Some(known)) => Some(known.taken_over(&self.entry.id, redemption.key)?),
        };
        let answer = Redeemed {
            instance: redemption.instance,
            generation: written.as_ref().map_or(0, |entry| entry.generation),
            chain: redemption.chain,
        };
        self.used = Some(TokenUse {
            at: redemption.now,
            key: redemption.key,
            nonce: redemption.nonce,
            answer: answer.clone(),
        });
        Ok((answer, written))
    }

    /// Whether it is a way back for whom a revocation names: nobody has used it yet.
    pub fn is_undone_by(&self, revocation: &Revocation) -> bool {
        self.used.is_none() && revocation.names(&self.entry.id, self.entry.instance.as_ref())
    }

    /// Whether nothing is lost when the record is dropped.
    pub fn is_over(&self, now: SystemTime) -> bool {
        let end = match &self.used {
            Some(used) => used.at + REPLAY_WINDOW,
            None => self.entry.expires_at,
        };
        now >= end
    }
}

impl TokenUse {
    fn is_repeated_by(&self, redemption: &Redemption) -> bool {
        let age = redemption.now.duration_since(self.at).unwrap_or_default();
        age < REPLAY_WINDOW && self.key == redemption.key && self.nonce == redemption.nonce
    }
}

/// An instance, and which of its certificates is the latest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceEntry {
    /// The member that it is an instance of.
    #[serde(with = "text")]
    pub id: SpiffeId,
    /// Counts its certificates, from 1.
    pub generation: u64,
    /// SHA-256 of the latest certificate's public key (SPKI).
    pub key: [u8; 32],
    /// That of the certificate before.
    pub previous_key: Option<[u8; 32]>,
}

impl InstanceEntry {
    /// A new instance's.
    pub fn first(id: SpiffeId, key: [u8; 32]) -> Self {
        Self {
            id,
            generation: 1,
            key,
            previous_key: None,
        }
    }

    /// The record after a certificate for `key` is issued to the holder of generation `from`.
    /// A retry with the same key after a lost answer gets the generation that it made before.
    ///
    /// # Errors
    /// `GenerationStale` when another certificate was issued since: the key may be stolen.
    pub fn advanced(&self, from: u64, key: [u8; 32]) -> Result<Self, LedgerError> {
        if from == self.generation {
            return Ok(self.followed_by(key));
        }
        if from.checked_add(1) == Some(self.generation) && key == self.key {
            return Ok(self.clone());
        }
        Err(LedgerError::GenerationStale {
            from,
            current: self.generation,
        })
    }

    /// The generation that the holder of certificate key `old` may advance from to `new`.
    pub fn held_by(&self, old: [u8; 32], new: [u8; 32]) -> Option<u64> {
        if self.key == old {
            return Some(self.generation);
        }
        let retried = self.previous_key == Some(old) && self.key == new;
        retried.then(|| self.generation.saturating_sub(1))
    }

    fn taken_over(&self, id: &SpiffeId, key: [u8; 32]) -> Result<Self, LedgerError> {
        if self.id == *id {
            Ok(self.followed_by(key))
        } else {
            Err(LedgerError::InstanceUnknown)
        }
    }

    fn followed_by(&self, key: [u8; 32]) -> Self {
        Self {
            id: self.id.clone(),
            generation: self.generation.saturating_add(1),
            key,
            previous_key: Some(self.key),
        }
    }
}

/// Where a registry keeps tokens and instances. Every change is atomic, and durable before it
/// returns. The pure parts above decide; an implementation only reads and writes.
#[tonic::async_trait]
pub trait Ledger: Send + Sync + 'static {
    /// Keeps a new token. Full: drop records that [`TokenRecord::is_over`] at `now` first.
    async fn put_token(
        &self,
        hash: TokenHash,
        entry: TokenEntry,
        now: SystemTime,
    ) -> Result<(), LedgerError>;

    /// A token's record, whatever its state.
    async fn token(&self, hash: &TokenHash) -> Result<Option<TokenRecord>, LedgerError>;

    /// [`TokenRecord::redeem`], with the record of `redemption.instance`: both in one transaction.
    async fn redeem(
        &self,
        hash: &TokenHash,
        redemption: Redemption,
    ) -> Result<Redeemed, LedgerError>;

    /// What is known of an instance.
    async fn instance(&self, id: &InstanceId) -> Result<Option<InstanceEntry>, LedgerError>;

    /// [`InstanceEntry::advanced`] in one transaction; the new generation.
    async fn advance_generation(
        &self,
        id: &InstanceId,
        from: u64,
        key: [u8; 32],
    ) -> Result<u64, LedgerError>;

    /// Shuts somebody out, in one transaction: the instances that it names are forgotten, so that
    /// none is renewed or rejoins, with the unused tokens that make them; and the list has it.
    /// Gives the whole list, and how many instances were forgotten.
    async fn revoke(
        &self,
        revocation: Revocation,
        now: SystemTime,
    ) -> Result<(Revocations, usize), LedgerError>;

    /// Who is shut out.
    async fn revocations(&self) -> Result<Revocations, LedgerError>;
}

/// A ledger that forgets everything with its process: for tests.
#[derive(Debug, Default)]
pub struct MemoryLedger {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    tokens: HashMap<TokenHash, TokenRecord>,
    instances: HashMap<InstanceId, InstanceEntry>,
    revocations: Revocations,
}

impl Default for State {
    fn default() -> Self {
        Self {
            tokens: HashMap::new(),
            instances: HashMap::new(),
            revocations: Revocations::none(),
        }
    }
}

#[tonic::async_trait]
impl Ledger for MemoryLedger {
    async fn put_token(
        &self,
        hash: TokenHash,
        entry: TokenEntry,
        now: SystemTime,
    ) -> Result<(), LedgerError> {
        let tokens = &mut self.state.lock().tokens;
        if tokens.len() >= TOKENS_MAX {
            tokens.retain(|_, record| !record.is_over(now));
        }
        if tokens.len() >= TOKENS_MAX {
            return Err(LedgerError::Full("join tokens"));
        }
        tokens.insert(hash, TokenRecord::new(entry));
        Ok(())
    }

    async fn token(&self, hash: &TokenHash) -> Result<Option<TokenRecord>, LedgerError> {
        Ok(self.state.lock().tokens.get(hash).cloned())
    }

    async fn redeem(
        &self,
        hash: &TokenHash,
        redemption: Redemption,
    ) -> Result<Redeemed, LedgerError> {
        let state = &mut *self.state.lock();
        let record = state.tokens.get_mut(hash);
        let record = record.ok_or(LedgerError::TokenUnknown)?;
        let instance = redemption.instance.clone();
        let known = instance.as_ref().and_then(|id| state.instances.get(id));
        if known.is_none() && state.instances.len() >= INSTANCES_MAX {
            return Err(LedgerError::Full("instances"));
        }
        let (answer, written) = record.redeem(redemption, known)?;
        if let (Some(id), Some(entry)) = (instance, written) {
            state.instances.insert(id, entry);
        }
        Ok(answer)
    }

    async fn instance(&self, id: &InstanceId) -> Result<Option<InstanceEntry>, LedgerError> {
        Ok(self.state.lock().instances.get(id).cloned())
    }

    async fn advance_generation(
        &self,
        id: &InstanceId,
        from: u64,
        key: [u8; 32],
    ) -> Result<u64, LedgerError> {
        let instances = &mut self.state.lock().instances;
        let entry = instances.get_mut(id);
        let entry = entry.ok_or(LedgerError::InstanceUnknown)?;
        *entry = entry.advanced(from, key)?;
        Ok(entry.generation)
    }

    async fn revoke(
        &self,
        revocation: Revocation,
        now: SystemTime,
    ) -> Result<(Revocations, usize), LedgerError> {
        let state = &mut *self.state.lock();
        state.revocations.add(revocation.clone(), now)?;
        let known = state.instances.len();
        state
            .instances
            .retain(|instance, entry| !revocation.names(&entry.id, Some(instance)));
        state
            .tokens
            .retain(|_, record| !record.is_undone_by(&revocation));
        let forgotten = known - state.instances.len();
        Ok((state.revocations.clone(), forgotten))
    }

    async fn revocations(&self) -> Result<Revocations, LedgerError> {
        Ok(self.state.lock().revocations.clone())
    }
}

/// A type of ours as its text.
pub(super) mod text {
    use super::*;

    pub(in crate::identity) fn serialize<T: fmt::Display, S: Serializer>(
        value: &T,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(in crate::identity) fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: fmt::Display>,
        D: Deserializer<'de>,
    {
        let text = String::deserialize(from)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// The same where it may be missing.
pub(super) mod maybe_text {
    use super::*;

    pub(in crate::identity) fn serialize<T: fmt::Display, S: Serializer>(
        value: &Option<T>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_ref().map(ToString::to_string).serialize(to)
    }

    pub(in crate::identity) fn deserialize<'de, T, D>(from: D) -> Result<Option<T>, D::Error>
    where
        T: FromStr<Err: fmt::Display>,
        D: Deserializer<'de>,
    {
        let text = Option::<String>::deserialize(from)?;
        let parsed = text.map(|text| text.parse().map_err(D::Error::custom));
        parsed.transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    const BILLING: &str = "spiffe://attache.local/ns/default/agent/billing";

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn token(instance: Option<&str>) -> TokenRecord {
        TokenRecord::new(TokenEntry {
            id: BILLING.parse().unwrap(),
            instance: instance.map(|text| text.parse().unwrap()),
            expires_at: at(600),
        })
    }

    fn redemption(now: u64, key: u8, nonce: u8, instance: &str) -> Redemption {
        Redemption {
            now: at(now),
            key: [key; 32],
            nonce: vec![nonce],
            instance: Some(instance.parse().unwrap()),
            chain: vec![vec![key, nonce]],
        }
    }

    #[test]
    fn a_token_is_used_once_and_repeated_for_a_minute() {
        let mut record = token(None);
        let (first, written) = record.redeem(redemption(10, 1, 1, "i1"), None).unwrap();
        assert_eq!(first.generation, 1);
        let written = written.unwrap();
        assert_eq!((written.generation, written.key), (1, [1; 32]));
        // The instance of a retry is another random one: the first answer stands.
        let (again, written) = record.redeem(redemption(69, 1, 1, "i2"), None).unwrap();
        assert_eq!((again, written), (first, None));
        for wrong in [
            redemption(70, 1, 1, "i1"),
            redemption(11, 2, 1, "i1"),
            redemption(11, 1, 2, "i1"),
        ] {
            let before = record.clone();
            assert_eq!(record.redeem(wrong, None), Err(LedgerError::TokenUsed));
            assert_eq!(record, before);
        }
        assert!(!record.is_over(at(69)));
        assert!(record.is_over(at(70)));
    }

    #[test]
    fn a_token_ends_on_time() {
        for (now, outcome) in [(599, Ok(())), (600, Err(LedgerError::TokenExpired))] {
            let mut record = token(None);
            let redeemed = record.redeem(redemption(now, 1, 1, "i1"), None);
            assert_eq!(redeemed.map(|_| ()), outcome, "{now}");
        }
        assert!(!token(None).is_over(at(599)));
        assert!(token(None).is_over(at(600)));
    }

    #[test]
    fn a_token_takes_no_instance_but_its_own() {
        let known = InstanceEntry::first(BILLING.parse().unwrap(), [7; 32]);
        let other = BILLING.replace("billing", "other").parse().unwrap();
        let foreign = InstanceEntry::first(other, [7; 32]);
        for (named, asked, found, fits) in [
            (None, "i1", None, true),
            (None, "i1", Some(&known), false),
            (Some("i1"), "i1", Some(&known), true),
            (Some("i1"), "i1", None, false),
            (Some("i1"), "i2", Some(&known), false),
            (Some("i1"), "i1", Some(&foreign), false),
        ] {
            let redeemed = token(named).redeem(redemption(1, 1, 1, asked), found);
            assert_eq!(redeemed.is_ok(), fits, "{named:?} {asked} {found:?}");
            if let (Ok((answer, written)), Some(_)) = (redeemed, named) {
                assert_eq!(answer.generation, 2);
                assert_eq!(written.unwrap().previous_key, Some([7; 32]));
            }
        }
    }

    #[test]
    fn generations_follow_each_other() {
        let first = InstanceEntry::first(BILLING.parse().unwrap(), [1; 32]);
        let second = first.advanced(1, [2; 32]).unwrap();
        assert_eq!((second.generation, second.key), (2, [2; 32]));
        assert_eq!(second.advanced(1, [2; 32]).unwrap(), second);
        for (from, key) in [(1, 3), (0, 2), (3, 2), (u64::MAX, 2)] {
            let refused = second.advanced(from, [key; 32]);
            assert_eq!(
                refused,
                Err(LedgerError::GenerationStale { from, current: 2 })
            );
        }
        assert_eq!(second.held_by([2; 32], [3; 32]), Some(2));
        assert_eq!(second.held_by([1; 32], [2; 32]), Some(1));
        assert_eq!(second.held_by([1; 32], [3; 32]), None);
        assert_eq!(second.held_by([9; 32], [2; 32]), None);
    }

    #[test]
    fn records_are_stored_as_they_are() {
        let mut record = token(Some("i1"));
        let known = InstanceEntry::first(BILLING.parse().unwrap(), [7; 32]);
        let (_, written) = record
            .redeem(redemption(1, 1, 1, "i1"), Some(&known))
            .unwrap();
        let bytes = serde_json::to_vec(&record).unwrap();
        assert_eq!(
            serde_json::from_slice::<TokenRecord>(&bytes).unwrap(),
            record
        );
        let written = written.unwrap();
        let bytes = serde_json::to_vec(&written).unwrap();
        assert_eq!(
            serde_json::from_slice::<InstanceEntry>(&bytes).unwrap(),
            written
        );
        let wrong = String::from_utf8(bytes)
            .unwrap()
            .replace("spiffe:", "https:");
        serde_json::from_str::<InstanceEntry>(&wrong).unwrap_err();
    }

    #[tokio::test]
    async fn the_memory_ledger_makes_room_and_has_a_bound() {
        let ledger = MemoryLedger::default();
        let put = |number: usize, now: u64| {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&number.to_le_bytes());
            ledger.put_token(hash, token(None).entry, at(now))
        };
        for number in 0..TOKENS_MAX {
            put(number, 0).await.unwrap();
        }
        assert_eq!(
            put(TOKENS_MAX, 599).await,
            Err(LedgerError::Full("join tokens"))
        );
        put(TOKENS_MAX, 600).await.unwrap();
        let unknown = ledger.redeem(&[9; 32], redemption(1, 1, 1, "i1")).await;
        assert_eq!(unknown, Err(LedgerError::TokenUnknown));
    }
}
