//! The policy of listeners behind which nothing but our own services is.

use super::Arrival;
use crate::h2::{
    exchange::{GivenBack, Outcome, Policy, Request, Verdict},
    grpc::Code,
};

/// Every call is for us.
#[derive(Debug)]
pub(super) struct Inside;

impl Policy for Inside {
    type Peer = Arrival;
    type Call = ();

    fn on_request(&mut self, _: &Arrival, request: &mut Request<'_>) -> (Verdict, ()) {
        (Arrival::local(request), ())
    }

    fn on_again(&mut self, (): &mut (), _: &mut Request<'_>, _: GivenBack) -> Verdict {
        Arrival::gone()
    }

    fn on_end(&mut self, (): (), _: &Outcome) {}
}

impl Arrival {
    /// A call for our own services, which keep its deadline themselves. Its authority is put right:
    /// clients on Unix sockets make up names that servers refuse.
    pub fn local(request: &mut Request<'_>) -> Verdict {
        request.timeout = None;
        request
            .fields
            .set(crate::h2::hpack::Name::Authority, b"localhost");
        Verdict::Local
    }

    /// What a call is told that our own services gave back: they are going.
    pub fn gone() -> Verdict {
        let text = "this sidecar or registry is stopping; ask again, or ask another one";
        Verdict::Reply(Code::UNAVAILABLE, text.into())
    }
}
