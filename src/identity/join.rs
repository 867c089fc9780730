//! A member's side of joining, rejoining and renewing, over any gRPC channel.
//!
//! What an answer says is checked before it is used: the key, the roots, and who it names.

use bytes::Bytes;
use http_body::Body;
use rustls::pki_types::CertificateDer;
use tonic::{Status, body::Body as RequestBody, client::GrpcService};

use crate::identity::authority::AuthorityError;
use crate::identity::certificate;
use crate::identity::csr::Draft;
use crate::identity::enrollment::rejoin_message;
use crate::identity::svid::{Svid, SvidError};
use crate::identity::token::JoinString;
use crate::pb;
use crate::pb::enrollment_client::EnrollmentClient;
use crate::pb::identity_client::IdentityClient;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Any channel that the generated clients take.
pub trait Channel:
    GrpcService<
        RequestBody,
        Error: Into<BoxError>,
        Future: Send,
        ResponseBody: Body<Data = Bytes, Error: Into<BoxError> + Send> + Send + 'static,
    > + Send
{
}

impl<T> Channel for T where
    T: GrpcService<
            RequestBody,
            Error: Into<BoxError>,
            Future: Send,
            ResponseBody: Body<Data = Bytes, Error: Into<BoxError> + Send> + Send + 'static,
        > + Send
{
}

/// Why there is no new certificate. The old one stays as good as it was.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The registry refused or could not be reached.
    #[error("{}", .0.message())]
    Refused(#[from] Status),
    /// The registry's answer is none.
    #[error("the registry answered without a certificate")]
    Empty,
    /// The parts of the answer do not fit together.
    #[error(transparent)]
    Unfit(#[from] SvidError),
    /// The roots in the answer are not those of the join string.
    #[error("the registry's roots are not those that the join string pins: do not use it")]
    Pin,
    /// The certificate names somebody else.
    #[error("the registry answered with a certificate for {found}, not for {expected}")]
    Stranger {
        /// Who we are.
        expected: String,
        /// Who it is for.
        found: String,
    },
    /// Our own CA did not sign.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// Our own key could not sign.
    #[error("the present key cannot sign: {0}")]
    Sign(#[from] rustls::Error),
}

/// Redeems a join token. `draft` and `nonce` stay the same when it is called again after a lost
/// answer: within a minute the registry then answers as before. The channel's TLS must have
/// checked the pin: see [`crate::identity::joining_config`].
///
/// # Errors
/// When the registry refuses, or its answer does not hold what the join string promises.
pub async fn enroll(
    channel: impl Channel,
    join: &JoinString,
    draft: &Draft,
    nonce: [u8; 16],
) -> Result<Svid, JoinError> {
    let request = pb::EnrollRequest {
        token: join.token.reveal(),
        csr: draft.csr().to_vec(),
        instance_id: String::new(),
        nonce: nonce.to_vec(),
    };
    let answer = EnrollmentClient::new(channel).enroll(request).await?;
    let svid = certified(draft, answer.into_inner().svid)?;
    let pinned = |der: &CertificateDer<'_>| certificate::key_pin(der) == Ok(join.pin);
    if svid.bundle().iter().any(pinned) {
        Ok(svid)
    } else {
        Err(JoinError::Pin)
    }
}

/// Turns a certificate that is not valid now into one that is, by proof of its key. `exporter` is
/// that of the channel's one connection, and the channel must not change to another one.
///
/// # Errors
/// When the registry refuses, or answers for somebody else.
pub async fn rejoin(
    channel: impl Channel,
    exporter: &[u8; 32],
    present: &Svid,
    draft: &Draft,
) -> Result<Svid, JoinError> {
    let request = pb::RejoinRequest {
        chain: present.chain().iter().map(|der| der.to_vec()).collect(),
        csr: draft.csr().to_vec(),
        proof: present.sign(&rejoin_message(draft.csr(), exporter))?,
    };
    let answer = EnrollmentClient::new(channel).rejoin(request).await?;
    same_member(present, certified(draft, answer.into_inner().svid)?)
}

/// The next certificate, over mutual TLS with the present one.
///
/// # Errors
/// When the registry refuses, or answers for somebody else.
pub async fn renew(
    channel: impl Channel,
    present: &Svid,
    draft: &Draft,
) -> Result<Svid, JoinError> {
    let request = pb::RenewRequest {
        csr: draft.csr().to_vec(),
        generation: present.generation(),
    };
    let answer = IdentityClient::new(channel).renew(request).await?;
    same_member(present, certified(draft, answer.into_inner().svid)?)
}

fn certified(draft: &Draft, answer: Option<pb::Svid>) -> Result<Svid, JoinError> {
    let answer = answer.ok_or(JoinError::Empty)?;
    let owned = |list: Vec<Vec<u8>>| list.into_iter().map(CertificateDer::from).collect();
    let (chain, bundle) = (owned(answer.chain), owned(answer.bundle));
    Ok(draft.certified(chain, bundle, answer.generation)?)
}

fn same_member(present: &Svid, fresh: Svid) -> Result<Svid, JoinError> {
    let (old, new) = (present.peer(), fresh.peer());
    if (&old.id, &old.instance) == (&new.id, &new.instance) {
        return Ok(fresh);
    }
    let named = |svid: &Svid| match &svid.peer().instance {
        Some(instance) => format!("{} instance {instance}", svid.peer().id),
        None => svid.peer().id.to_string(),
    };
    Err(JoinError::Stranger {
        expected: named(present),
        found: named(&fresh),
    })
}
