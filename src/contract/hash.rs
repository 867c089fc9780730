//! The hash of a contract: SHA-256 over a form that does not depend on who wrote the schemas.

use std::sync::LazyLock;

use aws_lc_rs::digest::{Context, SHA256};
use serde_json::Value;

use super::schema::{SchemaError, read};

/// The hash of a skill's schemas, 32 B; spelling does not change it.
///
/// # Errors
/// When one of them is no JSON or breaks a bound.
pub fn hash_of(input_schema: &str, output_schema: &str) -> Result<Vec<u8>, SchemaError> {
    let mut hash = Canonical::new("attache.contract.v1");
    for schema in [input_schema, output_schema] {
        let read = read(schema)?;
        hash.text(&read.map(|value| canonical_json(&value)).unwrap_or_default());
    }
    Ok(hash.finish().to_vec())
}

/// Whether this is the hash of no schemas at all: the hash of nothing is a hash as well.
pub fn is_nothing(hash: &[u8]) -> bool {
    hash.is_empty() || hash == *NOTHING
}

static NOTHING: LazyLock<Vec<u8>> =
    LazyLock::new(|| hash_of("", "").expect("empty schemas break no bound"));

/// Feeds a digest so that no two different values feed the same bytes.
#[derive(Clone)]
pub struct Canonical(Context);

impl Canonical {
    /// Begins a digest of things of a kind.
    pub fn new(kind: &str) -> Self {
        let mut made = Self(Context::new(&SHA256));
        made.text(kind);
        made
    }

    /// Feeds a number.
    pub fn number(&mut self, number: usize) {
        self.0.update(&(number as u64).to_be_bytes());
    }

    /// Feeds bytes, with their length.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len());
        self.0.update(bytes);
    }

    /// Feeds text, with its length.
    pub fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// The digest.
    pub fn finish(self) -> [u8; 32] {
        let hash = self.0.finish();
        hash.as_ref().try_into().expect("SHA-256 has 32 bytes")
    }
}

impl std::fmt::Debug for Canonical {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Canonical")
    }
}

/// JSON without white space and with sorted keys, so that spelling does not change the hash.
fn canonical_json(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let mut sorted: Vec<_> = fields.iter().collect();
            sorted.sort_by_key(|(key, _)| key.as_str());
            let inner: Vec<String> = sorted
                .into_iter()
                .map(|(key, value)| {
                    format!("{}:{}", Value::from(key.as_str()), canonical_json(value))
                })
                .collect();
            format!("{{{}}}", inner.join(","))
        }
        Value::Array(items) => {
            let inner: Vec<String> = items.iter().map(canonical_json).collect();
            format!("[{}]", inner.join(","))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.to_string(),
    }
}
