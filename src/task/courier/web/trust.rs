//! Whose certificates receivers may have: those that the system trusts, and one file more.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use rustls::{ClientConfig, RootCertStore};

/// How receivers are recognised. TLS 1.3 only, without a certificate of ours.
#[derive(Clone)]
pub struct Trust(Arc<ClientConfig>);

/// Why nobody can be recognised.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file of more certificates.
    #[error("no certificates can be read from {0}: {1}")]
    File(String, String),
    /// No TLS as it should be.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

impl Trust {
    /// The system's authorities, and those of a PEM file.
    ///
    /// # Errors
    /// When the file has none.
    pub fn of_system(file: Option<&Path>) -> Result<Self, TrustError> {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        let (taken, _) = roots.add_parsable_certificates(found.certs);
        if taken == 0 {
            tracing::warn!(
                "the system trusts no certificate authority: callbacks reach only receivers that callbacks.ca_file vouches for"
            );
        }
        if let Some(file) = file {
            add(&mut roots, file)?;
        }
        Self::with(roots)
    }

    /// Just these authorities.
    ///
    /// # Errors
    /// Where TLS 1.3 is not to be had.
    pub fn with(roots: RootCertStore) -> Result<Self, TrustError> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Self(Arc::new(config)))
    }

    pub(super) fn config(&self) -> Arc<ClientConfig> {
        self.0.clone()
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trust")
    }
}

fn add(roots: &mut RootCertStore, file: &Path) -> Result<(), TrustError> {
    let wrong = |text: String| TrustError::File(file.display().to_string(), text);
    let found = CertificateDer::pem_file_iter(file).map_err(|error| wrong(error.to_string()))?;
    let mut count = 0;
    for certificate in found {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots
            .add(certificate)
            .map_err(|error| wrong(error.to_string()))?;
        count += 1;
    }
    if count == 0 {
        return Err(wrong("it has none".into()));
    }
    Ok(())
}
