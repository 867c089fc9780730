//! Whom a sidecar may call back outside of the mesh, as configuration files write it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::sidecar::CallbackConfig;
use crate::task::callback::{Allowed, Rule};

/// Callbacks to URLs; none are made unless something stands here.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CallbackSettings {
    /// PEM file of authorities that receivers' certificates may have, beside those that the system
    /// trusts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Hosts that may be called.
    pub allow: Vec<AllowSettings>,
}

/// A host that may be called.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AllowSettings {
    /// A name, `*.` and a name, or an address.
    pub host: String,
    /// Ports; none: 443.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// Whether it may be at an address of a private network or of this machine.
    #[serde(default)]
    pub allow_private: bool,
    /// Networks in which it may be though they are not public, such as `10.2.0.0/16`.
    #[serde(default)]
    pub networks: Vec<String>,
}

impl CallbackSettings {
    /// What a sidecar is told.
    ///
    /// # Errors
    /// The key that is wrong, as in `callbacks.allow[0]`, and how.
    pub fn config(&self) -> Result<CallbackConfig, (String, String)> {
        let mut rules = Vec::new();
        for (place, allow) in self.allow.iter().enumerate() {
            let rule = Rule::new(
                &allow.host,
                &allow.ports,
                allow.allow_private,
                &allow.networks,
            );
            rules.push(rule.map_err(|text| (format!("callbacks.allow[{place}]"), text))?);
        }
        let allowed = Allowed::new(rules).map_err(|text| ("callbacks.allow".to_owned(), text))?;
        Ok(CallbackConfig {
            allowed: Arc::new(allowed),
            ca_file: self.ca_file.clone(),
        })
    }

    /// The same with paths that are relative to a directory.
    #[must_use]
    pub fn in_dir(&self, dir: &Path) -> Self {
        Self {
            ca_file: self.ca_file.as_ref().map(|file| dir.join(file)),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_an_entry_is_said_with_its_place() {
        let settings: CallbackSettings = toml::from_str(
            "[[allow]]\nhost = \"a.example\"\n[[allow]]\nhost = \"a.example/x\"\nports = [1]\n",
        )
        .unwrap();
        let (key, text) = settings.config().unwrap_err();
        assert_eq!(key, "callbacks.allow[1]");
        assert!(text.contains("no host"), "{text}");
        assert!(
            CallbackSettings::default()
                .config()
                .unwrap()
                .allowed
                .is_empty()
        );
    }
}
