//! The certificate of whoever holds the CA: signed here, without asking anybody.

use std::sync::Arc;

use crate::identity::authority::{Authority, AuthorityError};
use crate::identity::csr::Draft;
use crate::identity::join::JoinError;
use crate::identity::renewal::Renewer;
use crate::identity::svid::Svid;
use crate::runtime::clock;

/// Renews a registry's own certificate, and the issuing CA where that is due.
#[derive(Clone, Debug)]
pub struct OwnSigner(pub Arc<Authority>);

impl OwnSigner {
    fn sign(&self, present: &Svid, draft: &Draft) -> Result<Svid, AuthorityError> {
        let Self(authority) = self;
        // A CA that cannot be replaced yet may still sign.
        if let Err(error) = authority.refresh(clock::wall()) {
            tracing::error!(%error, "the CA cannot be read, or its issuing CA cannot be rolled over");
        }
        let peer = present.peer();
        let life = authority.leaf_life();
        let chain =
            authority.issue(&draft.public_key()?, &peer.id, peer.instance.as_ref(), life)?;
        authority.certified(draft, chain, present.generation())
    }
}

#[tonic::async_trait]
impl Renewer for OwnSigner {
    async fn renew(&self, present: &Svid, draft: &Draft) -> Result<Svid, JoinError> {
        Ok(self.sign(present, draft)?)
    }

    async fn rejoin(&self, present: &Svid, draft: &Draft) -> Result<Svid, JoinError> {
        Ok(self.sign(present, draft)?)
    }
}
