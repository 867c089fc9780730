//! Join tokens: making them, the join string that carries one, and how often one may be guessed.
//!
//! A token is 256 random bits. It is shown once, in the join string; what is stored is its hash.

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
    time::{Duration, SystemTime},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::domain::Fault;
use crate::domain::InstanceId;
use crate::domain::Reason;
use crate::domain::SpiffeId;
use crate::identity::authority::{Authority, AuthorityError};
use crate::identity::certificate::sha256;
use crate::identity::ledger::{Ledger, LedgerError, TokenEntry, TokenHash};

/// Life of a token where nothing else is asked for.
pub const TOKEN_LIFE: Duration = Duration::from_mins(10);
/// Longest life of a token.
pub const TOKEN_LIFE_MAX: Duration = Duration::from_hours(24);

/// After a failed attempt its network waits that long: one guess per second.
const GUESS_PAUSE: Duration = Duration::from_secs(1);
/// Most networks that are remembered; beyond it the oldest failure is forgotten. A guess among
/// 2^256 tokens stays hopeless; the pause is there to keep logs and CPU quiet.
const GUESSERS_MAX: usize = 4096;

/// Why no token was made.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Zero, or longer than is allowed.
    #[error("a join token lives from 1 second to 24 hours")]
    Life,
    /// The id is of another trust domain.
    #[error("{0} is not of this mesh's trust domain")]
    Foreign(Box<SpiffeId>),
    /// The instance is not this member's.
    #[error("{0} has no such instance: leave it away for a new one")]
    Instance(Box<SpiffeId>),
    /// The ledger refused.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The CA's root cannot be read.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// 256 random bits that make one member, once. Never shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token([u8; 32]);

impl Token {
    /// The token in a text as [`Self::reveal`] gives it.
    pub fn parse(text: &str) -> Option<Self> {
        decoded(text).map(Self)
    }

