//! Page tokens: where a listing goes on, sealed so that nobody moves it elsewhere.
//!
//! A token is good only for the caller and the filter it was made for.

use std::fmt;

use aws_lc_rs::hmac::{self, HMAC_SHA256};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::domain::Fault;
use crate::domain::Reason;

/// Bytes of a seal, half of SHA-256: forging it takes 2^128 tries.
const SEAL: usize = 16;
/// Longest token in bytes: the longest cursor (two names and a digest) and its seal, in base64.
const TOKEN_MAX: usize = 1_024;

/// The key that seals a store's page tokens.
pub struct PageKey(hmac::Key);

impl PageKey {
    /// A key of 32 random bytes.
    pub fn new(secret: &[u8; 32]) -> Self {
        Self(hmac::Key::new(HMAC_SHA256, secret))
    }

    /// The token that goes on after `cursor`, for the same `caller` and `filter` only.
    pub fn token(&self, caller: &str, filter: &str, cursor: &str) -> String {
        let mut sealed = self.seal(caller, filter, cursor).to_vec();
        sealed.extend_from_slice(cursor.as_bytes());
        URL_SAFE_NO_PAD.encode(sealed)
    }

    /// The cursor in a token; `None` for an empty one, which begins.
    ///
    /// # Errors
    /// `PAGE_TOKEN_INVALID` when it was not made here for this caller and filter.
    pub fn cursor(&self, caller: &str, filter: &str, token: &str) -> Result<Option<String>, Fault> {
        let invalid = || Fault {
            field: Some("page_token".to_owned()),
            ..Fault::new(
                Reason::PageTokenInvalid,
                "the page token is not from the last answer to the same caller and filter; begin again without one",
            )
        };
        if token.is_empty() {
            return Ok(None);
        }
        if token.len() > TOKEN_MAX {
            return Err(invalid());
        }
        let sealed = URL_SAFE_NO_PAD.decode(token).map_err(|_| invalid())?;
        let (seal, cursor) = sealed.split_at_checked(SEAL).ok_or_else(invalid)?;
        let cursor = String::from_utf8(cursor.to_vec()).map_err(|_| invalid())?;
        let own = self.seal(caller, filter, &cursor);
        if aws_lc_rs::constant_time::verify_slices_are_equal(&own, seal).is_err() {
            return Err(invalid());
        }
        Ok(Some(cursor))
    }

    fn seal(&self, caller: &str, filter: &str, cursor: &str) -> [u8; SEAL] {
        let mut context = hmac::Context::with_key(&self.0);
        for part in [caller, filter, cursor] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        let whole = context.sign();
        let mut seal = [0; SEAL];
        seal.copy_from_slice(&whole.as_ref()[..SEAL]);
        seal
    }
}

/// Says nothing of the key.
impl fmt::Debug for PageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PageKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_caller_and_filter_only() {
        let key = PageKey::new(&[7; 32]);
        let token = key.token("a", "list", "default/billing");
        let cursor = key.cursor("a", "list", &token).unwrap();
        assert_eq!(cursor.as_deref(), Some("default/billing"));
        assert_eq!(key.cursor("a", "list", "").unwrap(), None);
        let forged = URL_SAFE_NO_PAD.encode([&[0; SEAL][..], b"default/ledger"].concat());
        for (key, caller, filter, token) in [
            (&key, "b", "list", token.as_str()),
            (&key, "a", "get", &token),
            (&key, "al", "ist", &token),
            (&PageKey::new(&[8; 32]), "a", "list", &token),
            (&key, "a", "list", &forged),
            (&key, "a", "list", "x"),
            (&key, "a", "list", &"A".repeat(TOKEN_MAX + 1)),
        ] {
            let refused = key.cursor(caller, filter, token).unwrap_err();
            assert_eq!(refused.reason, Reason::PageTokenInvalid);
        }
    }
}