    /// The token as text: for the join string and for enrolment only.
    pub fn reveal(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    /// What is stored in its place. Unsalted: 256 random bits cannot be looked up in a table.
    pub fn hash(&self) -> TokenHash {
        sha256(&self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// `attache-join:v1:<root key pin>:<token>`: all that a newcomer needs to trust the registry and
/// to be trusted. A secret: handed over by file or environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinString {
    /// SHA-256 of the root's public key.
    pub pin: [u8; 32],
    /// The secret.
    pub token: Token,
}

/// The text is no join string. Does not repeat it: it may hold a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a join string: attache-join:v1:<43 characters>:<43 characters> is expected")]
pub struct JoinStringError;

impl JoinString {
    const PREFIX: &str = "attache-join:v1:";

    /// The join string as text. Whoever reads it can join.
    pub fn reveal(&self) -> String {
        let pin = URL_SAFE_NO_PAD.encode(self.pin);
        format!("{}{pin}:{}", Self::PREFIX, self.token.reveal())
    }
}

impl FromStr for JoinString {
    type Err = JoinStringError;

    fn from_str(text: &str) -> Result<Self, JoinStringError> {
        let rest = text.trim().strip_prefix(Self::PREFIX);
        let (pin, token) = rest
            .and_then(|rest| rest.split_once(':'))
            .ok_or(JoinStringError)?;
        Ok(Self {
            pin: decoded(pin).ok_or(JoinStringError)?,
            token: Token::parse(token).ok_or(JoinStringError)?,
        })
    }
}

/// Makes a token for `id`: a new instance, or `instance` again. `now` is the wall clock's.
/// Returns it with its end. Whether the asker may have it is not decided here.
///
/// # Errors
/// When life, id or instance do not fit, or the ledger refuses.
pub async fn create_join_token(
    authority: &Authority,
    ledger: &dyn Ledger,
    id: SpiffeId,
    instance: Option<InstanceId>,
    life: Duration,
    now: SystemTime,
) -> Result<(JoinString, SystemTime), TokenError> {
    if !(Duration::from_secs(1)..=TOKEN_LIFE_MAX).contains(&life) {
        return Err(TokenError::Life);
    }
    if id.trust_domain != *authority.trust_domain() {
        return Err(TokenError::Foreign(Box::new(id)));
    }
    if let Some(instance) = &instance {
        let known = ledger.instance(instance).await?;
        if known.is_none_or(|known| known.id != id) {
            return Err(TokenError::Instance(Box::new(id)));
        }
    }
    let token = Token(rand::random());
    let pin = authority.root_key_pin()?;
    let expires_at = now + life;
    let entry = TokenEntry {
        id,
        instance,
        expires_at,
    };
    ledger.put_token(token.hash(), entry, now).await?;
    Ok((JoinString { pin, token }, expires_at))
}

/// Who failed to join lately: one failed attempt per second and network.
#[derive(Debug, Default)]
pub(super) struct Guesses {
    failed: Mutex<HashMap<IpAddr, Instant>>,
}

impl Guesses {
    /// Whether `remote` may try now.
    ///
    /// # Errors
    /// `RATE_LIMITED` within a second after a failure.
    pub(super) fn admit(&self, remote: IpAddr, now: Instant) -> Result<(), Fault> {
        let last = self.failed.lock().get(&network(remote)).copied();
        let wait = last.map_or(Duration::ZERO, |last| {
            (last + GUESS_PAUSE).saturating_duration_since(now)
        });
        if wait.is_zero() {
            return Ok(());
        }
        let text = "a join from this address failed less than a second ago: wait, then try again";
        Err(Fault::new(Reason::RateLimited, text).retry_after(wait))
    }

    /// Remembers a failure of `remote`.
    pub(super) fn failed(&self, remote: IpAddr, now: Instant) {
        let mut failed = self.failed.lock();
        if failed.len() >= GUESSERS_MAX {
            failed.retain(|_, last| *last + GUESS_PAUSE > now);
        }
        if failed.len() >= GUESSERS_MAX {
            let oldest = failed.iter().min_by_key(|(_, last)| **last);
            if let Some(oldest) = oldest.map(|(network, _)| *network) {
                failed.remove(&oldest);
            }
        }
        failed.insert(network(remote), now);
    }
}

/// One home has a /64 of IPv6 addresses; an IPv4 address may come mapped into IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 @ IpAddr::V4(_) => v4,
    }
}

fn decoded(text: &str) -> Option<[u8; 32]> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_string_reads_back_and_never_shows_itself() {
        let join = JoinString {
            pin: [7; 32],
            token: Token([9; 32]),
        };
        let text = join.reveal();
        assert!(text.starts_with("attache-join:v1:"));
        assert_eq!(format!("{text}\n").parse::<JoinString>().unwrap(), join);
        assert!(!format!("{join:?}").contains(&join.token.reveal()));
        assert!(!format!("{join:?}").contains("9, 9"));
        for wrong in [
            "",
            "attache-join:v1:",
            "attache-join:v2:a:b",
            &text[..text.len() - 1],
            &format!("{text}A"),
            &text.replace("v1:", "v1::"),
        ] {
            let error = wrong.parse::<JoinString>().unwrap_err();
            assert!(!error.to_string().contains(&join.token.reveal()), "{wrong}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_failure_per_second_and_network() {
        let guesses = Guesses::default();
        let now = Instant::now();
        let half = now + Duration::from_millis(500);
        guesses.failed("::ffff:192.0.2.1".parse().unwrap(), now);
        guesses.failed("2001:db8::1".parse().unwrap(), now);
        for (address, refused) in [
            ("192.0.2.1", true),
            ("192.0.2.2", false),
            ("2001:db8::ffff", true),
            ("2001:db8:0:1::1", false),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(guesses.admit(address, half).is_err(), refused, "{address}");
            guesses.admit(address, now + GUESS_PAUSE).unwrap();
        }
        let fault = guesses
            .admit("192.0.2.1".parse().unwrap(), half)
            .unwrap_err();
        assert_eq!(fault.reason, Reason::RateLimited);
        assert_eq!(fault.retry_after, Some(Duration::from_millis(500)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_table_of_failures_is_bounded() {
        let guesses = Guesses::default();
        let now = Instant::now();
        for number in 0..5_000_u32 {
            let address = IpAddr::V4(number.into());
            guesses.failed(address, now + Duration::from_micros(number.into()));
        }
        assert_eq!(guesses.failed.lock().len(), GUESSERS_MAX);
        let last = IpAddr::V4(4_999.into());
        guesses
            .admit(last, now + Duration::from_millis(20))
            .unwrap_err();
    }
}
